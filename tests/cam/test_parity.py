"""Raw maps equal the peers', where the peers are right, on twelve architectures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from camray.cam import TargetLayer, explain, find_target_layer
from tests.cam.cam_zoo import ARCHS, BY_NAME, Arch, build, images, relative

pgc = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is a development extra")
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402

TARGETS = [3, 0, 7]
TOLERANCE = 1e-5
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
QUICK = ("resnet50", "regnety_002", "convnext_tiny", "vit_small_patch16_224", "swin_tiny_patch4_window7_224")


def marked(name: str, *values: str) -> object:
    """Five architectures always, all twelve in the long run."""
    return pytest.param(name, *values, marks=() if name in QUICK else pytest.mark.slow)


CASES = [marked(a.name, place) for a in ARCHS for place in ("last", "middle")]


def place_of(arch: Arch, place: str) -> TargetLayer:
    return find_target_layer(build(arch.name), (3, arch.side, arch.side), getattr(arch, place))


def peer_map(kind: str, arch: Arch, layer: str, x: Tensor, **options: object) -> Tensor:
    """The peer's map before its relu, min-max and resize."""
    model = build(arch.name)
    cam = getattr(pgc, kind)(model, [model.get_submodule(layer)], reshape_transform=arch.read)
    if hasattr(cam, "batch_size"):
        cam.batch_size = 64
    made: list[object] = []
    inner = cam.get_cam_image
    cam.get_cam_image = lambda *a, **k: made.append(inner(*a, **k)) or made[-1]
    cam(x, [ClassifierOutputTarget(c) for c in TARGETS[: len(x)]], **options)
    cam.activations_and_grads.gradients = []  # its release fails on gradients that are views
    cam.activations_and_grads.release()
    return torch.as_tensor(made[0]).float()


@pytest.mark.parametrize(("name", "place"), CASES)
def test_gradient_methods(name: str, place: str) -> None:
    arch, x = BY_NAME[name], images(BY_NAME[name].side)
    layer = place_of(arch, place)
    found = explain(build(name), x, layer, list(GRADIENT), torch.tensor(TARGETS))
    for ours, theirs in GRADIENT.items():
        truth = peer_map(theirs, arch, layer.name, x)
        mine = found.maps[ours, layer.name][:, 0]
        worst = relative(mine, truth)
        if ours == "hirescam":  # in front of a LayerNorm its terms cancel: measure against their size
            gross = found.maps["gradcam-elementwise", layer.name][:, 0].amax((1, 2), keepdim=True)
            worst = min(worst, float(((mine - truth).abs() / gross).max()))
        # where values have both signs XGrad-CAM divides by sums near zero, which magnify rounding
        loose = ours == "xgradcam" and not arch.relu
        assert worst <= (1e-3 if loose else TOLERANCE), (ours, worst)


@pytest.mark.parametrize("name", [marked(a.name) for a in ARCHS])
def test_decompositions(name: str) -> None:
    """Equal up to the sign, which the peer leaves to chance (SegEigenCAM has a rule: equal as it is)."""
    arch, x = BY_NAME[name], images(BY_NAME[name].side)
    layer = place_of(arch, "last")
    asked = list(DECOMPOSED)
    found = explain(build(name), x, layer, asked, torch.tensor(TARGETS))
    for ours in asked:
        truth = peer_map(DECOMPOSED[ours], arch, layer.name, x)
        mine = found.maps[ours, layer.name][:, 0]
        if ours != "segeigencam":
            side = (mine * truth).sum((1, 2), keepdim=True).sign()
            truth = truth * side
        assert relative(mine, truth) <= 1e-4, ours


@pytest.mark.parametrize("name", ["regnety_002", "vit_small_patch16_224"])
def test_kernel_decomposition(name: str) -> None:
    arch, x = BY_NAME[name], images(BY_NAME[name].side)
    layer = place_of(arch, "last")
    found = explain(build(name), x, layer, "kpcacam").maps["kpcacam", layer.name][:, 0]
    assert relative(found, peer_map("KPCA_CAM", arch, layer.name, x)) <= TOLERANCE


@pytest.mark.parametrize("ours", ["gradcam", "xgradcam", "layercam"])
def test_eigen_smooth(ours: str) -> None:
    arch, x = BY_NAME["regnety_002"], images(64)
    layer = place_of(arch, "middle")
    text = f"{ours}(eigen_smooth=True)"
    found = explain(build(arch.name), x, layer, text, torch.tensor(TARGETS)).maps[text, layer.name][:, 0]
    truth = peer_map(GRADIENT[ours], arch, layer.name, x, eigen_smooth=True)
    side = (found * truth).sum((1, 2), keepdim=True).sign()
    assert relative(found, truth * side) <= 1e-4


