# file: camray/explain/symmetry.py
# line: camray/records.py: Column("heat_symmetry", _FLOAT, "cosine with its mirror", "0..1", "symmetry", 2),
# after: Column("heat_gini", _FLOAT, "0 evenly spread .. 1 one cell", "0..1", "signals"),
"""Whether a heatmap looks at both halves alike.

Flows in: `Heat`. Flows out: one number a map. Record, docs/format.md (`make docs`) and report have it too.
"""

from __future__ import annotations

from torch import Tensor

from camray.explain.signals import Heat


def heat_symmetry(heat: Heat) -> Tensor:
    """Cosine of each map and its mirror image, 0 disjoint .. 1 the same: (B,)."""
    q = heat.shares
    return (q * q.flip(2)).sum(dim=(1, 2)) / q.square().sum(dim=(1, 2)).clamp(min=1e-300)
