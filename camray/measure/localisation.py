"""Does the heat lie on what a person marked: a statement about the annotator's region, not about the model.

Flows in: maps at the size of the image (B, M, H, W) and regions (B, H, W) bool. Flows out: (B, M), nan
where the region is empty. On images a model answers by a shortcut, a faithful map must fail here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from camray.measure.removal import Ranking


def box_regions(boxes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Mark the pixels whose centres lie in any box of an image, (B, H, W) bool.

    `boxes` holds (n, 4) for each image: x0, y0, x1, y1 in pixels of the model's input, far edges outside.
    """
    y = torch.arange(size[0])[:, None] + 0.5
    x = torch.arange(size[1])[None] + 0.5
    found = []
    for own in boxes:
        x0, y0, x1, y1 = (own.cpu().reshape(-1, 4)[:, i, None, None] for i in range(4))
        found.append(((x >= x0) & (x < x1) & (y >= y0) & (y < y1)).any(0))
    return torch.stack(found)


def region_metrics(heat: Tensor, regions: Tensor, tolerance: float) -> dict[str, Tensor]:
    """Compare where maps (B, M, H, W), >= 0, and regions (B, H, W) lie: (B, M) float64 each.

    * energy_pointing: share of the heat inside (relevance mass accuracy). Wang et al., "Score-CAM", 2020
    * enrichment: energy_pointing over the region's share of the image; 1 is even heat
    * pointing: 1 where the hottest pixel is within `tolerance` pixels of the region. Zhang et al.,
      "Top-down Neural Attention by Excitation Backprop", 2018 (there 15 pixels)
    * rank_accuracy: share of the hottest n pixels inside, n the region's size. Arras et al., 2022

    High is good for all. Of several hottest pixels the first counts, row by row.
    """
    inside = regions[:, None].to(heat.device)  # (B, 1, H, W)
    h = heat.double()
    area = inside.double().sum((2, 3))  # (B, 1)
    empty = area == 0
    share = (h * inside).sum((2, 3)) / h.sum((2, 3))
    ranking = Ranking.of(heat)
    top = ranking.ranks < area.long()[:, :, None]
    hits = (top & inside.flatten(2)).double().sum(2)
    found = {
        "energy_pointing": share,
        "enrichment": share / (area / ranking.pixels),
        "pointing": _pointing(ranking, inside[:, 0], tolerance),
        "rank_accuracy": hits / area,
    }
    return {name: v.masked_fill(empty, torch.nan) for name, v in found.items()}


def _pointing(ranking: Ranking, inside: Tensor, tolerance: float) -> Tensor:
    """Whether a pixel of the region lies within the tolerance of the hottest pixel, (B, M)."""
    rows, columns = ranking.size
    peak = ranking.order[..., 0]  # (B, M)
    y = torch.arange(rows, device=peak.device)[:, None]
    x = torch.arange(columns, device=peak.device)[None]
    hits = []
    for method in peak.unbind(1):  # one method at a time: (B, H, W) of distances
        py, px = (method // columns)[:, None, None], (method % columns)[:, None, None]
        near = (y - py).square() + (x - px).square() <= tolerance**2
        hits.append((near & inside).any((1, 2)))
    return torch.stack(hits, 1).double()
