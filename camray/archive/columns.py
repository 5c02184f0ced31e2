"""A table of images in Arrow's types: which columns hold what, and the member that a row is.

    schema ──columns_of──> Columns ──row_member, row after row──> Member ...

Bytes, or Hugging Face's struct<bytes, path>, are images. Hugging Face's own column names are known, and the
class names that its metadata keeps for a column of numbers.

A column with an extension type can run code while it is read, in a process where such a type is registered:
a reader searches the raw schema for one before Arrow sees it, and looks again at what Arrow made of it.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from camray.archive.annotations import Annotation, annotated, class_number, from_object, label_text
from camray.archive.readers import IsNeeded, failed, size_problem
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ShardError, UsageError, printable
from camray.records import Member

PATHS = ("path", "file", "file_name", "filename", "filepath", "file_path", "image", "image_path", "img_path")
"""Names of a column of paths, in a Parquet file without images and in every other list."""

_NAME_COLUMNS = ("path", "file_name", "filename", "image_path", "name")
_LABEL_COLUMNS = ("label", "labels", "class", "cls", "class_id", "class_name", "target")
_BOX_COLUMNS = ("objects", "bbox", "bboxes", "box", "boxes")
_CATEGORIES = ("category", "categories", "label", "labels")
_IMAGES, _MASK = ("image", "img"), "mask"
_EXTENSION_KEY = b"ARROW:extension:name"
_EXTENSION_MARKS = (
    _EXTENSION_KEY,
    # Parquet keeps the schema as base64, where a word has one of three forms, by its place modulo 3. The
    # letters at either end are shared with its neighbours and left out.
    *(base64.b64encode(bytes(shift) + _EXTENSION_KEY)[4 if shift else 0 : -4] for shift in range(3)),
)


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the image and what is said of it lie."""

    image: str
    has_path: bool  # the image is a struct that holds its name
    contents: tuple[str, ...]  # the bytes of image and mask, as paths to read
    name: str | None
    label: str | None
    boxes: str | None = None
    mask: str | None = None
    class_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()  # names of the numbers in `objects`

    def to_read(self, with_images: bool) -> list[str]:
        """Give the columns to read, by path."""
        names = [*self.contents] if with_images else []
        if self.has_path:
            names.append(f"{self.image}.path")
        return names + [c for c in (self.name, self.label, self.boxes) if c]


# ── the schema ───────────────────────────────────────────────────────────────────────────────────


def refuse_extensions(raw: bytes, schema: pa.Schema | None = None) -> None:
    """Refuse a schema with an extension type: `raw` as the file holds it, then `schema` as Arrow reads it.

    Raises:
        ShardError: SHARD_UNREADABLE.
    """
    extended = [printable(f.name) for f in schema or () if _is_extended(f)]
    if extended or any(mark in raw for mark in _EXTENSION_MARKS):
        what = f"column {extended[0]}" if extended else "a column"
        raise ShardError(ErrorCode.SHARD_UNREADABLE, f"{what} has an extension type; those are refused")


def _is_extended(field: pa.Field) -> bool:
    """Tell whether a column, or one nested in it, has an extension type, registered here or not."""
    if isinstance(field.type, pa.BaseExtensionType) or _EXTENSION_KEY in (field.metadata or {}):
        return True
    return any(_is_extended(field.type.field(i)) for i in range(field.type.num_fields))


def image_columns(schema: pa.Schema) -> list[str]:
    """Find the columns that may hold images; one called mask only where it is the only one."""
    names = [f.name for f in schema if _holds_bytes(f.type)]
    return [name for name in names if name != _MASK] or names


def path_column(schema: pa.Schema, option: str | None) -> str | None:
    """Find the column of paths of a file that is a list; None where it holds images."""
    texts = {f.name.lower(): f.name for f in schema if _is_text(f.type)}
    if option is not None:
        return texts.get(option.lower())
    return None if image_columns(schema) else next((texts[name] for name in PATHS if name in texts), None)


def columns_of(schema: pa.Schema, config: ArchiveConfig) -> Columns:
    """Find the columns.

    Raises:
        UsageError: naming the columns that are there.
    """
    image = _image_column(schema, config.image_column)
    kind = schema.field(image).type
    has_path = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
    texts = [n for n in _NAME_COLUMNS if n in schema.names and n != image and _is_text(schema.field(n).type)]
    label = _label_column(schema, config.label_column)
    nested = [n for n in _BOX_COLUMNS if n in schema.names and pa.types.is_nested(schema.field(n).type)]
    is_masked = image != _MASK and _MASK in schema.names and _holds_bytes(schema.field(_MASK).type)
    features = _features(schema)
    return Columns(
        image=image,
        has_path=has_path,
        contents=tuple(_bytes_path(schema.field(c)) for c in (image, _MASK)[: 1 + is_masked]),
        name=texts[0] if texts and not has_path else None,
        label=label,
        boxes=nested[0] if nested else None,
        mask=_MASK if is_masked else None,
        class_names=_names_in(features.get(label or "")),
        categories=_category_names(features.get("objects")),
    )


def _bytes_path(field: pa.Field) -> str:
    return f"{field.name}.bytes" if pa.types.is_struct(field.type) else str(field.name)


