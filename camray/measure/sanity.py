"""Does the map depend on the class asked for, and on what the network has learnt.

Flows in: a model, maps (B, M, h, w) of it and of altered copies. Flows out: (B, M).
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from camray.cam.split import call, plain
from camray.measure.agreement import rank_correlation

BINS = 100  # of the histogram whose entropy tells how complex a map is


def map_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rho of two raw, signed maps of each method: (B, M, h, w) twice -> (B, M); low is good.

    Between the maps of two classes this is class sensitivity (Sixt et al., "When Explanations Lie", ICML
    2020: random logit), between those of a model and a randomised copy the randomisation test (MPRT;
    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018). Signs are kept: positive parts
    alone would often be blank for a class that is not there. nan where a map is constant.
    """
    return rank_correlation(one.double().flatten(2), other.double().flatten(2))


def complexity(heat: Tensor) -> Tensor:
    """Entropy in nats of the histogram, 100 bins, of maps in [0, 1]: (B, M, H, W) -> (B, M)."""
    level = (heat.double() * BINS).floor().clamp(0, BINS - 1).long().flatten(2)
    counts = torch.zeros(*level.shape[:2], BINS, dtype=torch.float64, device=heat.device)
    counts.scatter_add_(2, level, torch.ones_like(level, dtype=torch.float64))
    nats: Tensor = torch.special.entr(counts / level.shape[2]).sum(2)
    return nats


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
