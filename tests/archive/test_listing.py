"""What a folder, a file or a store holds; what is left out, and that nothing hangs."""

import os
import socket
import subprocess
import sys
from collections import Counter

import pyarrow as pa
import pytest
from pyarrow import fs as pafs
from pyarrow import parquet as pq

from camray.archive.listing import UNSURE, list_archive
from camray.archive.members import read_members
from camray.archive.names import file_kind, name_kind
from camray.archive.places import NOWHERE, UNREADABLE, find_files
from camray.config import ArchiveConfig
from camray.errors import PASSING_ERRORS, ShardError, UsageError
from camray.storage import Folder
from tests.archive.makers import END, png


def put(root, *names, data=b"x"):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def listed(path, **settings):
    return list_archive(ArchiveConfig(path=str(path), **settings))


def names(listing):
    return [f.path for f in listing.files]


def test_shards_and_files_together_sorted(tmp_path):
    put(tmp_path, "b.tar", "a/x.zip", "c.tgz", "z.jpg", "a/y.png", "no_extension", "UPPER.JPEG")
    put(tmp_path, "table.csv", "spaces and ünïcode 图像 #1%20?.jpg")
    listing = listed(tmp_path)
    root = str(tmp_path)
    assert [(s.uri.removeprefix(root), s.format) for s in listing.shards] == [
        ("/a/x.zip", "zip"),
        ("/b.tar", "tar"),
        ("/c.tgz", "tar"),
    ]
    assert names(listing) == [
        "UPPER.JPEG",
        "a/y.png",
        "no_extension",
        "spaces and ünïcode 图像 #1%20?.jpg",
        "table.csv",
        "z.jpg",
    ]
    assert listing.root == root
    status = os.stat(tmp_path / "b.tar")
    assert (listing.shards[1].size_bytes, listing.shards[1].version) == (1, str(status.st_mtime_ns))


@pytest.mark.parametrize(
    ("name", "is_shard"), [("one.tar", True), ("one.jpg", False), ("a b#%20.jpg", False)]
)
def test_one_file(tmp_path, name, is_shard):
    put(tmp_path, name, "neighbour.jpg", data=END)
    listing = listed(tmp_path / name)
    assert len(listing.shards) == is_shard
    assert names(listing) == ([] if is_shard else [name])
    assert listing.root == str(tmp_path)
    whole = listed(tmp_path)
    assert set(listing.files) <= set(whole.files)
    assert set(listing.shards) <= set(whole.shards)


def test_junk_is_left_out_and_counted(tmp_path):
    put(
        tmp_path,
        "a.jpg",
        "._a.jpg",
        ".DS_Store",
        "Thumbs.db",
        "__MACOSX/a.jpg",
        ".git/x.jpg",
        "d/.hidden.tar",
    )
    listing = listed(tmp_path)
    assert names(listing) == ["a.jpg"]
    assert listing.shards == ()
    assert listing.left_out == {"junk": 4, "junk (Thumbs.db)": 1, "junk (__MACOSX)": 1}


LEFT_BY_PROGRAMS = (  # Synology, QNAP, Windows, macOS, a repaired file system
    "@eaDir/x.jpg/SYNOPHOTO_THUMB_XL.jpg", "#recycle/x.jpg", "@Recycle/x.jpg", "$RECYCLE.BIN/S-1/x.jpg",
    "System Volume Information/x.jpg", "a/__MACOSX/._x.jpg", "lost+found/x.jpg", "FOUND.000/x.jpg",
    ".thumbnails/x.jpg", ".@__thumb/x.jpg", "DESKTOP.INI", "found.012/x.jpg", "LOST.DIR/x.jpg",
    "~snapshot/hourly.0/x.jpg",
)  # fmt: skip


def test_what_other_programs_leave_is_no_image_wherever_it_lies(tmp_path):
    put(tmp_path, "x.jpg", "recycled/x.jpg", *LEFT_BY_PROGRAMS)
    listing = listed(tmp_path)
    assert names(listing) == ["recycled/x.jpg", "x.jpg"]
    assert sum(listing.left_out.values()) == len(LEFT_BY_PROGRAMS)
    assert listing.left_out["junk (@eaDir)"] == 1
    parent = pafs.SubTreeFileSystem(str(tmp_path.parent), pafs.LocalFileSystem())
    stored, left_out = find_files(Folder("mem://bucket", parent, tmp_path.name))
    assert [entry.path for entry in stored] == names(listing)
    assert left_out == Counter(listing.left_out)