def _image_column(schema: pa.Schema, option: str | None) -> str:
    there = ", ".join(f"{f.name} ({f.type})" for f in schema)
    candidates = image_columns(schema)
    if option is None:
        named = [name for name in candidates if name in _IMAGES]
        if len(candidates) != 1 and len(named) != 1:
            problem = "no column of images" if not candidates else f"several: {', '.join(candidates)}"
            raise UsageError("--image-column", f"{problem}; there are: {printable(there)}", "name the column")
        return named[0] if len(named) == 1 else candidates[0]
    if option not in schema.names:
        raise UsageError("--image-column", f"no column {option!r}", f"one of {printable(there)}")
    if not _holds_bytes(schema.field(option).type):
        problem = f"column {option!r} holds {schema.field(option).type}, not bytes"
        raise UsageError("--image-column", problem, f"one of {printable(there)}")
    return option


def _label_column(schema: pa.Schema, option: str | None) -> str | None:
    usable = [n for n in schema.names if _is_label(schema.field(n).type)]
    if option is None:
        return next((name for name in _LABEL_COLUMNS if name in usable), None)
    if option not in usable:
        problem = "not a column of numbers or text" if option in schema.names else "no such column"
        fix = f"one of {printable(', '.join(usable))}" if usable else "leave it out: no column can be labels"
        raise UsageError("--label-column", f"{option!r}: {problem}", fix)
    return option


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Give what Hugging Face's metadata says of the columns."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _names_in(feature: Any) -> tuple[str, ...]:
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def _category_names(feature: Any) -> tuple[str, ...]:
    """Find the class names of `objects.category`, whichever way the version of the library nests them."""
    while isinstance(feature, dict | list):
        if isinstance(feature, list):
            feature = feature[0] if feature else None
            continue
        if _names_in(feature):
            return _names_in(feature)
        feature = next(
            (feature[k] for k in ("feature", "category", "categories", "label") if k in feature), None
        )
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


# ── a row ────────────────────────────────────────────────────────────────────────────────────────


def row_member(
    batch: pa.RecordBatch,
    row: int,
    index: int,
    columns: Columns,
    config: ArchiveConfig,
    is_needed: IsNeeded,
) -> Member:
    """Make the member of a row; `batch` holds the columns of `to_read`, with the images where needed."""
    cells = {name: batch.column(name)[row] for name in batch.schema.names}
    image = cells.get(columns.image)
    path = image["path"] if image is not None and image.is_valid and columns.has_path else None
    named = path if path is not None else cells.get(columns.name or "")
    name = (named.as_py() if named is not None else None) or f"row-{index}"
    annotation = _annotation(cells, columns, config)
    if not is_needed(index):
        return annotated(Member(index, name), annotation)
    content, mask = _bytes(image), _bytes(cells.get(columns.mask or ""))
    if content is None:
        nothing = failed(index, name, ErrorCode.MEMBER_UNREADABLE, "the cell holds no bytes")
        return annotated(nothing, annotation)
    problem = size_problem(content.size, config.max_member_bytes)
    if problem is None and mask is not None:
        problem = size_problem(mask.size, config.max_member_bytes)
        problem = problem and f"mask: {problem}"
    if problem is not None:
        return annotated(failed(index, name, ErrorCode.MEMBER_TOO_LARGE, problem), annotation)
    member = Member(index, name, content.to_pybytes(), mask=mask.to_pybytes() if mask else None)
    return annotated(member, annotation)


def _bytes(cell: pa.Scalar | None) -> pa.Buffer | None:
    """Give the bytes of a cell without copying them; None where it holds none."""
    if cell is not None and cell.is_valid and pa.types.is_struct(cell.type):
        cell = cell["bytes"]
    return cell.as_buffer() if cell is not None and cell.is_valid else None


def _annotation(cells: dict[str, pa.Scalar], columns: Columns, config: ArchiveConfig) -> Annotation:
    """Read label and boxes; a label of its own counts before the categories of the objects."""
    label = _label(cells.get(columns.label or ""), columns)
    if columns.boxes is None or not cells[columns.boxes].is_valid:
        return label
    objects = {columns.boxes: _named(cells[columns.boxes].as_py(), columns.categories)}
    return label.or_else(from_object(objects, config.bbox))


def _label(cell: pa.Scalar | None, columns: Columns) -> Annotation:
    value: Any = None if cell is None else cell.as_py()
    if not isinstance(value, int):
        return Annotation(label_text(value) if isinstance(value, str) else None)
    number = class_number(value)
    is_named = number is not None and number < len(columns.class_names)
    return Annotation(label_text(columns.class_names[value]) if is_named else None, number)


def _named(objects: Any, names: tuple[str, ...]) -> Any:
    """Put class names in the place of category numbers."""
    if isinstance(objects, list):
        return [_named(item, names) for item in objects]
    if isinstance(objects, int) and not isinstance(objects, bool) and 0 <= objects < len(names):
        return names[objects]
    if isinstance(objects, dict):
        return {k: _named(v, names) if k in _CATEGORIES else v for k, v in objects.items()}
    return objects
