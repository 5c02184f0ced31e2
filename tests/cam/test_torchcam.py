"""Raw maps equal torch-cam's where it is right, and captum's."""

from __future__ import annotations

import pytest
import torch
import torchvision

from camray.cam import explain, find_target_layer
from tests.cam.cam_zoo import BY_NAME, build, images, relative

methods = pytest.importorskip("torchcam.methods", reason="torch-cam is a development extra")
CONVOLUTIONAL = ["resnet50", "regnety_002", "convnext_tiny"]
MORE = ["densenet121", "efficientnet_b0", "mobilenetv3_small_100", "pvt_v2_b0", "vgg16_bn", "botnet26t_256"]
NAMES = CONVOLUTIONAL + [pytest.param(n, marks=pytest.mark.slow) for n in MORE]
TARGETS = [3, 0, 7]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["last", "middle"])
def test_gradient_methods(name: str, place: str) -> None:
    arch, model = BY_NAME[name], build(name).requires_grad_(True)
    x, layer = images(arch.side), getattr(arch, place)
    asked = {"gradcam": "GradCAM", "layercam": "LayerCAM", "xgradcam": "XGradCAM"}
    found = explain(model, x, layer, list(asked), torch.tensor(TARGETS))
    for ours, theirs in asked.items():
        with getattr(methods, theirs)(model, layer) as cam:
            truth = cam.compute_cams(TARGETS, model(x), normalized=False)[0].detach()
        mine = found.maps[ours, layer][:, 0]
        scale = mine.abs().amax((1, 2), keepdim=True)  # torch-cam's relu may leave little
        loose = ours == "xgradcam" and not arch.relu
        assert float(((mine.relu() - truth).abs() / scale).max()) <= (1e-3 if loose else 1e-5), ours


def test_cam_of_a_linear_head() -> None:
    model, x = build("regnety_002").requires_grad_(True), images(64)
    with methods.CAM(model, "s4", fc_layer="head.fc") as cam:
        model(x)
        truth = cam.compute_cams(3, normalized=False)[0].detach()
    found = explain(model, x, "s4", "cam", "class:3").maps["cam", "s4"][:, 0]
    assert relative(found, truth) <= 1e-5


@pytest.mark.parametrize("kind", ["ScoreCAM", "ISCAM", "SSCAM"])
def test_score_family_in_its_reading(kind: str) -> None:
    """Score-CAM as it is; the other two where chance and the disputed coefficient are out of the way."""
    torch.manual_seed(0)
    model = torchvision.models.mnasnet0_5(num_classes=16).eval()
    x, layer = images(64, 2), "layers.8"
    options = {"ScoreCAM": {}, "ISCAM": {"num_samples": 1}, "SSCAM": {"num_samples": 1, "std": 1e-9}}[kind]
    text = {
        "ScoreCAM": "scorecam(normalise_first=True)",
        "ISCAM": "iscam(samples=1)",
        "SSCAM": "sscam(samples=1, std=0.0)",
    }[kind]
    with getattr(methods, kind)(model, layer, **options) as cam, torch.no_grad():
        truth = cam.compute_cams([3, 5], model(x), normalized=False)[0]
    found = explain(model, x, layer, text, torch.tensor([3, 5])).maps[text, layer][:, 0]
    assert relative(found.relu(), truth) <= 1e-4


def test_finercam_with_equal_weights() -> None:
    model, x = build("convnext_tiny").requires_grad_(True), images(64)
    text = "finercam(weighting='mean', alpha=0.6, base='layercam')"
    with methods.FinerCAM(model, "stages.2", base_method=methods.LayerCAM) as cam:
        truth = cam.compute_cams(TARGETS, model(x), normalized=False)[0].detach()
    found = explain(model, x, "stages.2", text, torch.tensor(TARGETS)).maps[text, "stages.2"][:, 0]
    assert relative(found.relu(), truth) <= 1e-5


def test_refinecam_over_two_layers() -> None:
    model, x = build("convnext_tiny").requires_grad_(True), images(64)
    text, layers = "refinecam(base='layercam')", ["stages.2", "stages.3"]
    with methods.RefineCAM(model, layers, base_method=methods.LayerCAM) as cam:
        truth = cam(TARGETS, model(x))[0].detach()
    found = explain(model, x, layers, text, torch.tensor(TARGETS)).maps[text, "stages.2+stages.3"][:, 0]
    assert float((found - truth).abs().max()) <= 1e-5


def test_legrad_on_torchvision() -> None:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(64, 16, 3, 2, 32, 64, num_classes=8).eval()
    torch.nn.init.normal_(model.heads.head.weight, std=0.3)
    x = images(64, 2)
    blocks = [f"encoder.layers.encoder_layer_{i}" for i in range(3)]
    with methods.LeGrad(model, blocks) as cam:
        truth = cam.compute_cams(3, model(x), normalized=False)[0].detach()
    layer = find_target_layer(model, (3, 64, 64))
    found = explain(model, x, layer, "legrad", "class:3").maps["legrad", layer.name][:, 0]
    assert relative(found, truth) <= 1e-5


@pytest.mark.parametrize("name", ["regnety_002", "convnext_tiny"])
def test_captum_gradcam_and_input_methods(name: str) -> None:
    captum = pytest.importorskip("captum.attr", reason="captum is an optional extra")
    arch, model = BY_NAME[name], build(name).requires_grad_(False)
    x, target = images(64), torch.tensor(TARGETS)
    truth = captum.LayerGradCam(model, model.get_submodule(arch.middle)).attribute(x, target=target)
    found = explain(model, x, arch.middle, ["gradcam", "captum:InputXGradient"], target)
    assert relative(found.maps["gradcam", arch.middle], truth.detach()) <= 1e-5
    truth = captum.InputXGradient(model).attribute(x.clone().requires_grad_(), target=target).sum(1).detach()
    assert relative(found.maps["captum:InputXGradient", arch.middle][:, 0], truth) <= 1e-5