def test_an_include_that_spells_a_left_over_brings_it_back(tmp_path):
    put(tmp_path, "x.jpg", "lost+found/y.jpg", ".cam/.z.jpg", ".git/w.jpg")
    assert names(listed(tmp_path, include=("*.jpg",))) == ["x.jpg"]
    found = listed(tmp_path, include=("x.jpg", "lost+found/*", ".cam/.z.jpg"))
    assert names(found) == [".cam/.z.jpg", "lost+found/y.jpg", "x.jpg"]
    assert [file_kind(f.path) for f in found.files] == ["image"] * 3


def test_include_and_exclude(tmp_path):
    put(tmp_path, "a/1.jpg", "a/2.png", "b/1.jpg", "b/s.tar", "c.tar")
    assert names(listed(tmp_path, include=("a/*",))) == ["a/1.jpg", "a/2.png"]
    assert names(listed(tmp_path, include=("*.jpg",), exclude=("b/*",))) == ["a/1.jpg"]
    listing = listed(tmp_path, include=("*.tar",), exclude=("c*",))
    assert [s.uri for s in listing.shards] == [f"{tmp_path}/b/s.tar"]
    assert listing.left_out == {"excluded": 4}


def test_sidecars_belong_to_their_image(tmp_path):
    put(tmp_path, "a.jpg", "a.txt", "a.cls", "b.jpg", "alone.json", "f.001.png", "f.001.cls", "f.002.png")
    listing = listed(tmp_path)
    found = {f.path: sorted(f.sidecars) for f in listing.files}
    assert found == {
        "a.jpg": ["cls", "txt"],
        "alone.json": [],
        "b.jpg": [],
        "f.001.png": ["cls"],
        "f.002.png": [],
    }
    assert listing.left_out == {"sidecar": 3}


def test_a_changed_sidecar_changes_the_version(tmp_path):
    put(tmp_path, "a.jpg", "a.txt")
    before = listed(tmp_path).files[0].version
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    assert listed(tmp_path).files[0].version != before


def test_an_output_inside_is_never_listed(tmp_path):
    put(
        tmp_path,
        "a.jpg",
        "out/records/_delta_log/0.json",
        "out/overlays/x.jpg",
        "d/out/records/_delta_log/0.json",
    )
    put(tmp_path, "d/b.jpg", "d/out/overlays/x.jpg", "records/c.jpg")
    listing = listed(tmp_path)
    assert names(listing) == ["a.jpg", "d/b.jpg", "records/c.jpg"]
    assert listing.left_out == {"camray output": 2}
    with pytest.raises(UsageError, match="output of camray"):
        listed(tmp_path / "out")


def test_links_pipes_and_sockets_never_hang(tmp_path):
    real, archive = tmp_path / "real", tmp_path / "archive"
    put(real, "r.jpg", "deep/s.jpg")
    put(archive, "a.jpg", "z/b.jpg")
    os.symlink(archive, archive / "loop")
    os.symlink(archive / "z", archive / "again")
    os.symlink(real, archive / "linked")
    os.symlink(real / "r.jpg", archive / "file_link.jpg")
    os.symlink("nowhere", archive / "broken.jpg")
    os.symlink("self.jpg", archive / "self.jpg")
    os.mkfifo(archive / "pipe.jpg")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(archive / "sock.jpg"))
    listing = listed(archive)
    listener.close()
    assert names(listing) == ["a.jpg", "file_link.jpg", "linked/deep/s.jpg", "linked/r.jpg", "z/b.jpg"]
    assert listing.left_out == {"not a file": 2, NOWHERE: 2, "folder seen before": 2}


def test_what_cannot_be_seen_tonight_is_told(tmp_path, monkeypatch):
    """A disk that is not mounted, a folder without permission: fewer images, and a line that says so."""
    put(tmp_path, "a.jpg", "locked/b.jpg")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listing = listed(tmp_path)
    assert names(listing) == ["a.jpg"]
    assert listing.left_out == {UNREADABLE: 1}
    assert {UNREADABLE, NOWHERE} < {*UNSURE}


def test_names_that_are_no_utf8(tmp_path):
    odd = os.path.join(os.fsencode(tmp_path), b"\xff\xfe.jpg")
    with open(odd, "wb") as file:
        file.write(png())
    assert os.fsencode(names(listed(tmp_path))[0]) == b"\xff\xfe.jpg"


def test_missing_and_unusable(tmp_path):
    with pytest.raises(UsageError, match=f"what exists is {tmp_path}"):
        listed(tmp_path / "no" / "such" / "folder")
    with pytest.raises(UsageError, match="no path"):
        listed("")
    with pytest.raises(UsageError, match="not supported"):
        listed("ftp://host/x")
    for place, fix in (
        ("hf://datasets/o/n", "hf download"),
        ("abfs://c/x", "copy it"),
        ("https://h/x.tar", "--allow"),
    ):
        with pytest.raises(UsageError, match=fix):
            listed(place)
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        listed(tmp_path / "pipe.tar")


