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

from camray.archive.names import extension_of, junk_part, may_hold_images
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ShardError, UsageError, printable
from camray.records import Member, Shard, Status
from camray.storage import has_empty_part, open_folder

FORMATS = (
    "tar",
    "zipped",
    "parquet",
)
"""The modules of the formats. A file name is asked of each in this order."""

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""What says, in a column `file_name`, more of the images beside it."""

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
    and a footer tells it; without it, and where it is None, members are read without their content.
    `check(file, size, config)` raises UsageError where the file cannot be what the options say, NoImagesError
    where it is a table. `images` and `annotations` are its line in the documents.
    """

    format: str  # what `Shard.format` says
    suffixes: tuple[str, ...]  # lower case, with the dot
    read: Callable[[NativeFile, int, ArchiveConfig, IsNeeded], Iterator[Member]]
    images: str
    annotations: str
    count: Callable[[NativeFile, int], int | None] | None = None
    check: Callable[[NativeFile, int, ArchiveConfig], object] | None = None


@cache
def readers() -> dict[str, Reader]:
    """Give every reader by its format."""
    found: list[Reader] = [import_module(f"camray.archive.{module}").READER for module in FORMATS]
    return {reader.format: reader for reader in found}


def packed_format(name: str) -> str | None:
    """Give the packed format a file name promises ("tar", "zip", "parquet"), or None."""
    return next((r.format for r in readers().values() if name.lower().endswith(r.suffixes)), None)


class NoImagesError(UsageError):
    """A file is of a format that may hold images, and holds none: a table."""


def check_shards(shards: Sequence[Shard], config: ArchiveConfig, has_others: bool = False) -> set[str]:
    """Prove at plan time, for each format, that a packed file is what the options say.

    One is enough: any other becomes a record when it is read. Where none holds images, and there are others
    than these (or `has_others`), they are tables that lie beside the images: give their URIs.

    Raises:
        UsageError: as the `check` of the format, where none passes.
    """
    tables: set[str] = set()
    for reader in readers().values():
        mine = [shard for shard in shards if shard.format == reader.format]
        refused: dict[str, UsageError] = {}
        unreadable = 0
        for shard in mine if reader.check else ():
            try:
                if _passes(reader, shard, config):
                    break
                unreadable += 1  # told again, as a record, when the shard is read
            except UsageError as error:
                refused[shard.uri] = error
            if unreadable == _CHECKED_SHARDS:
                break
        else:
            others = [error for error in refused.values() if not isinstance(error, NoImagesError)]
            is_alone = not has_others and len(mine) == len(shards)
            if others or (refused and is_alone):
                raise (others or list(refused.values()))[0]
            tables |= refused.keys()
    return tables


def _passes(reader: Reader, shard: Shard, config: ArchiveConfig) -> bool:
    """Check one shard; False where it cannot be read."""
    assert reader.check is not None
    if has_empty_part(shard.uri):
        return False
    try:
        with open_folder(shard.uri, "ARCHIVE").open() as file:
            reader.check(file, shard.size_bytes, config)
        return True
    except (ShardError, OSError):
        return False


# ── what readers share ───────────────────────────────────────────────────────────────────────────


def skipped(index: int, name: str, message: str, code: ErrorCode = ErrorCode.NOT_AN_IMAGE_NAME) -> Member:
    """Make the row of a member that is not opened; what may hold images is told at the end of the run."""
    is_told = may_hold_images(name) and not junk_part(name)
    note = f"files not opened that may hold images: .{name.rpartition('.')[2][:20]}" if is_told else ""
    return Member(index, name, status=Status.SKIPPED, error_code=code, error_message=message, note=note)


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
