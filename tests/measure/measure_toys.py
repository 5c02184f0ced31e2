"""Networks whose answers are known in advance, and plain-loop readings of the papers' definitions."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Looker(nn.Module):
    """Looks at one region and nowhere else: p(class 0) = 0.05 + 0.9 * mean of the region's pixels."""

    def __init__(self, region: Tensor) -> None:
        super().__init__()
        self.register_buffer("region", region.float())

    def forward(self, x: Tensor) -> Tensor:
        mean = (x.mean(1) * self.region).sum((1, 2)) / self.region.sum()
        p = (0.05 + 0.9 * mean).clamp(0.001, 0.999)
        return torch.stack([p.log(), (1 - p).log()], 1)  # softmax of these is (p, 1 - p)


class Small(nn.Module):
    """Two convolutions, a mean over positions, a linear head; differs between classes."""

    def __init__(self, seed: int = 0, classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.last = nn.Conv2d(8, 12, 3, 2, 1)
        self.maps = nn.ReLU()
        self.head = nn.Linear(12, classes)
        nn.init.normal_(self.head.weight, std=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(self.last(self.first(x).relu())).mean((2, 3)))


def tie_free(*shape: int, seed: int = 0) -> Tensor:
    """Maps in [0, 1] without equal pixels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = shape[-1] * shape[-2]
    flat = torch.stack(
        [torch.randperm(pixels, generator=generator) for _ in range(int(torch.tensor(shape[:-2]).prod()))]
    )
    return (flat.float() / (pixels - 1)).reshape(shape)


def images(count: int, side: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
