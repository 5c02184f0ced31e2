"""From raw signed maps to pictures, batched and on the device the maps are on.

Flows in: maps (..., h, w) as methods give them. Flows out: maps in [0, 1] at any size, colours, overlays.
Min-max belongs here, never to a method, so that raw values stay comparable and can be stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from camray.errors import UsageError

EPSILON = 1e-7  # the customary guard of min-max: a map of height 1e-7 ends at 0.5, a blank one at 0


def normalise(maps: Tensor, signed: bool = False) -> Tensor:
    """Scale each map to [0, 1]: relu, then (c - min) / (1e-7 + max - min).

    `signed` keeps the sign instead: c / (1e-7 + max |c|), in [-1, 1], zero staying zero.
    """
    maps = maps.float()
    if signed:
        return maps / (EPSILON + maps.abs().amax((-2, -1), keepdim=True))
    maps = maps.relu()
    shifted = maps - maps.amin((-2, -1), keepdim=True)
    return shifted / (EPSILON + shifted.amax((-2, -1), keepdim=True))


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with half-pixel centres (align_corners=False), as OpenCV's INTER_LINEAR on floats."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    out = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return out.reshape(*maps.shape[:-2], *size)


def finish(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring raw maps to [0, 1] at `size`: normalised, resized, and normalised again to touch 0 and 1."""
    return normalise(resize(normalise(maps), size))


def fuse(layers: Sequence[Tensor], size: tuple[int, int], how: str = "mean") -> Tensor:
    """Fuse maps of several layers into one: each normalised and resized, then mean, max or product."""
    if not layers or how not in ("mean", "max", "product"):
        raise UsageError("fuse", f"{how!r} of {len(layers)} layers", "mean, max or product")
    stack = torch.stack([resize(normalise(m), size).relu() for m in layers])  # (L, ..., H, W)
    if how == "mean":
        return normalise(stack.mean(0))
    return normalise(stack.amax(0) if how == "max" else stack.prod(0))


@lru_cache(maxsize=16)
def palette(name: str = "jet") -> Tensor:
    """Return 256 RGB colours, (256, 3) uint8: jet, grey, or blue-white-red for signed maps."""
    t = torch.linspace(0, 1, 256, dtype=torch.float64)
    if name == "jet":
        rgb = [(1.5 - (4 * t - c).abs()).clamp(0, 1) for c in (3, 2, 1)]
    elif name == "grey":
        rgb = [t, t, t]
    elif name == "bwr":
        rgb = [(2 * t).clamp(max=1), 1 - (2 * t - 1).abs(), (2 - 2 * t).clamp(max=1)]
    else:
        raise UsageError("palette", f"{name!r} is unknown", "jet, grey or bwr")
    return (torch.stack(rgb, 1) * 255).round().to(torch.uint8)


def colour(maps: Tensor, name: str = "jet") -> Tensor:
    """Turn maps in [0, 1] into RGB by table: (..., H, W) -> (..., H, W, 3) uint8."""
    table = palette(name).to(maps.device)
    index = (maps.nan_to_num(0.0).clamp(0, 1) * 255).round().long()
    return table[index]


def blend(images: Tensor, maps: Tensor, alpha: float = 0.5, name: str = "jet") -> Tensor:
    """Overlay: (1 - alpha) * image + alpha * colour(map), (..., H, W, 3) uint8.

    A pixel's result depends on that pixel alone, so overlays of different images compare.
    """
    if images.dtype != torch.uint8 or images.shape[:-1] != maps.shape:
        raise UsageError("images", f"{images.dtype} {tuple(images.shape)}", "uint8 (..., H, W, 3) like maps")
    mixed = torch.lerp(images.float(), colour(maps, name).float(), alpha)
    return mixed.round().to(torch.uint8)
