"""How much of the heat lies where the archive says the object is: inside its boxes, inside its mask.

Flows in: maps (B, h, w) and, for each, where the input lies in the image, its boxes (shares of the upright
image) and its mask (of the input). Flows out: two shares per map, null where there is nothing to compare.
Cells count by the area that is covered; what several boxes cover counts once; padding is outside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Grid = NDArray[np.float64]
Grid32 = NDArray[np.float32]
REGIONS = ("heat_in_box", "heat_in_mask", "heat_in_padding")


def region_signals(
    maps: Tensor, rows: Sequence[Mapping[str, Any]], input_size: tuple[int, int]
) -> list[dict[str, float | None]]:
    """Compute the shares for maps (B, h, w) and their rows; `input_size` is (height, width) of a mask."""
    positive = np.maximum(maps.double().cpu().numpy(), 0.0)
    return [_of_one(q, row, input_size) for q, row in zip(positive, rows, strict=True)]


def _of_one(q: Grid, row: Mapping[str, Any], input_size: tuple[int, int]) -> dict[str, float | None]:
    boxes, mask = row.get("boxes"), row.get("mask")
    found: dict[str, float | None] = dict.fromkeys(REGIONS)
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
    heats: Grid32, rows: Sequence[Mapping[str, Any]], input_size: tuple[int, int], share: float
) -> list[list[dict[str, float]]]:
    """Box each connected part (diagonals count) of maps (B, h, w) from `share` of their peaks on.

    In pixels of the upright image, whose size and crop a row holds; of each map the largest part first. What
    lies on padding is left out. Maps are enlarged to the input around their hot cells only.
    """
    positive = np.maximum(heats, 0)
    down, across = (_enlarging(n, size) for n, size in zip(positive.shape[1:], input_size, strict=True))
    wide = positive @ across.T  # (B, h, width)
    # A pixel is never hotter than the cells around it, and one is at least so near to the hottest cell:
    near = np.prod([max(1 - n / size / 2, 0) for n, size in zip(heats.shape[1:], input_size, strict=True)])
    hot = positive >= share * near * positive.max(axis=(1, 2), keepdims=True)
    tops, bottoms = _around(hot.any(2), input_size[0])
    lefts, rights = _around(hot.any(1), input_size[1])
    found = []
    for i, row in enumerate(rows):
        top, left = int(tops[i]), int(lefts[i])
        unit = down[top : bottoms[i]] @ wide[i, :, left : rights[i]]
        parts = _parts((unit >= share * unit.max()).view(np.uint8))
        found.append([box for part in parts if (box := _on_image(part, (top, left), row, input_size))])
    return found


@cache
def _enlarging(cells: int, pixels: int) -> Grid32:
    """Give the weights (pixels, cells) of bilinear enlargement, pixel centres on cell centres."""
    at = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    weights = np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0)
    return np.asarray(weights, np.float32)


def _around(hot: NDArray[np.bool_], pixels: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the first pixel, and the one after the last, within a cell of any hot one: hot (B, cells)."""
    cells = hot.shape[1]
    first, last = hot.argmax(1), cells - 1 - hot[:, ::-1].argmax(1)
    low, high = ((edge + 0.5) * pixels / cells for edge in (first - 1, last + 1))
    return np.maximum(np.floor(low), 0).astype(int), np.minimum(np.ceil(high), pixels).astype(int)


def _parts(hot: NDArray[np.uint8]) -> list[Sequence[int]]:
    """Box the connected parts of a mask, largest first: left, top, width, height.

    A part is counted by its outline: the pixels on and inside of a polygon of pixel centres (Pick's theorem),
    without those inside of its holes.
    """
    outlines, tree = cv2.findContours(hot, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if len(outlines) == 1:
        return [cv2.boundingRect(outlines[0])]
    sizes: Counter[int] = Counter()
    for i, (outline, (*_, parent)) in enumerate(zip(outlines, tree[0].tolist(), strict=True)):
        area, half = cv2.contourArea(outline), len(outline) / 2 if len(outline) > 1 else 0
        sizes.update({i: area + half + 1} if parent < 0 else {parent: half - area - 1})
    parts = sorted((-size, *cv2.boundingRect(outlines[i])) for i, size in sizes.items())
    return [part[1:] for part in parts]


def _on_image(
    part: Sequence[int], corner: tuple[int, int], where: Mapping[str, Any], input_size: tuple[int, int]
) -> dict[str, float] | None:
    """Give a part, whose pixels count from `corner` (top, left), on the upright image; None: on padding."""
    left, top, width, height = part[0] + corner[1], part[1] + corner[0], *part[2:]
    x0, x1 = (_pixel(edge / input_size[1], where, "x") for edge in (left, left + width))
    y0, y1 = (_pixel(edge / input_size[0], where, "y") for edge in (top, top + height))
    return {"x0": x0, "y0": y0, "x1": x1, "y1": y1} if x1 > x0 and y1 > y0 else None


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
