"""Does the map depend on the class asked for and on what the network has learnt; does it stand still.

Flows in: a model, maps (B, M, h, w) of it, of altered copies and of moved images. Flows out: (B, M).
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from camray.cam.finish import normalise
from camray.cam.split import call, plain
from camray.measure.agreement import rank_correlation
from camray.measure.registry import metric

BINS = 100  # of the histogram whose entropy tells how complex a map is
_NOISY = "Noisy; shows who ignores the model, not who is right."


@metric(
    "class_sensitivity", group="sanity", direction="low", ranks=True, range=(-1, 1),
    reads=("maps.signed", "maps.other"),
    doc="Rank correlation of the maps of the class and of the least likely class.",
    weakness="1: the method does not see the class. Low values say that it differs, not that it is right.",
    formula="Spearman's rho of the raw maps of the class and of the least likely one",
)  # fmt: skip
def map_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rho of two raw, signed maps of each method: (B, M, h, w) twice -> (B, M); low is good.

    Between the maps of two classes this is class sensitivity (Sixt et al., "When Explanations Lie", ICML
    2020: random logit), between those of a model and a randomised copy the randomisation test (MPRT;
    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018). Signs are kept: positive parts
    alone would often be blank for a class that is not there. nan where a map is constant.
    """
    return rank_correlation(one.double().flatten(2), other.double().flatten(2))


@metric(
    "max_sensitivity", group="sanity", direction="low", range=(0, math.inf), needs="noise",
    reads=("batch.images", "maps.shown", "shown_of", "settings.samples", "settings.radius", "settings.seed"),
    forwards=lambda settings: settings.samples,
    doc="How far the map moves under small noise, over its size.",
    weakness="A map that ignores the image is perfect.",
    formula="max of ‖h(x + e) - h(x)‖ / ‖h(x)‖ over 3 draws of e, even noise of ± 0.2",
)  # fmt: skip
def max_sensitivity(
    images: Tensor,
    maps: Tensor,
    explain: Callable[[Tensor], Tensor],
    samples: int = 3,
    radius: float = 0.2,
    seed: int = 0,
) -> Tensor:
    """Largest |h(x + e) - h(x)| / |h(x)| over samples of e, even noise of +- radius: (B, M); low is good.

    `maps` are h(x), (B, M, h, w), and `explain` gives those of altered images for the same classes; both
    are scaled to [0, 1] here. All images share each draw of e, in units of the model's input. nan for a
    blank map. A map that ignores the image is not sensitive at all: read it beside faithfulness.
    Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019.
    """
    generator = torch.Generator().manual_seed(seed)
    still = normalise(maps).double()
    found = torch.zeros(maps.shape[:2], dtype=torch.float64, device=maps.device)
    for _ in range(samples):
        e = (torch.rand(images.shape[1:], generator=generator) * 2 - 1) * radius
        moved = normalise(explain(images + e.to(images))).double()
        found = torch.maximum(found, (moved - still).flatten(2).norm(dim=2))
    length = still.flatten(2).norm(dim=2)
    return torch.where(length > 0, found / length, torch.nan)


metric(
    "mprt_head", group="sanity", direction="low", range=(-1, 1), needs="copies", forwards=1,
    reads=("maps.signed", "head.signed"),
    doc="Rank correlation with the map after the last layer's weights are shuffled.",
    weakness=_NOISY,
    formula="Spearman's rho of the raw maps before and after the last layer's parameters are shuffled",
)(map_correlation)  # fmt: skip
metric(
    "mprt_all", group="sanity", direction="low", range=(-1, 1), needs="copies", forwards=1,
    reads=("maps.signed", "whole.signed"),
    doc="Rank correlation with the map after all weights are shuffled.",
    weakness=_NOISY,
    formula="the same, all parameters shuffled",
)(map_correlation)  # fmt: skip


def complexity(heat: Tensor) -> Tensor:
    """Entropy in nats of the histogram, 100 bins, of maps in [0, 1]: (B, M, H, W) -> (B, M)."""
    level = (heat.double() * BINS).floor().clamp(0, BINS - 1).long().flatten(2)
    counts = torch.zeros(*level.shape[:2], BINS, dtype=torch.float64, device=heat.device)
    counts.scatter_add_(2, level, torch.ones_like(level, dtype=torch.float64))
    nats: Tensor = torch.special.entr(counts / level.shape[2]).sum(2)
    return nats


@metric(
    "complexity_rise", group="sanity", direction="high", range=(-1, math.inf), needs="copies", forwards=1,
    reads=("maps.heat", "whole.heat"),
    doc="How much more complex the map becomes when all weights are shuffled.",
    weakness="A map that goes dead falls to -1.",
    formula="(H' - H) / H, H the entropy of the heat's histogram, H' with all parameters shuffled",
)  # fmt: skip
def complexity_rise(heat: Tensor, randomised: Tensor) -> Tensor:
    """Efficient MPRT: (H(randomised) - H) / H, H the complexity: (B, M); high is good.

    A map of a network that has learnt nothing should be more complex. nan where H is 0.
    Hedstroem et al., "Sanity Checks Revisited: An Exploration to Repair the Model Parameter
    Randomisation Test", 2023.
    """
    before = complexity(heat)
    return torch.where(before > 0, (complexity(randomised) - before) / before, torch.nan)


def randomised(model: nn.Module, names: Sequence[str] | None = None, seed: int = 0) -> nn.Module:
    """Copy a model and shuffle the values within every parameter of the named modules, or of all.

    Shuffling suits any module, raw parameters such as position embeddings included, and keeps the
    scale that the rest of the network expects. The draw depends on the parameter's name alone.
    """
    made = copy.deepcopy(plain(model))
    modules = dict(made.named_modules())
    for name in modules if names is None else names:
        for own, parameter in modules[name].named_parameters(recurse=False):
            generator = torch.Generator().manual_seed(seed + zlib.crc32(f"{name}.{own}".encode()))
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            with torch.no_grad():
                parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
    return made


def head_of(model: nn.Module, image: Tensor) -> list[str]:
    """Name the module with parameters that starts last in a forward of one image (1, C, H, W)."""
    model = plain(model)
    started: list[str] = []
    handles = []

    def note(name: str) -> Any:
        return lambda *_: started.append(name)

    try:
        for name, module in model.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                handles.append(module.register_forward_pre_hook(note(name)))
        with torch.no_grad():
            call(model, image)
    finally:
        for handle in handles:
            handle.remove()
    return started[-1:]
