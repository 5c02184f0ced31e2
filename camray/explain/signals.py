"""Numbers that say where a heatmap looks, from the layer-resolution map alone.

Flows in: maps (B, h, w), raw and signed. Flows out: one column per signal, NaN-free; a map without any
positive value is `dead` and has null signals. All fractions are of the positive mass q = relu(map) / sum.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

BORDER = 1 / 8  # ring width as a share of the side, so that thresholds carry over between grid sizes
CORNER = 3 / 8  # corner window as a share of the side
CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")


def heat_status(maps: Tensor) -> list[str]:
    """Tell for each map (B, h, w) whether it is ok, dead (nothing positive) or nonfinite."""
    finite = maps.isfinite().all(dim=(1, 2))
    alive = maps.amax(dim=(1, 2)) > 0
    return [
        "nonfinite" if not f else ("ok" if a else "dead")
        for f, a in zip(finite.tolist(), alive.tolist(), strict=True)
    ]


def heat_signals(maps: Tensor) -> dict[str, list[float | None] | list[str | None]]:
    """Compute the signals of maps (B, h, w); x runs right and y down, both 0..1 over the input.

    * heat_ring_mass, heat_corner_mass: share of the heat on the outer eighth, in the hottest corner window
    * heat_entropy: -sum q ln q / ln n (1: spread evenly); heat_gini: 0 even .. 1 all in one cell
    * heat_center, heat_peak: centre of mass and hottest cell; heat_spread: rms distance from the centre
    * heat_peaks: cells hotter than their neighbours and than half of the hottest
    """
    q = maps.clamp(min=0).double()  # (B, h, w)
    q = q / q.sum(dim=(1, 2), keepdim=True).clamp(min=1e-300)
    h, w = q.shape[1:]
    y = (torch.arange(h, device=q.device, dtype=q.dtype) + 0.5) / h
    x = (torch.arange(w, device=q.device, dtype=q.dtype) + 0.5) / w
    mass_x, mass_y = q.sum(1), q.sum(2)  # (B, w), (B, h)
    center_x, center_y = mass_x @ x, mass_y @ y
    variance = mass_x @ x**2 - center_x**2 + mass_y @ y**2 - center_y**2
    corners = _corner_mass(q)  # (B, 4)
    peak = q.flatten(1).argmax(1)
    columns = {
        "heat_ring_mass": 1 - _window(q, BORDER, 1 - BORDER, BORDER, 1 - BORDER),
        "heat_corner_mass": corners.amax(1),
        "heat_entropy": -(q * q.clamp(min=1e-300).log()).sum(dim=(1, 2)) / math.log(max(h * w, 2)),
        "heat_gini": _gini(q.flatten(1)),
        "heat_center_x": center_x,
        "heat_center_y": center_y,
        "heat_peak_x": x[peak % w],
        "heat_peak_y": y[peak // w],
        "heat_spread": variance.clamp(min=0).sqrt(),
        "heat_peaks": _peaks(q),
    }
    dead = [status != "ok" for status in heat_status(maps)]
    out: dict[str, list[float | None] | list[str | None]] = {
        name: [None if d else v for v, d in zip(values.tolist(), dead, strict=True)]
        for name, values in columns.items()
    }
    hottest = corners.argmax(1).tolist()
    out["heat_corner"] = [None if d else CORNERS[c] for c, d in zip(hottest, dead, strict=True)]
    return out


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


def _coverage(cells: int, low: float, high: float, like: Tensor) -> Tensor:
    """Share of each cell's length that lies in [low, high] of the side: (cells,)."""
    edge = torch.arange(cells + 1, device=like.device, dtype=like.dtype) / cells
    return (edge[1:].clamp(max=high) - edge[:-1].clamp(min=low)).clamp(min=0) * cells


def _window(q: Tensor, x0: float, x1: float, y0: float, y1: float) -> Tensor:
    """Mass inside a window given in shares of the sides, cells counted by area: (B,)."""
    _, h, w = q.shape
    return torch.einsum("bhw,h,w->b", q, _coverage(h, y0, y1, q), _coverage(w, x0, x1, q))


def _corner_mass(q: Tensor) -> Tensor:
    """Mass in the four corner windows, in the order of `CORNERS`: (B, 4)."""
    near, far = (0.0, CORNER), (1 - CORNER, 1.0)
    return torch.stack([_window(q, *xs, *ys) for ys in (near, far) for xs in (near, far)], dim=1)


def _peaks(q: Tensor) -> Tensor:
    """Count the cells that no neighbour exceeds and that reach half of the hottest: (B,)."""
    highest = max_pool2d(q[:, None], 3, stride=1, padding=1)[:, 0]
    top = q.amax(dim=(1, 2), keepdim=True)
    return ((q == highest) & (q > 0.5 * top)).sum(dim=(1, 2))


def _gini(values: Tensor) -> Tensor:
    """Gini index of non-negative rows that sum to 1: sum (2i - n - 1) v_(i) / n, v ascending: (B,)."""
    n = values.shape[1]
    rank = torch.arange(1, n + 1, device=values.device, dtype=values.dtype)
    return (values.sort(dim=1).values * (2 * rank - n - 1)).sum(1) / n
