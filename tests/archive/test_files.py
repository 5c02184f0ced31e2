"""Groups of loose files: labels, and files that are no longer what was listed."""

import dataclasses
import os

from camray.archive.listing import list_archive
from camray.archive.members import read_members
from camray.config import ArchiveConfig
from camray.errors import ErrorCode
from camray.records import LooseFile, Shard, Status
from tests.archive.makers import CONFIG, png


def group(tmp_path):
    listing = list_archive(ArchiveConfig(path=str(tmp_path)))
    return Shard("group", "files", 0, "", files=listing.files, root=listing.root)


def put(root, name, data):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_labels_from_folders_and_sidecars(tmp_path):
    put(tmp_path, "cat/a.png", png(1))
    put(tmp_path, "cat/deep/b.png", png(2))
    put(tmp_path, "dog/c.png", png(3))
    put(tmp_path, "dog/c.txt", b"wolf")
    put(tmp_path, "dog/c.cls", b"269")
    put(tmp_path, "dog/d.png", png(4))
    put(tmp_path, "dog/d.cls", b"5")
    put(tmp_path, "top.png", png(5))
    members = list(read_members(group(tmp_path), CONFIG))
    assert [(m.index, m.name, m.label, m.label_class) for m in members] == [
        (0, "cat/a.png", "cat", None),
        (1, "cat/deep/b.png", "cat", None),
        (2, "dog/c.png", "wolf", 269),
        (3, "dog/d.png", "dog", 5),
        (4, "top.png", None, None),
    ]
    assert [m.content for m in members] == [png(i) for i in range(1, 6)]


def test_other_extensions_are_skipped(tmp_path):
    for name in ("a.csv", "b.png", "c.txt"):
        put(tmp_path, name, png())
    members = list(read_members(group(tmp_path), CONFIG))
    assert [m.status for m in members] == [Status.SKIPPED, Status.OK, Status.SKIPPED]


def test_what_changed_since_the_listing(tmp_path):
    for name in ("gone.png", "grew.png", "kept.png", "pipe.png", "folder.png", "big.png"):
        put(tmp_path, name, png(1))
    put(tmp_path, "big.png", b"x" * 5000)
    shard = group(tmp_path)
    for name in ("gone.png", "pipe.png", "folder.png"):
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    put(tmp_path, "grew.png", b"y" * 3000)
    config = dataclasses.replace(CONFIG, max_member_bytes=2000)
    codes = {m.name: m.error_code for m in read_members(shard, config)}
    assert codes == {
        "big.png": ErrorCode.MEMBER_TOO_LARGE,
        "folder.png": ErrorCode.MEMBER_UNREADABLE,
        "gone.png": ErrorCode.MEMBER_READ_FAILED,  # it was there, and may be again
        "grew.png": ErrorCode.MEMBER_TOO_LARGE,
        "kept.png": None,
        "pipe.png": ErrorCode.MEMBER_UNREADABLE,
    }


def test_unwanted_files_are_not_opened(tmp_path):
    files = tuple(LooseFile(f"{i}.png", 1, "1") for i in range(3))  # none of them exists
    members = list(read_members(Shard("g", "files", 3, "", files, str(tmp_path)), CONFIG, lambda _: False))
    assert [m.status for m in members] == [Status.OK] * 3


def test_a_sidecar_is_read_by_the_name_it_has(tmp_path):
    for name, data in (("a.PNG", png(1)), ("a.CLS", b"7"), ("a.Txt", b"wolf")):
        put(tmp_path, name, data)
    (member,) = read_members(group(tmp_path), CONFIG)
    assert (member.label, member.label_class) == ("wolf", 7)
