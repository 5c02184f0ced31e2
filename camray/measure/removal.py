"""Take pixels away in the order of a map and see what becomes of the class: one queue for all methods.

Flows in: maps in [0, 1] at the size of the image, what to remove, what to put there. Flows out: the
class's probability for each alteration. Equal alterations of an image, by whichever method, are run once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from camray.cam.split import call

Activation = Literal["softmax", "sigmoid", "none"]
EQUAL = 1e-5  # pixels closer than this, in shares of the map's height, are of one rank
Fill = Callable[[Tensor, Tensor], Tensor]  # rows (n,), removed pixels (n, H, W) -> images (n, C, H, W)


def class_probability(logits: Tensor, classes: Tensor, activation: Activation) -> Tensor:
    """Probability of one class per row: logits (n, outputs), classes (n,) -> (n,).

    A single logit is that of class 1 of two; where there is no class (-1) the value means nothing.
    """
    z = logits.double()
    if z.shape[1] == 1:
        p = torch.cat([1 - z.sigmoid(), z.sigmoid()], 1)
    else:
        p = {"softmax": z.softmax(1), "sigmoid": z.sigmoid(), "none": z}[activation]
    return p.gather(1, classes.clamp(min=0)[:, None])[:, 0]


@dataclass(frozen=True)
class Judge:
    """Gives altered images their probability, `chunk` at a time; row i was image rows[i]."""

    model: nn.Module
    classes: Tensor  # (B,), settled on the unaltered images
    activation: Activation = "softmax"
    chunk: int = 64

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        """Probabilities (n,) of images (n, C, H, W)."""
        found = []
        with torch.inference_mode(False), torch.no_grad():
            for part, own in zip(torch.split(images, self.chunk), torch.split(rows, self.chunk), strict=True):
                found.append(class_probability(call(self.model, part), self.classes[own], self.activation))
        return torch.cat(found)


@dataclass(frozen=True)
class Ranking:
    """The order of the pixels of each map, hottest first; equal ones from the top left, row by row.

    One order serves both directions: the coldest k are its last k. Exactly k pixels are removed,
    however many share a value (a threshold would take all of them at once). Pixels closer than 1e-5
    count as equal: enlarging repeats values at the border, and rounding must not decide their order.
    """

    order: Tensor  # (B, M, H*W) int64, pixels from hottest to coldest
    ranks: Tensor  # (B, M, H*W) int64, the place of each pixel
    size: tuple[int, int]

    @classmethod
    def of(cls, heat: Tensor) -> Ranking:
        """Rank the pixels of finite maps (B, M, H, W) in [0, 1]."""
        order = (heat / EQUAL).round().flatten(2).argsort(dim=2, descending=True, stable=True)
        place = torch.arange(order.shape[2], device=order.device).expand_as(order)
        return cls(order, torch.empty_like(order).scatter_(2, order, place), (heat.shape[2], heat.shape[3]))

    @property
    def pixels(self) -> int:
        """How many pixels a map has."""
        return self.order.shape[2]

    def count(self, fraction: float) -> int:
        """Pixels in a fraction of the map."""
        return round(fraction * self.pixels)


@dataclass(frozen=True)
class Removal:
    """Replace the `count` hottest pixels, or the coldest, by what the fill of that name gives."""

    count: int
    fill: str
    hottest: bool = True


@dataclass(frozen=True)
class Removed:
    """What became of the class. `forwards` counts the altered images that were really run."""

    probability: Tensor  # (B, M, R) float64
    forwards: int


def score_removals(
    judge: Judge, ranking: Ranking, removals: Sequence[Removal], fills: Mapping[str, Fill], original: Tensor
) -> Removed:
    """Score every removal of every map; `original` (B,) is the probability of the unaltered images."""
    names = sorted({r.fill for r in removals})
    shape = (*ranking.order.shape[:2], len(removals))
    device = ranking.order.device
    image = torch.arange(shape[0], device=device)[:, None, None].expand(shape)
    fill = torch.tensor([names.index(r.fill) for r in removals], device=device).expand(shape)
    table = torch.stack([fill, image, _keys(ranking, removals)], 3).flatten(0, 2)  # (jobs, 3)
    kinds, same = torch.unique(table, dim=0, return_inverse=True)
    place = torch.arange(len(same), device=device)
    first = place.new_full((len(kinds),), len(same)).scatter_reduce(0, same, place, "amin")
    answers = torch.empty(len(kinds), dtype=torch.float64, device=device)
    untouched = torch.tensor([r.count == 0 for r in removals], device=device).repeat(shape[0] * shape[1])
    answers[untouched[first]] = original.double()[kinds[untouched[first], 1]]
    todo = (~untouched[first]).nonzero()[:, 0]
    for number, name in enumerate(names):
        for part in torch.split(todo[kinds[todo, 0] == number], judge.chunk):
            rows = kinds[part, 1]
            images = fills[name](rows, _removed(ranking, removals, first[part]))
            answers[part] = judge(images, rows)
    return Removed(answers[same].reshape(shape), len(todo))


def _keys(ranking: Ranking, removals: Sequence[Removal]) -> Tensor:
    """Name each set of removed pixels by a sum of random 64-bit numbers: equal sets, equal keys (B, M, R)."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-(2**63), 2**63 - 1, (ranking.pixels,), generator=generator)
    sums = numbers.to(ranking.order.device)[ranking.order].cumsum(2)  # wraps around, as hashes do
    sums = torch.cat([torch.zeros_like(sums[..., :1]), sums], 2)
    total = sums[..., -1]
    counts = [r.count if r.hottest else ranking.pixels - r.count for r in removals]
    keys = [
        sums[..., n] if r.hottest else total - sums[..., n] for n, r in zip(counts, removals, strict=True)
    ]
    return torch.stack(keys, 2)


def _removed(ranking: Ranking, removals: Sequence[Removal], jobs: Tensor) -> Tensor:
    """Which pixels each job removes, (n, H, W) bool; jobs count through (B, M, R)."""
    maps, which = jobs // len(removals), jobs % len(removals)
    ranks = ranking.ranks.flatten(0, 1)[maps]  # (n, H*W)
    hottest = torch.tensor([r.hottest for r in removals], device=jobs.device)[which, None]
    count = torch.tensor([r.count for r in removals], device=jobs.device)[which, None]
    removed = torch.where(hottest, ranks < count, ranks >= ranking.pixels - count)
    return removed.reshape(-1, *ranking.size)
