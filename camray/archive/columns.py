"""A table of images in Arrow's types: which columns hold what, and the member that a row is.

    schema ──columns_of──> Columns ──row_members, row after row──> Member ...

Bytes, or Hugging Face's struct<bytes, path>, are images, and so are lists of them: `row-3#0`, `row-3#1`. A
struct without bytes means the file that its path names. Hugging Face's own column names are known, and the
class names that its metadata keeps for a column of numbers. A dictionary is read as the values it stands for.

A column with an extension type can run code while it is read, in a process where such a type is registered:
a reader searches the raw schema for one before Arrow sees it, and looks again at what Arrow made of it.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from camray.archive.annotations import (
    LABELS,
    MAX_JSON_BYTES,
    Annotation,
    annotated,
    attributes_of,
    from_object,
    label_of,
    label_text,
)
from camray.archive.readers import IsNeeded, failed, size_problem
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ShardError, UsageError, printable
from camray.records import Member

PATHS = ("path", "file", "file_name", "filename", "filepath", "file_path", "image", "image_path", "img_path")
"""Names of a column of paths, in a Parquet file without images and in every other list."""

_NAME_COLUMNS = ("path", "file_name", "filename", "image_path", "name")
_LABEL_COLUMNS = ("label", "labels", *LABELS[1:])
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
    contents: tuple[str, ...]  # image and mask, as paths to read
    is_list: bool = False  # a row holds several images
    name: str | None = None
    label: str | None = None
    boxes: str | None = None
    mask: str | None = None
    class_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()  # names of the numbers in `objects`
    groups: tuple[str, ...] = ()  # columns of `--group-by`

    def to_read(self, with_images: bool) -> list[str]:
        """Give the columns to read, by path."""
        names = self.contents if with_images or self.is_list else ()
        if self.has_path and not names:
            names = (f"{self.image}.path",)
        return [*names, *dict.fromkeys(c for c in (self.name, self.label, self.boxes, *self.groups) if c)]


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
    names = [f.name for f in schema if _holds_images(f.type) and not _is_text_in_bytes(f)]
    return [name for name in names if name.lower() != _MASK] or names


def _is_text_in_bytes(field: pa.Field) -> bool:
    return field.name.lower() in _LABEL_COLUMNS and _is_bytes(_item(field.type)[0])


def list_columns(schema: pa.Schema) -> list[str]:
    """Find the columns that may hold several images a row."""
    return [name for name in image_columns(schema) if _item(schema.field(name).type)[1]]


def array_columns(schema: pa.Schema) -> list[str]:
    """Find the columns whose cells are arrays of numbers, as lists of lists."""
    return [f.name for f in schema if _is_array(f.type)]


def _is_array(kind: pa.DataType) -> bool:
    depth, (inner, is_list) = 0, _item(kind)
    while is_list:
        depth, (inner, is_list) = depth + 1, _item(inner)
    return depth in (2, 3) and bool(pa.types.is_integer(inner) or pa.types.is_floating(inner))


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
    image = _image_column(schema, config.image_column, config.reads_arrays)
    kind, is_list = _item(schema.field(image).type)
    is_list = is_list and not _is_array(schema.field(image).type)
    has_path = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
    texts = [n for n in _known(schema, _NAME_COLUMNS) if n != image and _is_text(schema.field(n).type)]
    label = _label_column(schema, config.label_column)
    nested = [n for n in _known(schema, _BOX_COLUMNS) if pa.types.is_nested(schema.field(n).type)]
    masks = [n for n in _known(schema, (_MASK,)) if n != image and _holds_images(schema.field(n).type)]
    features = _features(schema)
    return Columns(
        image=image,
        has_path=has_path,
        contents=tuple(path for name in (image, *masks[:1]) for path in _content_paths(schema.field(name))),
        is_list=is_list,
        name=texts[0] if texts and (is_list or not has_path) else None,
        label=label,
        boxes=nested[0] if nested else None,
        mask=masks[0] if masks else None,
        class_names=_class_names(features.get(label or "")),
        categories=_class_names(features.get("objects")),
        groups=_group_columns(schema, config.group_by),
    )


def _known(schema: pa.Schema, names: Sequence[str]) -> list[str]:
    """Give the columns that have one of these names, in upper or lower case, in the order of `names`."""
    there = {name.lower(): name for name in reversed(schema.names)}
    return [there[name] for name in names if name in there]


def _item(kind: pa.DataType) -> tuple[pa.DataType, bool]:
    """Give what a column holds, or what its lists hold; and whether it is lists."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return (kind.value_type, True) if is_list else (kind, False)


