"""The members of a zip file, by its central directory; the standard library checks each member's CRC.

Names are UTF-8 where the zip says so or where they are valid UTF-8, else in `[archive] zip_encoding`. A
backslash separates folders where a Windows program made the entry, or where no name of the zip holds a slash.
Class folders and `metadata` files count as they do in a folder.
"""

from __future__ import annotations

import lzma
import posixpath
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from pyarrow import NativeFile

from camray.archive import sniff
from camray.archive.annotations import Annotation, annotated, merged, read_sidecar, size_cap, whole_of
from camray.archive.names import extension_of, name_kind, stem_of
from camray.archive.places import tidy
from camray.archive.readers import (
    METADATA,
    IsNeeded,
    Reader,
    buffered,
    failed,
    not_opened,
    size_problem,
    skipped,
)
from camray.archive.tables import metadata_of, said_of_files
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ShardError, UsageError, printable
from camray.records import Member, key_of
from camray.storage import held

_MAX_RATIO = 1100
"""Deflate cannot shrink data more than 1032 times: more is a bomb, or another method abused as one."""

_MAX_METADATA_BYTES = 64 * 2**20
_ENCRYPTED, _IS_UTF8 = 0x1, 0x800
_IS_FOLDER = 0x10  # DOS's attribute
_UNICODE_PATH = 0x7075  # Info-ZIP's extra field: the name once more, in UTF-8
_DOS_SYSTEMS = (0, 10, 11, 14)  # FAT, NTFS, VFAT
_MAX_END_BYTES = 22 + 65535


def _read(file: NativeFile, size: int, config: ArchiveConfig, is_needed: IsNeeded) -> Iterator[Member]:
    """Yield the members in the order of the directory.

    Raises:
        ShardError: SHARD_UNREADABLE or SHARD_TRUNCATED, before the first member.
        UsageError: a part of a split zip.
    """
    with _opened(file, size) as archive:
        contents = _Contents(archive, config)
        for index, info in enumerate(contents.rows()):
            yield contents.member(info, index, is_needed)


def _check(file: NativeFile, size: int, config: ArchiveConfig) -> None:
    _opened(file, size).close()


def _opened(file: NativeFile, size: int) -> zipfile.ZipFile:
    packed = buffered(file)
    head = packed.read(512)
    packed.seek(max(size - _MAX_END_BYTES, 0))
    tail = packed.read(_MAX_END_BYTES)
    _, mark, end = tail.rpartition(b"PK\5\6")
    if mark and end[:2] not in (b"\0\0", b"\xff\xff"):  # the number of the disk
        problem = f"the last of {int.from_bytes(end[:2], 'little') + 1:,} parts of a split zip"
        raise UsageError("ARCHIVE", problem, "join them: zip -s 0 PART.zip --out WHOLE.zip")
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
    _check_whole(len(archive.infolist()), tail, end)
    return archive


def _check_whole(listed: int, tail: bytes, end: bytes) -> None:
    """Compare the directory with the count at the end: the standard library trusts the directory's length.

    Raises:
        ShardError: SHARD_CORRUPT.
    """
    stated, bits = int.from_bytes(end[6:8], "little"), 16
    at = tail.rfind(b"PK\6\6")
    if stated == 0xFFFF and at >= 0:
        stated, bits = int.from_bytes(tail[at + 32 : at + 40], "little"), 64
    if stated != listed % 2**bits:
        message = f"its directory lists {listed:,} entries, its end says {stated:,}"
        raise ShardError(ErrorCode.SHARD_CORRUPT, message)


# ── names ────────────────────────────────────────────────────────────────────────────────────────


def _spell(entries: Iterable[zipfile.ZipInfo], encoding: str | None) -> dict[zipfile.ZipInfo, str]:
    """Give every entry the name its maker meant; return what was guessed of it, for those it was."""
    guessed = {}
    for info in entries:
        info.filename, code = _decoded(info, encoding)
        if code:
            guessed[info] = f"names of a zip that does not say their encoding, read as {code}"
    is_dos = not any("/" in info.filename for info in entries)
    for info in entries:
        if is_dos or info.create_system in _DOS_SYSTEMS:
            info.filename = info.filename.replace("\\", "/")
    return guessed


def _decoded(info: zipfile.ZipInfo, encoding: str | None) -> tuple[str, str]:
    """Decode an entry's name; and by what, where that is a guess."""
    name = info.orig_filename.partition("\0")[0]
    if info.flag_bits & _IS_UTF8 or name.isascii():
        return name, ""
    raw = info.orig_filename.encode("cp437")  # every byte has its character there
    extra = info.extra
    while len(extra) >= 4:
        kind, length = int.from_bytes(extra[:2], "little"), int.from_bytes(extra[2:4], "little")
        crc, text = extra[5:9], extra[9 : 4 + length]
        if kind == _UNICODE_PATH and int.from_bytes(crc, "little") == zlib.crc32(raw):
            return text.decode("utf-8", "surrogateescape"), ""
        extra = extra[4 + length :]
    try:
        return raw.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        said = encoding or "cp437 (--zip-encoding says otherwise)"
        return raw.decode(encoding or "cp437", "surrogateescape"), said


def _is_folder(info: zipfile.ZipInfo) -> bool:
    is_marked = stat.S_ISDIR(info.external_attr >> 16) or info.external_attr & _IS_FOLDER
    return info.filename.endswith("/") or bool(is_marked and not info.file_size)


def _is_file(info: zipfile.ZipInfo) -> bool:
    mode = info.external_attr >> 16
    return not stat.S_IFMT(mode) or stat.S_ISREG(mode)


def _places(name: str) -> tuple[str, str]:
    """Where a sidecar of this image may lie, without its extension: the stem first, then the bare key."""
    return stem_of(name), key_of(name)


