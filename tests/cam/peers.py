"""Every method once beside grad-cam on one layer of one network, in double precision, as a `gap`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from camray.cam import explain, find_target_layer
from tests.cam.cam_zoo import images
from tests.cam.cases import (
    SPACE,
    TARGETS,
    Case,
    ablated_scores,
    ablation_bound,
    case,
    curvature,
    gradient_bound,
    of_targets,
    ours,
    steepest,
    turned,
    xgradcam_weights,
)
from tests.cam.tolerance import (
    U32,
    U64,
    component_condition,
    condition,
    double_precision,
    gap,
    kernel_condition,
    mask_condition,
    roundings,
)

pgc = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is a development extra")
from pytorch_grad_cam import ablation_cam, ablation_layer, base_cam  # noqa: E402
from pytorch_grad_cam.utils import image, svd_on_activations  # noqa: E402
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402

GRADIENT = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "hirescam": "HiResCAM",
    "gradcam-elementwise": "GradCAMElementWise",
    "layercam": "LayerCAM",
    "fem": "FEM",
}
DECOMPOSED = {"eigencam": "EigenCAM", "eigengradcam": "EigenGradCAM", "segeigencam": "SegEigenCAM"}


class Doubles:
    """numpy, with doubles where the peer asks for float32."""

    float32 = np.float64

    def __getattr__(self, name: str) -> object:
        return getattr(np, name)


@contextmanager
def doubled() -> Iterator[None]:
    """Double precision for the package and the peer."""
    with double_precision(), pytest.MonkeyPatch.context() as patch:
        for module in (ablation_cam, ablation_layer, base_cam, image, svd_on_activations):
            patch.setattr(module, "np", Doubles())
        yield


def watched(cam: object, run: Callable[[], object], what: str = "get_cam_image") -> Tensor:
    """The map of grad-cam before its relu, min-max and resize."""
    made: list[object] = []
    inner = getattr(cam, what)
    setattr(cam, what, lambda *a, **k: made.append(inner(*a, **k)) or made[-1])
    with doubled():
        run()
    cam.activations_and_grads.gradients = []  # its release fails on gradients that are views
    cam.activations_and_grads.release()
    return torch.as_tensor(made[0]).double()


@cache
def theirs(c: Case, kind: str, **options: object) -> Tensor:
    cam = getattr(pgc, kind)(c.model, [c.model.get_submodule(c.layer.name)], reshape_transform=c.arch.read)
    if hasattr(cam, "batch_size"):
        cam.batch_size = 64
    targets = [ClassifierOutputTarget(t) for t in TARGETS]
    return watched(cam, lambda: cam(c.x, targets, **options))


def gradient_gap(method: str, c: Case) -> float:
    share = 0.1 if method == "xgradcam" else 1e-3  # a sum of A near the guard
    return gap(ours(c, method), theirs(c, GRADIENT[method]), gradient_bound(c, method), share)


def decomposed_gap(method: str, name: str, place: str) -> float:
    """SegEigenCAM has a rule for the sign; of the other two the peer leaves it to chance."""
    c = case(name, place)
    truth = theirs(c, DECOMPOSED[method])
    X = {"eigencam": c.A, "eigengradcam": c.G * c.A, "segeigencam": c.G.abs() * c.A}[method]
    if method != "segeigencam":
        truth = turned(truth, X.square().sum(1).sqrt())
    return gap(ours(c, method), truth, c.unit * component_condition(X))


def kernel_gap(name: str, place: str) -> float:
    c = case(name, place)
    truth = theirs(c, "KPCA_CAM")
    return gap(ours(c, "kpcacam"), truth, c.unit * kernel_condition(c.A))


def smooth_gap(method: str, name: str, place: str) -> float:
    """Option eigen_smooth: the component of w_c A_c; the peer's has no sign."""
    c = case(name, place)
    weights = {
        "gradcam": lambda A, G: G.mean(SPACE, keepdim=True),
        "xgradcam": xgradcam_weights,
        "layercam": lambda A, G: G.relu(),
    }[method]
    X = weights(c.A, c.G) * c.A
    truth = turned(theirs(c, GRADIENT[method], eigen_smooth=True), X.sum(1))
    worst = condition(lambda A, G: weights(A, G) * A, c.A, c.G).flatten(1).amax(1)
    worse = (worst / X.abs().flatten(1).amax(1)).clamp(min=1)[:, None, None]
    bound = c.unit * worse * component_condition(X)
    return gap(ours(c, f"{method}(eigen_smooth=True)"), truth, bound)


