"""The second look, which tells whether an answer hangs on the border of the image, where the heat is.

A heatmap alone cannot tell an object at the border from a tag there. Rows whose heat lies suspiciously far
out get one more forward with the hot part of the border blurred away. Flows in: rows with their signals,
inputs and maps. Flows out: which rows to look at again, and the inputs to do it with.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from camray.explain.signals import BORDER

REGION = "border"
OF_IMAGE = ("predicted_class", "confidence")
ASKED = (*OF_IMAGE, "target_class", "heatmap", "heat_ring_mass", "heat_corner_mass")
ANSWERED = ("confirm_region", "confirm_drop", "confirm_flip")
RING_AREA = 1 - (1 - 2 * BORDER) ** 2  # share of the image that is border: heat spread evenly has as much
CORNER_LIMIT = 0.36  # share of the heat in one corner window, 2.6 times what even heat has
BLUR = 1 / 16  # standard deviation as a share of the shorter side


def suspicion(row: Mapping[str, Any]) -> float:
    """Say how far out the heat lies; from 1 on a second look is due.

    More than its share on the border, or more than `CORNER_LIMIT` in one corner window.
    """
    ring, corner = row.get("heat_ring_mass"), row.get("heat_corner_mass")
    if ring is None or corner is None or row["target_class"] != row["predicted_class"]:
        return 0.0
    return float(max(ring / RING_AREA, corner / CORNER_LIMIT))


def due(rows: Sequence[Mapping[str, Any]], budget: int) -> tuple[list[int], list[int]]:
    """Give the positions of all suspicious rows, and of those within the budget: the most suspicious."""
    scores = [suspicion(row) for row in rows]
    found = [i for i, score in enumerate(scores) if score > 1]
    return found, sorted(found, key=lambda i: (-scores[i], i))[:budget]


def look_again(
    explained: Sequence[tuple[int, dict[str, Any]]],
    budget: int,
    batch_size: int,
    scores: Callable[[Sequence[int], Callable[[Tensor], Tensor]], Tensor],
    run: Callable[..., Iterable[None]] = map,
) -> None:
    """Fill the confirmation columns of explained rows, given with the position of their image.

    ``scores(images, change)`` gives the class scores (B, classes) of images whose inputs were changed;
    ``run(work, batches)`` does the work on each batch.
    """
    suspicious, chosen = due([row for _, row in explained], budget)
    for position in suspicious:
        explained[position][1]["confirm_region"] = REGION

    def look(positions: Sequence[int]) -> None:
        batch = [explained[position] for position in positions]
        maps = torch.from_numpy(np.stack([row["heatmap"] for _, row in batch]))  # (B, h, w)
        found = scores([i for i, _ in batch], partial(without_hot_border, maps=maps))
        for (_, row), score in zip(batch, found, strict=True):
            if score.isfinite().all():
                row["confirm_drop"] = row["confidence"] - float(score[row["predicted_class"]])
                row["confirm_flip"] = int(score.argmax()) != row["predicted_class"]

    deque(run(look, [chosen[at : at + batch_size] for at in range(0, len(chosen), batch_size)]), maxlen=0)


def without_hot_border(x: Tensor, maps: Tensor) -> Tensor:
    """Blur inputs (B, C, H, W) on the outer eighth, where maps (B, h, w) are hotter than their mean."""
    height, width = x.shape[2:]
    maps = maps.to(x.device).clamp(min=0)
    heat = interpolate(maps[:, None], (height, width), mode="bilinear", align_corners=False)
    hot = heat > heat.mean(dim=(2, 3), keepdim=True)  # (B, 1, H, W)
    return torch.where(hot & _border(height, width, x.device), _blurred(x), x)


def _border(height: int, width: int, device: torch.device) -> Tensor:
    """Mark the outer eighth of an image: (H, W)."""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    out_y, out_x = ((axis - 0.5).abs() > 0.5 - BORDER for axis in (y, x))
    return out_y[:, None] | out_x[None, :]


def _blurred(x: Tensor) -> Tensor:
    """Blur (B, C, H, W) with a Gaussian, mirrored at the edges."""
    channels, (height, width) = x.shape[1], x.shape[2:]
    sigma = min(height, width) * BLUR
    radius = min(math.ceil(3 * sigma), min(height, width) - 1)
    taps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-(taps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).expand(channels, 1, 1, -1)
    x = conv2d(pad(x, (radius, radius, 0, 0), mode="reflect"), weights, groups=channels)
    return conv2d(pad(x, (0, 0, radius, radius), mode="reflect"), weights.mT, groups=channels)
