"""What an archive says of an image: its class, boxes around the object, where a mask of it lies.

Flows in: a table row, a JSON object, or the note that a loose file carries. Flows out: `Annotation`.
The note, short JSON on the file itself, is how a list's word reaches the reader on another node.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from camray.archive.boxes import find_boxes
from camray.records import Boxes, Member

MAX_TEXT_BYTES = 1024
_LABELS = ("label", "class", "cls", "class_id", "label_id", "class_name", "label_name", "category", "target")
_LABEL_COLUMNS = (*_LABELS, "index", "labels")
_MASKS = ("mask", "mask_file_name", "mask_path")
_CATEGORIES = ("categories", "category", "label", "labels")


@dataclass(frozen=True, slots=True)
class Annotation:
    """What is known of one image; `label` is a text, `label_class` a class number."""

    label: str | None = None
    label_class: int | None = None
    boxes: Boxes | None = None
    mask: str | None = None  # a path, relative to what says so
    is_captioned: bool = False  # a caption lies beside: a text file is then no label

    def or_else(self, other: Annotation) -> Annotation:
        """Fill what is open from another annotation."""
        return Annotation(
            other.label if self.label is None else self.label,
            other.label_class if self.label_class is None else self.label_class,
            self.boxes or other.boxes,
            self.mask or other.mask,
            self.is_captioned or other.is_captioned,
        )


def annotated(member: Member, annotation: Annotation) -> Member:
    """Give a member its label and boxes."""
    return replace(member, label=annotation.label, label_class=annotation.label_class, boxes=annotation.boxes)


def label_of(value: Any) -> Annotation:
    """Read one label: a class number or a text; anything else, and a negative number, is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return Annotation(label_class=class_number(value))
    return Annotation(label=label_text(value)) if isinstance(value, str) else Annotation()


def number_or_text(value: Any) -> Any:
    """Turn the digits of a text cell into the class number they are."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.removeprefix("-").isdigit() and len(text) < 12 else text
    return value


def class_number(value: int) -> int | None:
    """Give a class number that a record can hold; a negative one means unlabelled."""
    return value if 0 <= value < 2**31 else None


def label_text(value: str) -> str | None:
    """Give a label text that a record can hold; None where it is empty."""
    return value.encode("utf-8", "backslashreplace").decode()[:MAX_TEXT_BYTES] or None


def from_object(tree: Mapping[str, Any], bbox: str = "xywh") -> Annotation:
    """Read a JSON sidecar. What cannot be understood is left out: a sidecar is whatever its maker wrote."""
    row = {str(key).lower(): value for key, value in tree.items()}
    try:
        boxes = find_boxes(row, bbox)
    except (ValueError, RecursionError):
        boxes = None
    found = Annotation(boxes=boxes, is_captioned=isinstance(row.get("caption"), str))
    for key in _LABELS:
        found = found.or_else(label_of(row.get(key)))
    return found.or_else(category_of(row.get("objects")))


def from_row(row: Mapping[str, Any], label_column: str | None = None, bbox: str = "xywh") -> Annotation:
    """Read a row of a list or of a metadata file, its keys in lower case; digits are a class number.

    Raises:
        ValueError: in one line, what is wrong with it.
    """
    found = Annotation(boxes=find_boxes(row, bbox))
    for key in label_columns(row, label_column):
        found = found.or_else(label_of(number_or_text(row[key])))
    if label_column is None:
        found = found.or_else(category_of(row.get("objects")))
    masks = (row[key] for key in _MASKS if isinstance(row.get(key), str) and row[key].strip())
    return replace(found, mask=next(masks, None))


def label_columns(row: Mapping[str, Any], wanted: str | None) -> list[str]:
    """Find the columns that hold a label, the first to decide first."""
    return [key for key in ([wanted.lower()] if wanted else _LABEL_COLUMNS) if key in row]


def category_of(objects: Any) -> Annotation:
    """Take the categories of an image's objects for its label, where they are texts and all the same.

    Numbers are those of a detection data set, hardly ever of the classifier: they are left alone.
    """
    items = objects if isinstance(objects, list) else [objects]
    found: set[Any] = set()
    for item in items:
        for key in _CATEGORIES if isinstance(item, Mapping) else ():
            values = item.get(key)
            found.update(str(v) if isinstance(v, str) else None for v in _as_list(values))
    return label_of(found.pop()) if len(found) == 1 else Annotation()


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


# ── notes ────────────────────────────────────────────────────────────────────────────────────────


def to_note(annotation: Annotation, is_labelled: bool) -> str:
    """Write a note; empty where there is nothing to say.

    `is_labelled`: no other label counts, not even where this one is missing.
    """
    boxes = annotation.boxes
    said: dict[str, Any] = {
        "label": annotation.label,
        "class": annotation.label_class,
        "boxes": boxes and [[round(edge, 6) for edge in box] for box in boxes.edges],
        "pixels": boxes and boxes.in_pixels,
        "mask": annotation.mask,
        "labelled": is_labelled or None,
    }
    kept = {key: value for key, value in said.items() if value is not None}
    return json.dumps(kept, sort_keys=True, separators=(",", ":")) if kept else ""


def from_note(note: str) -> tuple[Annotation, bool]:
    """Read a note back: the annotation, and whether no other label counts."""
    said = json.loads(note) if note else {}
    edges = tuple((b[0], b[1], b[2], b[3]) for b in said.get("boxes", ()))
    boxes = Boxes(edges, bool(said["pixels"])) if edges else None
    found = Annotation(said.get("label"), said.get("class"), boxes, said.get("mask"))
    return found, bool(said.get("labelled"))
