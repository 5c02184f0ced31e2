"""Raw maps equal torch-cam's where it is right, and captum's; in double precision, see tolerance.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from camray.cam import explain, find_target_layer
from tests.cam.cam_zoo import PUBLISHED, images
from tests.cam.cases import FORMULAS, TARGETS, case, gradient_bound, mnasnet, ours, steepest
from tests.cam.tolerance import SAME, condition, double_precision, gap, mask_condition, roundings

methods = pytest.importorskip("torchcam.methods", reason="torch-cam is a development extra")
GRADIENT = {"gradcam": "GradCAM", "layercam": "LayerCAM", "xgradcam": "XGradCAM"}
CONVOLUTIONAL = ["resnet", "regnet", "convnext", "densenet", "efficientnet", "mobilenetv3", "pvt", "vgg"]
LONG = [a.name for a in PUBLISHED if a.read.__name__ == "nchw"]
NAMES = CONVOLUTIONAL + [pytest.param(n, marks=pytest.mark.slow) for n in LONG]


def computed(cam: object, model: nn.Module, x: Tensor, target: object = TARGETS) -> Tensor:
    with double_precision(), cam:
        return cam.compute_cams(target, model(x), normalized=False)[0].detach()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["last", "middle"])
def test_gradient_methods(name: str, place: str) -> None:
    """torch-cam cuts negative values off."""
    c = case(name, place)
    for method, kind in GRADIENT.items():
        truth = computed(getattr(methods, kind)(c.model, c.layer.name), c.model, c.x)
        bound = gradient_bound(c, method, guard=1e-7 + 1e-8)  # theirs is 1e-8
        found = ours(c, method)
        assert gap(found.relu(), truth, bound, share=0.1, whole=found) <= 1, method


def cam_gap() -> float:
    c = case("regnet", "last")
    truth = computed(methods.CAM(c.model, "s4", fc_layer="head.fc"), c.model, c.x, 3)
    return gap(ours(c, "cam", "class:3"), truth, c.unit * condition(FORMULAS["cam"], c.A, c.G))


def test_cam_of_a_linear_head() -> None:
    assert cam_gap() <= 1


def score_family_gap(kind: str) -> float:
    """Score-CAM as it is; the other two where chance and the disputed coefficient are out of the way."""
    model, layer = mnasnet(), "layers.8"
    options = {"ScoreCAM": {}, "ISCAM": {"num_samples": 1}, "SSCAM": {"num_samples": 1, "std": 1e-14}}[kind]
    text = {
        "ScoreCAM": "scorecam(normalise_first=True)",
        "ISCAM": "iscam(samples=1)",
        "SSCAM": "sscam(samples=1, std=0.0)",
    }[kind]
    with double_precision():
        x = images(64, 2)
        logits = model(x).detach()
        A = model.layers[:9](x).detach()
        found = explain(model, x, layer, text, torch.tensor([3, 5])).maps[text, layer][:, 0]
        with getattr(methods, kind)(model, layer, **options) as cam, torch.no_grad():
            truth = cam.compute_cams([3, 5], model(x), normalized=False)[0]
    return gap(found.relu(), truth, 2 * roundings(model) * 2.0**-53 * mask_condition(A, logits))


@pytest.mark.parametrize("kind", ["ScoreCAM", "ISCAM", "SSCAM"])
def test_score_family_in_its_reading(kind: str) -> None:
    assert score_family_gap(kind) <= 1


def test_finercam_with_equal_weights() -> None:
    c = case("convnext", "middle")
    text = "finercam(weighting='mean', alpha=0.6, base='layercam')"
    truth = computed(methods.FinerCAM(c.model, c.layer.name, base_method=methods.LayerCAM), c.model, c.x)
    size = c.A.abs().flatten(1).amax(1)[:, None, None]
    found = ours(c, text)
    # the package divides by the sum of the three weights, 3 + 1e-9
    bound = 2 * c.unit * c.A.shape[1] * size * 2 * steepest(c) + 1e-9 / 3 * found.abs()
    assert gap(found.relu(), truth, bound, whole=found) <= 1


def refine_gap() -> float:
    """Two maps scaled to [0, 1] and multiplied: their guards are 1e-8 and 1e-7."""
    first, second = case("convnext", "middle"), case("convnext", "last")
    text, layers = "refinecam(base='layercam')", ["stages.2", "stages.3"]
    with double_precision():
        with methods.RefineCAM(first.model, layers, base_method=methods.LayerCAM) as cam:
            truth = cam(TARGETS, first.model(first.x))[0].detach()
        found = explain(first.model, first.x, layers, text, torch.tensor(TARGETS))
    shares = []
    for c in (first, second):
        heights = FORMULAS["layercam"](c.A, c.G).relu().amax((1, 2), keepdim=True)
        rounding = gradient_bound(c, "layercam").amax((1, 2), keepdim=True)
        shares.append((2 * rounding + 1e-7) / heights)
    # each factor is off by twice its share (of its value and of its maximum), the product is scaled once more
    bound = 4 * sum(shares) + 2e-7 / truth.amax((1, 2), keepdim=True)
    return gap(found.maps[text, "stages.2+stages.3"][:, 0], truth, bound)


def test_refinecam_over_two_layers() -> None:
    assert refine_gap() <= 1


def legrad_gap() -> float:
    """A mean of positive parts of gradients: off by n u of the largest gradient, the map's height."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(64, 16, 3, 2, 32, 64, num_classes=8).eval().double()
    nn.init.normal_(model.heads.head.weight, std=0.3)
    with double_precision():
        x = images(64, 2)
        with methods.LeGrad(model, [f"encoder.layers.encoder_layer_{i}" for i in range(3)]) as cam:
            truth = cam.compute_cams(3, model(x), normalized=False)[0].detach()
        layer = find_target_layer(model, (3, 64, 64))
        found = explain(model, x, layer, "legrad", "class:3").maps["legrad", layer.name][:, 0]
    return gap(found, truth, SAME * truth.amax((1, 2), keepdim=True))


def test_legrad_on_torchvision() -> None:
    assert legrad_gap() <= 1


def captum_gap(name: str) -> float:
    captum = pytest.importorskip("captum.attr", reason="captum is an optional extra")
    c = case(name, "middle")
    truth = captum.InputXGradient(c.model).attribute(
        c.x.clone().requires_grad_(), target=torch.tensor(TARGETS)
    )
    truth = truth.sum(1).detach()
    return gap(ours(c, "captum:InputXGradient"), truth, SAME * truth.abs().amax((1, 2), keepdim=True))


@pytest.mark.parametrize("name", ["regnet", "convnext"])
def test_captum_gradcam_and_input_methods(name: str) -> None:
    captum = pytest.importorskip("captum.attr", reason="captum is an optional extra")
    c = case(name, "middle")
    attribute: Callable[..., Tensor] = captum.LayerGradCam(
        c.model, c.model.get_submodule(c.layer.name)
    ).attribute
    truth = attribute(c.x, target=torch.tensor(TARGETS)).detach()[:, 0]
    assert gap(ours(c, "gradcam"), truth, gradient_bound(c, "gradcam")) <= 1
    assert captum_gap(name) <= 1
