"""Members of a zip."""

import dataclasses
import io
import stat
import struct
import zipfile
import zlib

import pytest

from camray.archive.files import read_files
from camray.archive.listing import list_archive
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, UsageError
from camray.records import Shard, Status
from tests.archive.makers import CONFIG, png, read, tar_of


def zip_of(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def test_members_and_labels(tmp_path):
    data = [
        ("d/", b""),
        ("b.png", png(1)),
        ("a.cls", b"5"),
        ("x.pkl", b"x"),
        ("a.png", png(2)),
        ("n.txt", b"t"),
    ]
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        members, code, _ = read(tmp_path, zip_of(data, method), "zip")
        assert code is None
        assert [(m.index, m.name, m.content, m.label_class) for m in members] == [
            (0, "b.png", png(1), None),
            (1, "x.pkl", None, None),
            (2, "a.png", png(2), 5),
            (3, "n.txt", None, None),
        ]
        assert [m.status for m in members] == [Status.OK, Status.SKIPPED, Status.OK, Status.SKIPPED]


def test_bad_checksum_fails_only_its_member(tmp_path):
    whole = bytearray(zip_of([("a.png", b"A" * 50), ("b.png", b"B" * 50), ("c.png", b"C" * 50)]))
    whole[whole.index(b"BBBB") + 9] ^= 1
    members, code, _ = read(tmp_path, bytes(whole), "zip")
    assert [m.error_code for m in members] == [None, ErrorCode.MEMBER_UNREADABLE, None]
    assert "CRC" in members[1].error_message
    assert code is None


def test_encrypted_member(tmp_path):
    whole = bytearray(zip_of([("a.png", png())]))
    whole[6] |= 1  # the flag in the local header, and in the directory
    whole[whole.index(b"PK\x01\x02") + 8] |= 1
    members, _, _ = read(tmp_path, bytes(whole), "zip")
    assert members[0].error_code == ErrorCode.MEMBER_UNREADABLE
    assert members[0].error_message == "encrypted"


def test_sizes_are_checked_before_reading(tmp_path):
    config = dataclasses.replace(CONFIG, max_member_bytes=1000)
    members, _, _ = read(tmp_path, zip_of([("a.png", b"x" * 1001), ("b.png", b"y")]), "zip", config)
    assert [m.error_code for m in members] == [ErrorCode.MEMBER_TOO_LARGE, None]
    bomb = zip_of([("a.png", bytes(8 * 2**20))], zipfile.ZIP_BZIP2)
    members, _, _ = read(tmp_path, bomb, "zip")
    assert members[0].error_code == ErrorCode.MEMBER_TOO_LARGE


def test_links_are_skipped(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("../../up.png", png())
    members, _, _ = read(tmp_path, buffer.getvalue(), "zip")
    assert [(m.name, m.error_code) for m in members] == [
        ("link.jpg", ErrorCode.NOT_A_FILE),
        ("../../up.png", None),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shard.zip"]


def test_damage(tmp_path):
    whole = zip_of([(f"{i}.png", png(i)) for i in range(9)])
    assert read(tmp_path, whole[: len(whole) // 2], "zip")[1] == ErrorCode.SHARD_TRUNCATED
    _, code, message = read(tmp_path, tar_of([("a.png", png())]), "zip")
    assert code == ErrorCode.SHARD_UNREADABLE
    assert "tar" in message
    assert read(tmp_path, b"", "zip")[1] == ErrorCode.SHARD_UNREADABLE
    assert read(tmp_path, zip_of([]), "zip")[1] == ErrorCode.SHARD_EMPTY


def test_wanted_and_selection(tmp_path):
    data = [(f"{i}.png", png(i)) for i in range(6)]
    members, _, _ = read(tmp_path, zip_of(data), "zip", wanted=lambda i: i == 4)
    assert [m.content for m in members] == [None] * 4 + [png(4), None]
    members, code, _ = read(tmp_path, zip_of(data), "zip", selection=(1, 3))
    assert [(m.index, m.content) for m in members] == [(1, png(1)), (3, png(3))]
    assert code is None


def test_names_that_are_no_utf8(tmp_path):
    """Without the flag for UTF-8 any bytes are a name; with it, a broken one ends the shard, said so."""
    whole = zip_of([("aXb.png", png(1)), ("b.png", png(2))]).replace(b"aXb", b"a\xe9b")
    members, code, _ = read(tmp_path, whole, "zip")
    assert code is None
    assert [m.content for m in members] == [png(1), png(2)]
    assert [m.name.isprintable() for m in members] == [True, True]
    flagged = zip_of([("é.png", png(1)), ("b.png", png(2))]).replace("é".encode(), b"\xff\xfe")
    members, code, message = read(tmp_path, flagged, "zip")
    assert members == []
    assert code == ErrorCode.SHARD_UNREADABLE
    assert "utf-8" in message


# ── what other programs' zips look like ──────────────────────────────────────────────────────────


def zip_by_hand(members, system=3, flags=0, extra=lambda name: b""):
    """A zip whose names are the given bytes, as a program of that system writes them; no standard library."""
    body, directory = b"", b""
    for name, data in members:
        more = extra(name)
        fixed = struct.pack(
            "<HHHHHIIIHH", 20, flags, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), len(more)
        )
        tail = struct.pack("<HHHII", 0, 0, 0, 0, len(body))
        directory += b"PK\1\2" + struct.pack("<BB", 20, system) + fixed + tail + name + more
        body += b"PK\3\4" + fixed + name + more + data
    end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(directory), len(body), 0)
    return body + directory + b"PK\5\6" + end


def test_names_without_the_flag_are_utf8_where_they_can_be(tmp_path):
    """macOS and many libraries write UTF-8 and do not say so; labels must still find their image."""
    whole = zip_by_hand([("Übung/ö.png".encode(), png(1)), ("Übung/ö.cls".encode(), b"3")])
    members, code, _ = read(tmp_path, whole, "zip")
    assert (code, [(m.name, m.label_class) for m in members]) == (None, [("Übung/ö.png", 3)])
    assert "read as utf-8" in members[0].note


def test_names_in_another_encoding_are_read_as_told_and_said_to_be_guessed(tmp_path):
    whole = zip_by_hand([("日本.png".encode("shift_jis"), png(1)), (b"plain.png", png(2))])
    members, _, _ = read(tmp_path, whole, "zip")
    assert members[0].name == "日本.png".encode("shift_jis").decode("cp437")
    assert "cp437" in members[0].note
    assert members[1].note == ""
    told = dataclasses.replace(CONFIG, zip_encoding="shift_jis")
    members, _, _ = read(tmp_path, whole, "zip", told)
    assert ([m.name for m in members], members[0].content) == (["日本.png", "plain.png"], png(1))


def test_a_name_that_says_its_encoding_is_no_guess(tmp_path):
    raw = "ü.png".encode("cp850")
    path = b"\1" + struct.pack("<I", zlib.crc32(raw)) + "ü.png".encode()
    whole = zip_by_hand([(raw, png())], extra=lambda _: struct.pack("<HH", 0x7075, len(path)) + path)
    for data in (whole, zip_by_hand([("ü.png".encode(), png())], flags=0x800)):
        members, _, _ = read(tmp_path, data, "zip")
        assert [(m.name, m.note) for m in members] == [("ü.png", "")]


@pytest.mark.parametrize("system", [0, 10, 11, 3])
def test_a_backslash_separates_folders_in_zips_of_windows(tmp_path, system):
    members = [(b"train\\", b""), (b"train\\dog\\", b""), (b"train\\dog\\1.png", png(1))]
    found, _, _ = read(tmp_path, zip_by_hand(members, system), "zip")
    assert [(m.name, m.label, m.error_code) for m in found] == [("train/dog/1.png", "dog", None)]


def test_a_backslash_is_part_of_a_name_in_zips_of_unix_with_folders(tmp_path):
    found, _, _ = read(tmp_path, zip_by_hand([(b"a\\b.png", png(1)), (b"dog/1.png", png(2))]), "zip")
    assert [m.name for m in found] == ["a\\b.png", "dog/1.png"]
    found, _, _ = read(tmp_path, zip_by_hand([(b"dog/x\\1.png", png(2))], system=0), "zip")
    assert [m.name for m in found] == ["dog/x/1.png"]


def test_class_folders_and_metadata_count_as_in_a_folder(tmp_path):
    table = b"file_name,label,mask\n1.png,cat,m/1.png\n2.png,,\n"
    data = [
        ("train/dog/1.png", png(1)), ("train/dog/2.png", png(2)), ("train/dog/2.cls", b"7"),
        ("set/1.png", png(3)), ("set/2.png", png(4)), ("set/m/1.png", png(5)), ("set/metadata.csv", table),
    ]  # fmt: skip
    members, code, _ = read(tmp_path, zip_of(data), "zip")
    assert code is None
    said = {m.name: (m.label, m.label_class, m.mask) for m in members if m.content}
    assert said == {
        "train/dog/1.png": ("dog", None, None),
        "train/dog/2.png": ("dog", 7, None),
        "set/1.png": ("cat", None, png(5)),
        "set/2.png": (None, None, None),  # named by metadata, which has no label for it
        "set/m/1.png": ("set", None, None),
    }
    for name, content in data:
        place = tmp_path / "unpacked" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    listing = list_archive(ArchiveConfig(path=str(tmp_path / "unpacked")))
    loose = read_files(Shard("x", "files", 0, "", listing.files, listing.root), CONFIG, lambda _: True)
    assert {m.name: (m.label, m.label_class, m.mask) for m in loose} == said


def test_metadata_that_cannot_be_understood_or_a_mask_that_is_missing_is_named(tmp_path):
    data = [("1.png", png()), ("metadata.csv", b"file_name,bbox\n1.png,1 2 3\n")]
    (bad, _), code, _ = read(tmp_path, zip_of(data), "zip")
    assert (code, bad.error_code) == (None, ErrorCode.MEMBER_UNREADABLE)
    assert bad.error_message.startswith("metadata.csv line 2: bbox is ")
    data = [("1.png", png()), ("metadata.csv", b"file_name,mask\n1.png,m.png\n")]
    members, _, _ = read(tmp_path, zip_of(data), "zip")
    assert members[0].error_code == ErrorCode.MEMBER_UNREADABLE
    assert members[0].error_message == "mask m.png: not in the zip, or not to be opened"


def test_the_last_part_of_a_split_zip_is_named(tmp_path):
    whole = zip_of([("a.png", png())])
    at = whole.rindex(b"PK\5\6") + 4
    part = whole[:at] + b"\1\0\1\0" + whole[at + 4 :]
    _, code, message = read(tmp_path, part, "zip")
    assert code == ErrorCode.SHARD_UNREADABLE
    assert "the last of 2 parts of a split zip" in message
    with pytest.raises(UsageError, match="zip -s 0"):
        list_archive(ArchiveConfig(path=str(tmp_path / "shard.zip")))


@pytest.mark.parametrize("name", ["klingon", "base64", "a\0b"])
def test_an_encoding_that_is_none_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="--zip-encoding"):
        list_archive(ArchiveConfig(path=str(tmp_path), zip_encoding=name))


def test_a_directory_that_lists_less_than_the_end_says_is_damage(tmp_path):
    """The standard library reads as much of the directory as its length says, and no more."""
    whole = bytearray(zip_of([(f"{i}.png", png(i)) for i in range(4)]))
    end = whole.rindex(b"PK\5\6")
    size = int.from_bytes(whole[end + 12 : end + 16], "little")
    whole[end + 12 : end + 16] = (size // 2).to_bytes(4, "little")
    whole[end + 16 : end + 20] = (end - size // 2).to_bytes(4, "little")
    _, code, message = read(tmp_path, bytes(whole), "zip")
    assert code == ErrorCode.SHARD_CORRUPT
    assert "lists 2 entries, its end says 4" in message


@pytest.mark.slow
def test_more_entries_than_sixteen_bits_can_count(tmp_path):
    members, code, _ = read(tmp_path, zip_of([(f"{i}.x", b"") for i in range(66_000)]), "zip")
    assert (len(members), code) == (66_000, None)
