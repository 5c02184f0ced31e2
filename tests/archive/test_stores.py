"""Archives in an object store: a key is any text, and none leads anywhere else."""

import pytest
from pyarrow import fs as pafs

from camray.archive.listing import list_archive
from camray.archive.members import read_members
from camray.config import ArchiveConfig
from camray.errors import PASSING_ERRORS, ErrorCode, ShardError, UsageError
from camray.records import Shard
from camray.storage import open_folder
from tests.archive.makers import png, tar_of
from tests.archive.small_store import small_store

pytest.importorskip("pyarrow._s3fs")


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    for name, value in (
        ("ACCESS_KEY_ID", "x"),
        ("SECRET_ACCESS_KEY", "y"),
        ("EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)


def members(listing):
    group = Shard("group", "files", 0, "", files=listing.files, root=listing.root)
    return {member.name: member for member in read_members(group, ArchiveConfig())}


def test_each_key_is_one_member_whatever_its_characters(tmp_path):
    """What no library can open is a failed member by its name; the rest of the archive goes on."""
    (tmp_path / "secret.png").write_bytes(png(9))
    fine = ["a.png", "d e/b.png", "e%20f.png", "g h?#ü&=+.png", "%2e%2e.png", "ü/图.png"]
    odd = ["d//b.png", "/c.png", f"/{tmp_path}/secret.png", f"file://{tmp_path}/secret.png"]
    odd += ["./a.png", "d e/../a.png", "d?/../a.png"]  # of which Arrow opens the first of `fine`
    with small_store({f"in/{key}": png(i) for i, key in enumerate(fine + odd)}) as (query, _):
        found = members(list_archive(ArchiveConfig(f"s3://b/in{query}")))
    assert len(found) == len(fine) + len(odd)
    assert {name: found[name].content for name in fine} == {key: png(i) for i, key in enumerate(fine)}
    others = [member for name, member in found.items() if name not in fine]
    assert [(m.content, m.error_code) for m in others] == [(None, ErrorCode.MEMBER_UNREADABLE)] * len(odd)


def test_packed_files_with_odd_keys(tmp_path):
    data = tar_of([("a.png", png(1))])
    with small_store({"in/a b.tar": data, "in/a%20b.tar": data, "in/x//y.tar": data}) as (query, _):
        listing = list_archive(ArchiveConfig(f"s3://b/in/{query}"))
        *fine, odd = sorted(listing.shards, key=lambda shard: "//y" in shard.uri)
        assert [m.content for shard in fine for m in read_members(shard, ArchiveConfig())] == [png(1)] * 2
        with pytest.raises(ShardError, match=r"is empty, \. or \.\., which") as raised:
            list(read_members(odd, ArchiveConfig()))
        assert raised.value.code not in PASSING_ERRORS
        for key in ("a%20b.tar", "a%2520b.tar"):  # the addresses of the two
            (shard,) = list_archive(ArchiveConfig(f"s3://b/in/{key}{query}")).shards
            assert shard in listing.shards
            assert len(list(read_members(shard, ArchiveConfig()))) == 1


def test_anonymous_access_signs_nothing():
    """`anonymous@` as Ray's examples have it; any other name before the bucket is a credential."""
    with small_store({"in/a.png": png(1)}) as (query, seen):
        found = members(list_archive(ArchiveConfig(f"s3://anonymous@b/in{query}")))
        assert found["a.png"].content == png(1)
        assert set(seen) == {""}
    assert isinstance(open_folder("gs://anonymous@b/in", "ARCHIVE").fs, pafs.GcsFileSystem)
    with pytest.raises(UsageError, match="credentials in the URI"):
        open_folder("s3://someone@b/in", "ARCHIVE")
    with pytest.raises(UsageError, match="OUT: nobody writes without credentials"):
        open_folder("s3://anonymous@b/out", "OUT")


def test_a_trailing_slash_and_a_scheme_are_no_other_place(tmp_path):
    assert open_folder(f"file://{tmp_path}/", "ARCHIVE").uri == str(tmp_path)
    assert open_folder(f"{tmp_path}/x/../", "ARCHIVE").uri == str(tmp_path)
    assert open_folder("s3://b/in/?region=r", "ARCHIVE").uri == "s3://b/in?region=r"
