"""What an archive says of an image: its class, boxes around the object, where a mask of it lies.

Flows in: a table row, a JSON object, a sidecar beside the image (`.cls` a class number, `.txt` a line of
text, `.json`), or the note that a loose file carries. Flows out: `Annotation`. The note, short JSON on the
file itself, is how a list's word reaches the reader on another node.

Boxes, in the spellings people have, become edges of the upright image:

    {"x0", "y0", "x1", "y1"} | {"xmin", "ymin", "xmax", "ymax"}             edges
    {"x", "y", "w", "h"}                                                    corner and size
    {"box": […]} | {"boxes": [[…], …]}                                      edges
    {"bbox": […]} | {"bboxes": [[…], …]} | {"objects": {"bbox": [[…], …]}}  corner and size (COCO)

Four numbers that are all at most 1 are shares of the width and height, otherwise pixels. `[archive] bbox`
says where a `bbox` holds edges after all.

A label, whatever it comes from, is a whole number (`3`, `3.0`, the digits "3") or a name, alone or in a list
of one; a folder alone is always a name. What is said of an image and cannot be is a `problem`: its image
fails, and nothing else does. In a sidecar, which may hold anything, only numbers of boxes are held to that.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from camray.archive.names import class_folder
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, printable
from camray.records import EDGES, Boxes, Member, Status

MAX_TEXT_BYTES = 1024
MAX_JSON_BYTES = 2**20
MAX_BOXES = 1000
"""Of one image. More is not somebody's annotation."""

LABELS = ("label", "class", "cls", "class_id", "label_id", "class_name", "label_name", "category", "target")
_LABEL_COLUMNS = (*LABELS, "index", "labels")
_MASKS = ("mask", "mask_file_name", "mask_path")
_CATEGORIES = ("categories", "category", "label", "labels")
_SIDECAR_ORDER = ("cls", "txt", "json")
_SCALARS = (EDGES, ("xmin", "ymin", "xmax", "ymax"), ("x", "y", "w", "h"))

Edges = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Annotation:
    """What is known of one image; `label` is a text, `label_class` a class number."""

    label: str | None = None
    label_class: int | None = None
    boxes: Boxes | None = None
    mask: str | None = None  # a path, relative to what says so
    is_captioned: bool = False  # a caption lies beside: a text file is then no label
    problem: str | None = None  # what is said of it and cannot be
    attributes: Mapping[str, str] = field(default_factory=dict)  # of the columns of `--group-by`

    def or_else(self, other: Annotation) -> Annotation:
        """Fill what is open from another annotation."""
        return Annotation(
            other.label if self.label is None else self.label,
            other.label_class if self.label_class is None else self.label_class,
            self.boxes or other.boxes,
            self.mask or other.mask,
            self.is_captioned or other.is_captioned,
            self.problem or other.problem,
            {**other.attributes, **self.attributes},
        )


def annotated(member: Member, annotation: Annotation) -> Member:
    """Give a member what is said of it; what cannot be makes it a failed one."""
    a = annotation
    said = replace(member, label=a.label, label_class=a.label_class, boxes=a.boxes, attributes=a.attributes)
    if annotation.problem is None or member.status != Status.OK:
        return said
    code, message = ErrorCode.MEMBER_UNREADABLE, printable(annotation.problem)
    return replace(
        said, content=None, mask=None, status=Status.FAILED, error_code=code, error_message=message
    )


def whole_of(path: str, noted: Annotation, is_labelled: bool, beside: Annotation) -> Annotation:
    """Put together what is known of an image: what names it in a table, its sidecars, its class folder.

    `is_labelled`: no other label counts, not even where that of `noted` is missing. `path` is relative to the
    archive, or empty. A number is no class of an image with a caption: img2dataset fills such folders.
    """
    if is_labelled:
        return noted.or_else(replace(beside, label=None, label_class=None))
    folder = class_folder(path)
    if folder and folder.isdigit() and beside.is_captioned:
        folder = None
    return noted.or_else(beside).or_else(Annotation(label_text(folder) if folder else None))