@pytest.mark.parametrize(
    ("name", "place"),
    [("regnety_002", "middle"), ("mobilenetv3_small_100", "middle")]
    + [pytest.param(a.name, "last", marks=pytest.mark.slow) for a in ARCHS if a.side == 64],
)
def test_scorecam(name: str, place: str) -> None:
    arch, x = BY_NAME[name], images(BY_NAME[name].side, 2)
    layer = place_of(arch, place)
    found = explain(build(name), x, layer, "scorecam", torch.tensor(TARGETS[:2]))
    truth = peer_map("ScoreCAM", arch, layer.name, x)
    # the softmax over channels turns the rounding of a score, 1e-6 of its size, into as much of a weight
    rounding = 1e-6 * float(found.logits.abs().max())
    assert relative(found.maps["scorecam", layer.name][:, 0], truth) <= max(TOLERANCE, rounding)


@pytest.mark.parametrize(
    ("name", "place"),
    [("regnety_002", "last"), ("regnety_002", "middle")]
    + [pytest.param(a.name, "last", marks=pytest.mark.slow) for a in ARCHS if a.relu and a.side == 64],
)
def test_ablationcam_where_the_layer_has_zeros(name: str, place: str) -> None:
    arch, x = BY_NAME[name], images(BY_NAME[name].side, 2)
    layer = place_of(arch, place)
    found = explain(build(name), x, layer, "ablationcam", torch.tensor(TARGETS[:2]))
    truth = peer_map("AblationCAM", arch, layer.name, x)
    # a weight is a difference of two scores: rounding of the scores shows as 1e-5 of the map
    assert relative(found.maps["ablationcam", layer.name][:, 0], truth) <= 5e-5


@pytest.mark.parametrize(
    "name", ["resnet18", "mnasnet0_5", pytest.param("densenet121", marks=pytest.mark.slow)]
)
def test_fullgrad(name: str) -> None:
    """On torchvision's plain batch norms: the peer looks for the exact class and skips timm's own."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=16).eval()
    x = images(64, 2)
    cam = pgc.FullGrad(model, [])
    made: list[object] = []
    inner = cam.compute_cam_per_layer
    cam.compute_cam_per_layer = lambda *a, **k: made.append(inner(*a, **k)) or made[-1]
    cam(x, [ClassifierOutputTarget(c) for c in TARGETS[:2]])
    cam.activations_and_grads.release()
    truth = torch.as_tensor(made[0])[:, 0]
    layer = find_target_layer(model, (3, 64, 64))
    found = explain(model, x, layer, "fullgrad", torch.tensor(TARGETS[:2])).maps["fullgrad", layer.name]
    assert relative(found[:, 0], truth) <= TOLERANCE


@pytest.mark.parametrize("name", ["efficientnet_b0", "vgg16_bn", "convnext_tiny"])
def test_shapleycam(name: str) -> None:
    arch, x = BY_NAME[name], images(64)
    layer = place_of(arch, "middle")
    found = explain(build(name), x, layer, "shapleycam", torch.tensor(TARGETS)).maps["shapleycam", layer.name]
    assert relative(found[:, 0], peer_map("ShapleyCAM", arch, layer.name, x)) <= TOLERANCE


@pytest.mark.parametrize("name", ["regnety_002", "convnext_tiny", "vit_small_patch16_224"])
def test_finercam(name: str) -> None:
    arch, x, model = BY_NAME[name], images(64), build(name)
    layer = place_of(arch, "middle")
    cam = pgc.FinerCAM(model, [model.get_submodule(layer.name)], reshape_transform=arch.read)
    made: list[object] = []
    inner = cam.base_cam.get_cam_image
    cam.base_cam.get_cam_image = lambda *a, **k: made.append(inner(*a, **k)) or made[-1]
    cam(x)
    cam.base_cam.activations_and_grads.release()
    found = explain(model, x, layer, "finercam").maps["finercam", layer.name][:, 0]
    assert relative(found, torch.as_tensor(made[0])) <= TOLERANCE


def test_guided_backpropagation() -> None:
    """The peer takes one image; the batch gives the same, and leaves every ReLU where it was."""
    import copy

    import torchvision
    from pytorch_grad_cam import GuidedBackpropReLUModel

    from camray.cam.pixels import guided_gradients
    from camray.cam.scene import Scene
    from camray.cam.split import run_split
    from camray.cam.targets import Aim, TargetRule

    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=16).eval().requires_grad_(False)
    x = images(64)
    layer = find_target_layer(model, (3, 64, 64))
    split = run_split(model, x, [layer])
    aim = Aim.settle((TargetRule.given(torch.tensor(TARGETS)),), split.logits, None)
    found = guided_gradients(Scene(model, x, layer, split, aim))[:, 0]
    for i, target in enumerate(TARGETS):
        peer = GuidedBackpropReLUModel(copy.deepcopy(model), device="cpu")
        truth = torch.as_tensor(peer(x[i : i + 1], target)).permute(2, 0, 1)
        assert relative(found[i], truth) <= TOLERANCE
