"""A strict walk over tar headers: every header is proven by its checksum, the end mark must be seen.

    file ──PlainStream or PackedStream──> TarEntry ... ; damage anywhere is a ShardError with its byte offset

The standard library's `tarfile` takes a damaged header for the end of the archive and stops without an
error; that silently loses every member behind it. Understood here: ustar, the old Unix format, GNU (long
names, base-256 sizes, sparse) and pax (path, size). A name is text for a record, never a path to open.
Skipping over a plain file costs a seek; over a packed one, the unpacking. A bomb is stopped by a ratio cap.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal

import pyarrow as pa

from camray.archive import sniff
from camray.errors import ErrorCode, ShardError

BLOCK = 512
MAX_METADATA_BYTES = 64 * 2**10
MAX_NAME_BYTES = 4096

EntryKind = Literal["file", "folder", "link", "device", "sparse", "other"]

_KINDS: dict[bytes, EntryKind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",  # "contiguous": an ordinary file
    b"1": "link",
    b"2": "link",
    b"3": "device",
    b"4": "device",
    b"5": "folder",
    b"D": "folder",  # GNU: a folder with its list of names
    b"6": "device",
    b"S": "sparse",
}
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_METADATA = (b"x", b"X", b"g", b"L", b"K")  # X: what old Solaris writes for x
_ZEROS = bytes(BLOCK)

PACKED = {
    "gzip": (".tar.gz", ".tgz"),
    "bzip2": (".tar.bz2", ".tbz2", ".tbz"),
    "xz": (".tar.xz", ".txz"),
    "Zstandard": (".tar.zst", ".tzst"),
}
"""What a tar may be packed by, and the endings that say so."""

_MAGIC = (
    (b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "Zstandard"),
)  # fmt: skip
_STEP_BYTES = 2**20
_MAX_RATIO = 200  # images hardly shrink; a gigabyte of zeros shrinks 1000 times
_RATIO_FREE_BYTES = 64 * 2**20


# ── bytes from front to back ─────────────────────────────────────────────────────────────────────


def _corrupt(message: str) -> ShardError:
    return ShardError(ErrorCode.SHARD_CORRUPT, message)


def _truncated(message: str) -> ShardError:
    return ShardError(ErrorCode.SHARD_TRUNCATED, message)


class PlainStream:
    """A file as it is, of `size` bytes."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self.size, self.position = file, size, 0

    def read(self, count: int) -> bytes:
        """Read `count` bytes; fewer only at the end."""
        data = self._file.read(min(count, max(self.size - self.position, 0)))
        self.position += len(data)
        return data

    def skip(self, count: int) -> int:
        """Pass over `count` bytes; return how many there were."""
        passed = min(count, max(self.size - self.position, 0))
        self._file.seek(passed, io.SEEK_CUR)
        self.position += passed
        return passed


class PackedStream:
    """A file packed by `packing`, unpacked.

    Raises:
        ShardError: on reading, where the packed data is cut, damaged, or grows beyond all reason.
    """

    def __init__(self, file: IO[bytes], packing: str) -> None:
        self._packed, self._file, self._packing = file, _unpacker(file, packing), packing
        self.size, self.position = None, 0  # the size is not known before the end

    def read(self, count: int) -> bytes:
        """Read `count` unpacked bytes; fewer only at the end."""
        parts = []
        while count > 0 and (part := self._step(min(count, _STEP_BYTES))):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def skip(self, count: int) -> int:
        """Pass over `count` unpacked bytes; return how many there were."""
        start = self.position
        while (left := count - (self.position - start)) > 0 and self._step(min(left, _STEP_BYTES)):
            pass
        return self.position - start

    def _step(self, count: int) -> bytes:
        where = f"after {self.position:,} unpacked bytes"
        try:
            data: bytes = self._file.read(count)
        except EOFError:
            raise _truncated(f"the {self._packing} data ends early, {where}") from None
        except (OSError, zlib.error, lzma.LZMAError, ValueError) as error:
            raise _corrupt(f"the {self._packing} data is damaged {where}: {error}") from None
        self.position += len(data)
        if self.position > _MAX_RATIO * self._packed.tell() + _RATIO_FREE_BYTES:
            raise _corrupt(f"the {self._packing} data unpacks to more than {_MAX_RATIO} times its size")
        return data


