"""Does the model look where the map says: what happens to the class when those pixels go.

Flows in: images (B, C, H, W), maps in [0, 1] at their size (B, M, H, W), a judge. Flows out: one value
per image and method, (B, M), and how many altered images were run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from camray.measure.imputation import blur, impute, noise_like
from camray.measure.removal import Fill, Judge, Ranking, Removal, score_removals

Baseline = Literal["blur", "zero"]


@dataclass(frozen=True)
class Faithfulness:
    """Values by metric, (B, M) float64, and the curves behind them.

    `insertion` and `deletion` run over the share of pixels that are shown, or hidden, from 0 to 1.
    """

    values: Mapping[str, Tensor]
    insertion: Tensor  # (B, M, S + 1)
    deletion: Tensor  # (B, M, S + 1)
    forwards: int


def fill_with(images: Tensor, other: Tensor) -> Fill:
    """Replace removed pixels by those of another image: (B, C, H, W) both."""
    return lambda rows, removed: torch.where(removed[:, None], other[rows], images[rows])


def fill_by_imputation(images: Tensor, seed: int = 0) -> Fill:
    """Replace removed pixels by noisy linear imputation."""
    noise = noise_like(images, seed)
    return lambda rows, removed: impute(images[rows], removed) + noise * removed[:, None]


def removal_metrics(
    judge: Judge,
    images: Tensor,
    heat: Tensor,
    original: Tensor,
    steps: int = 10,
    fractions: Sequence[float] = (0.2, 0.4, 0.6, 0.8),
    baseline: Baseline = "blur",
    seed: int = 0,
) -> Faithfulness:
    """Compute insertion and deletion AUC and ROAD of all maps, from one queue of altered images.

    * insertion: area under p(class) while the hottest pixels are shown on the baseline; high is good
    * deletion: area under p(class) while the hottest pixels give way to the baseline; low is good
    * road_morf, road_lerf: mean p(class) with the hottest, or coldest, fractions imputed
    * road: (lerf - morf) / 2, in [-0.5, 0.5]; high is good

    `original` is p(class) of the unaltered images, (B,). Petsiuk et al., "RISE", BMVC 2018; Rong et al.,
    "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022.
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
    points = len(counts)
    sizes = [points, points, len(taken), len(taken)]
    deletion, insertion, morf, lerf = torch.split(found.probability, sizes, 2)
    values = {
        "insertion": area(insertion, counts),
        "deletion": area(deletion, counts),
        "road": (lerf.mean(2) - morf.mean(2)) / 2,
        "road_morf": morf.mean(2),
        "road_lerf": lerf.mean(2),
    }
    return Faithfulness(values, insertion, deletion, found.forwards)


def area(curve: Tensor, counts: Sequence[int]) -> Tensor:
    """Area under straight lines through a curve (..., S + 1) at the counts of pixels, of 1: (...)."""
    share = torch.tensor(counts, dtype=curve.dtype, device=curve.device) / counts[-1]
    return torch.trapezoid(curve, share, dim=-1)


def masking_metrics(judge: Judge, images: Tensor, heat: Tensor, original: Tensor) -> dict[str, Tensor]:
    """Compare p = p(class | x) with o = p(class | x * heat), heat multiplying the model's input: (B, M) each.

    * average_drop: max(0, p - o) / p; low is good. Rewards maps that keep everything
    * increase: 1 where o > p, else 0; high is good. Few images decide it
    * average_gain: max(0, o - p) / (1 - p); high is good

    Chattopadhay et al., "Grad-CAM++", WACV 2018; Zhang et al., "Opti-CAM", CVIU 2024. One forward each.
    """
    batch, methods = heat.shape[:2]
    image = torch.arange(batch, device=heat.device).repeat_interleave(methods)
    found = []
    for rows, maps in zip(
        torch.split(image, judge.chunk), torch.split(heat.flatten(0, 1), judge.chunk), strict=True
    ):
        found.append(judge(images[rows] * maps[:, None].to(images.dtype), rows))
    o = torch.cat(found).reshape(batch, methods)
    p = original.double()[:, None]
    tiny = torch.finfo(torch.float64).tiny
    return {
        "average_drop": (p - o).clamp(min=0) / p.clamp(min=tiny),
        "increase": (o > p).double(),
        "average_gain": (o - p).clamp(min=0) / (1 - p).clamp(min=tiny),
    }
