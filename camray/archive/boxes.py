"""Boxes, in the spellings people have, as edges of the upright image.

    {"x0", "y0", "x1", "y1"} | {"xmin", "ymin", "xmax", "ymax"}             edges
    {"x", "y", "w", "h"}                                                    corner and size
    {"box": […]} | {"boxes": [[…], …]}                                      edges
    {"bbox": […]} | {"bboxes": [[…], …]} | {"objects": {"bbox": [[…], …]}}  corner and size (COCO)

Four numbers that are all at most 1 are shares of the width and height, otherwise pixels. `[archive] bbox`
says where a `bbox` holds edges after all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from camray.records import EDGES, Boxes

MAX_BOXES = 1000
"""Of one image. More is not somebody's annotation."""

Edges = tuple[float, float, float, float]
_SCALARS = (EDGES, ("xmin", "ymin", "xmax", "ymax"), ("x", "y", "w", "h"))


def find_boxes(row: Mapping[str, Any], bbox: str = "xywh") -> Boxes | None:
    """Find the boxes of an image in a table row or JSON object with lower-case keys; None without any.

    Raises:
        ValueError: in one line, what is wrong with them.
    """
    found = list(_all(row, bbox == "xywh"))
    if len(found) > MAX_BOXES:
        raise ValueError(f"{len(found):,} boxes, more than {MAX_BOXES:,}")
    return join_boxes(found)


def join_boxes(edges: list[Edges]) -> Boxes | None:
    """Put the boxes of one image together: shares of its sides only where all of them are."""
    if not edges:
        return None
    return Boxes(tuple(edges), in_pixels=any(abs(edge) > 1 for box in edges for edge in box))


def shares(boxes: list[dict[str, float]], in_pixels: bool, width: int, height: int) -> list[dict[str, float]]:
    """Give boxes as shares of the sides, cut at the image's edges; what has no area in it is left out."""
    across, down = (width, height) if in_pixels else (1, 1)
    found = []
    for box in boxes:
        x0, x1 = (min(max(box[edge] / across, 0.0), 1.0) for edge in ("x0", "x1"))
        y0, y1 = (min(max(box[edge] / down, 0.0), 1.0) for edge in ("y0", "y1"))
        if x1 > x0 and y1 > y0:
            found.append(dict(zip(EDGES, (x0, y0, x1, y1), strict=True)))
    return found


def _all(row: Mapping[str, Any], is_size: bool) -> Iterator[Edges]:
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
            yield from _all({str(name).lower(): number for name, number in box.items()}, is_size)
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


def _number(value: Any) -> float:
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or abs(number) > 1e9:
        raise ValueError(f"{str(value)[:40]!r} is not a number a box can have")
    return number
