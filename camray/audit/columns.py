"""Columns of records as NumPy arrays. Missing numbers are NaN, missing words are empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WORDS = ("status", "heat_status", "confirm_region")
VIEW = (
    "image_mean", "image_std", "image_sharpness", "image_red", "image_red_std", "image_blue",
    "image_blue_std", "image_saturation", "image_saturation_std", "image_dark", "image_light", "image_noise",
    "image_blockiness", "file_bits",
)  # fmt: skip
"""What was measured of the picture; null in records of an earlier camray."""

NUMBERS = (
    "correct", "label_score", "confidence", "margin", "confirm_drop", "heat_ring_mass", "heat_corner_mass",
    "heat_entropy", "heat_in_box", "heat_in_mask", "heat_in_segment", "heat_in_padding", "width",
    "height", *VIEW,
)  # fmt: skip


def number(batch: pa.RecordBatch, name: str) -> Floats:
    """Read a numeric or boolean column as float64, null as NaN."""
    return np.asarray(batch.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False))


def class_name(class_id: int | None, names: Sequence[str]) -> str | None:
    """Give the name of a class, `class 7` where it has none; None of None."""
    if class_id is None:
        return None
    return names[class_id] if class_id < len(names) else f"class {class_id}"


def as_arrays(batch: pa.RecordBatch) -> dict[str, NDArray[Any]]:
    """Read the columns that verdicts need."""
    words = {name: pc.fill_null(batch.column(name), "").to_numpy(zero_copy_only=False) for name in WORDS}
    return words | {name: number(batch, name) for name in NUMBERS}


def heat_shares(batch: pa.RecordBatch, grid: tuple[int, int]) -> tuple[Floats, tuple[int, int]]:
    """Give each map as shares of its positive heat (rows, cells), and the grid (h, w) they have.

    NaN where there is no live map, or one of another grid than `grid`; (0, 0) takes the first grid found.
    """
    maps, heights, widths = batch.column("heatmap"), number(batch, "heat_h"), number(batch, "heat_w")
    known = np.flatnonzero(~np.asarray(maps.is_null()))
    if grid == (0, 0) and len(known):
        grid = int(heights[known[0]]), int(widths[known[0]])
    shares = np.full((len(batch), max(grid[0] * grid[1], 1)), np.nan)
    fitting = known[(heights[known] == grid[0]) & (widths[known] == grid[1])]
    if len(fitting):
        values = maps.take(pa.array(fitting)).flatten().to_numpy(zero_copy_only=False)
        heat = np.maximum(values.reshape(len(fitting), -1).astype(np.float64), 0)
        total = heat.sum(1, keepdims=True)
        shares[fitting] = np.where(total > 0, heat / np.where(total > 0, total, 1), np.nan)
    return shares, grid


def label_scores(batch: pa.RecordBatch) -> Floats:
    """Give the score of each row's label, NaN without one.

    Of records that did not keep it: from the best predictions, or the most it can be beside them.
    """
    label, kept = number(batch, "label_class"), number(batch, "label_score")
    rows, ids, scores = topk_scores(batch)
    least, rest = np.full(len(batch), np.inf), np.ones(len(batch))
    np.minimum.at(least, rows, scores)
    np.subtract.at(rest, rows, scores)
    found = np.minimum(least, rest.clip(0))
    own = ids == np.nan_to_num(label, nan=-1)[rows]
    found[rows[own]] = scores[own]
    found[np.isnan(label) | np.isinf(least)] = np.nan
    return np.where(np.isnan(kept), found, kept)


def topk_scores(batch: pa.RecordBatch) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Unfold the best predictions: row, class and score of each, in the order of the rows."""
    topk = batch.column("topk")
    lengths = pc.fill_null(pc.list_value_length(topk), 0).to_numpy(zero_copy_only=False)
    items = topk.flatten()
    rows = np.repeat(np.arange(len(topk)), lengths)
    ids = items.field("class_id").to_numpy(zero_copy_only=False).astype(np.int64)
    return rows, ids, items.field("score").to_numpy(zero_copy_only=False).astype(np.float64)
