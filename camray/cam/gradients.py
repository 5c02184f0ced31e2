"""Methods that are a formula in A and G: activations and the gradient of one score.

Each function maps A, G (B, C, h, w) float32 to a raw signed map (B, h, w). No relu of the result, no
min-max: these belong to finishing. `mean`, `sum` without index run over the h*w positions. `combine`
joins weights and activations: by sum over channels (`weigh`), or by their first principal component
(`decompositions.smoothed`, the eigen_smooth option).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from camray.cam.registry import method

SPACE = (-2, -1)
Combine = Callable[[Tensor, Tensor], Tensor]
Formula = Callable[..., Tensor]


def weigh(weights: Tensor, A: Tensor) -> Tensor:
    """sum_c w_c A_c: weights (B, C) or (B, C, h, w), A (B, C, h, w) -> (B, h, w)."""
    if weights.ndim == 2:
        return torch.bmm(weights[:, None], A.flatten(2)).view(len(A), *A.shape[2:])
    return torch.einsum("bchw,bchw->bhw", weights, A)


def weigh_each(weights: Tensor, A: Tensor, combine: Combine = weigh) -> Tensor:
    """Join weights of K targets (B, C, K) and A (B, C, h, w), each by `combine`: (B, K, h, w)."""
    return torch.stack([combine(own, A) for own in weights.unbind(2)], 1)


@method(
    "gradcam", needs="gradient", cost="1", doc="mean gradient weighs channels",
    when="the default; coarse, robust",
    paper="Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based "
    "Localization, ICCV 2017, eq. 1-2",
)  # fmt: skip
def gradcam(A: Tensor, G: Tensor, combine: Combine = weigh) -> Tensor:
    """Grad-CAM: c = sum_c mean(G_c) A_c."""
    return combine(G.mean(SPACE), A)


@method(
    "hirescam", needs="gradient", cost="1", doc="gradient times activation, summed",
    when="faithful to the score behind an affine head",
    paper="Draelos and Carin, Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional "
    "neural networks, arXiv:2011.08891",
)  # fmt: skip
def hirescam(A: Tensor, G: Tensor, combine: Combine = weigh) -> Tensor:
    """HiResCAM: c = sum_c G_c * A_c, faithful to the score where the head is affine."""
    return combine(G, A)


@method(
    "gradcam-elementwise", needs="gradient", cost="1", doc="positive part of gradient times activation",
    when="as `layercam`",
    paper="Pillai and Pirsiavash, Explainable Models with Consistent Interpretations, AAAI 2021",
)  # fmt: skip
def gradcam_elementwise(A: Tensor, G: Tensor, combine: Combine = weigh) -> Tensor:
    """Grad-CAM element-wise: c = sum_c relu(G_c * A_c)."""
    if combine is weigh:
        return (G * A).relu_().sum(1)
    return combine(G * (G * A > 0), A)


@method(
    "layercam", needs="gradient", cost="1", doc="positive gradient, position by position",
    when="earlier layers, finer maps",
    paper="Jiang et al., LayerCAM: Exploring Hierarchical Class Activation Maps for Localization, "
    "IEEE TIP 2021, eq. 6-7",
)  # fmt: skip
def layercam(A: Tensor, G: Tensor, combine: Combine = weigh) -> Tensor:
    """LayerCAM: c = sum_c relu(G_c) * A_c."""
    return combine(G.relu(), A)


@method(
    "xgradcam", needs="gradient", cost="1", doc="activation-weighted mean gradient",
    when="ReLU layers; unstable where values have both signs",
    paper="Fu et al., Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs, "
    "BMVC 2020, eq. 8",
)  # fmt: skip
def xgradcam(A: Tensor, G: Tensor, combine: Combine = weigh) -> Tensor:
    """XGrad-CAM: c = sum_c w_c A_c, w_c = sum(G_c A_c) / sum(A_c): positions weigh by their share of A.

    The guard 1e-7 takes the sign of the sum, so that a sum near -1e-7 (a layer with negative values)
    cannot blow up; for non-negative A it is the customary sum + 1e-7.
    """
    total = A.sum(SPACE)
    guard = torch.where(total < 0, -1e-7, 1e-7)
    return combine(torch.einsum("bchw,bchw->bc", G, A) / (total + guard), A)


@method(
    "gradcam++", needs="gradient", cost="1", doc="higher powers of the gradient as weights",
    when="several instances of a class",
    paper="Chattopadhay et al., Grad-CAM++: Generalized Gradient-Based Visual Explanations for Deep "
    "Convolutional Networks, WACV 2018, eq. 19",
)  # fmt: skip
def gradcam_plus_plus(A: Tensor, G: Tensor, combine: Combine = weigh) -> Tensor:
    """Grad-CAM++: c = sum_c w_c A_c, w_c = sum(alpha_c relu(G_c)), alpha = G^2 / (2 G^2 + sum(A) G^3).

    For a score exp(logit). alpha = 0 where G = 0; the guard 1e-6 in the denominator is the customary
    one, kept for equal numbers.
    """
    return combine(alpha_weights(A, G, G * G, G * G * G), A)


def alpha_weights(A: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Grad-CAM++ weights (B, C) from the three powers of the gradient, or from means of them."""
    below = 2 * second + A.sum(SPACE, keepdim=True) * third + 1e-6
    return (first.relu() * second / below).sum(SPACE)  # a zero gradient has zero alpha by itself


@method(
    "cam", needs="gradient", cost="1", affine=True, doc="weights of the linear head",
    when="heads that average and are linear; refused elsewhere",
    paper="Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016, eq. 2",
)  # fmt: skip
def cam(A: Tensor, G: Tensor, combine: Combine = weigh) -> Tensor:
    """CAM: c = sum_c W[class, c] A_c, for a head that averages over space and is linear.

    There G = W / (h w) at every position, so W = sum(G) without looking for the weight.
    """
    return combine(G.sum(SPACE), A)