def label_of(value: Any) -> Annotation:
    """Read one label: a class number or a name. Nothing there, and a negative number, is none.

    Raises:
        ValueError: in one line, why it is no label.
    """
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{value[:20]!r} is no label: give text in UTF-8") from None
    if isinstance(value, str):
        value = _number_or_text(value)
    if value is None or value == [] or (isinstance(value, float) and math.isnan(value)):
        return Annotation()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return Annotation(label_class=class_number(value)) if value < 2**31 else Annotation(str(value))
    if isinstance(value, str):
        return Annotation(label=label_text(value))
    raise ValueError(f"{str(value)[:40]!r} is no label: give one number or name an image")


def _readable_label(value: Any) -> Annotation:
    """Read one label as a sidecar has it, where what is no label may be anything."""
    try:
        return label_of(value)
    except (ValueError, RecursionError):
        return Annotation()


def _number_or_text(value: str) -> int | str:
    """Turn the digits of a text into the class number they are; `3.0` is how a column with gaps writes 3."""
    text = value.strip()
    digits = text.removesuffix(".0")
    return (
        int(digits) if digits.isascii() and digits.removeprefix("-").isdigit() and len(digits) < 12 else text
    )


def class_number(value: int) -> int | None:
    """Give a class number that a record can hold; a negative one means unlabelled."""
    return value if 0 <= value < 2**31 else None


def label_text(value: str) -> str | None:
    """Give a label text that a record can hold; None where it is empty."""
    return value.encode("utf-8", "backslashreplace").decode()[:MAX_TEXT_BYTES] or None


def attributes_of(row: Mapping[str, Any], group_by: Sequence[str]) -> dict[str, str]:
    """Read the columns of `--group-by` from a row with lower-case keys, as text; without the empty ones."""
    found = {name: row.get(name.lower()) for name in group_by}
    texts = {
        name: label_text(str(value).strip())
        for name, value in found.items()
        if isinstance(value, str | int | float)
    }
    return {name: text for name, text in texts.items() if text is not None}


def from_object(tree: Mapping[str, Any], bbox: str = "xywh", group_by: Sequence[str] = ()) -> Annotation:
    """Read a JSON sidecar. What cannot be understood is left out: a sidecar is whatever its maker wrote."""
    row = {str(key).lower(): value for key, value in tree.items()}
    boxes, problem = None, None
    try:
        boxes = find_boxes(row, bbox)
    except ImpossibleNumberError as error:
        problem = str(error)
    except (ValueError, RecursionError):
        pass
    annotation = Annotation(
        boxes=boxes,
        is_captioned=isinstance(row.get("caption"), str),
        problem=problem,
        attributes=attributes_of(row, group_by),
    )
    for key in LABELS:
        annotation = annotation.or_else(_readable_label(row.get(key)))
    return annotation.or_else(category_of(row.get("objects")))


def from_row(
    row: Mapping[str, Any],
    label_column: str | None = None,
    bbox: str = "xywh",
    group_by: Sequence[str] = (),
) -> Annotation:
    """Read a row of a list or of a metadata file, its keys in lower case.

    Raises:
        ValueError: in one line, what is wrong with it.
    """
    annotation = Annotation(boxes=find_boxes(row, bbox), attributes=attributes_of(row, group_by))
    for key in label_columns(row, label_column):
        annotation = annotation.or_else(label_of(row[key]))
    if label_column is None:
        annotation = annotation.or_else(category_of(row.get("objects")))
    masks = (row[key] for key in _MASKS if isinstance(row.get(key), str) and row[key].strip())
    return replace(annotation, mask=next(masks, None))


def label_columns(row: Mapping[str, Any], label_column: str | None) -> list[str]:
    """Find the columns that hold a label, the first to decide first."""
    names = _LABEL_COLUMNS if label_column is None else [label_column.lower()]
    return [key for key in names if key in row]


