# file: camray/measure/hot_share.py
# line: camray/measure/catalogue.py:     "camray.measure.hot_share",
# after:     "camray.measure.sparsity",
"""How much of a map is near its top: half of the height and more.

Flows in: maps (B, M, h, w), of which the positive part counts. Flows out: (B, M), nan for a blank map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from camray.measure.registry import metric


@metric(
    "hot_share",
    group="shape",
    range=(0, 1),
    reads=("maps.shown",),
    doc="Share of the cells that reach half of the hottest one.",
    weakness="Neither end is better.",
    formula="cells with v ≥ max v / 2, of all cells",
)
def hot_share(maps: Tensor) -> Tensor:
    """Share of cells at half of the height or above: one cell of n is 1/n, an even map is 1."""
    highest = maps.amax((-2, -1), keepdim=True)
    share = (maps >= highest / 2).double().mean((-2, -1))
    return share.masked_fill(highest[..., 0, 0] <= 0, torch.nan)