def _content_paths(field: pa.Field) -> list[str]:
    if not pa.types.is_struct(field.type):
        return [field.name]
    return [f"{field.name}.{part}" for part in ("bytes", "path") if field.type.get_field_index(part) >= 0]


def _image_column(schema: pa.Schema, option: str | None, arrays: bool) -> str:
    there = ", ".join(f"{f.name} ({f.type})" for f in schema)
    candidates = image_columns(schema) or (array_columns(schema) if arrays else [])
    if option is None:
        named = [name for name in candidates if name.lower() in _IMAGES]
        if len(candidates) != 1 and len(named) != 1:
            problem = "no column of images" if not candidates else f"several: {', '.join(candidates)}"
            raise UsageError("--image-column", f"{problem}; there are: {printable(there)}", "name the column")
        return named[0] if len(named) == 1 else candidates[0]
    if option not in schema.names:
        raise UsageError("--image-column", f"no column {option!r}", f"one of {printable(there)}")
    if not _holds_images(schema.field(option).type) and not (arrays and _is_array(schema.field(option).type)):
        problem = f"column {option!r} holds {schema.field(option).type}, not bytes"
        raise UsageError("--image-column", problem, f"one of {printable(there)}")
    return option


def _label_column(schema: pa.Schema, option: str | None) -> str | None:
    if option is not None and option not in schema.names and option:
        usable = [f.name for f in schema if _is_label(f.type) and not _is_bytes(f.type)]
        fix = f"one of {printable(', '.join(usable))}" if usable else "leave it out: no column can be labels"
        raise UsageError("--label-column", f"{option!r}: no such column", fix)
    names = [option] if option else []
    if option is None:  # a label that is an image is one of every pixel, and no label of ours
        known = _known(schema, _LABEL_COLUMNS)
        names = [
            name
            for name in known
            if not pa.types.is_struct(_item(schema.field(name).type)[0])
            or not _holds_images(schema.field(name).type)
        ]
    usable = [name for name in names if _is_label(schema.field(name).type)]
    if not usable:
        check_label_type(schema, names)
    return usable[0] if usable else None


def check_label_type(schema: pa.Schema, names: Sequence[str]) -> None:
    """Refuse a column of labels that can hold none: not numbers, texts, dictionaries or lists of these.

    Raises:
        UsageError: naming column and type.
    """
    there = {name.lower(): name for name in schema.names}
    for name in (there[name.lower()] for name in names):
        if not _is_label(schema.field(name).type):
            raise no_labels(name, f"holds {schema.field(name).type}, not a number or text an image")


def no_labels(column: str, problem: str) -> UsageError:
    """Say that a column is no column of labels."""
    problem = printable(f"column {column!r} {problem}")
    return UsageError("--label-column", problem, "name another column, or '' for no labels")


def _group_columns(schema: pa.Schema, group_by: tuple[str, ...]) -> tuple[str, ...]:
    usable = {f.name.lower(): f.name for f in schema if _is_label(f.type) or _is_number(f.type)}
    for name in group_by:
        if name.lower() not in usable:
            fix = f"one of {printable(', '.join(usable.values()))}"
            raise UsageError("--group-by", printable(f"no column {name} of numbers or text"), fix)
    return tuple(usable[name.lower()] for name in group_by)


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


