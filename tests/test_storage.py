"""One seam to bytes: atomic writes, sorted listings, refusals of odd places."""

import os
import threading
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from camray import storage
from camray.errors import UsageError
from camray.storage import Folder, open_folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return open_folder(str(tmp_path), "OUT")


def hidden(root: Path) -> list[Path]:
    return [p for p in root.rglob("*") if p.name.startswith(".")]


def test_write_read_list_delete(folder: Folder, tmp_path: Path) -> None:
    folder.write("b/2.bin", b"two")
    folder.write("a.bin", b"")
    folder.write("b/c/1.bin", b"\x00" * 5)
    assert (tmp_path / "b/2.bin").read_bytes() == folder.read("b/2.bin") == b"two"
    assert [(e.path, e.size_bytes) for e in folder.entries()] == [
        ("a.bin", 0), ("b/2.bin", 3), ("b/c/1.bin", 5),
    ]  # fmt: skip
    assert folder.names("b") == ["2.bin", "c"]
    assert folder.names() == ["a.bin", "b"]
    assert folder.exists("b/c")
    folder.delete("b/2.bin")
    assert not folder.exists("b/2.bin")
    assert list(folder.entries("not/there")) == []
    assert folder.names("not/there") == []
    assert hidden(tmp_path) == []


def test_version_is_the_stores_own_time(folder: Folder, tmp_path: Path) -> None:
    folder.write("a", b"1")
    os.utime(tmp_path / "a", ns=(5, 1_234_567_890_123_456_789))
    assert [e.version for e in folder.entries()] == ["1234567890123456789"]


def test_a_refused_write_leaves_the_old_file_and_no_debris(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write("a", b"old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        folder.write("a", b"new")
    assert folder.read("a") == b"old"
    assert hidden(tmp_path) == []


def test_every_file_and_then_its_folder_is_flushed(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power loss after the return must find the content (file flush) and the name (folder flush)."""
    events: list[str] = []
    real_sync, real_move = os.fsync, os.replace

    def sync(handle: int) -> None:
        target = os.readlink(f"/proc/self/fd/{handle}")
        events.append("flush folder" if os.path.isdir(target) else "flush file")
        real_sync(handle)

    def move(source: Path, target: Path) -> None:
        events.append(f"name {Path(target).name}")
        real_move(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", move)
    folder.write_all({"a": b"1", "b": b"2"})
    assert events == ["flush file", "name a", "flush file", "name b", "flush folder"]


def test_a_reader_sees_the_whole_old_or_the_whole_new_file(folder: Folder) -> None:
    old, new = b"o" * 200_000, b"n" * 200_000
    folder.write("a", old)
    seen: set[bytes] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.add(folder.read("a"))

    reader = threading.Thread(target=watch)
    reader.start()
    for i in range(40):
        folder.write("a", (old, new)[i % 2])
    done.set()
    reader.join()
    assert seen <= {old, new}


def test_a_file_in_the_place_of_a_folder_is_an_os_error(folder: Folder) -> None:
    folder.write("a", b"1")
    with pytest.raises(OSError, match=r".+"):
        folder.write("a/b", b"2")


@pytest.mark.parametrize("name", ["with space", "per%20cent", "hash#1", "quest?ion", "ünï", "a=b&c"])
def test_odd_names_are_only_names(tmp_path: Path, name: str) -> None:
    folder = open_folder(str(tmp_path / name), "OUT")
    folder.write("x/y", b"1")
    assert (tmp_path / name / "x/y").read_bytes() == b"1"
    assert [e.path for e in folder.entries()] == ["x/y"]
    assert folder.child_uri("x") == f"{tmp_path / name}/x"


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_folder("out", "OUT").uri == f"{tmp_path}/out"
    assert open_folder("out/", "OUT").uri == f"{tmp_path}/out"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_folder("~/out", "OUT").uri == f"{tmp_path}/out"


def test_file_uri_is_a_local_folder(tmp_path: Path) -> None:
    folder = open_folder(f"file://{tmp_path}/out", "OUT")
    assert folder.is_local
    assert folder.uri == f"{tmp_path}/out"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("ftp://host/x", "scheme 'ftp' is not supported"),
        ("http://host/x", "scheme 'http' is not supported"),
        ("hf://datasets/o/n", "scheme 'hf' is not supported"),
        ("abfs://c@a/x", "scheme 'abfs' is not supported"),
        ("s3://KEY:SECRET@bucket/x", "credentials in the URI are refused"),
        ("gs://user@bucket/x", "credentials in the URI are refused"),
        ("s3://bucket/x?region=eu&secret_key=SECRET", "credentials in the URI are refused"),
        ("s3://bucket/x?X-Amz-Signature=SECRET", "credentials in the URI are refused"),
    ],
)
def test_odd_places_are_refused_and_no_secret_is_shown(place: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_folder(place, "ARCHIVE")
    assert str(caught.value).startswith("ARCHIVE: ")
    assert said in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_an_at_sign_behind_the_bucket_is_no_credential() -> None:
    pytest.importorskip("pyarrow._s3fs")
    assert open_folder("s3://bucket/a@b?region=eu-west-1", "ARCHIVE").path == "bucket/a@b"


def test_an_object_store_gets_one_write_per_file(tmp_path: Path) -> None:
    """Any file system that is not the local one goes through open_output_stream, atomic at its close."""
    inner = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    folder = Folder("s3://bucket", inner, "")
    assert not folder.is_local
    folder.write_all({"a": b"1", "b": b"2"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"1", "b": b"2"}


def test_only_these_schemes() -> None:
    assert set(storage.SCHEMES) == {"s3", "gs", "gcs", "file"}


def test_nobody_else_may_write_what_was_written(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        open_folder(str(tmp_path / "out"), "OUT").write("a/b/c", b"1")
    finally:
        os.umask(before)
    assert [p.stat().st_mode & 0o777 for p in sorted((tmp_path / "out").rglob("*"))] == [0o755, 0o755, 0o644]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_a_stricter_umask_is_kept(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        open_folder(str(tmp_path / "out"), "OUT").write("a", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "out/a").stat().st_mode & 0o777 == 0o600
