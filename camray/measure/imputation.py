"""What to put where pixels are taken away: a blurred image, or values fitted to the neighbours.

Flows in: images (n, C, H, W) as the model wants them and which pixels are removed, (n, H, W) bool. Flows
out: images of the same shape. Each image is treated alone: neighbours in the batch change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.nn import functional as F

TOLERANCE = 1e-4  # residual of the linear system, as a share of its right side
ITERATIONS = 100  # far more than needed (about 8); a bound against endless loops
DAMPING = 1.2  # of the smoother; its limit is 1.5, as 4/3 is the largest eigenvalue of the stencil
WEIGHTS = ((1 / 12, 1 / 6, 1 / 12), (1 / 6, 0.0, 1 / 6), (1 / 12, 1 / 6, 1 / 12))
CACHED = 4 * 224 * 224  # pixels solved at a time on a CPU, whose caches hold no more
NOISE = 0.01  # standard deviation, in units of the model's input


def blur(images: Tensor) -> Tensor:
    """Blur with RISE's kernel, 11 pixels long, standard deviation 5, padded with zeros: (n, C, H, W).

    Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.
    Made for sides of 224; on larger images the kernel grows with the side.
    """
    channels, side = images.shape[1], max(images.shape[2:])
    kernel = _kernel(side).to(images)
    down = F.conv2d(images, kernel[:, None].expand(channels, 1, -1, 1), padding="same", groups=channels)
    return F.conv2d(down, kernel[None].expand(channels, 1, 1, -1), padding="same", groups=channels)


@lru_cache(maxsize=16)
def _kernel(side: int) -> Tensor:
    scale = max(1.0, side / 224)
    radius = round(5 * scale)
    unit = torch.zeros(2 * radius + 1, dtype=torch.float64)
    unit[radius] = 1.0
    return torch.from_numpy(gaussian_filter1d(unit.numpy(), 5 * scale)).float()  # (11,), sums to 1


def noise_like(images: Tensor, seed: int = 0) -> Tensor:
    """Draw noise N(0, 0.01) once for all images, so that results repeat: (1, C, H, W)."""
    draw = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed))
    return (NOISE * draw)[None].to(images)


def impute(images: Tensor, removed: Tensor) -> Tensor:
    """Replace removed pixels by weighted means of their eight neighbours, solved jointly: (n, C, H, W).

    Weights are 1/6 for the four nearest and 1/12 for the diagonal ones, rescaled at the border. The
    noise of "noisy linear imputation" is added by the caller, see `noise_like`. Where everything is
    removed nothing is known, and zero is returned. Rong et al., "A Consistent and Efficient Evaluation
    Strategy for Attribution Methods", ICML 2022. The system is symmetric and positive definite; conjugate
    gradients solve it for all images and channels at once, preconditioned by one multigrid cycle.
    """
    part = max(1, CACHED // removed[0].numel())
    if images.device.type == "cpu" and len(images) > part:
        parts = zip(torch.split(images, part), torch.split(removed, part), strict=True)
        return torch.cat([impute(*each) for each in parts])
    hole = removed[:, None].to(images.dtype)  # (n, 1, H, W)
    known = images * (1 - hole)
    levels = _levels(hole)
    right = hole * _neighbours(known)  # (n, C, H, W)
    return known + _conjugate_gradients(levels, right)


@dataclass(frozen=True)
class _Level:
    """The system on one grid: unknown pixels, and the sum of the weights that stay inside the image."""

    hole: Tensor  # (n, 1, h, w), 0 or 1
    diagonal: Tensor  # (1, 1, h, w): 1 inside, less at the border

    def apply(self, x: Tensor) -> Tensor:
        return (self.diagonal * x - _neighbours(x)) * self.hole


def _levels(hole: Tensor) -> list[_Level]:
    """List the grid and coarser ones; a coarse pixel is unknown where all that it covers are."""
    found = []
    while True:
        inside = _neighbours(torch.ones_like(hole[:1]))
        found.append(_Level(hole, inside.clamp(min=1e-3)))
        if min(hole.shape[2:]) < 4 or not bool(hole.any()):
            return found
        rows, columns = hole.shape[2:]
        even = F.pad(hole, (0, columns % 2, 0, rows % 2), value=1.0)
        hole = (F.avg_pool2d(even, 2) == 1).to(hole.dtype)


def _neighbours(x: Tensor) -> Tensor:
    """Weighted sum of the eight neighbours, zero outside."""
    channels = x.shape[1]
    weights = torch.tensor(WEIGHTS, dtype=x.dtype, device=x.device).expand(channels, 1, 3, 3)
    return F.conv2d(x, weights, padding=1, groups=channels)


def _cycle(levels: Sequence[_Level], right: Tensor) -> Tensor:
    """Approximate the solution by one V-cycle: smooth, correct on the coarser grid, smooth."""
    level = levels[0]
    x = DAMPING * right / level.diagonal
    if len(levels) > 1:
        rest = right - level.apply(x)
        rows, columns = rest.shape[2:]
        rest = F.pad(rest, (0, columns % 2, 0, rows % 2))
        coarse = _cycle(levels[1:], 4 * F.avg_pool2d(rest, 2) * levels[1].hole)
        up = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        x = x + up[..., :rows, :columns] * level.hole
    return x + DAMPING * (right - level.apply(x)) / level.diagonal


def _conjugate_gradients(levels: Sequence[_Level], right: Tensor) -> Tensor:
    """Solve the finest system; every image and channel stops on its own, whatever its neighbours do."""
    x, residual = torch.zeros_like(right), right
    limit = TOLERANCE**2 * _dot(right, right)  # (n, C, 1, 1)
    search = direction = _cycle(levels, residual)
    energy = _dot(residual, search)
    for _ in range(ITERATIONS):
        active = _dot(residual, residual) > limit
        if not bool(active.any()):
            break
        image = levels[0].apply(direction)
        step = torch.where(active, energy / _dot(direction, image).clamp(min=1e-30), 0.0)
        x = x + step * direction
        before, residual = residual, residual - step * image
        search = _cycle(levels, residual)
        new = _dot(residual, search)
        turn = (new - _dot(before, search)) / energy.clamp(min=1e-30)  # the cycle is not quite symmetric
        direction, energy = search + turn * direction, new
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((2, 3), keepdim=True)
