"""A Parquet file opened safely: the footer is looked at before Arrow is.

A column with an extension type can run code while it is read, in a process where such a type is registered.
The raw footer is therefore searched for one first, and its claims are bounded.
"""

from __future__ import annotations

import base64

import pyarrow as pa
from pyarrow import NativeFile
from pyarrow import parquet as pq

from camray.archive import sniff
from camray.errors import ErrorCode, ShardError, printable

_MAX_FOOTER_BYTES = 64 * 2**20
_EXTENSION_KEY = b"ARROW:extension:name"
_EXTENSION_MARKS = (
    _EXTENSION_KEY,
    # The schema is kept as base64, where a word has one of three forms, by its place modulo 3. The letters
    # at either end are shared with its neighbours and left out.
    *(base64.b64encode(bytes(shift) + _EXTENSION_KEY)[4 if shift else 0 : -4] for shift in range(3)),
)


def open_parquet(file: NativeFile, size: int) -> pq.ParquetFile:
    """Open a file of `size` bytes.

    Raises:
        ShardError: SHARD_UNREADABLE: not Parquet, cut, a damaged footer, a column with an extension type.
    """
    footer = _footer(file, size)
    if any(mark in footer for mark in _EXTENSION_MARKS):
        raise ShardError(ErrorCode.SHARD_UNREADABLE, "a column has an extension type; those are refused")
    try:
        parquet = pq.ParquetFile(
            file,
            thrift_string_size_limit=_MAX_FOOTER_BYTES,
            thrift_container_size_limit=10_000_000,
            page_checksum_verification=True,
        )
        extended = [f.name for f in parquet.schema_arrow if _is_extended(f)]
    except (pa.ArrowException, OSError, ValueError) as error:
        message = f"the footer cannot be read: {printable(str(error))}"
        raise ShardError(ErrorCode.SHARD_UNREADABLE, message) from None
    if extended:
        message = f"column {printable(extended[0])} has an extension type; those are refused"
        raise ShardError(ErrorCode.SHARD_UNREADABLE, message)
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


def _is_extended(field: pa.Field) -> bool:
    """Tell whether a column, or one nested in it, has an extension type, registered here or not."""
    if isinstance(field.type, pa.BaseExtensionType) or _EXTENSION_KEY in (field.metadata or {}):
        return True
    return any(_is_extended(field.type.field(i)) for i in range(field.type.num_fields))
