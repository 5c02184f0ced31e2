"""The formats of packed files: the contract of a reader, and the one list of them.

A format is one module of this folder that holds a `READER`, and its name in `FORMATS`. Loose files, which no
file packs, are read by `files`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import cast

from pyarrow import NativeFile

from camray.archive.names import extension_of, junk_part
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ShardError, printable
from camray.records import Member, Shard, Status
from camray.storage import open_folder

FORMATS = (
    "tar",
    "zipped",
    "parquet",
)
"""The modules of the formats. A file name is asked of each in this order."""

BUFFER_BYTES = 4 * 2**20
"""One request to an object store per this much, where members are read one after the other."""

_CHECKED_SHARDS = 8

IsNeeded = Callable[[int], bool]
"""Whether the content of the member with this index is asked for; where not, it is mostly not even read."""


@dataclass(frozen=True, slots=True)
class Reader:
    """One format of packed files.

    `read(file, size, config, is_needed)` yields a member for everything inside that may be an image, indices
    from 0 without gaps, and returns only where the end of the file was seen; it raises ShardError, after the
    last good member, where it was not. `count(file, size)` gives the number of members where all are images
    and a footer tells it; without it, members are read without their content. `check(file, size, config)`
    raises UsageError at plan time where the file cannot be what the options say. `images` and `annotations`
    are its line in the documents.
    """

    format: str  # what `Shard.format` says
    suffixes: tuple[str, ...]  # lower case, with the dot
    read: Callable[[NativeFile, int, ArchiveConfig, IsNeeded], Iterator[Member]]
    images: str
    annotations: str
    count: Callable[[NativeFile, int], int] | None = None
    check: Callable[[NativeFile, int, ArchiveConfig], object] | None = None


@cache
def readers() -> dict[str, Reader]:
    """Give every reader by its format."""
    found: list[Reader] = [import_module(f"camray.archive.{module}").READER for module in FORMATS]
    return {reader.format: reader for reader in found}


def packed_format(name: str) -> str | None:
    """Give the packed format a file name promises ("tar", "zip", "parquet"), or None."""
    return next((r.format for r in readers().values() if name.lower().endswith(r.suffixes)), None)


def check_shards(shards: Sequence[Shard], config: ArchiveConfig) -> None:
    """Prove at plan time that packed files are what the options say: the first readable one of each format.

    Raises:
        UsageError: as the `check` of the format.
    """
    for reader in readers().values():
        for shard in [s for s in shards if reader.check and s.format == reader.format][:_CHECKED_SHARDS]:
            try:
                with open_folder(shard.uri, "ARCHIVE").open() as file:
                    assert reader.check is not None
                    reader.check(file, shard.size_bytes, config)
                    break
            except (ShardError, OSError):
                continue  # told again, as a record, when the shard is read


# ── what readers share ───────────────────────────────────────────────────────────────────────────


def skipped(index: int, name: str, message: str, code: ErrorCode = ErrorCode.NOT_AN_IMAGE_NAME) -> Member:
    """Make the row of a member that is not opened."""
    return Member(index, name, status=Status.SKIPPED, error_code=code, error_message=message)


def not_opened(name: str) -> str:
    """Say why a member whose name promises no image is not opened."""
    junk = junk_part(name)
    if not junk:
        return f"a .{extension_of(name)} file"
    return "a hidden file" if junk.startswith(".") else f"another program's left-over ({printable(junk, 40)})"


def failed(index: int, name: str, code: ErrorCode, message: str) -> Member:
    """Make the row of an image that could not be read."""
    return Member(index, name, status=Status.FAILED, error_code=code, error_message=message)


def size_problem(size_bytes: int, limit: int) -> str | None:
    """Say that a member is too large; None where it is not."""
    return f"{size_bytes:,} bytes, more than {limit:,}" if size_bytes > limit else None


class _Buffered(io.BufferedReader):
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError as error:  # Arrow's word for what every other file calls an OSError
            raise OSError(str(error)) from None


def buffered(file: NativeFile) -> io.BufferedReader:
    """Put a read buffer before a file of any store; seeks inside the buffer are free."""
    return _Buffered(cast(io.RawIOBase, file), BUFFER_BYTES)
