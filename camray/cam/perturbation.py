"""Methods that mask the image with each channel and look at the score: the Score-CAM family.

Flows in: the scene. Flows out: raw maps (B, K, h, w). Pairs of image and channel are packed across the
batch into chunks; one masked forward serves all K targets. A channel without contrast masks the image
to nothing, whatever the image: all of these are one forward. Weights are a softmax over channels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from camray.cam.gradients import SPACE, Combine, weigh, weigh_each
from camray.cam.registry import method
from camray.cam.scene import Scene
from camray.errors import UsageError

GUARD = 1e-8  # of min-max, the customary one


@method(
    "scorecam", needs="scene", cost="1 + C", doc="masks the image with each channel",
    when="no gradients wanted; slow. `channels=N` takes the N that vary most: an approximation for 1 + N",
    paper="Wang et al., Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks, "
    "CVPR Workshops 2020",
)  # fmt: skip
def scorecam(
    scene: Scene, channels: int | None = None, normalise_first: bool = False, combine: Combine = weigh
) -> Tensor:
    """Score-CAM: c = sum_c w_c A_c, w = softmax over channels of S(x * M_c), M_c = minmax(up(A_c)).

    `channels=N` keeps the N channels that vary most over positions and leaves the others out: an
    approximation, N forwards per image instead of C. `normalise_first` scales channels before enlarging
    them with half-pixel centres, another reading in use; the mask then rarely reaches 1.
    """
    return _weigh(scene.A, *_mask_scores(scene, channels, normalise_first), combine)


@method(
    "sscam", needs="scene", cost="1 + n C", doc="Score-CAM over noisy masks", when="research; very slow",
    paper="Naidu et al., SS-CAM: Smoothed Score-CAM for Sharper Visual Feature Localization, 2020",
)  # fmt: skip
def sscam(
    scene: Scene,
    samples: int = 35,
    std: float = 2.0,
    seed: int = 0,
    channels: int | None = None,
    combine: Combine = weigh,
) -> Tensor:
    """SS-CAM: Score-CAM with the score averaged over masks M_c + noise, noise of mean 0 and `std`.

    One draw of noise per sample serves all channels and images, so that channels compare under the same
    noise.
    """
    generator = torch.Generator().manual_seed(seed)
    size = (samples, 1, *scene.inputs.shape[2:])
    noise = (torch.randn(size, generator=generator) * std).to(scene.inputs.device)
    alter = [lambda masks, n=n: masks + n for n in noise]
    return _weigh(scene.A, *_mask_scores(scene, channels, True, alter), combine)


@method(
    "iscam", needs="scene", cost="1 + n C", doc="Score-CAM over fading masks", when="research; very slow",
    paper="Naidu et al., IS-CAM: Integrated Score-CAM for axiomatic-based explanations, 2020",
)  # fmt: skip
def iscam(scene: Scene, samples: int = 10, channels: int | None = None, combine: Combine = weigh) -> Tensor:
    """IS-CAM: Score-CAM with the score averaged along the path i/N * M_c, i = 1..N.

    An integral from the empty mask to the mask, which ends at the mask itself.
    """
    alter = [lambda masks, i=i: masks * (i / samples) for i in range(1, samples + 1)]
    return _weigh(scene.A, *_mask_scores(scene, channels, True, alter), combine)


def _weigh(A: Tensor, scores: Tensor, kept: Tensor, combine: Combine) -> Tensor:
    """Softmax the scores (B, C, K) of the kept channels into weights, and sum."""
    scores = scores.masked_fill(~kept[:, :, None], -torch.inf)
    return weigh_each(scores.softmax(1), A, combine)


def _mask_scores(
    scene: Scene, channels: int | None, normalise_first: bool, alter: Iterable[object] = (None,)
) -> tuple[Tensor, Tensor]:
    """Mean score of each masked image over the alterations of its mask, (B, C, K), and kept (B, C)."""
    A, changes = scene.A, list(alter)
    kept = _keep(A, channels)
    image, channel = kept.nonzero(as_tuple=True)
    first, same = distinct_masks(A[image, channel], image)
    found: list[Tensor] = []
    for start in range(0, len(first), scene.chunk):
        pick = first[start : start + scene.chunk]
        b, c = image[pick], channel[pick]
        masks = _masks(A[b, c][:, None], scene.inputs.shape[2:], normalise_first)  # (n, 1, H, W)
        total = torch.zeros((), device=A.device)
        for change in changes:
            m = change(masks) if callable(change) else masks
            total = total + scene.forward(scene.inputs[b] * m.to(scene.inputs.dtype), b)
        found.append(total / len(changes))
    scores = A.new_zeros(*A.shape[:2], scene.scores.shape[1])
    scores[image, channel] = torch.cat(found)[same]
    return scores, kept


def distinct_masks(maps: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Find the different masks of each image: maps (n, h, w) -> first of each kind (u,), kind of each (n,).

    Behind a ReLU many channels are silent, or active in a single cell: scaled to [0, 1] they are one mask.
    Masks count as one when their cells, and the share that the guard leaves of them, are equal.
    """
    cells = (maps - maps.amin(SPACE, keepdim=True)).flatten(1)  # (n, h*w)
    height = cells.amax(1, keepdim=True)
    unit = cells / height.masked_fill(height == 0, 1.0)
    keys = torch.cat([image[:, None], unit, height / (height + GUARD)], 1)
    kinds, same = torch.unique(keys, dim=0, return_inverse=True)
    place = torch.arange(len(same), device=same.device)
    return place.new_full((len(kinds),), len(same)).scatter_reduce(0, same, place, "amin"), same


def _keep(A: Tensor, channels: int | None) -> Tensor:
    if channels is None:
        return torch.ones(A.shape[:2], dtype=torch.bool, device=A.device)
    if channels < 1:
        raise UsageError("method", f"channels is {channels}", "a positive number, or leave it out for all")
    best = A.var(SPACE).topk(min(channels, A.shape[1]), 1).indices
    return torch.zeros(A.shape[:2], dtype=torch.bool, device=A.device).scatter(1, best, True)


def _masks(maps: Tensor, size: torch.Size, normalise_first: bool) -> Tensor:
    """Enlarge (n, 1, h, w) to the image and scale each to [0, 1]."""
    if normalise_first:
        return F.interpolate(_minmax(maps), size=size, mode="bilinear", align_corners=False)
    return _minmax(F.interpolate(maps, size=size, mode="bilinear", align_corners=True))


def _minmax(maps: Tensor) -> Tensor:
    low, high = maps.amin(SPACE, keepdim=True), maps.amax(SPACE, keepdim=True)
    return (maps - low) / (high - low + GUARD)
