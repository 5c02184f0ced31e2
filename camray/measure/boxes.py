"""Weakly supervised localisation: boxes cut out of a map, compared with the boxes of the archive.

Flows in: one map (H, W) in [0, 1] and true boxes (n, 4). Flows out: overlaps; `BoxAccuracy` sums them
over images, part by part, to MaxBoxAcc and MaxBoxAccV2. Runs on the CPU. Boxes are x0, y0, x1, y1 with
far edges outside: the box of one pixel has area 1.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]
CUTS = tuple(i / 100 for i in range(100))  # thresholds, as shares of the highest value
OVERLAPS = (0.3, 0.5, 0.7)  # of MaxBoxAccV2
FIRST_CUT = 0.2  # of the first paper on class activation maps, for one overlap per image
EIGHT = np.ones((3, 3), dtype=np.int8)  # diagonal neighbours belong together


def boxes_of(mask: NDArray[np.bool_]) -> Floats:
    """Tight boxes of the connected parts of a mask, largest part (in pixels) first: (n, 4)."""
    labels, count = ndimage.label(mask, EIGHT)
    if count == 0:
        return np.zeros((0, 4))
    sizes = np.bincount(labels.ravel())[1:]
    found = [(s[1].start, s[0].start, s[1].stop, s[0].stop) for s in ndimage.find_objects(labels)]
    order = np.argsort(-sizes, kind="stable")
    return np.array(found, dtype=np.float64)[order]


def overlap(found: Floats, true: Floats) -> Floats:
    """Intersection over union of every pair of boxes: (n, 4), (m, 4) -> (n, m)."""
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(found[:, None, 2:], true[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=2)
    sizes = [np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (found, true)]
    return np.asarray(both / np.maximum(sizes[0][:, None] + sizes[1][None] - both, 1e-12))


def levels(heat: Floats) -> NDArray[np.uint8]:
    """Round a map in [0, 1] down to 256 levels, as the published evaluation does before it cuts."""
    return (np.clip(heat, 0, 1) * 255).astype(np.uint8)


def box_iou(heat: Floats, true: Floats) -> float:
    """Overlap of the box around the largest part above a fifth of the highest value, with the best box.

    Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016.
    """
    grey = levels(heat)
    found = boxes_of(grey > int(FIRST_CUT * grey.max()))
    return float(overlap(found[:1], true).max(initial=0.0))


@dataclass(frozen=True)
class BoxAccuracy:
    """How many images are hit at each threshold and overlap; add the parts of an archive together."""

    largest: NDArray[np.int64]  # (overlaps, cuts): by the box of the largest part
    any_part: NDArray[np.int64]  # (overlaps, cuts): by the box of any part
    images: int

    @classmethod
    def of(cls, heat: Floats, true: Floats) -> BoxAccuracy:
        """Count one image: a map (H, W) in [0, 1] and its true boxes (n, 4)."""
        grey = levels(heat)
        cuts = np.array([int(c * grey.max()) for c in CUTS])
        best = np.zeros((2, len(CUTS)))
        for cut in np.unique(cuts):  # low maps have fewer levels than there are cuts
            iou = overlap(boxes_of(grey > cut), true).max(axis=1, initial=0.0)
            best[:, cuts == cut] = np.array([iou[:1].max(initial=0.0), iou.max(initial=0.0)])[:, None]
        hits = (best[:, None] >= np.array(OVERLAPS)[:, None]).astype(np.int64)
        return cls(hits[0], hits[1], 1)

    def __add__(self, other: BoxAccuracy) -> BoxAccuracy:
        return BoxAccuracy(
            self.largest + other.largest, self.any_part + other.any_part, self.images + other.images
        )

    @property
    def max_box_acc(self) -> float:
        """MaxBoxAcc: share of images hit by the largest part, overlap 0.5, at the best threshold."""
        return float(self.largest[OVERLAPS.index(0.5)].max() / self.images)

    @property
    def max_box_acc_v2(self) -> float:
        """MaxBoxAccV2: by any part, best threshold for each overlap, mean over overlaps 0.3, 0.5, 0.7."""
        return float((self.any_part.max(axis=1) / self.images).mean())