def _unpacker(file: IO[bytes], packing: str) -> Any:
    if packing == "gzip":
        return gzip.GzipFile(fileobj=file)
    if packing == "bzip2":
        return bz2.BZ2File(file)
    if packing == "xz":
        return lzma.LZMAFile(file)
    return pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")


def open_stream(file: IO[bytes], size: int) -> PlainStream | PackedStream:
    """Open a tar of `size` bytes by its first bytes, whatever its name says of how it is packed."""
    head = file.read(8)
    file.seek(0)
    packing = next((name for magic, name in _MAGIC if head.startswith(magic)), "")
    return PackedStream(file, packing) if packing else PlainStream(file, size)


ForwardStream = PlainStream | PackedStream


# ── headers ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class TarEntry:
    """One entry. While it is the current one, the stream stands at its `size` bytes of data."""

    name: str
    kind: EntryKind
    size: int
    offset: int  # of its header


@dataclass(slots=True)
class _Extra:
    """What long-name and pax headers say about the next entry."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False


def walk_tar(stream: ForwardStream) -> Iterator[TarEntry]:
    """Yield the entries in order; return only after the end mark of two zero blocks.

    The caller may read the data of the current entry from `stream`, or not.

    Raises:
        ShardError: SHARD_UNREADABLE (no tar at all), SHARD_CORRUPT, SHARD_TRUNCATED.
    """
    shared, extra = _Extra(), _Extra()
    offset = stream.position
    while (header := _header(stream, offset)) is not None:
        flag = header[156:157]
        size = _size(header, shared, extra, offset)
        _check_bounds(stream, size, offset)
        start = stream.position
        if flag in _METADATA:
            _read_extra(stream, flag, size, offset, shared if flag == b"g" else extra)
        else:
            if flag == b"S":
                start += _skip_sparse_map(stream, header, offset)
            yield _entry(header, size, offset, extra.name or shared.name, extra.sparse)
            extra = _Extra()
        _pass(stream, start + size, "data", offset)
        _pass(stream, start + size + -size % BLOCK, "padding", offset)
        offset = stream.position


def _entry(header: bytes, size: int, offset: int, long_name: bytes | None, sparse: bool) -> TarEntry:
    name = long_name or _name(header)
    kind = _KINDS.get(header[156:157], "other")
    if kind == "file" and name.endswith(b"/"):
        kind = "folder"  # how the old Unix format wrote one
    elif kind == "file" and sparse:
        kind = "sparse"
    return TarEntry(name.decode("utf-8", "surrogateescape"), kind, size, offset)


def _size(header: bytes, shared: _Extra, extra: _Extra, offset: int) -> int:
    """Give the number of data bytes behind a header."""
    flag = header[156:157]
    if flag in _WITHOUT_DATA:  # some writers leave the size of the target there
        return 0
    if flag not in _METADATA:
        for stated in (extra.size, shared.size):
            if stated is not None:
                return stated
    return _number(header[124:136], "size", offset)


def _header(stream: ForwardStream, offset: int) -> bytes | None:
    """Read and prove one header; None at the end mark."""
    header = stream.read(BLOCK)
    if offset == 0 and header[257:262] != b"ustar" and not _is_proven(header) and header != _ZEROS:
        raise ShardError(ErrorCode.SHARD_UNREADABLE, f"not a tar: looks like {sniff.looks_like(header)}")
    if len(header) < BLOCK:
        where = "inside a header" if header else "without its end mark"
        raise _truncated(f"ends {where} at byte {offset + len(header):,}")
    if header == _ZEROS:
        _check_end(stream, offset)
        return None
    if not _is_proven(header):
        raise _corrupt(f"damaged header at byte {offset:,}: wrong checksum")
    return header


def _is_proven(header: bytes) -> bool:
    """Tell whether the checksum holds (some old writers summed signed bytes)."""
    if len(header) < BLOCK:
        return False
    try:
        stated = _octal(header[148:156])
    except ValueError:
        return False
    unsigned = 8 * 32 + sum(header[:148]) + sum(header[156:])
    signed = unsigned - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
    return stated in (unsigned, signed)


def _check_end(stream: ForwardStream, offset: int) -> None:
    """After one zero block: a second must follow, and nothing but zeros after it."""
    second = stream.read(BLOCK)
    if len(second) < BLOCK:
        raise _truncated(f"ends after half an end mark at byte {offset:,}")
    if second != _ZEROS:
        raise _corrupt(f"header of zeros at byte {offset:,} with data behind it")
    while data := stream.read(64 * BLOCK):
        if data.strip(b"\0"):
            at = stream.position - len(data) + len(data) - len(data.lstrip(b"\0"))
            raise _corrupt(
                f"data at byte {at:,}, behind the end mark at {offset:,}: a second archive, or damage"
            )


def _check_bounds(stream: ForwardStream, size: int, offset: int) -> None:
    if size < 0:
        raise _corrupt(f"negative size in the header at byte {offset:,}")
    if stream.size is not None and stream.position + size > stream.size:
        left = stream.size - stream.position
        raise _truncated(
            f"the header at byte {offset:,} says {size:,} bytes follow, the file ends after {left:,}"
        )


def _pass(stream: ForwardStream, target: int, what: str, offset: int) -> None:
    missing = target - stream.position
    if missing > 0 and stream.skip(missing) < missing:
        raise _truncated(
            f"ends at byte {stream.position:,}, inside the {what} of the member at byte {offset:,}"
        )


def _read_extra(stream: ForwardStream, flag: bytes, size: int, offset: int, extra: _Extra) -> None:
    """Read a long-name or pax header's data into `extra`."""
    if size > MAX_METADATA_BYTES:
        raise _corrupt(f"metadata of {size:,} bytes at byte {offset:,}")
    data = stream.read(size)
    if len(data) < size:
        raise _truncated(f"ends inside the metadata at byte {offset:,}")
    if flag == b"L":
        extra.name = data.partition(b"\0")[0]
    elif flag != b"K":  # K: the target of a link, which is never followed
        _read_pax(data, offset, extra)


