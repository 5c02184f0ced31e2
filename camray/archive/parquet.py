"""The members of a Parquet file: one image per row. The footer is looked at before Arrow is.

footer ──open_parquet──> schema ──columns──> row groups in small batches ──> Member ...
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from pyarrow import NativeFile
from pyarrow import parquet as pq

from camray.archive import sniff
from camray.archive.columns import Columns, columns_of, image_columns, refuse_extensions, row_member
from camray.archive.readers import IsNeeded, NoImagesError, Reader
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ShardError, UsageError, printable
from camray.records import Member

_MAX_FOOTER_BYTES = 64 * 2**20
_BATCH_BYTES = 256 * 2**20
_BATCH_ROWS = 256
_MAX_GROUP_BYTES = 8 * 2**30


def open_parquet(file: NativeFile, size: int) -> pq.ParquetFile:
    """Open a file of `size` bytes; what its footer claims is bounded.

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
        )
        schema = parquet.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        message = f"the footer cannot be read: {printable(str(error))}"
        raise ShardError(ErrorCode.SHARD_UNREADABLE, message) from None
    refuse_extensions(b"", schema)
    return parquet


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


def _check(file: NativeFile, size: int, config: ArchiveConfig) -> Columns:
    schema = open_parquet(file, size).schema_arrow
    try:
        return columns_of(schema, config)
    except UsageError as error:
        if config.image_column is None and not image_columns(schema):
            raise NoImagesError(error.field, error.problem, error.fix) from None
        raise


def _count(file: NativeFile, size: int) -> int:
    return int(open_parquet(file, size).metadata.num_rows)


def _read(file: NativeFile, size: int, config: ArchiveConfig, is_needed: IsNeeded) -> Iterator[Member]:
    """Yield one member per row.

    Raises:
        ShardError: SHARD_UNREADABLE (footer, schema, extension types), SHARD_CORRUPT (a damaged page).
    """
    parquet = open_parquet(file, size)
    columns = columns_of(parquet.schema_arrow, config)
    first = 0
    for group in range(parquet.metadata.num_row_groups):
        rows = range(first, first + parquet.metadata.row_group(group).num_rows)
        yield from _group(parquet, group, rows, columns, config, is_needed)
        first = rows.stop


def _group(
    parquet: pq.ParquetFile,
    group: int,
    rows: range,
    columns: Columns,
    config: ArchiveConfig,
    is_needed: IsNeeded,
) -> Iterator[Member]:
    """Yield the members of one row group."""
    total = parquet.metadata.row_group(group).total_byte_size
    if total > _MAX_GROUP_BYTES:
        message = f"row group {group} unpacks to {total:,} bytes, more than {_MAX_GROUP_BYTES:,}"
        raise ShardError(ErrorCode.SHARD_CORRUPT, message)
    names = columns.to_read(any(is_needed(index) for index in rows))
    if not names:
        yield from (Member(index, f"row-{index}") for index in rows)
        return
    # A value repeated by the dictionary may be as large as the whole group: so many rows fit at worst.
    batch_rows = min(max(_BATCH_BYTES // max(total, 1), 1), _BATCH_ROWS)
    index = rows.start
    try:
        for batch in parquet.iter_batches(batch_rows, row_groups=[group], columns=names):
            for row in range(batch.num_rows):
                yield row_member(batch, row, index, columns, config, is_needed)
                index += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        message = f"row group {group}: {printable(str(error))}"
        raise ShardError(ErrorCode.SHARD_CORRUPT, message) from None
    if index != rows.stop:
        message = f"row group {group} holds {index - rows.start:,} rows, the footer says {len(rows):,}"
        raise ShardError(ErrorCode.SHARD_CORRUPT, message)


READER = Reader(
    format="parquet",
    suffixes=(".parquet",),
    read=_read,
    images="a column of bytes, or Hugging Face's struct of bytes and path",
    annotations="columns `label`, `labels`, …, `objects`, `bbox`, `boxes`, `mask`; class names of the schema",
    count=_count,
    check=_check,
)
