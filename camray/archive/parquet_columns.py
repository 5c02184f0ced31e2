"""Which columns of a Parquet file hold the image, its name, its label, its boxes and its mask: by the schema.

Hugging Face's own names are known, and the class names that its metadata keeps for a column of numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from camray.config import ArchiveConfig
from camray.errors import UsageError, printable

PATHS = ("path", "file", "file_name", "filename", "filepath", "file_path", "image", "image_path", "img_path")
"""Names of a column of paths, in a Parquet file without images and in every other list."""

_NAME_COLUMNS = ("path", "file_name", "filename", "image_path", "name")
_LABEL_COLUMNS = ("label", "labels", "class", "cls", "class_id", "class_name", "target")
_BOX_COLUMNS = ("objects", "bbox", "bboxes", "box", "boxes")
_IMAGES, _MASK = ("image", "img"), "mask"


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the image and what is said of it lie."""

    image: str
    is_struct: bool
    has_path: bool
    name: str | None
    label: str | None
    boxes: str | None = None
    mask: str | None = None
    mask_is_struct: bool = False
    class_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()  # names of the numbers in `objects`

    def to_read(self, with_images: bool) -> list[str]:
        """Give the columns to read, by path."""
        found = []
        if with_images:
            found.append(f"{self.image}.bytes" if self.is_struct else self.image)
            if self.mask:
                found.append(f"{self.mask}.bytes" if self.mask_is_struct else self.mask)
        if self.has_path:
            found.append(f"{self.image}.path")
        return found + [c for c in (self.name, self.label, self.boxes) if c]


def image_columns(schema: pa.Schema) -> list[str]:
    """Find the columns that may hold images; one called mask only where it is the only one."""
    found = [f.name for f in schema if _holds_bytes(f.type)]
    return [name for name in found if name != _MASK] or found


def path_column(schema: pa.Schema, wanted: str | None) -> str | None:
    """Find the column of paths of a file that is a list; None where it holds images."""
    texts = {f.name.lower(): f.name for f in schema if _is_text(f.type)}
    if wanted is not None:
        return texts.get(wanted.lower())
    return None if image_columns(schema) else next((texts[name] for name in PATHS if name in texts), None)


def columns_of(schema: pa.Schema, config: ArchiveConfig) -> Columns:
    """Find the columns.

    Raises:
        UsageError: naming the columns that are there.
    """
    image = _image_column(schema, config.image_column)
    kind = schema.field(image).type
    is_struct = pa.types.is_struct(kind)
    has_path = is_struct and kind.get_field_index("path") >= 0
    texts = [n for n in _NAME_COLUMNS if n in schema.names and n != image and _is_text(schema.field(n).type)]
    label = _label_column(schema, config.label_column)
    boxes = next(
        (n for n in _BOX_COLUMNS if n in schema.names and pa.types.is_nested(schema.field(n).type)), None
    )
    is_masked = image != _MASK and _MASK in schema.names and _holds_bytes(schema.field(_MASK).type)
    mask = _MASK if is_masked else None
    features = _features(schema)
    return Columns(
        image,
        is_struct,
        has_path,
        texts[0] if texts and not has_path else None,
        label,
        boxes,
        mask,
        mask is not None and pa.types.is_struct(schema.field(mask).type),
        _names_in(features.get(label or "")),
        _category_names(features.get("objects")),
    )


def _image_column(schema: pa.Schema, wanted: str | None) -> str:
    there = ", ".join(f"{f.name} ({f.type})" for f in schema)
    candidates = image_columns(schema)
    if wanted is None:
        named = [name for name in candidates if name in _IMAGES]
        if len(candidates) != 1 and len(named) != 1:
            problem = "no column of images" if not candidates else f"several: {', '.join(candidates)}"
            raise UsageError("--image-column", f"{problem}; there are: {printable(there)}", "name the column")
        return named[0] if len(named) == 1 else candidates[0]
    if wanted not in schema.names:
        raise UsageError("--image-column", f"no column {wanted!r}", f"one of {printable(there)}")
    if not _holds_bytes(schema.field(wanted).type):
        problem = f"column {wanted!r} holds {schema.field(wanted).type}, not bytes"
        raise UsageError("--image-column", problem, f"one of {printable(there)}")
    return wanted


def _label_column(schema: pa.Schema, wanted: str | None) -> str | None:
    usable = [n for n in schema.names if _is_label(schema.field(n).type)]
    if wanted is None:
        return next((name for name in _LABEL_COLUMNS if name in usable), None)
    if wanted not in usable:
        problem = "not a column of numbers or text" if wanted in schema.names else "no such column"
        fix = f"one of {printable(', '.join(usable))}" if usable else "leave it out: no column can be labels"
        raise UsageError("--label-column", f"{wanted!r}: {problem}", fix)
    return wanted


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