def test_no_permission(tmp_path):
    """As another user: root may read everything."""
    put(tmp_path / "locked" / "inner", "a.jpg")
    (tmp_path / "locked").chmod(0)
    script = (
        "import os, sys\n"
        "from camray.archive.listing import list_archive\n"
        "from camray.config import ArchiveConfig\n"
        "from camray.errors import UsageError\n"
        "os.getuid() or os.setuid(65534)\n"
        "for path in sys.argv[1:]:\n"
        "    try: list_archive(ArchiveConfig(path=path))\n"
        "    except UsageError as error: print(error)\n"
    )
    os.chmod(tmp_path, 0o755)
    for parent in list(tmp_path.parents)[:2]:
        os.chmod(parent, 0o755)
    paths = [str(tmp_path / "locked"), str(tmp_path / "locked" / "inner")]
    done = subprocess.run(
        [sys.executable, "-c", script, *paths], capture_output=True, text=True, timeout=60, check=True
    )
    (tmp_path / "locked").chmod(0o755)
    assert done.stdout.count("Permission denied") == 2
    assert done.stdout.count("\n") == 2


def test_a_store_lists_as_a_disk_does(tmp_path):
    put(
        tmp_path,
        "b.tar",
        "a/y.png",
        "._j.jpg",
        "__MACOSX/x.jpg",
        "out/records/_delta_log/0.json",
        "out/o.jpg",
    )
    parent = pafs.SubTreeFileSystem(str(tmp_path.parent), pafs.LocalFileSystem())
    store = Folder("mem://bucket", parent, tmp_path.name)
    remote, left_out = find_files(store)
    local, _ = find_files(Folder(str(tmp_path), pafs.LocalFileSystem(), str(tmp_path)))
    assert remote == local
    assert left_out == Counter({"junk": 1, "junk (__MACOSX)": 1, "camray output": 2})


def test_nothing_heavy_is_imported():
    script = (
        "import sys, camray.image.decode, camray.archive.members\n"
        "bad = {'torch', 'ray', 'timm', 'torchvision', 'cv2', 'deltalake'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# ── what is no archive, or only beside one ───────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "data", "looks"),
    [
        ("c.7z", b"7z\xbc\xaf\x27\x1c", "7-Zip"),
        ("c.rar", b"Rar!\x1a\7", "RAR"),
        ("c.img", bytes(600), "zeros"),
        ("c.z01", b"PK\3\4", "ZIP"),
        ("c.zip.001", b"PK\3\4", "ZIP"),
        ("c.tar.lz4", b"\4\x22\x4d\x18", "unknown data"),
        ("c.h5", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("c", b"PK\3\4", "ZIP"),
        ("c.json", b"{}", "JSON"),
    ],
)
def test_one_file_that_is_not_read_is_refused_by_its_kind(tmp_path, name, data, looks):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=rf"{name} is no image.*; it looks like {looks}"):
        listed(tmp_path / name)


def test_a_part_of_a_packed_file_is_no_image():
    assert [name_kind(f"a.{e}") for e in ("zip.001", "7z.002", "tar.000", "z01", "r07")] == ["other"] * 5
    assert name_kind("scan.0001") == "image"


def parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_a_parquet_file_beside_images_that_holds_none_is_a_table(tmp_path):
    """What img2dataset writes by default, and any other table; a damaged file stays, to become a record."""
    put(tmp_path, "00000/1.jpg", "00000_stats.json", "cut.parquet")
    parquet(tmp_path / "00000.parquet", url=["x"], key=["1"])
    parquet(tmp_path / "tables/other.parquet", n=[1])
    listing = listed(tmp_path)
    assert names(listing) == ["00000/1.jpg"]
    assert [s.uri for s in listing.shards] == [f"{tmp_path}/cut.parquet"]
    assert listing.left_out == {"metadata": 2, "table without images": 1}


def test_a_folder_of_nothing_but_tables_is_refused(tmp_path):
    for i in range(10):
        parquet(tmp_path / f"{i}.parquet", n=[1])
    with pytest.raises(UsageError, match="no column of images"):
        listed(tmp_path)


def test_one_parquet_file_without_images_among_others_is_a_failed_shard_for_good(tmp_path):
    for i in range(4):
        parquet(tmp_path / f"{i}.parquet", **({"n": [1]} if i == 0 else {"image": [png(i)]}))
    put(tmp_path, "loose.jpg")
    listing = listed(tmp_path)
    assert len(listing.shards) == 4
    with pytest.raises(ShardError, match="no column of images") as raised:
        list(read_members(listing.shards[0], ArchiveConfig()))
    assert raised.value.code not in PASSING_ERRORS
    assert len(list(read_members(listing.shards[1], ArchiveConfig()))) == 1
