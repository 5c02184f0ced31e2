"""Does the heat lie on what a person marked: a statement about the annotator's region, not about the model.

Flows in: maps at the size of the image (B, M, H, W); regions (B, H, W) bool, or boxes (n, 4) of each image:
x0, y0, x1, y1 with far edges outside, so that the box of one pixel has area 1. Flows out: (B, M), nan where
nothing is marked. On images a model answers by a shortcut, a faithful map must fail here.

PxAP, MaxBoxAccV2: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from camray.measure.registry import metric
from camray.measure.removal import Ranking

Floats = NDArray[np.float64]
CUTS = tuple(i / 100 for i in range(100))  # thresholds of boxes, as shares of the highest value
OVERLAPS = (0.3, 0.5, 0.7)  # of MaxBoxAccV2
FIRST_CUT = 0.2  # of the first paper on class activation maps, for one overlap per image
EIGHT = np.ones((3, 3), dtype=np.int8)  # diagonal neighbours belong together
LEVELS = 1001  # thresholds of PxAP, from 0 to 1; the last holds heat 1 alone
INSIDE = "About what a person marked: a model that answers by a shortcut should fail here"


def box_regions(boxes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Mark the pixels whose centres lie in any box of an image, (B, H, W) bool.

    `boxes` holds (n, 4) for each image, in pixels of the model's input.
    """
    y = torch.arange(size[0])[:, None] + 0.5
    x = torch.arange(size[1])[None] + 0.5
    found = []
    for own in boxes:
        x0, y0, x1, y1 = (own.cpu().reshape(-1, 4)[:, i, None, None] for i in range(4))
        found.append(((x >= x0) & (x < x1) & (y >= y0) & (y < y1)).any(0))
    return torch.stack(found)


def _area(regions: Tensor) -> Tensor:
    """Pixels of each region, nan for an empty one: (B, 1) float64."""
    area = regions.double().sum((1, 2))[:, None]
    return area.masked_fill(area == 0, torch.nan)


@metric(
    "energy_pointing", group="localisation", direction="high", ranks=True, range=(0, 1), needs="region",
    reads=("maps.mass", "regions"),
    doc="Share of the heat inside the marked region.",
    weakness=f"{INSIDE}; large regions make it easy.",
    formula="share of the mass inside the region",
)  # fmt: skip
def energy_pointing(mass: Tensor, regions: Tensor) -> Tensor:
    """Share of maps (B, M, H, W) >= 0 inside (relevance mass accuracy). Wang et al., "Score-CAM", 2020."""
    h = mass.double()
    share = (h * regions[:, None]).sum((2, 3)) / h.sum((2, 3))
    return share.masked_fill(_area(regions).isnan(), torch.nan)


@metric(
    "enrichment", group="localisation", direction="high", range=(0, math.inf), needs="region",
    reads=("maps.mass", "regions"),
    doc="That share over the region's share of the image: 1 is even heat.",
    weakness=f"{INSIDE}; peaky maps gain.",
    formula="that, over the region's share of the image",
)  # fmt: skip
def enrichment(mass: Tensor, regions: Tensor) -> Tensor:
    """`energy_pointing` over the region's share of the image."""
    return energy_pointing(mass, regions) / (_area(regions) / regions[0].numel())