def category_of(objects: Any) -> Annotation:
    """Take the categories of an image's objects for its label, where they are texts and all the same.

    Numbers are those of a detection data set, hardly ever of the classifier: they are left alone.
    """
    items = objects if isinstance(objects, list) else [objects]
    categories: set[str | None] = set()
    for item in items:
        for key in _CATEGORIES if isinstance(item, Mapping) else ():
            categories.update(v if isinstance(v, str) else None for v in _as_list(item.get(key)))
    category = categories.pop() if len(categories) == 1 else None
    return Annotation(label_text(category) if category else None)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


# ── sidecars ─────────────────────────────────────────────────────────────────────────────────────


def size_cap(extension: str) -> int:
    """How many bytes of such a sidecar are read."""
    return MAX_JSON_BYTES if extension == "json" else MAX_TEXT_BYTES


def read_sidecar(extension: str, content: bytes, config: ArchiveConfig) -> Annotation:
    """Read a sidecar; what cannot be understood is an empty annotation, never an error."""
    text = content[: size_cap(extension)].decode("utf-8-sig", "replace")
    if extension == "json":
        return _from_json(text, config) if len(content) <= MAX_JSON_BYTES else Annotation()
    lines = text.strip().splitlines()
    if extension == "cls":
        return label_of(lines[0]) if lines else Annotation()
    return label_of(lines[0]) if len(lines) == 1 and not config.captions else Annotation()


def merged(sidecars: Iterable[tuple[str, Annotation]]) -> Annotation:
    """Merge the sidecars of one image, given as (extension, annotation).

    `.cls` decides the class and `.txt` the text; `.json` fills what they leave open, and brings the boxes. A
    `.txt` is a caption and no label where the `.json` holds a `caption` (img2dataset), where it has more than
    one line, and where `[archive] captions` says so.
    """
    ordered = sorted(sidecars, key=lambda item: _SIDECAR_ORDER.index(item[0]))
    is_captioned = any(annotation.is_captioned for _, annotation in ordered)
    whole = Annotation()
    for extension, annotation in ordered:
        if not (is_captioned and extension == "txt"):
            whole = whole.or_else(annotation)
    return whole


def _from_json(text: str, config: ArchiveConfig) -> Annotation:
    try:
        tree = read_json(text)
    except (ValueError, RecursionError):
        return Annotation()
    if not isinstance(tree, dict):
        return _readable_label(tree)
    return from_object(tree, config.bbox, config.group_by)


def read_json(text: str) -> Any:
    """Read JSON; a whole number of more digits than anything counts is infinity.

    Raises:
        ValueError, RecursionError: it is none, or nested too deeply.
    """
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 400 else math.inf)


# ── boxes ────────────────────────────────────────────────────────────────────────────────────────


def find_boxes(row: Mapping[str, Any], bbox: str = "xywh") -> Boxes | None:
    """Find the boxes of an image in a table row or JSON object with lower-case keys; None without any.

    Raises:
        ValueError: in one line, what is wrong with them.
    """
    edges = list(_all_boxes(row, bbox == "xywh"))
    if len(edges) > MAX_BOXES:
        raise ValueError(f"{len(edges):,} boxes, more than {MAX_BOXES:,}")
    return join_boxes(edges)


def join_boxes(edges: list[Edges]) -> Boxes | None:
    """Put the boxes of one image together: shares of its sides only where all of them are."""
    if not edges:
        return None
    return Boxes(tuple(edges), in_pixels=any(abs(edge) > 1 for box in edges for edge in box))


def _all_boxes(row: Mapping[str, Any], is_size: bool) -> Iterator[Edges]:
    for names in _SCALARS:
        values = [_cell(row.get(name)) for name in names]
        given = [name for name, value in zip(names, values, strict=True) if value is not None]
        if len(given) == 4:
            yield _edges(values, names == _SCALARS[2])
        elif given and names[0] in given:  # `h` alone is anything
            missing = next(name for name in names if name not in given)
            raise ValueError(f"a box needs {', '.join(names)}; {missing} is empty")
    for key, many in (("box", False), ("boxes", True), ("bbox", False), ("bboxes", True)):
        value = _cell(row.get(key))
        if value is not None:
            yield from _listed(value, key, many, is_size and key.startswith("bb"))
    yield from _objects(row.get("objects"), is_size)


