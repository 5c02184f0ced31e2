"""The six shapes of hans64 as tests on coordinates.

Each takes the coordinates u (right) and v (down) of pixel centres, in units of the shape's radius
and relative to its centre, and says which of them lie inside.  No shape reaches beyond 1.25.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.bool_]
Floats = NDArray[np.float64]

REACH = 1.25  # distance from the centre to the farthest corner of any shape, in radii


def _disk(u: Floats, v: Floats) -> Bits:
    return u**2 + v**2 <= 1.0


def _square(u: Floats, v: Floats) -> Bits:
    return np.maximum(np.abs(u), np.abs(v)) <= 0.8


def _triangle(u: Floats, v: Floats) -> Bits:
    """Equilateral, point up, circumradius `REACH`."""
    sides = [u * np.sin(turn) + v * np.cos(turn) for turn in (0.0, 2 * np.pi / 3, 4 * np.pi / 3)]
    return np.asarray(np.maximum.reduce(sides) <= REACH / 2)


def _cross(u: Floats, v: Floats) -> Bits:
    """Two bars of 2 x 0.7."""
    wide, narrow = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
    return (wide <= 1.0) & (narrow <= 0.35)


def _ring(u: Floats, v: Floats) -> Bits:
    return (u**2 + v**2 <= 1.0) & (u**2 + v**2 >= 0.3)


def _star(u: Floats, v: Floats) -> Bits:
    """Five points at `REACH`, notches at 0.55, one point up."""
    sector = 2 * np.pi / 5
    angle = np.arctan2(u, -v)
    folded = np.abs(angle - sector * np.round(angle / sector))
    along, across = np.hypot(u, v) * np.cos(folded), np.hypot(u, v) * np.sin(folded)
    notch = 0.55 * np.cos(sector / 2), 0.55 * np.sin(sector / 2)
    return np.asarray((along - REACH) * notch[1] - across * (notch[0] - REACH) <= 0.0)


SHAPES: tuple[Callable[[Floats, Floats], Bits], ...] = (
    _disk,
    _square,
    _triangle,
    _cross,
    _ring,
    _star,
)
