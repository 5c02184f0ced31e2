"""The members of a zip file, by its central directory; the standard library checks each member's CRC."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Iterator

from pyarrow import NativeFile

from camray.archive import sniff
from camray.archive.annotations import Annotation, annotated, merged, read_sidecar, size_cap
from camray.archive.names import extension_of, name_kind, stem_of
from camray.archive.readers import IsNeeded, Reader, buffered, failed, not_opened, size_problem, skipped
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ShardError, printable
from camray.records import Member, key_of

_MAX_RATIO = 1100
"""Deflate cannot shrink data more than 1032 times: more is a bomb, or another method abused as one."""

_ENCRYPTED = 0x1

Sidecars = dict[str, list[zipfile.ZipInfo]]


def _read(file: NativeFile, size: int, config: ArchiveConfig, is_needed: IsNeeded) -> Iterator[Member]:
    """Yield the members in the order of the directory.

    Raises:
        ShardError: SHARD_UNREADABLE or SHARD_TRUNCATED, before the first member.
    """
    packed = buffered(file)
    head = packed.read(512)
    packed.seek(0)
    try:
        archive = zipfile.ZipFile(packed)
    except UnicodeDecodeError as error:
        message = f"its directory holds a name that is not the utf-8 it claims to be: {error.reason}"
        raise ShardError(ErrorCode.SHARD_UNREADABLE, message) from None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        if head.startswith(b"PK"):
            message = f"its directory cannot be read: {printable(str(error))} ({size:,} bytes)"
            raise ShardError(ErrorCode.SHARD_TRUNCATED, message) from None
        message = f"not a zip: looks like {sniff.looks_like(head)}"
        raise ShardError(ErrorCode.SHARD_UNREADABLE, message) from None
    with archive:
        entries = [info for info in archive.infolist() if not info.is_dir()]
        sidecars = _sidecars(entries)
        for index, info in enumerate(_rows(entries)):
            yield _member(archive, info, index, sidecars, config, is_needed)


def _rows(entries: list[zipfile.ZipInfo]) -> Iterator[zipfile.ZipInfo]:
    """Pick the entries that get a row: all but the sidecars of an image."""
    images = {place for e in entries if name_kind(e.filename) == "image" for place in _places(e.filename)}
    for entry in entries:
        if name_kind(entry.filename) != "sidecar" or stem_of(entry.filename) not in images:
            yield entry


def _sidecars(entries: list[zipfile.ZipInfo]) -> Sidecars:
    sidecars: Sidecars = {}
    for entry in entries:
        if name_kind(entry.filename) == "sidecar":
            sidecars.setdefault(stem_of(entry.filename), []).append(entry)
    return sidecars


def _places(name: str) -> tuple[str, str]:
    """Where a sidecar of this image may lie, without its extension: the stem first, then the bare key."""
    return stem_of(name), key_of(name)


def _member(
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    index: int,
    sidecars: Sidecars,
    config: ArchiveConfig,
    is_needed: IsNeeded,
) -> Member:
    name = info.filename.removeprefix("./")
    kind = name_kind(name)
    if not _is_file(info):
        return skipped(index, name, "a link or device; links are not followed", ErrorCode.NOT_A_FILE)
    if kind != "image":
        return skipped(index, name, "no image has this key" if kind == "sidecar" else not_opened(name))
    if refusal := _refusal(info, config.max_member_bytes):
        return failed(index, name, *refusal)
    if not is_needed(index):
        return Member(index, name)
    try:
        member = Member(index, name, _data(archive, info, config.max_member_bytes))
    except ValueError as error:
        member = failed(index, name, ErrorCode.MEMBER_UNREADABLE, str(error))
    return annotated(member, _beside(archive, info.filename, sidecars, config))


def _is_file(info: zipfile.ZipInfo) -> bool:
    mode = info.external_attr >> 16
    return not stat.S_IFMT(mode) or stat.S_ISREG(mode)


def _refusal(info: zipfile.ZipInfo, limit: int) -> tuple[ErrorCode, str] | None:
    """Say why a member is not opened, by what the directory says of it."""
    if info.flag_bits & _ENCRYPTED:
        return ErrorCode.MEMBER_UNREADABLE, "encrypted"
    if problem := size_problem(info.file_size, limit):
        return ErrorCode.MEMBER_TOO_LARGE, problem
    if info.file_size > _MAX_RATIO * max(info.compress_size, 1):
        return ErrorCode.MEMBER_TOO_LARGE, f"unpacks to more than {_MAX_RATIO:,} times its size"
    return None


def _data(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """Read a member; ValueError says why it cannot be read."""
    try:
        with archive.open(info) as file:
            return file.read(min(info.file_size + 1, limit))  # one byte more makes it check the CRC
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise ValueError(printable(f"{type(error).__name__}: {error}")) from None


def _beside(archive: zipfile.ZipFile, name: str, sidecars: Sidecars, config: ArchiveConfig) -> Annotation:
    annotation = Annotation()
    for place in _places(name):
        read = []
        for info in sidecars.get(place, ()):
            extension = extension_of(info.filename)
            if _refusal(info, size_cap("json")) is None:
                try:
                    data = _data(archive, info, 2**21)
                except ValueError:
                    continue
                read.append((extension, read_sidecar(extension, data, config)))
        annotation = annotation.or_else(merged(read))
    return annotation


READER = Reader(
    format="zip",
    suffixes=(".zip",),
    read=_read,
    images="its members",
    annotations="sidecars with the same name or key: `.cls`, `.txt`, `.json`",
)
