"""A shard's members, whatever its format: opened anew at each call, no state between calls.

Shard ──tar | zip | parquet | files──> Member 0, 1, 2 ... and either the end, or a ShardError
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from pyarrow import fs as pafs

from camray.archive.files import read_files
from camray.archive.parquet import read_parquet
from camray.archive.streams import buffered
from camray.archive.tar import read_tar
from camray.archive.walk import local_version
from camray.archive.zipped import read_zip
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ShardError, UsageError, printable
from camray.records import Member, Shard
from camray.storage import Folder, open_folder


def _every(_: int) -> bool:
    return True


def read_members(
    shard: Shard, config: ArchiveConfig, wanted: Callable[[int], bool] = _every
) -> Iterator[Member]:
    """Yield the shard's members with consecutive indices, images and skipped members alike.

    With `shard.selection`, only those members are yielded, and reading stops behind the last of them.
    `content` is None, and mostly not even read, where `wanted(index)` is false.
    A normal end means that the end of the shard was seen (or of its selection).

    Raises:
        ShardError: the shard cannot be read to its end; every good member before was yielded.
    """
    chosen = None if shard.selection is None else frozenset(shard.selection)
    last = max(chosen, default=-1) if chosen is not None else None
    seen = 0

    def needed(index: int) -> bool:
        return (chosen is None or index in chosen) and wanted(index)

    try:
        for member in _members(shard, config, needed):
            seen = member.index + 1
            if chosen is None or member.index in chosen:
                yield member
            if member.index == last:
                return
    except ShardError as error:
        raise ShardError(error.code, f"{error.message}; {_kept(seen)}") from None
    except (OSError, UsageError) as error:
        reason = printable(str(error))
        raise ShardError(ErrorCode.SHARD_READ_FAILED, f"{reason}; {_kept(seen)}") from None
    if last is not None and last >= seen:
        raise ShardError(ErrorCode.SHARD_CHANGED, f"member {last} was selected, but there are only {seen}")
    if not seen:
        raise ShardError(ErrorCode.SHARD_EMPTY, "no member at all")


def _kept(seen: int) -> str:
    return f"{seen:,} members before it were kept" if seen else "no member could be read"


def _members(shard: Shard, config: ArchiveConfig, needed: Callable[[int], bool]) -> Iterator[Member]:
    if shard.format == "files":
        yield from read_files(shard, config, needed)
        return
    place = open_folder(shard.uri, "shard")
    size = _check_unchanged(place, shard)
    if size == 0:
        raise ShardError(ErrorCode.SHARD_UNREADABLE, "an empty file: 0 bytes")
    with place.open() as file:
        if shard.format == "tar":
            yield from read_tar(buffered(file), size, config, needed)
        elif shard.format == "zip":
            yield from read_zip(buffered(file), size, config, needed)
        else:
            yield from read_parquet(file, size, config, needed)


def _check_unchanged(place: Folder, shard: Shard) -> int:
    """Compare size and version with the listing; return the size."""
    if place.is_local:
        try:
            status = os.stat(place.path)
        except OSError as error:
            raise ShardError(ErrorCode.SHARD_READ_FAILED, f"{error.strerror}") from None
        size, version = status.st_size, local_version(status)
    else:
        info = place.fs.get_file_info(place.path)
        if info.type != pafs.FileType.File:
            raise ShardError(ErrorCode.SHARD_READ_FAILED, "no longer there")
        size, version = int(info.size), str(info.mtime_ns)
    if shard.version and (size, version) != (shard.size_bytes, shard.version):
        raise ShardError(
            ErrorCode.SHARD_CHANGED,
            f"{size:,} bytes now, {shard.size_bytes:,} when listed, or rewritten since",
        )
    return size
