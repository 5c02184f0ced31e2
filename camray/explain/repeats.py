"""The same thing again: crops around the hottest places, compared within an answer and with other answers.

A label, a sticker, a watermark is the *same* pixels in many images; objects are not. Flows in: views
(H, W, 3) and their maps. Flows out: crops of at most 24 x 24 pixels, and for each how much it is like the
most alike of its answer, and of other answers; and the thing itself, cut out of the crops that show it, with
its place in any other image. No forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

WINDOW = 3 / 8  # of the shorter side: three cells of a map of eight
CROP = 24  # pixels a side of a crop, at most; larger windows are averaged
INNER = 3 / 4  # of its side: the part that is looked for in others, at every shift
BEST = 3  # others that are as alike, at least
SHARE = 0.05  # of those compared that are as alike: a large library has three that look like anything
FLAT = 8.0  # grey values: deviation below which a crop is of one colour, or a pixel the same in all copies
MOST = 256  # crops compared within an answer, and with as many of others
ALIKE = 0.8  # correlation from which on it is the same thing
SMALLEST = 9  # pixels of a part of a thing
MOST_THINGS = 3  # of an answer

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def crop_side(height: int, width: int) -> int:
    """Give the pixels a side of the crops of views of this size."""
    return min(CROP, _window(height, width))


def _window(height: int, width: int) -> int:
    return max(4, round(WINDOW * min(height, width)))


@dataclass(frozen=True, slots=True)
class Thing:
    """What is the same in many crops: pixels (h, w, 3), and which of them are part of it (h, w)."""

    pixels: Bytes
    mask: NDArray[np.bool_]

    def found_in(self, view: Bytes) -> tuple[float, NDArray[np.bool_]]:
        """Give how alike the most alike place of a view (H, W, 3) is, at most 1, and that place (H, W).

        It is the correlation where contrast and brightness are the same too, and less where they are not: an
        edge is everywhere, in some strength.
        """
        height, width = view.shape[:2]
        scale = crop_side(height, width) / _window(height, width)
        size = max(self.mask.shape[1], round(scale * width)), max(self.mask.shape[0], round(scale * height))
        small = cv2.resize(view, size, interpolation=cv2.INTER_AREA)
        mask = np.repeat(self.mask[..., None], 3, axis=2).astype(np.uint8)
        squares = cv2.matchTemplate(small, self.pixels, cv2.TM_SQDIFF, mask=mask)
        alike = 1 - squares / (2 * self.pixels[self.mask].var() * mask.sum())
        y, x = np.unravel_index(int(alike.argmax()), alike.shape)
        place = np.zeros(size[::-1], np.uint8)
        place[y : y + mask.shape[0], x : x + mask.shape[1]] = self.mask
        place = cv2.dilate(place, np.ones((3, 3), np.uint8))
        return float(alike.max()), cv2.resize(place, (width, height), interpolation=cv2.INTER_NEAREST) > 0


def things(crops: Bytes) -> list[Thing]:
    """Cut out what is the same in crops (n, k, k, 3): at most three things, of at least three crops each."""
    found: list[Thing] = []
    while len(crops) >= BEST and len(found) < MOST_THINGS:
        alike = correlations(crops, crops) > ALIKE
        first = int(alike.sum(1).argmax())
        if alike[first].sum() < BEST:
            break
        mine = np.r_[first, np.setdiff1d(np.flatnonzero(alike[first]), first)]
        found += [thing] if (thing := _common(crops[mine])) else []
        crops = np.delete(crops, mine, axis=0)
    return found


def _common(crops: Bytes) -> Thing | None:
    """Lay crops over the first, at the shift that fits best; give the pixels that half of them share."""
    inner, places = _inner_side(crops)
    edge, side = places // 2, crops.shape[1]
    middle = _normalised(crops[:1, edge : edge + inner, edge : edge + inner])[0]
    shifts = [(y, x) for y in range(places) for x in range(places)]
    fits = [_normalised(crops[:, y : y + inner, x : x + inner]) @ middle for y, x in shifts]
    laid = np.full((len(crops), *(side + places - 1,) * 2, 3), np.nan, np.float32)
    for one, crop, best in zip(laid, crops, np.argmax(fits, axis=0).tolist(), strict=True):
        y, x = (places - 1 - shift for shift in shifts[best])
        one[y : y + side, x : x + side] = crop
    half = np.isfinite(laid[..., 0]).mean(0) >= 0.5
    laid = np.where(half[..., None], laid, 0)
    pixels = np.nanmedian(laid, axis=0)
    steady = half & (np.nanmean(abs(laid - pixels), axis=(0, 3)) < FLAT)
    _, parts, sizes, _ = cv2.connectedComponentsWithStats(steady.astype(np.uint8), connectivity=4)
    mask = steady & (sizes[parts, cv2.CC_STAT_AREA] >= SMALLEST)
    if not mask.any() or pixels[mask].std() < FLAT:
        return None
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Thing(pixels[box].round().astype(np.uint8), mask[box])


def hot_crop(view: Bytes, heat: NDArray[Any]) -> Bytes:
    """Cut (n, n, 3) around the middle of the hottest cells of a map (h, w), inside a view (H, W, 3)."""
    height, width = view.shape[:2]
    side, kept = _window(height, width), crop_side(height, width)
    row, column = (cells.mean() for cells in np.nonzero(heat == heat.max()))
    top = _start((row + 0.5) / heat.shape[0] * height, side, height)
    left = _start((column + 0.5) / heat.shape[1] * width, side, width)
    cut = np.ascontiguousarray(view[top : top + side, left : left + side])
    if side != kept:
        cut = np.asarray(cv2.resize(cut, (kept, kept), interpolation=cv2.INTER_AREA), np.uint8)
    return cut


def _start(centre: float, side: int, length: int) -> int:
    return int(min(max(round(centre - side / 2), 0), length - side))


def likeness(crops: Bytes, answers: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """Say how alike each crop (n, k, k, 3) is to the best twentieth of its answer, and of the others.

    Normalised correlation at the best shift, -1..1, the mean of at least three; 0 where there are fewer to
    compare with, or nothing but one colour. Compared are at most 256 of an answer, the first, with as many of
    the others. Of many images of a cross three are always alike; of a sticker it is as many as wear it.
    """
    same, other = np.zeros(len(crops), np.float32), np.zeros(len(crops), np.float32)
    chance = np.random.default_rng(0)
    for answer in np.unique(answers):
        own, rest = np.flatnonzero(answers == answer)[:MOST], np.flatnonzero(answers != answer)
        rest = chance.permutation(rest)[: len(own)]
        same[own], other[own] = _best(crops[own], crops[own], True), _best(crops[own], crops[rest], False)
    return same, other


def _inner_side(crops: Bytes) -> tuple[int, int]:
    """Give the side of the inner part, and the number of its places along a crop."""
    inner = max(2, round(INNER * crops.shape[1]))
    return inner, crops.shape[1] - inner + 1


def _normalised(parts: NDArray[Any]) -> Floats:
    """Give parts (n, k, k, 3) without mean and of length one, (n, 3 k k); zeros where they are flat."""
    flat = parts.reshape(len(parts), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(length > FLAT * np.sqrt(flat.shape[1]), flat / np.maximum(length, 1e-6), 0)


def _best(own: Bytes, crops: Bytes, is_own: bool) -> Floats:
    """Give the mean correlation of the middle of each of `own` with the crops that fit best."""
    if len(crops) < BEST + is_own:
        return np.zeros(len(own), np.float32)
    found = correlations(own, crops)
    if is_own:
        np.fill_diagonal(found, -1)
    best = max(BEST, math.ceil(SHARE * len(crops)))
    return np.asarray(np.sort(found, axis=1)[:, -best:].mean(1))


def correlations(own: Bytes, crops: Bytes) -> Floats:
    """Give the correlation of the middle of each of `own` with each of `crops` at the best shift, -1..1."""
    side, places = _inner_side(crops)
    edge = places // 2
    inner = _normalised(own[:, edge : edge + side, edge : edge + side])
    found = np.full((len(own), len(crops)), -1, np.float32)
    for y in range(places):
        for x in range(places):
            parts = _normalised(crops[:, y : y + side, x : x + side])
            np.maximum(found, inner @ parts.T, out=found)
    return found
