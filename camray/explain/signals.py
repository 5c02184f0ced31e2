"""Numbers that say where a heatmap looks, from the layer-resolution map alone.

Flows in: maps (B, h, w), raw and signed. Flows out: one column a signal, NaN-free; a map without any positive
value is `dead` and has null signals. A column of `records.COLUMNS` with a `signal` is computed by the
function of its name in that module of this folder: from `Heat` to a tensor (B,), or to a list of B words.
"""

from __future__ import annotations

import math
from functools import cached_property
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from camray.records import COLUMNS

BORDER = 1 / 8  # ring width as a share of the side, so that thresholds carry over between grid sizes
CORNER = 3 / 8  # corner window as a share of the side
CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")


class Heat:
    """Maps as shares of their positive heat, and what several signals ask of them.

    `shares` (B, h, w) sum to 1 in each map; `x` (w,) and `y` (h,) are the centres of the cells, 0..1 of the
    input, right and down. All float64. Sums and no matrix products: these give the same map other bits in
    another batch.
    """

    def __init__(self, maps: Tensor) -> None:
        q = maps.clamp(min=0).double()
        self.shares = q / q.sum(dim=(1, 2), keepdim=True).clamp(min=1e-300)
        h, w = q.shape[1:]
        self.y = (torch.arange(h, device=q.device, dtype=q.dtype) + 0.5) / h
        self.x = (torch.arange(w, device=q.device, dtype=q.dtype) + 0.5) / w

    @cached_property
    def peak(self) -> Tensor:
        """Place of the hottest cell, row by row: (B,)."""
        return self.shares.flatten(1).argmax(1)

    @cached_property
    def corners(self) -> Tensor:
        """Mass in the four corner windows, in the order of `CORNERS`: (B, 4)."""
        near, far = (0.0, CORNER), (1 - CORNER, 1.0)
        return torch.stack([self.inside(*xs, *ys) for ys in (near, far) for xs in (near, far)], dim=1)

    def inside(self, x0: float, x1: float, y0: float, y1: float) -> Tensor:
        """Mass inside a window given in shares of the sides, cells counted by area: (B,)."""
        across, down = _coverage(self.x, x0, x1), _coverage(self.y, y0, y1)
        return ((self.shares * across).sum(2) * down).sum(1)


def heat_status(maps: Tensor) -> list[str]:
    """Tell for each map (B, h, w) whether it is ok, dead (nothing positive) or nonfinite."""
    finite = maps.isfinite().all(dim=(1, 2))
    alive = maps.amax(dim=(1, 2)) > 0
    return [
        "nonfinite" if not f else ("ok" if a else "dead")
        for f, a in zip(finite.tolist(), alive.tolist(), strict=True)
    ]


def heat_signals(maps: Tensor) -> dict[str, list[Any]]:
    """Compute every signal of maps (B, h, w): column -> B values, None where the map is not ok."""
    heat, usable = Heat(maps), [status == "ok" for status in heat_status(maps)]
    found: dict[str, list[Any]] = {}
    for column in COLUMNS:
        if column.signal:
            values = getattr(import_module(f"camray.explain.{column.signal}"), column.name)(heat)
            values = values.tolist() if isinstance(values, Tensor) else values
            found[column.name] = [value if ok else None for value, ok in zip(values, usable, strict=True)]
    return found


def heat_ring_mass(heat: Heat) -> Tensor:
    """Share of the heat on the outer eighth."""
    return 1 - heat.inside(BORDER, 1 - BORDER, BORDER, 1 - BORDER)


def heat_corner_mass(heat: Heat) -> Tensor:
    """Share of the heat in the hottest corner window."""
    return heat.corners.amax(1)


def heat_corner(heat: Heat) -> list[str]:
    """Name of the hottest corner window."""
    return [CORNERS[corner] for corner in heat.corners.argmax(1).tolist()]


def heat_entropy(heat: Heat) -> Tensor:
    """-sum q ln q / ln n: 1 where the heat is spread evenly."""
    q = heat.shares
    return -(q * q.clamp(min=1e-300).log()).sum(dim=(1, 2)) / math.log(max(q.shape[1] * q.shape[2], 2))


def heat_gini(heat: Heat) -> Tensor:
    """Gini index sum (2i - n - 1) v_(i) / n, v ascending: 0 even .. 1 all in one cell."""
    values = heat.shares.flatten(1)
    n = values.shape[1]
    rank = torch.arange(1, n + 1, device=values.device, dtype=values.dtype)
    return (values.sort(dim=1).values * (2 * rank - n - 1)).sum(1) / n


def heat_center_x(heat: Heat) -> Tensor:
    """Centre of mass, to the right."""
    return (heat.shares.sum(1) * heat.x).sum(1)


def heat_center_y(heat: Heat) -> Tensor:
    """Centre of mass, downwards."""
    return (heat.shares.sum(2) * heat.y).sum(1)


def heat_peak_x(heat: Heat) -> Tensor:
    """Hottest cell, to the right."""
    return heat.x[heat.peak % len(heat.x)]


def heat_peak_y(heat: Heat) -> Tensor:
    """Hottest cell, downwards."""
    return heat.y[heat.peak // len(heat.x)]


def heat_spread(heat: Heat) -> Tensor:
    """Root of the mean squared distance from the centre of mass."""
    across, down = (heat.shares.sum(1) * heat.x**2).sum(1), (heat.shares.sum(2) * heat.y**2).sum(1)
    variance = across - heat_center_x(heat) ** 2 + down - heat_center_y(heat) ** 2
    return variance.clamp(min=0).sqrt()


def heat_peaks(heat: Heat) -> Tensor:
    """Count the cells that no neighbour exceeds and that exceed half of the hottest."""
    q = heat.shares
    highest = max_pool2d(q[:, None], 3, stride=1, padding=1)[:, 0]
    top = q.amax(dim=(1, 2), keepdim=True)
    return ((q == highest) & (q > 0.5 * top)).sum(dim=(1, 2))


def top2_cosine(maps: Tensor) -> list[float | None]:
    """Compare where the two best classes are seen: maps (B, K, h, w), best class first.

    Cosine of the positive heat, 0 disjoint .. 1 the same; None where a map is dead or there is one alone.
    """
    if maps.shape[1] < 2:
        return [None] * len(maps)
    one, two = maps[:, :2].clamp(min=0).double().flatten(2).unbind(1)  # (B, cells) each
    lengths = one.norm(dim=1) * two.norm(dim=1)
    cosines = ((one * two).sum(1) / lengths).tolist()
    return [c if math.isfinite(c) else None for c in cosines]


def _coverage(centres: Tensor, low: float, high: float) -> Tensor:
    """Share of each cell's length that lies in [low, high] of the side: (cells,)."""
    cells = len(centres)
    edge = torch.arange(cells + 1, device=centres.device, dtype=centres.dtype) / cells
    return (edge[1:].clamp(max=high) - edge[:-1].clamp(min=low)).clamp(min=0) * cells