def _class_names(feature: Any) -> tuple[str, ...]:
    """Find the class names of a label or of `objects`, whichever way a version of the library nests them."""
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


def _holds_images(kind: pa.DataType) -> bool:
    kind, _ = _item(kind)
    if not pa.types.is_struct(kind):
        return _is_bytes(kind)
    fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    has_path = "path" in fields and _is_text(fields["path"])
    return (
        _is_bytes(fields["bytes"]) or has_path
        if "bytes" in fields
        else fields.keys() == {"path"} and has_path
    )


def _is_bytes(kind: pa.DataType) -> bool:
    known = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(is_kind(_plain(kind)) for is_kind in (*known, pa.types.is_fixed_size_binary))


def _is_text(kind: pa.DataType) -> bool:
    known = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_kind(_plain(kind)) for is_kind in known)


def _is_label(kind: pa.DataType) -> bool:
    kind = _plain(_item(kind)[0])
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)
    return bool(is_number) or _is_text(kind) or _is_bytes(kind)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Give what a dictionary's indices stand for; any other type as it is."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_boolean(kind))


# ── a row ────────────────────────────────────────────────────────────────────────────────────────


def row_members(
    batch: pa.RecordBatch,
    row: int,
    number: int,
    index: int,
    columns: Columns,
    config: ArchiveConfig,
    is_needed: IsNeeded,
) -> Iterator[Member]:
    """Make the members of row `number`, the first of them with this index: one, or one an image of a list.

    `batch` holds the columns of `to_read`, with the images where needed. A list without images is one failed
    member.
    """
    cells = {name: batch.column(name)[row] for name in batch.schema.names}
    image, mask = cells.get(columns.image), _content(cells.get(columns.mask or ""))
    try:
        for name in cells.keys() & {columns.label, columns.boxes}:
            refuse_long(batch.column(name), row)
        annotation = _annotation(cells, columns, config)
    except ValueError as error:
        annotation = Annotation(problem=f"{name}: {error}")
    named = cells.get(columns.name or "")
    name = (cell_value(named) if named is not None else None) or f"row-{number}"
    if not columns.is_list:
        own = _content(image)
        name = own.path if columns.has_path and own.path else name
        yield annotated(_member(index, name, own, mask, config, is_needed(index)), annotation)
        return
    items = image.values if image is not None and image.is_valid else ()
    if not len(items):
        yield annotated(
            failed(index, name, ErrorCode.MEMBER_UNREADABLE, "the list holds no image"), annotation
        )
    for place, item in enumerate(items):
        made = _member(
            index + place, f"{name}#{place}", _content(item), mask, config, is_needed(index + place)
        )
        yield annotated(made, annotation)


@dataclass(frozen=True, slots=True)
class _Content:
    """What a cell holds: bytes, not copied yet, or the path of the file that has them."""

    data: pa.Buffer | None = None
    path: str | None = None


def _content(cell: pa.Scalar | None) -> _Content:
    if cell is None or not cell.is_valid:
        return _Content()
    if _is_array(cell.type):
        return _Content(_array_bytes(cell))
    if not pa.types.is_struct(cell.type):
        return _Content(_plain_cell(cell).as_buffer())
    path = cell_value(cell["path"]) if cell.type.get_field_index("path") >= 0 else None
    has_bytes = cell.type.get_field_index("bytes") >= 0 and cell["bytes"].is_valid
    return _Content(_plain_cell(cell["bytes"]).as_buffer() if has_bytes else None, path)


def _array_bytes(cell: pa.ListScalar) -> pa.Buffer | None:
    """Give the array of a cell as a NumPy file; None where rows differ in length, or a number is missing."""
    values, shape = cell.values, [len(cell.values)]
    while _item(values.type)[1]:
        lengths = set(values.value_lengths().to_pylist())
        if len(lengths) != 1 or None in lengths:
            return None
        shape.append(lengths.pop())
        values = values.flatten()
    if values.null_count or not len(values):
        return None
    file = io.BytesIO()
    np.save(file, values.to_numpy().reshape(shape), allow_pickle=False)
    return pa.py_buffer(file.getvalue())


