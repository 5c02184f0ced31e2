"""The maps under test, in the forms that metrics read.

Flows in: a model, images, layers, methods, and for each image the class to explain and another one.
Flows out: `MapSet`, from one shared forward; maps of no use are marked and blank, never left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from camray.cam import TargetLayer, explain, parse_method
from camray.cam.finish import finish, resize
from camray.measure.agreement import to_grid

Key = tuple[str, str]  # method as written, layer


@dataclass(frozen=True)
class MapSet:
    """M maps of each image. The grid is the coarsest resolution among them, so that cells compare."""

    keys: tuple[Key, ...]
    heat: Tensor  # (B, M, H, W) in [0, 1] at the size of the image, as a reader sees it
    mass: Tensor  # (B, M, H, W) >= 0, the positive part enlarged, its lowest value kept
    shown: Tensor  # (B, M, h, w) >= 0, the positive part on the grid
    signed: Tensor  # (B, M, h, w), the raw map on the grid
    other: Tensor  # (B, M, h, w), that of the other class
    dead: Tensor  # (B, M) bool: nothing positive, or the same everywhere
    nonfinite: Tensor  # (B, M) bool

    @property
    def cell(self) -> float:
        """The longer side of a cell of the grid, in pixels of the image."""
        (H, W), (h, w) = self.heat.shape[2:], self.shown.shape[2:]
        return max(H / h, W / w)


def make_maps(
    model: nn.Module,
    images: Tensor,
    layers: Sequence[TargetLayer],
    methods: Sequence[str],
    classes: Tensor,
    chunk: int = 64,
) -> MapSet:
    """Explain images (B, C, H, W) for two classes each, (B, 2)."""
    aimed = any(parse_method(m).entry.per_class for m in methods)
    targets = classes if aimed else "predicted"  # a class means nothing to the others
    found = explain(model, images, layers, methods, targets, chunk=chunk)
    place = {m: i for i, m in enumerate(methods)}
    keys = tuple(sorted(found.maps, key=lambda key: place[key[0]]))
    raw = [_of_class(found.maps[key], key, 0) for key in keys]
    other = [_blank_nonfinite(_of_class(found.maps[key], key, 1)) for key in keys]
    nonfinite = torch.stack([~m.isfinite().all(2).all(1) for m in raw], 1)
    raw = [_blank_nonfinite(m) for m in raw]
    positive = [m.relu() for m in raw]
    dead = torch.stack([m.amax((1, 2)) <= m.amin((1, 2)) for m in positive], 1)
    size = (images.shape[2], images.shape[3])
    sizes = [(m.shape[1], m.shape[2]) for m in raw]
    grid = min(sizes, key=lambda s: s[0] * s[1])
    heights = [m.amax((1, 2), keepdim=True).clamp(min=torch.finfo(m.dtype).tiny) for m in positive]
    return MapSet(
        keys,
        torch.stack([finish(m, size) for m in raw], 1),
        torch.stack([resize(m / top, size) for m, top in zip(positive, heights, strict=True)], 1),
        torch.stack([to_grid(m, grid) for m in positive], 1),
        torch.stack([to_grid(m, grid) for m in raw], 1),
        torch.stack([to_grid(m, grid) for m in other], 1),
        dead & ~nonfinite,
        nonfinite,
    )


def _of_class(maps: Tensor, key: Key, column: int) -> Tensor:
    """Pick one class of (B, K, h, w); a method that explains no class says the same of every one."""
    per_class = parse_method(key[0]).entry.per_class
    return maps[:, min(column, maps.shape[1] - 1) if per_class else 0]


def _blank_nonfinite(maps: Tensor) -> Tensor:
    finite = maps.isfinite().all(2).all(1)[:, None, None]
    return torch.where(finite, maps, 0.0)
