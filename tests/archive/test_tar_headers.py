"""Damage and oddities of tar headers. Good headers are the standard library's; odd ones are made by hand."""

import io
import tarfile

import pytest

from camray.archive.tar_headers import PlainStream, walk_tar
from camray.errors import ErrorCode, ShardError
from tests.archive.makers import BLOCK, END, entry, header, octal, padded, tar_of


def walk(data):
    found, code, message = [], None, ""
    try:
        for e in walk_tar(PlainStream(io.BytesIO(data), len(data))):
            found.append(e)
    except ShardError as error:
        code, message = error.code, error.message
    return found, code, message


TWENTY = [(f"{i:02}.jpg", bytes([i]) * (300 + 100 * i)) for i in range(20)]
WHOLE = tar_of(TWENTY)


def offset_of(index):
    """Where the header of a member lies, by the standard library."""
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as tar:
        return tar.getmembers()[index].offset


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_whole_archive():
    found, code, _ = walk(WHOLE)
    assert [(e.name, e.size, e.kind) for e in found] == [(n, len(d), "file") for n, d in TWENTY]
    assert [e.offset for e in found] == [offset_of(i) for i in range(20)]
    assert code is None


AT = offset_of(10)
DAMAGE = {
    "checksum flipped": (flipped(WHOLE, AT + 150), ErrorCode.SHARD_CORRUPT, 10),
    "name flipped": (flipped(WHOLE, AT), ErrorCode.SHARD_CORRUPT, 10),
    "header zeroed": (WHOLE[:AT] + bytes(BLOCK) + WHOLE[AT + BLOCK :], ErrorCode.SHARD_CORRUPT, 10),
    "cut at a member boundary": (WHOLE[:AT], ErrorCode.SHARD_TRUNCATED, 10),
    "cut inside a header": (WHOLE[: AT + 100], ErrorCode.SHARD_TRUNCATED, 10),
    "cut after a header": (WHOLE[: AT + BLOCK], ErrorCode.SHARD_TRUNCATED, 10),
    "cut inside data": (WHOLE[: AT + BLOCK + 100], ErrorCode.SHARD_TRUNCATED, 10),
    "cut inside padding": (WHOLE[: AT + BLOCK + 1310], ErrorCode.SHARD_TRUNCATED, 11),
    "insane size": (
        WHOLE[:AT] + header(b"10.jpg", b"77777777777\0") + WHOLE[AT + BLOCK :],
        ErrorCode.SHARD_TRUNCATED,
        10,
    ),
    "size not octal": (
        WHOLE[:AT] + header(b"10.jpg", b"0000000x000\0") + WHOLE[AT + BLOCK :],
        ErrorCode.SHARD_CORRUPT,
        10,
    ),
    "negative base-256 size": (
        WHOLE[:AT] + header(b"10.jpg", b"\xff" * 12) + WHOLE[AT + BLOCK :],
        ErrorCode.SHARD_CORRUPT,
        10,
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_at_its_place(name):
    data, expected, good = DAMAGE[name]
    found, code, message = walk(data)
    assert code == expected
    assert [e.name for e in found[:good]] == [n for n, _ in TWENTY[:good]]
    assert len(found) == good
    assert f"{AT:,}" in message or "byte" in message


def test_the_end_must_be_two_zero_blocks():
    body = entry(b"a.jpg", b"x" * 600)
    assert walk(body + END)[1] is None
    assert walk(body)[1] == ErrorCode.SHARD_TRUNCATED
    assert walk(body + bytes(BLOCK))[1] == ErrorCode.SHARD_TRUNCATED
    assert walk(body + bytes(BLOCK) + body + END)[1] == ErrorCode.SHARD_CORRUPT
    assert walk(body + END + bytes(20 * BLOCK))[1] is None


def test_a_second_archive_behind_the_end_is_not_silent():
    found, code, message = walk(entry(b"a.jpg", b"x") + END + bytes(5 * BLOCK) + entry(b"b.jpg", b"y") + END)
    assert len(found) == 1
    assert code == ErrorCode.SHARD_CORRUPT
    assert f"{2 * BLOCK + 7 * BLOCK:,}" in message


def test_every_one_byte_cut_is_an_error():
    whole = tar_of([("a.jpg", b"x" * 700), ("b.jpg", b"y" * 10)])
    end = whole.rstrip(b"\0")
    body = len(padded(end))
    for cut in range(1, body + 2 * BLOCK, 61):
        assert walk(whole[:cut])[1] is not None, cut
    assert walk(whole[: body + 2 * BLOCK])[1] is None


def test_every_header_bit_flip_is_an_error():
    data = entry(b"a.jpg", b"x") + entry(b"b.jpg", b"y") + END
    for at in range(2 * BLOCK, 3 * BLOCK):
        found, code, _ = walk(flipped(data, at))
        # the magic's version digits are not under any rule but the checksum
        assert code is not None, at
        assert [e.name for e in found] == ["a.jpg"]


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(fmt):
    names = ["d/" * 40 + "f.jpg", "plain.jpg", "ünïcode 图像.jpg"]
    if fmt != tarfile.USTAR_FORMAT:
        names += ["x" * 300 + ".jpg", "d/" * 400 + "f.png"]
    found, code, _ = walk(tar_of([(n, b"data") for n in names], format=fmt))
    assert code is None
    assert [e.name for e in found] == names


def test_posix_prefix_and_gnu_times():
    assert walk(entry(b"a.jpg", prefix=b"some/dir") + END)[0][0].name == "some/dir/a.jpg"
    gnu = entry(b"a.jpg", prefix=b"14000000000", magic=b"ustar  \0")
    assert walk(gnu + END)[0][0].name == "a.jpg"


def test_old_unix_archive_without_magic():
    found, code, _ = walk(
        entry(b"dir/", flag=b"\0", magic=b"") + entry(b"a.jpg", b"x", b"\0", magic=b"") + END
    )
    assert code is None
    assert [(e.name, e.kind) for e in found] == [("dir/", "folder"), ("a.jpg", "file")]


def test_signed_checksum_of_old_writers():
    name = "é.jpg".encode("latin-1")
    block = bytearray(header(name, octal(0)))
    block[148:156] = b" " * 8
    signed = sum(b - 256 if b > 127 else b for b in block)
    assert walk(header(name, octal(0), chksum=b"%06o\0 " % signed) + END)[1] is None


def test_base_256_size():
    size = bytes([0x80]) + (600).to_bytes(11, "big")
    found, code, _ = walk(header(b"a.jpg", size) + padded(b"x" * 600) + END)
    assert (found[0].size, code) == (600, None)


KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "link",
    b"2": "link",
    b"3": "device",
    b"4": "device",
    b"6": "device",
    b"5": "folder",
    b"D": "folder",
    b"S": "sparse",
    b"M": "other",
    b"V": "other",
    b"A": "other",
    b"Z": "other",
}


@pytest.mark.parametrize("flag", KINDS)
def test_every_typeflag(flag):
    has_data = flag not in b"123456"
    odd = header(b"odd.jpg", octal(700 if has_data else 0), flag) + (padded(b"z" * 700) if has_data else b"")
    found, code, _ = walk(odd + entry(b"next.jpg", b"n") + END)
    assert code is None
    assert [(e.name, e.kind) for e in found] == [("odd.jpg", KINDS[flag]), ("next.jpg", "file")]


def test_a_link_that_states_a_size_has_no_data():
    found, code, _ = walk(header(b"l.jpg", octal(10**6), b"1") + entry(b"next.jpg", b"n") + END)
    assert ([e.name for e in found], code) == (["l.jpg", "next.jpg"], None)


def pax(records, flag=b"x"):
    data = b""
    for key, value in records:
        length = len(key) + len(value) + 3
        while len(str(length)) + len(key) + len(value) + 3 != length:
            length = len(str(length)) + len(key) + len(value) + 3
        data += b"%d %s=%s\n" % (length, key, value)
    return entry(b"pax", data, flag)


def test_pax_path_and_size():
    data = pax([(b"mtime", b"1.5"), (b"path", "ü/long.jpg".encode()), (b"size", b"600")])
    found, code, _ = walk(data + header(b"short", octal(0)) + padded(b"x" * 600) + entry(b"b.jpg") + END)
    assert [(e.name, e.size) for e in found] == [("ü/long.jpg", 600), ("b.jpg", 0)]
    assert code is None


def test_pax_sparse_is_no_file():
    found, _, _ = walk(pax([(b"GNU.sparse.major", b"1")]) + entry(b"s.jpg", b"x" * 9) + END)
    assert found[0].kind == "sparse"


@pytest.mark.parametrize(
    "body",
    [
        b"garbage",
        b"99999 path=x\n",
        b"5 a=b",
        b"0 a=b\n",
        b"-5 a=b\n",
        b"9 path=x ",
        b"12 size=-5\n\n",
        b"11 size=xy\n",
    ],
)
def test_damaged_pax_is_an_error(body):
    found, code, _ = walk(entry(b"pax", body, b"x") + entry(b"a.jpg", b"x") + END)
    assert (found, code) == ([], ErrorCode.SHARD_CORRUPT)


@pytest.mark.parametrize("flag", [b"L", b"x", b"g"])
def test_metadata_of_unreasonable_size(flag):
    big = entry(b"././@LongLink", b"A" * (64 * 1024 + 1), flag)
    assert walk(big + entry(b"a.jpg", b"x") + END)[1] == ErrorCode.SHARD_CORRUPT


def test_gnu_sparse_with_continued_map():
    block = bytearray(header(b"s.jpg", octal(5), b"S", magic=b"ustar  \0"))
    block[482] = 1
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    more, last = bytearray(BLOCK), bytearray(BLOCK)
    more[504] = 1
    data = bytes(block) + bytes(more) + bytes(last) + padded(b"dense") + entry(b"n.jpg", b"n") + END
    found, code, _ = walk(data)
    assert ([(e.name, e.kind) for e in found], code) == ([("s.jpg", "sparse"), ("n.jpg", "file")], None)


@pytest.mark.parametrize(
    ("data", "looks"),
    [
        (b"<!DOCTYPE html><html>" + b" " * 600, "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n" + b"oid " * 200, "git-lfs"),
        (b"PK\x03\x04" + b"\1" * 600, "ZIP"),
        (b"hello world\n" * 100, "text"),
        (b"\x89PNG\r\n\x1a\n" + b"\1" * 600, "PNG"),
        (b"short", "text"),
    ],
)
def test_not_a_tar(data, looks):
    found, code, message = walk(data)
    assert (found, code) == ([], ErrorCode.SHARD_UNREADABLE)
    assert looks in message