def smooth_scene_gap(method: str, name: str, place: str) -> float:
    """The same of methods that look at altered images, where the peer's sign is that of its plain map."""
    c = case(name, place)
    kind = {"scorecam": "ScoreCAM", "ablationcam": "AblationCAM"}[method]
    truth = turned(theirs(c, kind, eigen_smooth=True), theirs(c, kind))
    return gap(ours(c, f"{method}(eigen_smooth=True)"), truth, 1e-7 * truth.abs().amax())


def score_gap(name: str, place: str) -> float:
    c = case(name, place)
    return gap(ours(c, "scorecam"), theirs(c, "ScoreCAM"), c.unit * mask_condition(c.A, c.logits))


def ablation_peer_gap(name: str, place: str) -> float:
    c = case(name, place)
    bound = ablation_bound(c, of_targets(c.logits), ablated_scores(c))
    return gap(ours(c, "ablationcam"), theirs(c, "AblationCAM"), bound)


def full_gap(model: nn.Module) -> float:
    with double_precision():
        x = images(64, 2)
        layer = find_target_layer(model, (3, 64, 64))
        found = explain(model, x, layer, "fullgrad", torch.tensor(TARGETS[:2])).maps["fullgrad", layer.name]
    cam = pgc.FullGrad(model, [])
    targets = [ClassifierOutputTarget(t) for t in TARGETS[:2]]
    truth = watched(cam, lambda: cam(x, targets), "compute_cam_per_layer")[:, 0]
    # the peer scales each channel to [0, 1] and enlarges it; places in float32 are off by 64 u
    biased = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) and m.bias is not None]
    bound = 2 * 64 * U32 * (3 + sum(len(m.bias) for m in biased))
    return gap(found[:, 0], truth, bound)


def guided_gap(model: nn.Module) -> float:
    """The peer takes one image; the batch gives the same, and leaves every ReLU where it was."""
    with double_precision():
        x = images(64)
        layer = find_target_layer(model, (3, 64, 64))
        found = explain(model, x, layer, "guidedbackprop", torch.tensor(TARGETS)).maps
        truth = []
        for i, target in enumerate(TARGETS):
            peer = pgc.GuidedBackpropReLUModel(copy.deepcopy(model), device="cpu")
            truth.append(torch.as_tensor(peer(x[i : i + 1].clone(), target)).abs().amax(2))
    stacked = torch.stack(truth)
    bound = 2 * roundings(model) * U64 * stacked.amax((1, 2), keepdim=True)
    return gap(found["guidedbackprop", layer.name][:, 0], stacked, bound)


def shapley_gap(name: str, place: str) -> float:
    """Grad-CAM of G - H A / 2; an entry of H A is bounded by the largest of them."""
    c = case(name, place)
    truth = theirs(c, "ShapleyCAM")
    channels, size = c.A.shape[1], c.A.abs().flatten(1).amax(1)[:, None, None]
    bound = 2 * c.unit * channels * size * (steepest(c) + curvature(c))
    return gap(ours(c, "shapleycam"), truth, bound)


def finer_gap(name: str, place: str) -> float:
    """Grad-CAM of a mean of contrasts, whose weights are differentiated too."""
    c = case(name, place)
    layer = c.model.get_submodule(c.layer.name)
    cam = pgc.FinerCAM(c.model, [layer], reshape_transform=c.arch.read)
    truth = watched(cam.base_cam, lambda: cam(c.x))
    channels, size = c.A.shape[1], c.A.abs().flatten(1).amax(1)[:, None, None]
    spread = 1 + 2 * c.logits.abs().amax(1)[:, None, None]
    bound = 2 * c.unit * channels * size * 2 * steepest(c) * spread
    return gap(ours(c, "finercam", "predicted"), truth, bound)
