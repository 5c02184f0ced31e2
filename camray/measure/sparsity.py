"""How concentrated a map is. Neither end is better; faithful maps of different spread do not compare fairly.

Flows in: maps (..., h, w), of which the positive part counts. Flows out: one number each, nan for a
map without any positive value.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from camray.measure.registry import metric


@metric(
    "gini", group="shape", range=(0, 1), reads=("maps.shown",),
    doc="0: even; towards 1: all in one cell.",
    weakness="Neither end is better.",
    formula="Σ (2i - n - 1) v_i / (n Σ v), v the n cells in rising order",
)  # fmt: skip
def gini(maps: Tensor) -> Tensor:
    """Gini index: sum (2 i - n - 1) v_(i) / (n sum v), v ascending; 0 even .. 1 - 1/n all in one cell: (...).

    Chalasani et al., "Concise Explanations of Neural Networks using Adversarial Training", ICML 2020.
    """
    v = maps.double().clamp(min=0).flatten(-2).sort(-1).values
    n = v.shape[-1]
    weight = 2 * torch.arange(1, n + 1, device=v.device, dtype=v.dtype) - n - 1
    return (v * weight).sum(-1) / (n * v.sum(-1))


@metric(
    "entropy", group="shape", range=(0, 1), reads=("maps.shown",),
    doc="0: all in one cell; 1: even heat.",
    weakness="Neither end is better.",
    formula="-Σ q ln q / ln n, q the shares of the n cells",
)  # fmt: skip
def entropy(maps: Tensor) -> Tensor:
    """Entropy -sum q ln q / ln n of the share q of each cell; 0 all in one cell .. 1 even: (...).

    Bhatt et al., "Evaluating and Aggregating Feature-based Model Explanations", IJCAI 2020 (there in nats).
    """
    v = maps.double().clamp(min=0).flatten(-2)
    q = v / v.sum(-1, keepdim=True)
    nats: Tensor = torch.special.entr(q).sum(-1)
    return nats / math.log(max(2, v.shape[-1]))