# ── members ──────────────────────────────────────────────────────────────────────────────────────


class _Contents:
    """The files in a zip, and what the zip itself says of each."""

    def __init__(self, archive: zipfile.ZipFile, config: ArchiveConfig) -> None:
        """Read the directory, and the metadata files.

        Raises:
            ShardError: SHARD_UNREADABLE, where a metadata file cannot be understood.
        """
        self._archive, self._config = archive, config
        self._guessed = _spell(archive.infolist(), config.zip_encoding)
        self._files = [info for info in archive.infolist() if not _is_folder(info)]
        self._by_name = {tidy(info.filename): info for info in self._files}
        self._sidecars: dict[str, list[zipfile.ZipInfo]] = {}
        for info in self._files:
            if name_kind(info.filename) == "sidecar":
                self._sidecars.setdefault(stem_of(info.filename), []).append(info)
        self._noted: dict[str, Annotation] = {}
        self._metadata = {info for info in self._files if self._is_metadata(info)}
        self._noted = said_of_files(self._noted, self._by_name, Counter())

    def rows(self) -> Iterator[zipfile.ZipInfo]:
        """Pick the files that get a row: all but the sidecars of an image."""
        arrays = self._config.reads_arrays
        names = [info.filename for info in self._files if name_kind(info.filename, arrays) == "image"]
        images = {place for name in names for place in _places(name)}
        for info in self._files:
            if name_kind(info.filename) != "sidecar" or stem_of(info.filename) not in images:
                yield info

    def member(self, info: zipfile.ZipInfo, index: int, is_needed: IsNeeded) -> Member:
        """Make the member of a file that gets a row."""
        member = self._member(info, index, info.filename.removeprefix("./"), is_needed)
        return replace(member, note=self._guessed[info]) if info in self._guessed else member

    def _member(self, info: zipfile.ZipInfo, index: int, name: str, is_needed: IsNeeded) -> Member:
        kind = name_kind(name, self._config.reads_arrays)
        if not _is_file(info):
            return skipped(index, name, "a link or device; links are not followed", ErrorCode.NOT_A_FILE)
        if info in self._metadata:
            return skipped(index, name, "metadata of the images beside it")
        if kind != "image":
            return skipped(index, name, "no image has this key" if kind == "sidecar" else not_opened(name))
        if refusal := _refusal(info, self._config.max_member_bytes):
            return failed(index, name, *refusal)
        if not is_needed(index):
            return Member(index, name)
        noted = self._noted.get(tidy(name))
        said = whole_of(name, noted or Annotation(), noted is not None, self._beside(info.filename))
        try:
            mask = self._mask(said.mask) if said.mask else None
            member = Member(index, name, self._data(info, self._config.max_member_bytes), mask=mask)
        except ValueError as error:
            member = failed(index, name, ErrorCode.MEMBER_UNREADABLE, str(error))
        return annotated(member, said)

    def _mask(self, name: str) -> bytes:
        info, limit = self._by_name.get(tidy(name)), self._config.max_member_bytes
        if info is None or _refusal(info, limit):
            raise ValueError(printable(f"mask {name}: not in the zip, or not to be opened"))
        return self._data(info, limit)

    def _data(self, info: zipfile.ZipInfo, limit: int) -> bytes:
        """Read a member; ValueError says why it cannot be read."""
        try:
            with self._archive.open(info) as file:
                return file.read(min(info.file_size + 1, limit))  # one byte more makes it check the CRC
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, RuntimeError) as error:
            raise ValueError(printable(f"{type(error).__name__}: {error}")) from None

    def _beside(self, name: str) -> Annotation:
        annotation = Annotation()
        for place in _places(name):
            read = []
            for info in self._sidecars.get(place, ()):
                extension = extension_of(info.filename)
                if _refusal(info, size_cap("json")) is None:
                    try:
                        data = self._data(info, 2**21)
                    except ValueError:
                        continue
                    read.append((extension, read_sidecar(extension, data, self._config)))
            annotation = annotation.or_else(merged(read))
        return annotation

    def _is_metadata(self, info: zipfile.ZipInfo) -> bool:
        """Read what a metadata file says of the images beside it; False where it is none."""
        where, _, base = tidy(info.filename).rpartition("/")
        if base not in METADATA or not _is_file(info):
            return False
        try:
            if refusal := _refusal(info, _MAX_METADATA_BYTES):
                raise ValueError(refusal[1])
            data = self._data(info, _MAX_METADATA_BYTES)
            noted = metadata_of(held(posixpath.join(where, base), data), where, self._config)
        except (ValueError, UsageError) as error:
            said = error.problem if isinstance(error, UsageError) else f"{info.filename}: {error}"
            raise ShardError(ErrorCode.SHARD_UNREADABLE, printable(said)) from None
        self._noted |= noted or {}
        return noted is not None


def _refusal(info: zipfile.ZipInfo, limit: int) -> tuple[ErrorCode, str] | None:
    """Say why a member is not opened, by what the directory says of it."""
    if info.flag_bits & _ENCRYPTED:
        return ErrorCode.MEMBER_UNREADABLE, "encrypted"
    if problem := size_problem(info.file_size, limit):
        return ErrorCode.MEMBER_TOO_LARGE, problem
    if info.file_size > _MAX_RATIO * max(info.compress_size, 1):
        return ErrorCode.MEMBER_TOO_LARGE, f"unpacks to more than {_MAX_RATIO:,} times its size"
    return None


READER = Reader(
    format="zip",
    suffixes=(".zip",),
    read=_read,
    images="its members",
    annotations="as in a folder: `metadata` files, sidecars with the same name or key, the class folder",
    check=_check,
)
