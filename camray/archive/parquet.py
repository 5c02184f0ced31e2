"""The members of a Parquet file: one image per row, or several. Footer and pages come before Arrow.

footer ──open_parquet──> schema ──columns──> row groups, by their pages in small batches ──> Member ...

What is in memory at a time is bounded by the headers of the pages, whatever the footer claims: no page
unpacks to more than a gibibyte, and a batch has only as many rows as fit if each were as large as the largest
page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import pyarrow as pa
from pyarrow import NativeFile
from pyarrow import parquet as pq

from camray.archive import sniff
from camray.archive.annotations import label_of
from camray.archive.columns import (
    Columns,
    array_columns,
    cell_value,
    columns_of,
    image_columns,
    list_columns,
    no_labels,
    refuse_extensions,
    refuse_long,
    row_members,
)
from camray.archive.pages import Page, RowGroup, pages_of, row_groups
from camray.archive.readers import BUFFER_BYTES, IsNeeded, NoImagesError, Reader
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ShardError, UsageError, printable
from camray.records import Member

_MAX_FOOTER_BYTES = 64 * 2**20
_BATCH_BYTES = 256 * 2**20
_BATCH_ROWS = 256
_MAX_PAGE_BYTES = 2**30
_MAX_LISTED = 2**27  # values of lists in a row group: one row may hold them all


def open_parquet(file: NativeFile, size: int, dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a file of `size` bytes; what its footer claims is bounded. `dictionaries` are read as such.

    Raises:
        ShardError: SHARD_UNREADABLE: not Parquet, cut, a damaged footer, a column with an extension type.
    """
    refuse_extensions(_footer(file, size))
    try:
        parquet = pq.ParquetFile(
            file,
            thrift_string_size_limit=_MAX_FOOTER_BYTES,
            thrift_container_size_limit=10_000_000,
            page_checksum_verification=True,
            read_dictionary=[*dictionaries] or None,
            buffer_size=BUFFER_BYTES,  # else Arrow reads a column of a row group whole
        )
        schema = parquet.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        message = f"the footer cannot be read: {printable(str(error))}"
        raise ShardError(ErrorCode.SHARD_UNREADABLE, message) from None
    refuse_extensions(b"", schema)
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None:
        raise ShardError(ErrorCode.SHARD_UNREADABLE, printable(f"two columns are called {twice!r}"))
    return parquet


def layout_of(file: NativeFile, size: int) -> tuple[RowGroup, ...]:
    """Give the row groups of a file of `size` bytes that `open_parquet` opens.

    Raises:
        ShardError: SHARD_UNREADABLE, a damaged footer.
    """
    return row_groups(_footer(file, size))


