"""Networks whose answers are known in advance, and plain-loop readings of the papers' definitions."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from camray.measure.catalogue import METRICS
from camray.measure.faithfulness import masked_probability, removal_curves
from camray.measure.removal import Judge, Ranking
from camray.measure.scores import Scores


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


class Row(NamedTuple):
    """One value of one image and map; None where there is none."""

    image: str
    method: str
    layer: str
    target_class: int
    metric: str
    value: float | None
    status: str


def rows(scores: Scores, ids: Sequence[str]) -> list[Row]:
    """Every value of a batch, written out."""
    return [
        Row(
            image, *scores.maps.keys[j], int(scores.classes[i]), name,
            float(values[i, j]) if scores.states[name][i, j] == "ok" else None, scores.states[name][i, j],
        )
        for name, values in scores.values.items()
        for i, image in enumerate(ids)
        for j in range(len(scores.maps.keys))
    ]  # fmt: skip


def removal_metrics(*about: Any, **more: Any) -> SimpleNamespace:
    """The metrics of pixels taken away, from the arguments of `removal_curves`."""
    exam = SimpleNamespace(curves=removal_curves(*about, **more))
    names = ("insertion", "deletion", "road", "road_morf", "road_lerf")
    return SimpleNamespace(values={name: METRICS[name].of(exam) for name in names})


def masking_metrics(judge: Judge, images: Tensor, heat: Tensor, original: Tensor) -> dict[str, Tensor]:
    exam = SimpleNamespace(original=original, masked=masked_probability(judge, images, heat))
    return {name: METRICS[name].of(exam) for name in ("average_drop", "increase", "average_gain")}


def region_metrics(heat: Tensor, regions: Tensor, tolerance: float) -> dict[str, Tensor]:
    maps = SimpleNamespace(mass=heat, cell=tolerance)
    exam = SimpleNamespace(maps=maps, regions=regions, mass_ranking=Ranking.of(heat))
    names = ("energy_pointing", "enrichment", "pointing", "rank_accuracy")
    return {name: METRICS[name].of(exam) for name in names}


def box(x0: float, y0: float, x1: float, y1: float) -> Tensor:
    """One box of an image, (1, 4)."""
    return torch.tensor([[x0, y0, x1, y1]])