def _member(
    index: int, name: str, image: _Content, mask: _Content, config: ArchiveConfig, is_needed: bool
) -> Member:
    """Make a member; a file that the cell names is read later, by whoever knows where the table lies."""
    if not is_needed:
        return Member(index, name)
    if image.data is None and not image.path:
        return failed(index, name, ErrorCode.MEMBER_UNREADABLE, "the cell holds no bytes, and no full array")
    for what, role in ((image.data, ""), (mask.data, "mask: ")):
        problem = what and size_problem(what.size, config.max_member_bytes)
        if problem:
            return failed(index, name, ErrorCode.MEMBER_TOO_LARGE, f"{role}{problem}")
    return Member(
        index, name,
        image.data.to_pybytes() if image.data else None,
        mask=mask.data.to_pybytes() if mask.data else None,
        file=image.path if image.data is None else None,
        mask_file=mask.path if mask.data is None else None,
    )  # fmt: skip


def _plain_cell(cell: pa.Scalar) -> pa.Scalar:
    return cell.value if pa.types.is_dictionary(cell.type) else cell


def cell_value(cell: pa.Scalar) -> Any:
    """Give a cell as Python has it; a text that is no UTF-8 as what can be read of it."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        cell = _plain_cell(cell)
        if not _is_text(cell.type):
            return None
        return cell.as_buffer().to_pybytes().decode("utf-8", "backslashreplace")


def refuse_long(column: pa.Array, row: int) -> None:
    """Refuse a cell whose lists name so many texts of a dictionary that Python could not hold them.

    Raises:
        ValueError: in one line, how much it would be.
    """
    size = _listed_bytes(column.slice(row, 1)) if pa.types.is_nested(column.type) else 0
    if size > MAX_JSON_BYTES:
        raise ValueError(f"its lists hold {size:,} bytes of text, more than {MAX_JSON_BYTES:,}")


def _listed_bytes(cells: pa.Array) -> int:
    kind = cells.type
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(cells.dictionary) if _is_text(kind.value_type) else None
        return 0 if lengths is None else int(pc.sum(lengths.take(cells.indices)).as_py() or 0)
    inner = cells.flatten() if pa.types.is_struct(kind) or _item(kind)[1] else []
    return sum(map(_listed_bytes, inner if isinstance(inner, list) else [inner]))


def _annotation(cells: dict[str, pa.Scalar], columns: Columns, config: ArchiveConfig) -> Annotation:
    """Read label and boxes; a label of its own counts before the categories of the objects."""
    try:
        label = _label(cells.get(columns.label or ""), columns)
    except ValueError as error:
        label = Annotation(problem=f"{columns.label}: {error}")
    row = {name.lower(): cell_value(cells[name]) for name in columns.groups}
    label = replace(label, attributes=attributes_of(row, config.group_by))
    if columns.boxes is None or not cells[columns.boxes].is_valid:
        return label
    key = columns.boxes.lower()
    objects = {key: _named(cell_value(cells[columns.boxes]), columns.categories)}
    return label.or_else(from_object(objects, config.bbox))


def _label(cell: pa.Scalar | None, columns: Columns) -> Annotation:
    label = label_of(None if cell is None else cell_value(cell))
    number = label.label_class
    if number is None or number >= len(columns.class_names):
        return label
    return Annotation(label_text(columns.class_names[number]), number)


def _named(objects: Any, names: tuple[str, ...]) -> Any:
    """Put class names in the place of category numbers."""
    if isinstance(objects, list):
        return [_named(item, names) for item in objects]
    if isinstance(objects, int) and not isinstance(objects, bool) and 0 <= objects < len(names):
        return names[objects]
    if isinstance(objects, dict):
        return {k: _named(v, names) if k in _CATEGORIES else v for k, v in objects.items()}
    return objects
