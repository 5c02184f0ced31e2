"""Do methods say the same: correlation of ranks, overlap of the hottest part, distance.

Flows in: maps (..., h, w) on one grid. Flows out: numbers per pair, (B, M, M), nan where a map is constant.
Agreement says nothing of who is right.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from camray.cam.finish import normalise
from camray.measure.removal import Ranking


def to_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average maps (..., H, W) that are finer than the grid down to it: (..., h, w)."""
    if maps.shape[-2:] == grid:
        return maps
    return adaptive_avg_pool2d(maps.reshape(-1, 1, *maps.shape[-2:]), grid).reshape(*maps.shape[:-2], *grid)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rho of values (..., n), equal ones sharing their mean rank: (...), nan for constants."""
    ra, rb = _mean_ranks(a), _mean_ranks(b)
    ra, rb = ra - ra.mean(-1, keepdim=True), rb - rb.mean(-1, keepdim=True)
    return (ra * rb).sum(-1) / (ra.square().sum(-1) * rb.square().sum(-1)).sqrt()


def _mean_ranks(values: Tensor) -> Tensor:
    ordered = values.sort(-1).values.contiguous()
    values = values.contiguous()
    below = torch.searchsorted(ordered, values, right=False)
    return (below + torch.searchsorted(ordered, values, right=True) + 1).double() / 2


def pair_agreement(maps: Tensor, share: float = 0.1) -> dict[str, Tensor]:
    """Compare the positive parts of maps (B, M, h, w) pair by pair: (B, M, M) each, symmetric.

    * rank_correlation: Spearman's rho over cells, -1..1
    * top_overlap: intersection over union of the hottest tenth of the cells (at least one)
    * same_peak: 1 where the hottest cell is the same
    * distance: largest difference of the maps scaled to [0, 1]; below 1e-3 they are one map
    """
    shown = normalise(maps)
    flat = shown.flatten(2)  # (B, M, n)
    ranking = Ranking.of(shown)
    top = (ranking.ranks < max(1, ranking.count(share))).double()
    both = torch.einsum("bmn,bkn->bmk", top, top)
    size = top.sum(2)
    peak = ranking.order[..., 0]
    a, b = flat[:, :, None], flat[:, None]  # (B, M, 1, n), (B, 1, M, n)
    pairs = (len(flat), flat.shape[1], flat.shape[1], flat.shape[2])
    return {
        "rank_correlation": rank_correlation(a.expand(pairs), b.expand(pairs)),
        "top_overlap": both / (size[:, :, None] + size[:, None] - both),
        "same_peak": (peak[:, :, None] == peak[:, None]).double(),
        "distance": (a - b).abs().amax(3).double(),
    }
