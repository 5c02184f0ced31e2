"""Methods that change what is differentiated: second order, class contrasts, noise.

Flows in: the scene. Flows out: raw maps (B, K, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from camray.cam import gradients
from camray.cam.finish import fuse
from camray.cam.gradients import SPACE, weigh
from camray.cam.registry import method
from camray.cam.scene import Scene
from camray.cam.split import run_split
from camray.errors import ModelError, UsageError

BASES = {
    "gradcam": gradients.gradcam,
    "gradcam++": gradients.gradcam_plus_plus,
    "layercam": gradients.layercam,
    "hirescam": gradients.hirescam,
    "xgradcam": gradients.xgradcam,
}


def base_method(name: str) -> gradients.Formula:
    """One of the formulas that other methods build on."""
    if name not in BASES:
        raise UsageError("base", f"{name!r} is no base method", f"one of {', '.join(BASES)}")
    return BASES[name]


@method(
    "shapleycam", needs="scene", cost="2", doc="Grad-CAM with a second-order term",
    when="heads that are not linear",
    paper="Cai, CAMs as Shapley Value-based Explainers, arXiv:2501.06261",
)  # fmt: skip
def shapleycam(scene: Scene) -> Tensor:
    """ShapleyCAM: c = sum_c w_c A_c, w = mean(G - H A / 2), H A the Hessian of the score times A.

    With an affine head H = 0 and the map is Grad-CAM's. Attention runs in its plain form here: the fused
    one has no second derivative.
    """
    with sdpa_kernel(SDPBackend.MATH):
        split = run_split(scene.model, scene.inputs, [scene.layer])
        raw = split.raw[scene.layer.name]
        maps: list[Tensor] = []
        for score in scene.aim.scores(split.logits).unbind(1):
            (gradient,) = torch.autograd.grad(score.sum(), raw, create_graph=True)
            product = None
            if gradient.requires_grad:
                product = _hessian_product(gradient, raw)
            second = 0.0 if product is None else scene.layer.to_maps(product).float()
            first = scene.layer.to_maps(gradient.detach()).float()
            maps.append(weigh((first - 0.5 * second).mean(SPACE), scene.A))
    return torch.stack(maps, 1)


def _hessian_product(gradient: Tensor, raw: Tensor) -> Tensor | None:
    try:
        found = torch.autograd.grad(gradient, raw, raw.detach(), retain_graph=True, allow_unused=True)
    except RuntimeError as error:  # hardsigmoid and hardswish have no second derivative in the library
        raise ModelError("method", f"shapleycam needs second derivatives: {error}", "use gradcam") from None
    return found[0]


@method(
    "finercam", needs="scene", cost="1", graph=True, doc="a base method on one class against similar ones",
    when="fine-grained classes",
    paper="Zhang et al., Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation, "
    "CVPR 2025",
)  # fmt: skip
def finercam(
    scene: Scene,
    base: str = "gradcam",
    alpha: float = 1.0,
    comparisons: int = 3,
    weighting: str = "softmax",
    detach: bool = False,
) -> Tensor:
    """Finer-CAM: a base method on z_n - alpha z_i, class n against the classes i scored most like it.

    The contrasts are averaged with the softmax p_i as weights (`weighting="softmax"`, p differentiated
    too unless `detach`), or equally (`"mean"`).
    """
    if weighting not in ("softmax", "mean"):
        raise UsageError("weighting", f"{weighting!r}", "softmax or mean")
    run = base_method(base)
    z = scene.split.logits.float()  # (B, classes)
    if z.shape[1] < 2 or not all(r.is_class for r in scene.aim.rules):
        raise UsageError("method", "finercam compares classes", "a model and a target with classes")
    weights = z.softmax(1) if weighting == "softmax" else torch.full_like(z, 1.0)
    weights = weights.detach() if detach else weights
    maps: list[Tensor] = []
    for ids in scene.aim.classes.unbind(1):
        own = z.gather(1, ids.clamp(min=0)[:, None])  # (B, 1)
        distance = (z - own).detach().abs().scatter(1, ids.clamp(min=0)[:, None], torch.inf)
        near = distance.topk(min(comparisons, z.shape[1] - 1), 1, largest=False).indices
        p = weights.gather(1, near)
        score = (p * (own - alpha * z.gather(1, near))).sum(1) / (p.sum(1) + 1e-9)
        maps.append(run(scene.A, scene.gradient(score.masked_fill(ids < 0, 0.0))))
    return torch.stack(maps, 1)


@method(
    "refinecam", needs="layers", cost="1", doc="product over several layers",
    when="sharper maps; needs two layers or more", paper="RefineCAM, arXiv:2605.14641",
)  # fmt: skip
def refinecam(
    activations: Mapping[str, Tensor], slopes: Mapping[str, Tensor], base: str = "gradcam++"
) -> Tensor:
    """RefineCAM: the product over layers of a base method's maps, each in [0, 1] at the finest size.

    A and G by layer, for one target. Not raw: the product needs one scale.
    """
    if len(slopes) < 2:
        raise UsageError("layers", "refinecam multiplies the maps of several layers", "name two or more")
    maps = [base_method(base)(activations[name], G) for name, G in slopes.items()]
    size = max((m.shape[-2], m.shape[-1]) for m in maps)
    return fuse(maps, size, "product")


@method(
    "smoothgradcam++", needs="scene", cost="1 + n", doc="Grad-CAM++ averaged over noise",
    when="noisy gradients",
    paper="Omeiza et al., Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for Deep "
    "Convolutional Neural Network Models, 2019",
)  # fmt: skip
def smoothgradcam_plus_plus(scene: Scene, samples: int = 4, std: float = 0.3, seed: int = 0) -> Tensor:
    """Smooth Grad-CAM++: Grad-CAM++ with G, G^2 and G^3 averaged over noisy copies of the image.

    Noise N(0, std) on the normalised image; one draw per sample serves all images, so that results
    depend on no neighbour. A is the clean image's.
    """
    generator = torch.Generator().manual_seed(seed)
    moments: list[list[Tensor]] = []  # per target: sums of G, G^2, G^3
    for _ in range(samples):
        noise = torch.randn(scene.inputs.shape[1:], generator=generator) * std
        split = run_split(scene.model, scene.inputs + noise.to(scene.inputs), [scene.layer])
        for k, score in enumerate(scene.aim.scores(split.logits).unbind(1)):
            G = split.gradients(score)[scene.layer.name]
            powers = [G, G * G, G * G * G]
            if k == len(moments):
                moments.append(powers)
            else:
                moments[k] = [a + b for a, b in zip(moments[k], powers, strict=True)]
    maps = [
        weigh(gradients.alpha_weights(scene.A, *(m / samples for m in each)), scene.A) for each in moments
    ]
    return torch.stack(maps, 1)
