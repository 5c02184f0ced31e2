"""The members of a Parquet file: one image per row, as bytes or as Hugging Face's struct<bytes, path>.

footer ──parquet_footer──> schema ──parquet_columns──> row groups in small batches ──> Member ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import NativeFile
from pyarrow import parquet as pq

from camray.archive.annotations import Annotation, annotated, class_number, from_object, label_text
from camray.archive.parquet_columns import Columns, columns_of
from camray.archive.parquet_footer import open_parquet
from camray.archive.sidecars import failed
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ShardError, printable
from camray.records import Member, Shard
from camray.storage import open_folder

_BATCH_BYTES = 256 * 2**20
_BATCH_ROWS = 256
_MAX_GROUP_BYTES = 8 * 2**30


def check_parquet(shards: Sequence[Shard], config: ArchiveConfig) -> None:
    """Prove at plan time that the Parquet files have a column of images (the first readable one).

    Raises:
        UsageError: no such column, or several and none was named.
    """
    for shard in [s for s in shards if s.format == "parquet"][:8]:
        place = open_folder(shard.uri, "ARCHIVE")
        try:
            with place.open() as file:
                columns_of(open_parquet(file, shard.size_bytes).schema_arrow, config)
                return
        except (ShardError, OSError):
            continue  # said again, as a record, when the shard is read


def read_parquet(
    file: NativeFile, size: int, config: ArchiveConfig, wanted: Callable[[int], bool]
) -> Iterator[Member]:
    """Yield one member per row.

    Raises:
        ShardError: SHARD_UNREADABLE (footer, schema, extension types), SHARD_CORRUPT (a damaged page).
    """
    parquet = open_parquet(file, size)
    columns = columns_of(parquet.schema_arrow, config)
    first = 0
    for group in range(parquet.metadata.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        yield from _group(parquet, group, range(first, first + rows), columns, config, wanted)
        first += rows


def count_rows(file: NativeFile, size: int) -> int:
    """Count the rows by the footer alone."""
    return int(open_parquet(file, size).metadata.num_rows)


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
    if index != rows.stop:
        message = f"row group {group} holds {index - rows.start:,} rows, the footer says {len(rows):,}"
        raise ShardError(ErrorCode.SHARD_CORRUPT, message)


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
    said = _annotation(cells, columns, config)
    if not wanted(index):
        return annotated(Member(index, name), said)
    content = _bytes(image, columns.is_struct)
    if content is None:
        return annotated(failed(index, name, ErrorCode.MEMBER_UNREADABLE, "the cell holds no bytes"), said)
    if content.size > config.max_member_bytes:
        message = f"{content.size:,} bytes, more than {config.max_member_bytes:,}"
        return annotated(failed(index, name, ErrorCode.MEMBER_TOO_LARGE, message), said)
    mask = _bytes(cells.get(columns.mask or ""), columns.mask_is_struct)
    if mask is not None and mask.size > config.max_member_bytes:
        message = f"mask: {mask.size:,} bytes, more than {config.max_member_bytes:,}"
        return annotated(failed(index, name, ErrorCode.MEMBER_TOO_LARGE, message), said)
    member = Member(index, name, content.to_pybytes(), mask=mask.to_pybytes() if mask else None)
    return annotated(member, said)


def _bytes(cell: pa.Scalar | None, is_struct: bool) -> pa.Buffer | None:
    """Give the bytes of a cell without copying them; None where it holds none."""
    inner = cell["bytes"] if cell is not None and cell.is_valid and is_struct else cell
    return inner.as_buffer() if inner is not None and inner.is_valid else None


def _annotation(cells: dict[str, pa.Scalar], columns: Columns, config: ArchiveConfig) -> Annotation:
    """Read label and boxes; a label of its own counts before the categories of the objects."""
    found = _label(cells.get(columns.label or ""), columns)
    if columns.boxes is None or not cells[columns.boxes].is_valid:
        return found
    objects = {columns.boxes: _named(cells[columns.boxes].as_py(), columns.categories)}
    return found.or_else(from_object(objects, config.bbox))


def _named(objects: Any, names: tuple[str, ...]) -> Any:
    """Put class names in the place of category numbers."""
    if isinstance(objects, list):
        return [_named(item, names) for item in objects]
    if isinstance(objects, int) and not isinstance(objects, bool) and 0 <= objects < len(names):
        return names[objects]
    if isinstance(objects, dict):
        keys = ("category", "categories", "label", "labels")
        return {k: _named(v, names) if k in keys else v for k, v in objects.items()}
    return objects


def _label(cell: pa.Scalar | None, columns: Columns) -> Annotation:
    value: Any = None if cell is None else cell.as_py()
    if not isinstance(value, int):
        return Annotation(label_text(value) if isinstance(value, str) else None)
    number = class_number(value)
    is_named = number is not None and number < len(columns.class_names)
    return Annotation(label_text(columns.class_names[value]) if is_named else None, number)
