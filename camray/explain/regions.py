"""How much of the heat lies where the archive says the object is: inside its boxes, inside its mask.

Flows in: maps (B, h, w) and, for each, where the input lies in the image, its boxes (shares of the upright
image) and its mask (of the input). Flows out: two shares per map, null where there is nothing to compare.
Cells count by the area that is covered; what several boxes cover counts once; padding is outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Grid = NDArray[np.float64]


def region_signals(
    maps: Tensor, rows: Sequence[Mapping[str, Any]], input_size: tuple[int, int]
) -> list[dict[str, float | None]]:
    """Compute the shares for maps (B, h, w) and their rows; `input_size` is (height, width) of a mask."""
    positive = np.maximum(maps.double().cpu().numpy(), 0.0)
    return [_of_one(q, row, input_size) for q, row in zip(positive, rows, strict=True)]


def _of_one(q: Grid, row: Mapping[str, Any], input_size: tuple[int, int]) -> dict[str, float | None]:
    boxes, mask = row.get("boxes"), row.get("mask")
    found: dict[str, float | None] = {"heat_in_box": None, "heat_in_mask": None, "heat_in_padding": None}
    padded = is_padded(row)
    if not boxes and mask is None and not padded:
        return found | {"heat_in_padding": 0.0}
    total = q.sum()
    if not np.isfinite(total) or total <= 0:
        return found
    if boxes:
        found["heat_in_box"] = min(float((q * box_cover(boxes, row, q.shape)).sum() / total), 1.0)
    if mask is not None:
        view = np.frombuffer(mask, np.uint8).reshape(input_size)
        found["heat_in_mask"] = min(float((q * mask_cover(view / 255.0, q.shape)).sum() / total), 1.0)
    inside = (q * box_cover([_WHOLE], row, q.shape)).sum() / total if padded else 1.0
    return found | {"heat_in_padding": max(1.0 - float(inside), 0.0)}


_WHOLE = {"x0": 0.0, "y0": 0.0, "x1": 1.0, "y1": 1.0}


def is_padded(row: Mapping[str, Any]) -> bool:
    """Tell whether the input reaches beyond the image by more than half a pixel."""
    if row.get("crop_x0") is None:
        return False
    beyond = (-row["crop_x0"], -row["crop_y0"], row["crop_x1"] - row["width"], row["crop_y1"] - row["height"])
    return bool(max(beyond) > 0.5)


def boxes_of_heat(
    heat: NDArray[np.float32], where: Mapping[str, Any], input_size: tuple[int, int], share: float
) -> list[dict[str, float]]:
    """Box each connected part (diagonals count) of a map (h, w) from `share` of its peak on, largest first.

    In pixels of the upright image, whose size and crop `where` holds; what lies on padding is left out.
    """
    unit = cv2.resize(np.maximum(heat, 0), input_size[::-1], interpolation=cv2.INTER_LINEAR)
    hot = (unit >= share * unit.max()).astype(np.uint8)
    x, y, across, down = cv2.boundingRect(hot)
    part = hot[y : y + down, x : x + across]
    _, _, stats, _ = cv2.connectedComponentsWithStats(part, connectivity=8, ltype=cv2.CV_16U)  # half the time
    found = []
    for left, top, width, height, _ in sorted(
        np.add(stats[1:], (x, y, 0, 0, 0)).tolist(), key=lambda p: -p[4]
    ):
        x0, x1 = (_pixel(edge / input_size[1], where, "x") for edge in (left, left + width))
        y0, y1 = (_pixel(edge / input_size[0], where, "y") for edge in (top, top + height))
        if x1 > x0 and y1 > y0:
            found.append({"x0": x0, "y0": y0, "x1": x1, "y1": y1})
    return found


def _pixel(share: float, where: Mapping[str, Any], axis: str) -> float:
    """Turn a share of the input's side into a pixel of the image, cut at its edges."""
    low, high = where[f"crop_{axis}0"], where[f"crop_{axis}1"]
    return float(min(max(low + share * (high - low), 0.0), where["width" if axis == "x" else "height"]))


def box_cover(boxes: Sequence[Mapping[str, float]], where: Mapping[str, Any], shape: tuple[int, ...]) -> Grid:
    """Give the share of each cell that any box covers; `where` holds the size and the crop of the image."""
    xs = [[share_of_input(box[edge], where, "x") for edge in ("x0", "x1")] for box in boxes]
    ys = [[share_of_input(box[edge], where, "y") for edge in ("y0", "y1")] for box in boxes]
    columns, rows = np.unique(xs), np.unique(ys)  # the boxes' edges cut the input into pieces
    pieces = np.zeros((max(len(rows) - 1, 0), max(len(columns) - 1, 0)))
    for (x0, x1), (y0, y1) in zip(xs, ys, strict=True):
        across = slice(*np.searchsorted(columns, (x0, x1)))
        pieces[slice(*np.searchsorted(rows, (y0, y1))), across] = 1.0
    return _shares(pieces, rows, columns, shape)


_ALL = (0.0, 1.0)


def mask_cover(
    mask: NDArray[Any], shape: tuple[int, ...], rows: tuple[float, float] = _ALL,
    columns: tuple[float, float] = _ALL,
) -> Grid:  # fmt: skip
    """Give the share of each cell that a mask (H, W), 0..1, covers; `rows`, `columns`: where it lies."""
    down, across = (low + (high - low) * np.arange(n + 1) / n
                    for n, (low, high) in zip(mask.shape, (rows, columns), strict=True))  # fmt: skip
    return _shares(mask.astype(np.float64), down, across, shape)


def share_of_input(share: float, where: Mapping[str, Any], axis: str) -> float:
    """Turn a share of the image's side into a share of the input's side, cut at its edges."""
    low, high = where[f"crop_{axis}0"], where[f"crop_{axis}1"]
    place = (share * where["width" if axis == "x" else "height"] - low) / (high - low)
    return float(min(max(place, 0.0), 1.0))


def _shares(pieces: Grid, rows: Grid, columns: Grid, shape: tuple[int, ...]) -> Grid:
    """Average pieces with the given edges over the cells of an even grid, by area."""
    down, across = overlap(shape[0], rows), overlap(shape[1], columns)
    return np.asarray(down @ pieces @ across.T * shape[0] * shape[1])


def overlap(cells: int, edges: Grid) -> Grid:
    """Length that each of `cells` equal parts of [0, 1] shares with each piece between `edges`."""
    cut = np.arange(cells + 1) / cells
    low: Grid = np.maximum(cut[:-1, None], edges[None, :-1])
    high: Grid = np.minimum(cut[1:, None], edges[None, 1:])
    return np.asarray(np.maximum(high - low, 0.0))
