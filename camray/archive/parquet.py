"""The members of a Parquet file: one image per row, as bytes or as Hugging Face's struct<bytes, path>.

    footer ──no extension types──> schema ──Columns──> row groups in small batches ──> Member ...

A column with an extension type can run code while it is read, in a process where such a type is registered.
The raw footer is therefore searched for one before Arrow is allowed to look at it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import NativeFile
from pyarrow import parquet as pq

from camray.archive import sniff
from camray.archive.sidecars import Label, class_number, failed, label_text, with_label
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ShardError, UsageError, printable
from camray.records import Member, Shard
from camray.storage import open_folder

_BATCH_BYTES = 256 * 2**20
_BATCH_ROWS = 256
_MAX_FOOTER_BYTES = 64 * 2**20
_MAX_GROUP_BYTES = 8 * 2**30
_NAME_COLUMNS = ("path", "file_name", "filename", "image_path", "name")
_EXTENSION_KEY = b"ARROW:extension:name"
_EXTENSION_MARKS = (
    _EXTENSION_KEY,
    # The schema is kept as base64, where a word has one of three forms, by its place modulo 3. The letters
    # at either end are shared with its neighbours and left out.
    *(base64.b64encode(bytes(shift) + _EXTENSION_KEY)[4 if shift else 0 : -4] for shift in range(3)),
)


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the image, its name and its label lie."""

    image: str
    is_struct: bool
    has_path: bool
    name: str | None
    label: str | None
    class_names: tuple[str, ...] = ()

    def to_read(self, with_images: bool) -> list[str]:
        """Give the columns to read, by path."""
        image = [f"{self.image}.bytes"] if self.is_struct else [self.image]
        path = [f"{self.image}.path"] if self.has_path else []
        return (image if with_images else []) + path + [c for c in (self.name, self.label) if c]


def check_parquet(shards: Sequence[Shard], config: ArchiveConfig) -> None:
    """Prove at plan time that the Parquet files have a column of images (the first readable one).

    Raises:
        UsageError: no such column, or several and none was named.
    """
    for shard in [s for s in shards if s.format == "parquet"][:8]:
        place = open_folder(shard.uri, "ARCHIVE")
        try:
            with place.open() as file:
                columns_of(_open(file, shard.size_bytes).schema_arrow, config.image_column)
                return
        except (ShardError, OSError):
            continue  # said again, as a record, when the shard is read


def columns_of(schema: pa.Schema, wanted: str | None) -> Columns:
    """Find the columns.

    Raises:
        UsageError: naming the columns that are there.
    """
    there = ", ".join(f"{f.name} ({f.type})" for f in schema)
    candidates = [f.name for f in schema if _holds_bytes(f.type)]
    if wanted is None:
        named = [name for name in candidates if name in ("image", "img")]
        if len(candidates) != 1 and len(named) != 1:
            problem = "no column of images" if not candidates else f"several: {', '.join(candidates)}"
            raise UsageError("image_column", f"{problem}; there are: {printable(there)}", "name the column")
        wanted = named[0] if len(named) == 1 else candidates[0]
    elif wanted not in candidates:
        problem = "no such column" if wanted not in schema.names else "not a column of bytes"
        raise UsageError("image_column", f"{wanted!r}: {problem}; there are: {printable(there)}")
    kind = schema.field(wanted).type
    is_struct = pa.types.is_struct(kind)
    has_path = is_struct and kind.get_field_index("path") >= 0
    texts = [n for n in _NAME_COLUMNS if n in schema.names and n != wanted and _is_text(schema.field(n).type)]
    label = "label" if "label" in schema.names and _is_label(schema.field("label").type) else None
    return Columns(
        wanted, is_struct, has_path, texts[0] if texts and not has_path else None, label, _class_names(schema)
    )