def bounded_batches(
    file: NativeFile,
    parquet: pq.ParquetFile,
    group: int,
    told: RowGroup,
    columns: Sequence[str],
    keeps_dictionary: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of row group number `group`, so few at once that they fit.

    A dictionary counts for each row as one that may hold its largest value; not where it is kept as such.

    Raises:
        ShardError: SHARD_CORRUPT, a damaged page, or too large a one; what came before was yielded.
    """
    try:
        pages = _checked_pages(file, parquet, told, columns)
        largest = max((p.size_bytes for p in pages if not (keeps_dictionary and p.is_dictionary)), default=0)
        rows = min(max(_BATCH_BYTES // max(largest, 1), 1), _BATCH_ROWS)
        # One thread: columns that are read at once would share the file's position.
        yield from parquet.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)
    except ShardError as error:
        raise ShardError(error.code, f"row group {group}: {error.message}") from None
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        message = f"row group {group}: {printable(str(error))}"
        raise ShardError(ErrorCode.SHARD_CORRUPT, message) from None


def listed_texts(parquet: pq.ParquetFile, names: Iterable[str]) -> list[str]:
    """Name what is to be read as a dictionary: texts and bytes in lists of these columns."""
    tops = tuple(f"{name}." for name in names)
    leaves = (parquet.schema.column(i) for i in range(len(parquet.schema)))
    return [
        leaf.path for leaf in leaves
        if leaf.max_repetition_level and leaf.path.startswith(tops) and leaf.physical_type == "BYTE_ARRAY"
    ]  # fmt: skip


def _checked_pages(
    file: NativeFile, parquet: pq.ParquetFile, told: RowGroup, columns: Sequence[str]
) -> Iterator[Page]:
    """Yield the pages of these columns and of what lies in them.

    Raises:
        ShardError: SHARD_CORRUPT, one is too large, or its header cannot be read.
    """
    if len(told.columns) != len(parquet.schema):
        raise ShardError(ErrorCode.SHARD_CORRUPT, f"{len(told.columns)} columns for {len(parquet.schema)}")
    for number, column in enumerate(told.columns):
        path, listed = column.path, 0
        if not any(path == name or path.startswith(f"{name}.") for name in columns):
            continue
        for page in pages_of(file, column):
            listed += page.values if parquet.schema.column(number).max_repetition_level else 0
            problem = ""
            if page.size_bytes > _MAX_PAGE_BYTES:
                problem = (
                    f"a page of {path} unpacks to {page.size_bytes:,} bytes, more than {_MAX_PAGE_BYTES:,}"
                )
            elif listed > _MAX_LISTED:
                problem = f"the lists of {path} hold more than {_MAX_LISTED:,} values"
            if problem:
                raise ShardError(ErrorCode.SHARD_CORRUPT, printable(problem))
            yield page


def _footer(file: NativeFile, size: int) -> bytes:
    file.seek(0)
    head = bytes(file.read(512))
    if not head.startswith(b"PAR1"):
        message = f"not a Parquet file: looks like {sniff.looks_like(head)}"
        raise ShardError(ErrorCode.SHARD_UNREADABLE, message)
    file.seek(max(size - 8, 0))
    tail = bytes(file.read(8))
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1":
        raise ShardError(ErrorCode.SHARD_UNREADABLE, "the footer is missing: the file was cut")
    if length > min(size - 12, _MAX_FOOTER_BYTES):
        raise ShardError(ErrorCode.SHARD_UNREADABLE, f"the footer claims {length:,} bytes")
    file.seek(size - 8 - length)
    footer = bytes(file.read(length))
    file.seek(0)
    return footer


def _check(file: NativeFile, size: int, config: ArchiveConfig) -> None:
    """Find the columns, and prove on the first row group that the labels are labels."""
    parquet = open_parquet(file, size)
    try:
        columns = columns_of(parquet.schema_arrow, config)
    except UsageError as error:
        found = image_columns(parquet.schema_arrow) or (
            config.reads_arrays and array_columns(parquet.schema_arrow)
        )
        if config.image_column is None and not found:
            raise NoImagesError(error.field, error.problem, error.fix) from None
        raise
    layout = layout_of(file, size)
    if columns.label is None or not layout:
        return
    kind = parquet.schema_arrow.field(columns.label).type
    parquet = open_parquet(file, size, listed_texts(parquet, [columns.label]))
    for batch in bounded_batches(file, parquet, 0, layout[0], [columns.label]):
        for row in range(batch.num_rows):
            cell = batch.column(0)[row]
            try:
                refuse_long(batch.column(0), row)
                label_of(cell_value(cell))
            except ValueError as error:
                raise no_labels(columns.label, f"({kind}): {error}") from None


def _count(file: NativeFile, size: int) -> int | None:
    """Give the number of rows; None where a row may hold several images."""
    parquet = open_parquet(file, size)
    return None if list_columns(parquet.schema_arrow) else int(parquet.metadata.num_rows)


def _read(file: NativeFile, size: int, config: ArchiveConfig, is_needed: IsNeeded) -> Iterator[Member]:
    """Yield one member per row, or per image of a row's list.

    Raises:
        ShardError: SHARD_UNREADABLE (footer, schema, extension types), SHARD_CORRUPT (a damaged page).
    """
    parquet = open_parquet(file, size)
    columns = columns_of(parquet.schema_arrow, config)
    # One row may name one value of a dictionary a million times.
    names = filter(None, (columns.image, columns.label, columns.boxes))
    parquet = open_parquet(file, size, listed_texts(parquet, names))
    first, index = 0, 0
    for group, told in enumerate(layout_of(file, size)):
        batches = partial(bounded_batches, file, parquet, group, told)
        rows = range(first, first + told.rows)
        for member in _group(batches, rows, index, columns, config, is_needed):
            index = member.index + 1
            yield member
        first = rows.stop


def _group(
    batches: Callable[[Sequence[str], bool], Iterator[pa.RecordBatch]],
    rows: range,
    index: int,
    columns: Columns,
    config: ArchiveConfig,
    is_needed: IsNeeded,
) -> Iterator[Member]:
    """Yield the members of the rows of one row group, the first of them with this index."""
    names = columns.to_read(any(is_needed(row) for row in rows))
    if not names:
        yield from (Member(row, f"row-{row}") for row in rows)
        return
    number = rows.start
    for batch in batches(names, columns.is_list):
        for row in range(batch.num_rows):
            for member in row_members(batch, row, number, index, columns, config, is_needed):
                index = member.index + 1
                yield member
            number += 1
    if number != rows.stop:
        message = f"a row group holds {number - rows.start:,} rows, the footer says {len(rows):,}"
        raise ShardError(ErrorCode.SHARD_CORRUPT, message)


READER = Reader(
    format="parquet",
    suffixes=(".parquet",),
    read=_read,
    images="a column of bytes, or Hugging Face's struct of bytes and path, or of lists of these",
    annotations="columns `label`, `labels`, …, `objects`, `bbox`, `boxes`, `mask`; class names of the schema",
    count=_count,
    check=_check,
)
