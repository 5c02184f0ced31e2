"""What was seen of a chunk as columns: a row a target, laid behind the items that the rows are of.

Flows in: maps, rows, or columns of them. Flows out: an `EXPLAINED` struct array.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from camray.explain.signals import heat_signals, heat_status
from camray.records import DECODED, EXPLAINED, struct_array

Row = dict[str, Any]
Columns = dict[str, Any]
"""Values by the name of their column: lists, Arrow arrays, NumPy arrays."""
PASSED = [f.name for f in DECODED if f.name not in ("pixels", "bands", "content")]
# by an item, here or before
DECIDED = ["status", "error_code", "error_stage", "error_message", "label_class"]


def heat_columns(maps: Tensor) -> Columns:
    """Give the heatmap columns of maps (B, h, w), raw and signed; a nonfinite map is null."""
    statuses = heat_status(maps)
    usable = [status != "nonfinite" for status in statuses]
    count, h, w = maps.shape
    return {
        "heatmap": [m if u else None for m, u in zip(maps.cpu().numpy(), usable, strict=True)],
        "heat_h": [h] * count,
        "heat_w": [w] * count,
        "heat_max": [m if u else None for m, u in zip(maps.amax((1, 2)).tolist(), usable, strict=True)],
        "heat_status": statuses,
    } | heat_signals(maps)


def as_rows(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Turn columns into rows."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def by_column(found: Mapping[int, Sequence[Row]]) -> tuple[list[int], Columns]:
    """Turn the rows of each item into columns, and the item of each row."""
    rows = [row for own in found.values() for row in own]
    names = dict.fromkeys(name for row in rows for name in row)
    owners = [i for i, own in found.items() for _ in own]
    return owners, {name: [row.get(name) for row in rows] for name in names}


def taken(columns: Columns, places: Sequence[int | None]) -> Columns:
    """Take rows of columns; None: a row of nulls."""
    at = pa.array(places, pa.int64())
    return {name: _typed(name, values).take(at) for name, values in columns.items()}


def _typed(name: str, values: Any) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    return _list_column(values) if name == "heatmap" else pa.array(values, EXPLAINED.field(name).type)


def laid_out(
    images: pa.StructArray, items: Sequence[Row], owners: Sequence[int], columns: Columns
) -> pa.StructArray:
    """Put new columns, with the item of each row, behind those of the items; one without any keeps a row."""
    own: dict[int, list[int]] = defaultdict(list)
    for place, i in enumerate(owners):
        own[i].append(place)
    out = [(i, place) for i in range(len(items)) for place in own.get(i, (None,))]
    at = pa.array([i for i, _ in out], pa.int64())
    kept = [f.name for f in EXPLAINED if f.name in PASSED]
    laid: Columns = {name: images.field(name).take(at) for name in kept}
    laid |= {name: [items[i][name] for i, _ in out] for name in DECIDED}
    return struct_array(laid | taken(columns, [place for _, place in out]), EXPLAINED)


def _list_column(maps: Sequence[np.ndarray[Any, Any] | None]) -> pa.ListArray:
    """Write maps (h, w), or none, as one column of float32 lists, row-major."""
    values = np.concatenate([np.empty(0, np.float32), *(m.ravel() for m in maps if m is not None)])
    ends = np.cumsum([0, *(0 if m is None else m.size for m in maps)], dtype=np.int32)
    missing = pa.array([m is None for m in maps], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values, pa.float32()), mask=missing)
