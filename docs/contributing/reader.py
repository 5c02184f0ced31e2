# file: camray/archive/arrow.py
# line: camray/archive/readers.py:    "arrow",
# after:    "parquet",
"""The members of an Arrow IPC file: one image per row, in the columns that a Parquet file would have."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from pyarrow import NativeFile

from camray.archive import sniff
from camray.archive.columns import columns_of, refuse_extensions, row_members
from camray.archive.readers import IsNeeded, Reader
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ShardError, printable
from camray.records import Member


def _open(file: NativeFile, size: int) -> pa.RecordBatchFileReader:
    """Open a file whose schema, in its last bytes, is searched before Arrow sees it."""
    head = bytes(file.read_at(512, 0))
    tail = bytes(file.read_at(10, max(size - 10, 0)))
    length = int.from_bytes(tail[:4], "little")
    if not head.startswith(b"ARROW1") or tail[4:] != b"ARROW1" or length > size:
        message = f"not a whole Arrow file: looks like {sniff.looks_like(head)}"
        raise ShardError(ErrorCode.SHARD_UNREADABLE, message)
    refuse_extensions(bytes(file.read_at(length, size - 10 - length)))
    try:
        table = pa.ipc.open_file(file)
        [(field.name, str(field.type)) for field in table.schema]  # a name that is no UTF-8 shows here
        return table
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ShardError(ErrorCode.SHARD_UNREADABLE, printable(f"no schema: {error}")) from None


def _read(file: NativeFile, size: int, config: ArchiveConfig, is_needed: IsNeeded) -> Iterator[Member]:
    table = _open(file, size)
    columns, index, number = columns_of(table.schema, config), 0, 0
    try:
        for part in range(table.num_record_batches):
            batch = table.get_batch(part)
            batch.validate(full=True)  # offsets are a stranger's until then
            for row in range(batch.num_rows):
                for member in row_members(batch, row, number, index, columns, config, is_needed):
                    index = member.index + 1
                    yield member
                number += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ShardError(ErrorCode.SHARD_CORRUPT, printable(f"row {number}: {error}")) from None


READER = Reader(
    format="arrow",
    suffixes=(".arrow", ".feather"),
    read=_read,
    images="a column of bytes, or Hugging Face's struct of bytes and path",
    annotations="columns, as those of a Parquet file",
    check=lambda file, size, config: columns_of(_open(file, size).schema, config),
)
