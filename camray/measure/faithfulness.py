"""Does the model look where the map says: what happens to the class when those pixels go.

Flows in: images (B, C, H, W), maps in [0, 1] at their size (B, M, H, W), a judge. Flows out: one value
per image and method, (B, M), and how many altered images were run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from camray.measure.imputation import blur, impute, noise_like
from camray.measure.registry import metric
from camray.measure.removal import Fill, Judge, Ranking, Removal, score_removals

Baseline = Literal["blur", "zero"]
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Curves:
    """The class's probability while pixels go, float64.

    `insertion` and `deletion` run over the share of pixels that are shown, or hidden, from 0 to 1.
    """

    insertion: Tensor  # (B, M, S + 1)
    deletion: Tensor  # (B, M, S + 1)
    morf: Tensor  # (B, M, F), the hottest fractions imputed
    lerf: Tensor  # (B, M, F), the coldest fractions imputed
    counts: tuple[int, ...]  # pixels shown, or hidden, at the points of insertion and deletion
    forwards: int


def fill_with(images: Tensor, other: Tensor) -> Fill:
    """Replace removed pixels by those of another image: (B, C, H, W) both."""
    return lambda rows, removed: torch.where(removed[:, None], other[rows], images[rows])


def fill_by_imputation(images: Tensor, seed: int = 0) -> Fill:
    """Replace removed pixels by noisy linear imputation."""
    noise = noise_like(images, seed)
    return lambda rows, removed: impute(images[rows], removed) + noise * removed[:, None]


def removal_curves(
    judge: Judge,
    images: Tensor,
    heat: Tensor,
    original: Tensor,
    steps: int = 10,
    fractions: Sequence[float] = (0.2, 0.4, 0.6, 0.8),
    baseline: Baseline = "blur",
    seed: int = 0,
) -> Curves:
    """Run what insertion, deletion and ROAD need of all maps, from one queue of altered images.

    `original` is p(class) of the unaltered images, (B,).
    """
    ranking = Ranking.of(heat)
    counts = [ranking.count(i / steps) for i in range(steps + 1)]
    taken = [ranking.count(f) for f in fractions]
    removals = [
        *(Removal(n, baseline) for n in counts),  # deletion
        *(Removal(ranking.pixels - n, baseline, hottest=False) for n in counts),  # insertion
        *(Removal(n, "impute") for n in taken),
        *(Removal(n, "impute", hottest=False) for n in taken),
    ]
    other = blur(images) if baseline == "blur" else torch.zeros_like(images)
    fills = {baseline: fill_with(images, other), "impute": fill_by_imputation(images, seed)}
    found = score_removals(judge, ranking, removals, fills, original)
    sizes = [len(counts), len(counts), len(taken), len(taken)]
    deletion, insertion, morf, lerf = torch.split(found.probability, sizes, 2)
    return Curves(insertion, deletion, morf, lerf, tuple(counts), found.forwards)


@metric(
    "deletion", group="faithfulness", direction="low", ranks=True, range=(0, 1),
    reads=("curves.deletion", "curves.counts"), forwards=lambda settings: settings.steps,
    doc="Area under the probability while the hottest pixels give way to the blur.",
    weakness="Half-blurred images are unlike anything the model has seen.",
    formula="area under p while the hottest pixels are replaced by the blurred image",
)  # fmt: skip
@metric(
    "insertion", group="faithfulness", direction="high", ranks=True, range=(0, 1),
    reads=("curves.insertion", "curves.counts"), forwards=lambda settings: settings.steps,
    doc="Area under the probability while the hottest pixels appear on a blurred image.",
    weakness="The blur leaves colours and large shapes, so it does not start at nothing.",
    formula="area under p while the hottest pixels appear on a blurred image, 10 steps (RISE)",
)  # fmt: skip
def area(curve: Tensor, counts: Sequence[int]) -> Tensor:
    """Area under straight lines through a curve (..., S + 1) at the counts of pixels, of 1: (...).

    Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.
    """
    share = torch.tensor(counts, dtype=curve.dtype, device=curve.device) / counts[-1]
    return torch.trapezoid(curve, share, dim=-1)


@metric(
    "road", group="faithfulness", direction="high", ranks=True, range=(-0.5, 0.5),
    reads=("curves.morf", "curves.lerf"), forwards=lambda settings: 2 * len(settings.fractions),
    doc="Probability with the coldest pixels imputed minus with the hottest; halved.",
    weakness="Blurred maps gain: read entropy beside it.",
    formula="(LeRF - MoRF) / 2, the two that follow",
)  # fmt: skip
def road(morf: Tensor, lerf: Tensor) -> Tensor:
    """ROAD of probabilities (B, M, F): the coldest pixels imputed, less the hottest, halved: (B, M).

    Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022.
    """
    return (mean_probability(lerf) - mean_probability(morf)) / 2


@metric(
    "road_lerf", group="faithfulness", direction="high", range=(0, 1),
    reads=("curves.lerf",), forwards=lambda settings: len(settings.fractions),
    doc="Mean probability with the coldest 20 to 80 % imputed.",
    weakness="Wide maps gain.",
    formula="the same of the coldest pixels (LeRF)",
)  # fmt: skip
@metric(
    "road_morf", group="faithfulness", direction="low", range=(0, 1),
    reads=("curves.morf",), forwards=lambda settings: len(settings.fractions),
    doc="Mean probability with the hottest 20 to 80 % imputed.",
    weakness="Says little on small hot spots, which imputation repairs.",
    formula="mean of p with the hottest 20, 40, 60, 80 % imputed from neighbours, with noise of 0.01 (MoRF)",
)  # fmt: skip
def mean_probability(probability: Tensor) -> Tensor:
    """Mean over the fractions imputed: (B, M, F) -> (B, M)."""
    return probability.mean(2)


def masked_probability(judge: Judge, images: Tensor, heat: Tensor) -> Tensor:
    """p(class | x * heat), heat multiplying the model's input, one forward a map: (B, M) float64."""
    image = torch.arange(len(heat), device=heat.device).repeat_interleave(heat.shape[1])
    found = []
    for rows, maps in zip(
        torch.split(image, judge.chunk), torch.split(heat.flatten(0, 1), judge.chunk), strict=True
    ):
        found.append(judge(images[rows] * maps[:, None].to(images.dtype), rows))
    return torch.cat(found).reshape(heat.shape[:2])