def _read_pax(data: bytes, offset: int, extra: _Extra) -> None:
    r"""Read `length key=value\n` records; a record that breaks the rule is damage."""
    while data.strip(b"\0"):
        digits, space, _ = data[:16].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if not space or not equals or length > len(data) or data[length - 1 : length] != b"\n":
            raise _corrupt(f"damaged pax metadata at byte {offset:,}")
        if key == b"path":
            extra.name = value
        elif key == b"size":
            if not value.isdigit() or len(value) > 19:
                raise _corrupt(f"damaged pax size at byte {offset:,}")
            extra.size = int(value)
        elif key.startswith(b"GNU.sparse."):
            extra.sparse = True
        data = data[length:]


def _skip_sparse_map(stream: ForwardStream, header: bytes, offset: int) -> int:
    """Pass the blocks that continue a GNU sparse header; return their bytes."""
    passed, more = 0, header[482]
    while more:
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise _truncated(f"ends inside the header at byte {offset:,}")
        passed, more = passed + BLOCK, block[504]
    return passed


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0]
    is_posix = header[257:263] == b"ustar\0"  # GNU keeps times where POSIX keeps the prefix
    return prefix + b"/" + name if is_posix and prefix else name


def _number(field: bytes, what: str, offset: int) -> int:
    """Read an octal or base-256 number."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=True)
        return value if field[0] == 0xFF else value + (1 << (8 * len(field) - 1))
    try:
        return _octal(field)
    except ValueError:
        raise _corrupt(f"damaged {what} in the header at byte {offset:,}") from None


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if any(byte not in b"01234567" for byte in digits):
        raise ValueError("not octal")
    return int(digits, 8)