def read_parquet(
    file: NativeFile, size: int, config: ArchiveConfig, wanted: Callable[[int], bool]
) -> Iterator[Member]:
    """Yield one member per row.

    Raises:
        ShardError: SHARD_UNREADABLE (footer, schema, extension types), SHARD_CORRUPT (a damaged page).
    """
    parquet = _open(file, size)
    columns = columns_of(parquet.schema_arrow, config.image_column)
    first = 0
    for group in range(parquet.metadata.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        yield from _group(parquet, group, range(first, first + rows), columns, config, wanted)
        first += rows


def count_rows(file: NativeFile, size: int) -> int:
    """Count the rows by the footer alone."""
    return int(_open(file, size).metadata.num_rows)


def _open(file: NativeFile, size: int) -> pq.ParquetFile:
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


def _group(
    parquet: pq.ParquetFile,
    group: int,
    rows: range,
    columns: Columns,
    config: ArchiveConfig,
    wanted: Callable[[int], bool],
) -> Iterator[Member]:
    """Yield the members of one row group."""
    about = parquet.metadata.row_group(group)
    total = about.total_byte_size
    if total > _MAX_GROUP_BYTES:
        message = f"row group {group} unpacks to {total:,} bytes, more than {_MAX_GROUP_BYTES:,}"
        raise ShardError(ErrorCode.SHARD_CORRUPT, message)
    names = columns.to_read(any(wanted(index) for index in rows))
    if not names:
        yield from (Member(index, f"row-{index}") for index in rows)
        return
    # A value repeated by the dictionary may be as large as the whole group: so many rows fit at worst.
    batch_rows = min(max(_BATCH_BYTES // max(total, 1), 1), _BATCH_ROWS)
    index = rows.start
    try:
        for batch in parquet.iter_batches(batch_rows, row_groups=[group], columns=names):
            for row in range(batch.num_rows):
                yield _member(batch, row, index, columns, config, wanted)
                index += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        message = f"row group {group}: {printable(str(error))}"
        raise ShardError(ErrorCode.SHARD_CORRUPT, message) from None


def _member(
    batch: pa.RecordBatch,
    row: int,
    index: int,
    columns: Columns,
    config: ArchiveConfig,
    wanted: Callable[[int], bool],
) -> Member:
    cells = {name: batch.column(name)[row] for name in batch.schema.names}
    image = cells.get(columns.image)
    path = image["path"] if image is not None and image.is_valid and columns.has_path else None
    named = path if path is not None else cells.get(columns.name or "")
    name = (named.as_py() if named is not None else None) or f"row-{index}"
    label = _label(cells.get(columns.label or ""), columns)
    if not wanted(index):
        return with_label(Member(index, name), label)
    content = image["bytes"] if columns.is_struct and image is not None and image.is_valid else image
    if content is None or not content.is_valid:
        return with_label(failed(index, name, ErrorCode.MEMBER_UNREADABLE, "the cell holds no bytes"), label)
    data = content.as_buffer()
    if data.size > config.max_member_bytes:
        message = f"{data.size:,} bytes, more than {config.max_member_bytes:,}"
        return with_label(failed(index, name, ErrorCode.MEMBER_TOO_LARGE, message), label)
    return with_label(Member(index, name, data.to_pybytes()), label)


def _label(cell: pa.Scalar | None, columns: Columns) -> Label:
    value: Any = None if cell is None else cell.as_py()
    if isinstance(value, bool) or value is None:
        return Label()
    if isinstance(value, int):
        number = class_number(value)
        named = number is not None and number < len(columns.class_names)
        return Label(
            label_text(columns.class_names[number]) if named and number is not None else None, number
        )
    return Label(label_text(str(value)))


def _class_names(schema: pa.Schema) -> tuple[str, ...]:
    """Give the names Hugging Face's metadata holds for the label column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features["label"]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_bytes(kind.field(place).type)
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_label(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind)) or _is_text(kind)


def _is_extended(field: pa.Field) -> bool:
    """Tell whether a column, or one nested in it, has an extension type, registered here or not."""
    if isinstance(field.type, pa.BaseExtensionType) or _EXTENSION_KEY in (field.metadata or {}):
        return True
    return any(_is_extended(field.type.field(i)) for i in range(field.type.num_fields))