@metric(
    "average_drop", group="faithfulness", direction="low", range=(0, 1),
    reads=("original", "masked"), forwards=1,
    doc="Share of the probability lost when the image is multiplied by the map.",
    weakness="A map of ones is perfect, and a spot in the middle does well.",
    formula="max(0, p - o) / p, o = p(x · h), h multiplying the model's input",
)  # fmt: skip
def average_drop(original: Tensor, masked: Tensor) -> Tensor:
    """Probabilities (B,) of the images and (B, M) of those times the map -> (B, M).

    Chattopadhay et al., "Grad-CAM++", WACV 2018. It rewards maps that keep everything.
    """
    p = original.double()[:, None]
    return (p - masked).clamp(min=0) / p.clamp(min=_TINY)


@metric(
    "increase", group="faithfulness", direction="high", range=(0, 1),
    reads=("original", "masked"), forwards=1,
    doc="Share of images whose probability rises when multiplied by the map.",
    weakness="Few images decide it; it hardly orders methods.",
    formula="1 where o > p",
)  # fmt: skip
def increase(original: Tensor, masked: Tensor) -> Tensor:
    """1 where the probability rises, else 0; arguments and paper as for `average_drop`."""
    return (masked > original.double()[:, None]).double()


@metric(
    "average_gain", group="faithfulness", direction="high", range=(0, 1),
    reads=("original", "masked"), forwards=1,
    doc="Share of the missing probability gained when multiplied by the map.",
    weakness="As increase: few images decide it.",
    formula="max(0, o - p) / (1 - p)",
)  # fmt: skip
def average_gain(original: Tensor, masked: Tensor) -> Tensor:
    """Arguments as for `average_drop`. Zhang et al., "Opti-CAM", CVIU 2024."""
    p = original.double()[:, None]
    return (masked - p).clamp(min=0) / (1 - p).clamp(min=_TINY)