def _objects(objects: Any, is_size: bool) -> Iterator[Edges]:
    """Hugging Face's `objects`: one struct of lists, or a list of structs."""
    if isinstance(objects, Mapping):
        if objects.get("bbox") is not None:
            yield from _listed(objects["bbox"], "objects.bbox", True, is_size)
    elif isinstance(objects, list):
        for item in objects:
            if isinstance(item, Mapping) and item.get("bbox") is not None:
                yield from _listed(item["bbox"], "objects.bbox", False, is_size)


def _listed(value: Any, key: str, many: bool, is_size: bool) -> Iterator[Edges]:
    if isinstance(value, str):
        value = [number for number in re.split(r"[\s,;]+", value.strip("[]() \t")) if number]
    if isinstance(value, list) and not value:
        return
    nested = isinstance(value, list) and isinstance(value[0], list | tuple | Mapping)
    for box in value if (many and nested) or (nested and len(value) == 1) else [value]:
        if isinstance(box, Mapping):
            yield from _all_boxes({str(name).lower(): number for name, number in box.items()}, is_size)
        elif isinstance(box, list | tuple) and len(box) == 4:
            yield _edges(list(box), is_size)
        else:
            raise ValueError(f"{key} is {str(box)[:60]!r}, not four numbers")


def _edges(values: list[Any], is_size: bool) -> Edges:
    numbers = [_number(value) for value in values]
    x0, y0, x1, y1 = numbers
    if is_size:
        x1, y1 = x0 + x1, y0 + y1
    if x1 < x0 or y1 < y0:
        raise ValueError(f"the box {', '.join(f'{n:g}' for n in numbers)} has a negative side")
    return x0, y0, x1, y1


def _cell(value: Any) -> Any:
    return None if value is None or (isinstance(value, str) and not value.strip()) else value


class ImpossibleNumberError(ValueError):
    """A number that no edge of a box can have."""


def _number(value: Any) -> float:
    said = f"{str(value)[:40]!r} is not a number a box can have"
    try:
        number = float("text" if isinstance(value, bool) else value)
    except OverflowError:
        raise ImpossibleNumberError(said) from None
    except (TypeError, ValueError):
        raise ValueError(said) from None
    if not math.isfinite(number) or abs(number) > 1e9:
        raise ImpossibleNumberError(said)
    return number


# ── notes ────────────────────────────────────────────────────────────────────────────────────────


def to_note(annotation: Annotation, is_labelled: bool) -> str:
    """Write a note; empty where there is nothing to say.

    `is_labelled`: no other label counts, not even where this one is missing.
    """
    boxes = annotation.boxes
    fields: dict[str, Any] = {
        "label": annotation.label,
        "class": annotation.label_class,
        "boxes": boxes and [[round(edge, 6) for edge in box] for box in boxes.edges],
        "pixels": boxes and boxes.in_pixels,
        "mask": annotation.mask,
        "labelled": is_labelled or None,
        "problem": annotation.problem,
        "attributes": dict(annotation.attributes) or None,
    }
    given = {key: value for key, value in fields.items() if value is not None}
    return json.dumps(given, sort_keys=True, separators=(",", ":")) if given else ""


def from_note(note: str) -> tuple[Annotation, bool]:
    """Read a note back: the annotation, and whether no other label counts."""
    fields = json.loads(note) if note else {}
    edges = tuple((b[0], b[1], b[2], b[3]) for b in fields.get("boxes", ()))
    boxes = Boxes(edges, bool(fields["pixels"])) if edges else None
    annotation = Annotation(
        fields.get("label"),
        fields.get("class"),
        boxes,
        fields.get("mask"),
        problem=fields.get("problem"),
        attributes=fields.get("attributes", {}),
    )
    return annotation, bool(fields.get("labelled"))