@metric(
    "pointing", group="localisation", direction="high", range=(0, 1), needs="region",
    reads=("mass_ranking", "regions", "maps.cell"),
    doc="Share of images whose hottest pixel is within one cell of the region.",
    weakness=f"{INSIDE}; one pixel decides.",
    formula="1 where the hottest pixel is within one cell of the grid of the region",
)  # fmt: skip
def pointing(ranking: Ranking, regions: Tensor, tolerance: float) -> Tensor:
    """1 where the hottest pixel is within `tolerance` pixels of the region; of several the first counts.

    Zhang et al., "Top-down Neural Attention by Excitation Backprop", 2018 (there 15 pixels).
    """
    rows, columns = ranking.size
    peak = ranking.order[..., 0]  # (B, M)
    y = torch.arange(rows, device=peak.device)[:, None]
    x = torch.arange(columns, device=peak.device)[None]
    hits = []
    for method in peak.unbind(1):  # one method at a time: (B, H, W) of distances
        py, px = (method // columns)[:, None, None], (method % columns)[:, None, None]
        near = (y - py).square() + (x - px).square() <= tolerance**2
        hits.append((near & regions).any((1, 2)))
    return torch.stack(hits, 1).double().masked_fill(_area(regions).isnan(), torch.nan)


@metric(
    "rank_accuracy", group="localisation", direction="high", range=(0, 1), needs="region",
    reads=("mass_ranking", "regions"),
    doc="Of the n hottest pixels, n the region's size, the share inside.",
    weakness=f"{INSIDE}; boxes hold much background.",
    formula="share of the hottest n pixels inside, n the region's size",
)  # fmt: skip
def rank_accuracy(ranking: Ranking, regions: Tensor) -> Tensor:
    """Share of the hottest n pixels inside. Arras et al., "CLEVR-XAI", Information Fusion 2022."""
    area = _area(regions)
    top = ranking.ranks < area.nan_to_num(0).long()[:, :, None]
    return (top & regions.flatten(1)[:, None]).double().sum(2) / area


@metric(
    "pxap", group="localisation", direction="high", range=(0, 1), needs="region",
    reads=("maps.heat", "regions"),
    doc="Area under precision and recall of pixels, mean over images.",
    weakness=f"{INSIDE}; large objects make it easy.",
    formula="area under precision and recall of pixels",
)  # fmt: skip
def pxap(heat: Tensor, regions: Tensor) -> Tensor:
    """Sum of precision(t) (recall(t) - recall(t + 1)) over falling thresholds t of maps in [0, 1]: (B, M).

    An even map reaches the share of the pixels that are inside.
    """
    level = (heat.double() / 0.001 + 1e-9).floor().clamp(0, LEVELS - 1).long().flatten(2)
    mark = regions[:, None].flatten(2).expand_as(level)
    empty = level.new_zeros(*level.shape[:2], LEVELS)
    inside = empty.scatter_add(2, level, mark.long()).flip(-1)  # from the hottest level down
    outside = empty.scatter_add(2, level, (~mark).long()).flip(-1)
    true = inside.cumsum(-1).double()
    precision = true / (true + outside.cumsum(-1)).clamp(min=1)
    return (precision * inside.double()).sum(-1) / true[..., -1]


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


def _levels(heat: Floats) -> NDArray[np.uint8]:
    """Round a map in [0, 1] down to 256 levels, as the published evaluation does before it cuts."""
    return (np.clip(heat, 0, 1) * 255).astype(np.uint8)


def box_iou(heat: Floats, true: Floats) -> float:
    """Overlap of the box around the largest part above a fifth of the highest value, with the best box.

    Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016.
    """
    grey = _levels(heat)
    found = boxes_of(grey > int(FIRST_CUT * grey.max()))
    return float(overlap(found[:1], true).max(initial=0.0))


@metric(
    "box_iou", group="localisation", direction="high", range=(0, 1), needs="box",
    reads=("maps.heat", "batch.boxes"),
    doc="Overlap of the true box with the box cut at a fifth of the map's height.",
    weakness=f"{INSIDE}; the threshold is arbitrary.",
    formula="overlap of the best true box with that around the largest part above 0.2 of the highest value",
)  # fmt: skip
def box_ious(heat: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """`box_iou` of maps (B, M, H, W) and the boxes of each image, on the CPU: (B, M)."""
    values = torch.full(heat.shape[:2], torch.nan, dtype=torch.float64)
    for i, (maps, true) in enumerate(_marked(heat, boxes)):
        if len(true):
            values[i] = torch.tensor([box_iou(one, true) for one in maps], dtype=torch.float64)
    return values


def _marked(heat: Tensor, boxes: Sequence[Tensor]) -> list[tuple[Floats, Floats]]:
    """Give maps (M, H, W) and boxes (n, 4) of each image, as arrays."""
    maps = heat.double().cpu().numpy()
    return [(h, b.double().cpu().reshape(-1, 4).numpy()) for h, b in zip(maps, boxes, strict=True)]


def box_hits(heat: Floats, true: Floats) -> NDArray[np.bool_]:
    """Whether the box of any part hits any true box, by overlap and threshold: (overlaps, cuts)."""
    grey = _levels(heat)
    cuts = np.array([int(c * grey.max()) for c in CUTS])
    best = np.zeros(len(CUTS))
    for cut in np.unique(cuts):  # low maps have fewer levels than there are cuts
        best[cuts == cut] = overlap(boxes_of(grey > cut), true).max(initial=0.0)
    return np.asarray(best >= np.array(OVERLAPS)[:, None])


def hits_of(heat: Tensor, boxes: Sequence[Tensor]) -> list[NDArray[np.bool_] | None]:
    """`box_hits` of all maps of each image, (M, overlaps, cuts); None for an image without a box."""
    return [
        np.stack([box_hits(one, true) for one in maps]) if len(true) else None
        for maps, true in _marked(heat, boxes)
    ]


def max_box_acc_v2(share: Floats) -> Floats:
    """MaxBoxAccV2 of shares of images hit (..., overlaps, cuts): the best threshold each, mean: (...)."""
    return np.asarray(share.max(-1).mean(-1))
