"""Members of a zip."""

import dataclasses
import io
import stat
import zipfile

from camray.errors import ErrorCode
from camray.records import Status
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
