"""Methods that decompose activations: principal components, kernels, statistics, concepts.

Flows in: A (B, C, h, w), sometimes G. Flows out: a raw map (B, h, w), or one per concept (B, n, h, w).
Principal components come from the smaller Gram matrix, h*w x h*w or C x C, for the whole batch at once:
for 49 positions and 2048 channels that is 40 x 40 times less work than an SVD with all right vectors.

Sign rule. A principal component has no sign of its own. Here it is the one under which the map is
high where the activations are strong: positive covariance with the norm of A over channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from camray.cam.gradients import SPACE, weigh
from camray.cam.registry import method

DENSE = 256  # rows up to which a full eigendecomposition is as quick as an iterative one
STEPS = 24


def principal(X: Tensor) -> Tensor:
    """Project onto the first principal component over positions: (B, C, h, w) -> (B, h, w)."""
    rows = X.flatten(2).transpose(1, 2)  # (B, h*w, C)
    rows = rows - rows.mean(1, keepdim=True)
    if rows.shape[1] <= rows.shape[2]:
        value, vector = _top(rows @ rows.transpose(1, 2))
        projection = vector * value.clamp(min=0).sqrt()[:, None]  # (B, h*w)
    else:
        _, vector = _top(rows.transpose(1, 2) @ rows)
        projection = torch.bmm(rows, vector[:, :, None]).squeeze(2)
    return projection.view(len(X), *X.shape[2:])


def _top(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue (B,) and its vector (B, n) of a batch of symmetric matrices."""
    bad = ~symmetric.isfinite().all(2).all(1)  # an image with NaN gets NaN, its neighbours their maps
    symmetric = symmetric.masked_fill(bad[:, None, None], 0.0)
    value, vector = _top_finite(symmetric)
    return value, vector.masked_fill(bad[:, None], torch.nan)


