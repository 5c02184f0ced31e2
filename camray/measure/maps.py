"""The maps under test, in the forms that metrics read.

Flows in: a model, images, layers, methods, and for each image the class to explain and another one.
Flows out: `Maps`, from one shared forward; maps of no use are marked and blank, never left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from camray.cam import TargetLayer, explain, parse_method
from camray.cam.finish import finish, resize
from camray.measure.agreement import to_grid
from camray.measure.registry import ScoreStatus

Key = tuple[str, str]  # method as written, layer


@dataclass(frozen=True)
class Maps:
    """M maps of each image; every form is made when a metric first reads it.

    The grid is the coarsest resolution among them, so that cells compare.
    """

    keys: tuple[Key, ...]
    raw: tuple[Tensor, ...]  # of each key (B, h, w), signed, as the method gives it; blank if not finite
    raw_other: tuple[Tensor, ...]  # those of the other class
    nonfinite: Tensor  # (B, M) bool
    size: tuple[int, int]  # of the image

    @cached_property
    def positive(self) -> list[Tensor]:
        """The positive parts, (B, h, w) each."""
        return [m.relu() for m in self.raw]

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the coarsest map."""
        return min(((m.shape[1], m.shape[2]) for m in self.raw), key=lambda s: s[0] * s[1])

    @property
    def cell(self) -> float:
        """The longer side of a cell of the grid, in pixels of the image."""
        return max(self.size[0] / self.grid[0], self.size[1] / self.grid[1])

    @cached_property
    def heat(self) -> Tensor:
        """(B, M, H, W) in [0, 1] at the size of the image, as a reader sees it."""
        return torch.stack([finish(m, self.size) for m in self.raw], 1)

    @cached_property
    def mass(self) -> Tensor:
        """(B, M, H, W) >= 0, the positive part enlarged, its lowest value kept."""
        heights = [m.amax((1, 2), keepdim=True).clamp(min=torch.finfo(m.dtype).tiny) for m in self.positive]
        pairs = zip(self.positive, heights, strict=True)
        return torch.stack([resize(m / top, self.size) for m, top in pairs], 1)

    @cached_property
    def shown(self) -> Tensor:
        """(B, M, h, w) >= 0, the positive part on the grid."""
        return self._gridded(self.positive)

    @cached_property
    def signed(self) -> Tensor:
        """(B, M, h, w), the raw map on the grid."""
        return self._gridded(self.raw)

    @cached_property
    def other(self) -> Tensor:
        """(B, M, h, w), that of the other class."""
        return self._gridded(self.raw_other)

    def _gridded(self, maps: Sequence[Tensor]) -> Tensor:
        return torch.stack([to_grid(m, self.grid) for m in maps], 1)

    @cached_property
    def states(self) -> NDArray[np.str_]:
        """Whether each map is of use, (B, M): ok, nonfinite, or dead (nothing positive, or flat)."""
        dead = torch.stack([m.amax((1, 2)) <= m.amin((1, 2)) for m in self.positive], 1)
        states = np.where(dead.cpu(), ScoreStatus.DEAD, ScoreStatus.OK)
        return np.where(self.nonfinite.cpu(), ScoreStatus.NONFINITE, states)


def make_maps(
    model: nn.Module,
    images: Tensor,
    layers: Sequence[TargetLayer],
    methods: Sequence[str],
    classes: Tensor,
    chunk: int = 64,
) -> Maps:
    """Explain images (B, C, H, W) for two classes each, (B, 2)."""
    aimed = any(parse_method(m).entry.per_class for m in methods)
    targets = classes if aimed else "predicted"  # a class means nothing to the others
    found = explain(model, images, layers, methods, targets, chunk=chunk)
    place = {m: i for i, m in enumerate(methods)}
    keys = tuple(sorted(found.maps, key=lambda key: place[key[0]]))
    raw, other = ([_of_class(found.maps[key], key, column) for key in keys] for column in (0, 1))
    finite = torch.stack([m.isfinite().all(2).all(1) for m in raw], 1)
    blank, blank_other = (tuple(_blank_nonfinite(m) for m in maps) for maps in (raw, other))
    return Maps(keys, blank, blank_other, ~finite, (images.shape[2], images.shape[3]))


def _of_class(maps: Tensor, key: Key, column: int) -> Tensor:
    """Pick one class of (B, K, h, w); a method that explains no class says the same of every one."""
    per_class = parse_method(key[0]).entry.per_class
    return maps[:, min(column, maps.shape[1] - 1) if per_class else 0]


def _blank_nonfinite(maps: Tensor) -> Tensor:
    finite = maps.isfinite().all(2).all(1)[:, None, None]
    return torch.where(finite, maps, 0.0)
