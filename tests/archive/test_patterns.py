"""ARCHIVE as a pattern, against what bash and the standard library make of it."""

import glob
import os
import subprocess

import pytest

from camray.archive.listing import list_archive
from camray.archive.patterns import expand, matched
from camray.config import ArchiveConfig
from camray.errors import UsageError
from tests.archive.makers import png, tar_of
from tests.archive.small_store import small_store

BRACES = [
    "data-{000..012}.tar", "{a,b}/{1..3}.zip", "x{3..1}", "{00..10..5}", "a{,b}c", "no{brace}", "{a{1,2},b}",
    "{", "plain", "x{-1..1}",
]  # fmt: skip


@pytest.mark.parametrize("pattern", BRACES)
def test_braces_are_a_shells(pattern):
    said = subprocess.run(["bash", "-c", f"echo {pattern}"], capture_output=True, text=True, check=True)
    assert sorted(expand(pattern)) == sorted(said.stdout.split())


GLOBS = ["*.jpg", "**/*.jpg", "a/**/*.jpg", "?.jpg", "a/[xy].jpg", "a/[!xy].jpg", "**/b/*", "a/*/x.jpg"]


@pytest.mark.parametrize("pattern", GLOBS)
def test_globs_are_the_standard_librarys(tmp_path, pattern):
    for name in ("x.jpg", "xy.jpg", "a/x.jpg", "a/z.jpg", "a/b/x.jpg", "a/b/c/y.jpg", "b/q.png", "b/b/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    found = glob.glob(pattern, root_dir=tmp_path, recursive=True)
    expected = {path for path in found if (tmp_path / path).is_file()}
    listing = list_archive(ArchiveConfig(f"{tmp_path}/{pattern}"))
    assert {os.path.relpath(f"{listing.root}/{f.path}", tmp_path) for f in listing.files} == expected
    assert expected


def test_a_pattern_names_what_a_folder_would_with_labels_and_identities(tmp_path):
    for name, data in {
        "d-0.tar": tar_of([("a.png", png())]), "d-1.tar": tar_of([("a.png", png())]), "e.tar": b"",
        "x.png": png(), "x.cls": b"3", "metadata.csv": b"file_name,label\nx.png,dog\n", "y.gif": b"",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(data)
    whole = list_archive(ArchiveConfig(str(tmp_path)))
    part = list_archive(ArchiveConfig(f"{tmp_path}/{{d-{{0..1}}.tar,*.png}}"))
    assert part.shards == whole.shards[:2]
    assert part.files == tuple(f for f in whole.files if f.path == "x.png")
    assert "dog" in part.files[0].note
    assert part.root == whole.root
    literal = tmp_path / "odd[1].tar"
    literal.write_bytes(tar_of([("a.png", png())]))
    assert len(list_archive(ArchiveConfig(str(literal))).shards) == 1


def test_what_is_missing_or_too_much_is_refused(tmp_path):
    (tmp_path / "d-0.tar").write_bytes(b"")
    with pytest.raises(
        UsageError, match=r"1 of the 2 paths it stands for match nothing, the first is d-1\.tar"
    ):
        list_archive(ArchiveConfig(f"{tmp_path}/d-{{0..1}}.tar"))
    with pytest.raises(UsageError, match="more than 100,000 paths"):
        expand("{0..9}" * 6)
    with pytest.raises(UsageError, match="more than 100,000 paths"):
        expand("{0..999999999}")


def test_patterns_in_a_store(monkeypatch):
    pytest.importorskip("pyarrow._s3fs")
    for name, value in (
        ("ACCESS_KEY_ID", "x"),
        ("SECRET_ACCESS_KEY", "y"),
        ("EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    keys = ["in/a b/1.tar", "in/a b/2.tar", "in/a b/3.tar", "in/c/x.png"]
    with small_store({key: tar_of([("a.png", png())]) for key in keys}) as (query, _):
        listing = list_archive(ArchiveConfig(f"s3://b/in/a%20b/{{1..2}}.tar{query}"))
        assert [shard.uri for shard in listing.shards] == [f"s3://b/in/a%20b/{i}.tar{query}" for i in (1, 2)]
        assert [f.path for f in list_archive(ArchiveConfig(f"s3://b/**/*.png{query}")).files] == [
            "in/c/x.png"
        ]


def test_no_path_is_meant_twice():
    assert matched(["a", "b"], ["a", "?", "a"]) == ({"a", "b"}, [])
