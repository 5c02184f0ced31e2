"""One layer of one network in double precision: what the package says of it, and what its formulas allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
import torchvision
from torch import Tensor, nn

from camray.cam import METHODS, TargetLayer, explain, find_target_layer, parse_method
from tests.cam.cam_zoo import BY_NAME, CLASSES, Arch, build, images, layer_and_gradient, stir
from tests.cam.tolerance import U64, ablation_condition, condition, double_precision, gap, roundings

TARGETS = [3, 0, 7]
SPACE = (2, 3)
GUARD = 1e-7  # of XGrad-CAM's denominator; the package gives it the sign of the sum


def xgradcam_weights(A: Tensor, G: Tensor) -> Tensor:
    return (G * A).sum(SPACE, keepdim=True) / (A.sum(SPACE, keepdim=True) + GUARD)


def plus_plus(A: Tensor, G: Tensor) -> Tensor:
    alpha = G**2 / (2 * G**2 + A.sum(SPACE, keepdim=True) * G**3 + 1e-6)
    return ((alpha * G.relu()).sum(SPACE, keepdim=True) * A).sum(1)


def fem(A: Tensor, G: Tensor) -> Tensor:
    above = A.mean(SPACE, keepdim=True) + 2 * A.std(SPACE, correction=0, keepdim=True) < A
    return (above.to(A.dtype).mean(SPACE, keepdim=True).detach() * A).sum(1)


# the papers' formulas, written once more: the bounds come from these, never from the package
FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cam": lambda A, G: (G.sum(SPACE, keepdim=True) * A).sum(1),
    "gradcam": lambda A, G: (G.mean(SPACE, keepdim=True) * A).sum(1),
    "gradcam++": plus_plus,
    "xgradcam": lambda A, G: (xgradcam_weights(A, G) * A).sum(1),
    "hirescam": lambda A, G: (G * A).sum(1),
    "gradcam-elementwise": lambda A, G: (G * A).relu().sum(1),
    "layercam": lambda A, G: (G.relu() * A).sum(1),
    "fem": fem,
}


@dataclass(frozen=True, eq=False)
class Case:
    """One layer of one network in double precision, with A and G taken by a plain hook."""

    arch: Arch
    layer: TargetLayer
    model: nn.Module
    x: Tensor
    A: Tensor  # (B, C, h, w)
    G: Tensor
    logits: Tensor

    @property
    def unit(self) -> float:
        """2 n u: what a condition of 1 lets two programs differ by."""
        return 2 * (roundings(self.model) + self.A[0].numel()) * U64


@lru_cache(maxsize=64)
def case(name: str, place: str) -> Case:
    arch = BY_NAME[name]
    with double_precision():
        return case_of(arch, build(name, torch.float64).requires_grad_(True), images(arch.side), place)


def case_of(arch: Arch, model: nn.Module, x: Tensor, place: str) -> Case:
    layer = find_target_layer(model, tuple(x.shape[1:]), getattr(arch, place, place))
    raw, slope, logits = layer_and_gradient(model, x, layer.name, of_targets)
    return Case(arch, layer, model, x, arch.read(raw), arch.read(slope), logits)


def of_targets(logits: Tensor) -> Tensor:
    return logits[torch.arange(len(logits)), TARGETS[: len(logits)]]


def ours(c: Case, method: str, targets: object = None) -> Tensor:
    """The package's map (B, h, w) of this case, nothing rounded to float32."""
    if targets is None:
        targets = torch.tensor(TARGETS) if METHODS[parse_method(method).name].per_class else "predicted"
    with double_precision():
        return explain(c.model, c.x, c.layer, method, targets).maps[method, c.layer.name][:, 0]


@cache
def gradient_bound(c: Case, method: str, guard: float = 2 * GUARD) -> Tensor:
    """2 n u k, and for XGrad-CAM what another guard in its denominator may change."""
    bound = c.unit * condition(FORMULAS[method], c.A, c.G)
    if method == "xgradcam":
        total = c.A.sum(SPACE, keepdim=True).abs()
        share = guard / (total - guard).clamp(min=guard)
        bound = bound + (xgradcam_weights(c.A, c.G) * c.A * share).abs().sum(1)
    return bound


def turned(component: Tensor, like: Tensor) -> Tensor:
    """The sign rule of the package: a component (B, h, w) that is high where `like` (B, h, w) is."""
    side = (component * (like - like.mean((1, 2), keepdim=True))).sum((1, 2), keepdim=True)
    return component * side.sign()


@cache
def ablated_scores(c: Case) -> Tensor:
    """Scores (B, C) with one channel after the other blanked by a hook in a full forward."""
    scores = []
    for channel in range(c.A.shape[1]):

        def blank(_module: nn.Module, _args: object, out: Tensor, channel: int = channel) -> Tensor:
            out = out.clone()
            out.select(c.layer.channel_dim, channel).zero_()
            return out

        handle = c.model.get_submodule(c.layer.name).register_forward_hook(blank)
        with torch.no_grad():
            scores.append(of_targets(c.model(c.x)))
        handle.remove()
    return torch.stack(scores, 1)


def ablation_bound(c: Case, scores: Tensor, ablated: Tensor) -> Tensor:
    """A score is as exact as the largest logit."""
    rise = c.logits.abs().amax(1) / scores.abs()
    return c.unit * rise[:, None, None] * ablation_condition(c.A, scores, ablated)


def ablation_gap(name: str, place: str) -> float:
    """Against the definition."""
    c = case(name, place)
    scores, ablated = of_targets(c.logits), ablated_scores(c)
    truth = torch.einsum("bc,bchw->bhw", 1 - ablated / scores[:, None], c.A)
    return gap(ours(c, "ablationcam"), truth, ablation_bound(c, scores, ablated))


@cache
def steepest(c: Case) -> Tensor:
    """Largest gradient of any logit in the layer, (B, 1, 1)."""
    each = [layer_and_gradient(c.model, c.x, c.layer.name, lambda z, k=k: z[:, k])[1] for k in range(CLASSES)]
    return torch.stack(each, 1).abs().flatten(1).amax(1)[:, None, None]


@cache
def curvature(c: Case) -> Tensor:
    """Largest entry of H A, the derivative of the gradient along A, by a central difference: (B, 1, 1)."""
    h = 1e-4

    def gradient(scale: float) -> Tensor:
        def scaled(_module: nn.Module, _args: object, out: Tensor) -> Tensor:
            return out * scale

        handle = c.model.get_submodule(c.layer.name).register_forward_hook(scaled)
        try:
            return layer_and_gradient(c.model, c.x, c.layer.name, of_targets)[1]
        finally:
            handle.remove()

    return ((gradient(1 + h) - gradient(1 - h)) / (2 * h)).abs().flatten(1).amax(1)[:, None, None]


def few_relus() -> nn.Module:
    """Biases of convolutions and of batch norms, ReLUs in place and not."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]  # fmt: skip
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)]
    return stir(nn.Sequential(*body, *head)).eval().double()


def mnasnet() -> nn.Module:
    """Plain batch norms and ReLUs, as the peers look for them: they skip timm's own."""
    torch.manual_seed(0)
    model = torchvision.models.MNASNet(0.2, num_classes=CLASSES).eval()
    nn.init.normal_(model.classifier[1].weight, std=0.2)
    return stir(model).double()