def _top_finite(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    if symmetric.shape[-1] <= DENSE:
        values, vectors = torch.linalg.eigh(symmetric)
        return values[:, -1], vectors[:, :, -1]
    value, vector, residual = _lanczos(symmetric)
    rest = (residual > 1e-6 * value.abs()).nonzero().squeeze(1)  # two components of nearly one size
    if len(rest):
        values, vectors = torch.linalg.eigh(symmetric[rest])
        value[rest], vector[rest] = values[:, -1], vectors[:, :, -1]
    return value, vector


def _lanczos(symmetric: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lanczos with full reorthogonalisation: largest eigenvalue, its vector, and the norm of S v - l v.

    The first component of activations stands out, so that 24 products with the matrix find it to the
    last digit; a full decomposition of 784 x 784 costs fifty times as much.
    """
    batch, n, _ = symmetric.shape
    start = torch.randn(n, 1, generator=torch.Generator().manual_seed(0)).to(symmetric)
    q = (start / start.norm()).expand(batch, n, 1)
    basis = symmetric.new_zeros(batch, n, STEPS)
    small = symmetric.new_zeros(batch, STEPS, STEPS)
    length = symmetric.new_zeros(batch)
    for j in range(STEPS):
        basis[:, :, j : j + 1] = q
        w = symmetric @ q
        small[:, j, j] = (w * q).sum((1, 2))
        for _ in range(2):
            w = w - basis @ (basis.transpose(1, 2) @ w)
        length = w.norm(dim=(1, 2))
        if j + 1 < STEPS:
            small[:, j, j + 1] = small[:, j + 1, j] = length
        q = w / length.clamp(min=1e-30)[:, None, None]
    values, vectors = torch.linalg.eigh(small)
    found = (basis @ vectors[:, :, -1:]).squeeze(2)
    return (
        values[:, -1],
        found / found.norm(dim=1, keepdim=True).clamp(min=1e-30),
        (length * vectors[:, -1, -1]).abs(),
    )


def towards(component: Tensor, reference: Tensor) -> Tensor:
    """Flip maps (B, h, w) of either sign so that they are high where the reference (B, h, w) is."""
    centred = reference - reference.mean(SPACE, keepdim=True)
    side = (component * centred).sum(SPACE, keepdim=True)
    return torch.where(side < 0, -component, component)


def strength(A: Tensor) -> Tensor:
    """Norm of A over channels, (B, h, w): the reference of the sign rule."""
    return A.square().sum(1).sqrt()


@method(
    "eigencam", needs="activation", cost="1", per_class=False,
    doc="first principal component of the activations", when="a look at the features; no class",
    paper="Muhammad and Yeasin, Eigen-CAM: Class Activation Map using Principal Components, IJCNN 2020",
)  # fmt: skip
def eigencam(A: Tensor) -> Tensor:
    """EigenCAM: projection of A on its first principal component over positions. Sign by the rule above."""
    return towards(principal(A), strength(A))


@method(
    "eigengradcam", needs="gradient", cost="1",
    doc="first principal component of gradient times activation", when="less noise, class-specific",
)  # fmt: skip
def eigengradcam(A: Tensor, G: Tensor) -> Tensor:
    """EigenGradCAM: EigenCAM of G * A, which makes it class-specific. Sign by the rule above."""
    return towards(principal(G * A), strength(G * A))


@method(
    "segeigencam", needs="gradient", cost="1",
    doc="first principal component of the gradient's size times activation", when="as `eigengradcam`",
)  # fmt: skip
def segeigencam(A: Tensor, G: Tensor) -> Tensor:
    """SegEigenCAM: EigenCAM of |G| * A, flipped where its trough is deeper than its peak is high."""
    component = principal(G.abs() * A)
    trough, peak = component.amin(SPACE, keepdim=True), component.amax(SPACE, keepdim=True)
    return torch.where(trough.abs() > peak.abs(), -component, component)


def smoothed(weights: Tensor, A: Tensor) -> Tensor:
    """eigen_smooth: the first principal component of w_c A_c, turned towards sum_c w_c A_c."""
    product = (weights[..., None, None] if weights.ndim == 2 else weights) * A
    return towards(principal(product), weigh(weights, A))


@method(
    "kpcacam", needs="activation", cost="1", per_class=False,
    doc="first kernel principal component of the activations", when="as `eigencam`",
    paper="Karmani et al., KPCA-CAM: Visual Explainability of Deep Computer Vision Models using Kernel PCA, "
    "2024",
)  # fmt: skip
def kpcacam(A: Tensor) -> Tensor:
    """KPCA-CAM: first component of kernel PCA with K = tanh(X X^T / C + 1), X = A centred over positions.

    The entry largest in size is made positive.
    """
    rows = A.flatten(2).transpose(1, 2).double()  # (B, h*w, C); tanh(1 + small) needs the digits
    rows = rows - rows.mean(1, keepdim=True)
    kernel = torch.tanh(rows @ rows.transpose(1, 2) / A.shape[1] + 1)  # (B, h*w, h*w)
    kernel = kernel - kernel.mean(1, keepdim=True) - kernel.mean(2, keepdim=True) + kernel.mean((1, 2), True)
    value, vector = _top(kernel)
    biggest = vector.gather(1, vector.abs().argmax(1, keepdim=True)).sign()
    component = vector * biggest * value.clamp(min=0).sqrt()[:, None]
    return component.view(len(A), *A.shape[2:]).float()


@method(
    "fem", needs="activation", cost="1", per_class=False, doc="rare strong activations weigh more",
    when="as `eigencam`",
    paper="Fuad et al., Features Understanding in 3D CNNs for Actions Recognition in Video, IPTA 2020",
)  # fmt: skip
def fem(A: Tensor, k: float = 2.0, values: bool = True) -> Tensor:
    """FEM: c = sum_c w_c A_c, w_c = mean(A_c > th_c), th_c = mean(A_c) + k std(A_c).

    With `values=False` the binary masks are summed and weighed by mean(A_c), the other reading of the
    paper in use.
    """
    threshold = A.mean(SPACE, keepdim=True) + k * A.std(SPACE, correction=0, keepdim=True)
    if values:
        return weigh((threshold < A).float().mean(SPACE), A)
    return weigh(A.mean(SPACE), (threshold <= A).float())


@method(
    "dff", needs="activation", cost="1", per_class=False, doc="factorisation into n concepts",
    when="which parts the layer tells apart",
    paper="Collins et al., Deep Feature Factorization for Concept Discovery, ECCV 2018",
)  # fmt: skip
def dff(A: Tensor, concepts: int = 5, iterations: int = 200) -> Tensor:
    """Deep feature factorisation: A - min(A_c) ~ W H with W, H >= 0; W holds one map per concept.

    (B, n, h, w). Each image is factorised alone, by multiplicative updates from a start made of its own
    principal components, so its concepts depend on no neighbour and on no random number.
    """
    rows = (A - A.amin(SPACE, keepdim=True)).flatten(2).transpose(1, 2).double()  # (B, h*w, C) >= 0
    n = min(concepts, *rows.shape[1:])
    values, vectors = torch.linalg.eigh(rows @ rows.transpose(1, 2))
    W = vectors[:, :, -n:].flip(2).abs() * values[:, None, -n:].flip(2).clamp(min=0).sqrt()
    tiny = 1e-9
    H = (W.transpose(1, 2) @ rows) / (W.square().sum(1)[:, :, None] + tiny)  # (B, n, C)
    for _ in range(iterations):
        H = H * (W.transpose(1, 2) @ rows) / (W.transpose(1, 2) @ W @ H + tiny)
        W = W * (rows @ H.transpose(1, 2)) / (W @ (H @ H.transpose(1, 2)) + tiny)
    scale = H.amax(2)  # move the scale into the maps, so that concepts of one image compare
    maps: Tensor = (W * scale[:, None]).transpose(1, 2).reshape(len(A), n, *A.shape[2:])
    return maps.float()
