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
STRIKING = 4  # parts of a crop that are looked for in others
ALONE = 0.3  # correlation: how much less like it other answers' crops are
MOST_THINGS, MOST_SEARCHED = 3, 24  # of an answer, and in all

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def crop_side(height: int, width: int) -> int:
    """Give the pixels a side of the crops of views of this size."""
    return min(CROP, _window(height, width))


def _window(height: int, width: int) -> int:
    return max(4, round(WINDOW * min(height, width)))


@dataclass(frozen=True, slots=True)
class Thing:
    """What is the same in many crops: pixels (h, w, 3), its part of them (h, w), how alike copies are."""

    pixels: Bytes
    mask: NDArray[np.bool_]
    copies: float

    @property
    def least(self) -> float:
        """How alike a place must be: at most four times as far as copies are. Much looks like it, nearly."""
        return min(max(1 - 4 * (1 - self.copies), ALIKE), 0.98)

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


def things(crops: Bytes, answers: NDArray[np.integer]) -> list[tuple[int, Thing]]:
    """Cut out what comes again in crops (n, k, k, 3) of one answer alone, the least like others' first.

    It begins with the most contrasted parts of the hot spots, a quarter of a crop wide: heat lies beside a
    small thing as often as on it. The best twentieth of the other crops must show such a part, at any place,
    by far more than as many of other answers do. Laid over each other there, what they share is the thing.
    """
    found: list[tuple[float, int, Thing]] = []
    chance, side = np.random.default_rng(0), max(4, crops.shape[1] // 4)
    for answer in np.unique(answers).tolist():
        own, rest = np.flatnonzero(answers == answer)[: MOST // 2], np.flatnonzero(answers != answer)
        rest = chance.permutation(rest)[: len(own)]
        if min(len(own) - 1, len(rest)) < BEST:
            continue
        parts, of = _striking(crops[own], side), np.repeat(np.arange(len(own)), STRIKING)
        alike, places = _best_places(parts, crops[own])
        others = _mean_of_best(_best_places(parts, crops[rest])[0])
        least = np.where(np.arange(len(own)) == of[:, None], -1, alike)
        same = _mean_of_best(least)
        contrast = np.where(same > ALIKE, same - others, 0)
        for part in np.argsort(-contrast)[:MOST_THINGS].tolist():
            showing = np.flatnonzero(alike[part] > ALIKE)
            if contrast[part] > ALONE:
                whole = _common(crops[own][showing], places[part, showing])
                all_of_it, copies = np.ones((side, side), bool), float(np.median(alike[part, showing]))
                thing = whole or Thing(parts[part], all_of_it, copies)
                found.append((float(contrast[part]), answer, thing))
    return [(answer, thing) for _, answer, thing in sorted(found, key=lambda one: -one[0])[:MOST_SEARCHED]]


def _windows(crops: Bytes, side: int) -> Bytes:
    """Give all parts of this side of crops (n, k, k, 3): (n, places, places, side, side, 3)."""
    return np.moveaxis(np.lib.stride_tricks.sliding_window_view(crops, (side, side), axis=(1, 2)), 3, -1)


def _striking(crops: Bytes, side: int) -> Bytes:
    """Give the four most contrasted parts of each crop, which do not overlap by more than half."""
    windows, found = _windows(crops, side), []
    for parts in windows:
        contrast = parts.std(axis=(2, 3, 4))
        for _ in range(STRIKING):
            y, x = np.unravel_index(int(contrast.argmax()), contrast.shape)
            found.append(parts[y, x])
            near = np.s_[max(0, y - side // 2) : y + side // 2 + 1, max(0, x - side // 2) : x + side // 2 + 1]
            contrast[near] = -1
    return np.stack(found)


def _best_places(parts: Bytes, crops: Bytes) -> tuple[Floats, NDArray[np.int64]]:
    """Give the correlation of each part with the place of each crop that fits best, and that place (y, x)."""
    templates, windows = _normalised(parts), _windows(crops, parts.shape[1])
    alike, places = np.empty((len(parts), len(crops)), np.float32), np.empty((len(parts), len(crops)), int)
    for i, window in enumerate(windows):
        fits = templates @ _normalised(window.reshape(-1, *parts.shape[1:])).T
        alike[:, i], places[:, i] = fits.max(1), fits.argmax(1)
    return alike, np.stack(np.divmod(places, windows.shape[1]), axis=-1)


def _mean_of_best(alike: Floats) -> Floats:
    best = max(BEST, math.ceil(SHARE * alike.shape[1]))
    return np.asarray(np.sort(alike, axis=1)[:, -best:].mean(1))


def _common(crops: Bytes, places: NDArray[np.int64]) -> Thing | None:
    """Lay crops over each other so that their places (n, 2) meet; give the pixels that they share."""
    side, most = crops.shape[1], places.max(0)
    laid = np.full((len(crops), *(side + most - places.min(0)), 3), np.nan, np.float32)
    for one, crop, (y, x) in zip(laid, crops, (most - places).tolist(), strict=True):
        one[y : y + side, x : x + side] = crop
    copies = np.isfinite(laid[..., 0]).sum(0)
    laid = np.where((copies >= BEST)[..., None], laid, 0)
    pixels = np.nanmedian(laid, axis=0)
    apart = np.nansum(abs(laid - pixels).mean(3), axis=0) / np.maximum(copies - 2, 1)  # two are never far
    steady = (copies >= BEST) & (apart < FLAT)
    _, regions, sizes, _ = cv2.connectedComponentsWithStats(steady.astype(np.uint8), connectivity=4)
    mask = steady & (sizes[regions, cv2.CC_STAT_AREA] >= SMALLEST)
    if not mask.any() or pixels[mask].std() < FLAT:
        return None
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    squares = np.nanmean(((laid - pixels) ** 2)[:, mask], axis=(1, 2)) / (2 * pixels[mask].var())
    return Thing(pixels[box].round().astype(np.uint8), mask[box], 1 - float(np.median(squares)))


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
    return _mean_of_best(found)


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
