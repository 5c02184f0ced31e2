"""Raw maps equal grad-cam's, where it is right, on eleven families of networks.

In double precision on narrow networks; as published in the long run. See tolerance.py for the bounds.
"""

from __future__ import annotations

import pytest
import torch
import torchvision

from tests.cam import peers
from tests.cam.cam_zoo import NARROW, PUBLISHED, stir
from tests.cam.cases import case, mnasnet
from tests.cam.peers import DECOMPOSED, GRADIENT

SLOW = pytest.mark.slow


def places(*where: str, relu: bool = False) -> list[object]:
    """Every narrow network, and every published one in the long run."""
    quick = [pytest.param(a.name, p) for a in NARROW for p in where if a.relu or not relu]
    long = [pytest.param(a.name, p, marks=SLOW) for a in PUBLISHED for p in where if a.relu or not relu]
    return quick + long


@pytest.mark.parametrize(("name", "place"), places("last", "middle"))
def test_gradient_methods(name: str, place: str) -> None:
    gaps = {method: peers.gradient_gap(method, case(name, place)) for method in GRADIENT}
    assert max(gaps.values()) <= 1, gaps


@pytest.mark.parametrize(("name", "place"), places("last"))
def test_decompositions(name: str, place: str) -> None:
    gaps = {method: peers.decomposed_gap(method, name, place) for method in DECOMPOSED}
    assert max(gaps.values()) <= 1, gaps


@pytest.mark.parametrize("name", ["regnet", "vit", pytest.param("regnety_002", marks=SLOW)])
def test_kernel_decomposition(name: str) -> None:
    assert peers.kernel_gap(name, "last") <= 1


@pytest.mark.parametrize("method", ["gradcam", "xgradcam", "layercam"])
def test_eigen_smooth(method: str) -> None:
    assert peers.smooth_gap(method, "regnet", "middle") <= 1


@pytest.mark.parametrize("method", ["scorecam", "ablationcam"])
def test_eigen_smooth_of_methods_that_alter_the_image(method: str) -> None:
    assert peers.smooth_scene_gap(method, "regnet", "middle") <= 1


@pytest.mark.parametrize(
    ("name", "place"),
    [("regnet", "middle"), ("mobilenetv3", "middle"), ("vit", "last"), ("swin", "middle")]
    + [pytest.param(a.name, "last", marks=SLOW) for a in PUBLISHED if a.side == 64],
)
def test_scorecam(name: str, place: str) -> None:
    assert peers.score_gap(name, place) <= 1


@pytest.mark.parametrize(
    ("name", "place"),
    [("regnet", "last"), ("regnet", "middle"), ("resnet", "middle"), ("vgg", "last")]
    + [pytest.param(a.name, "last", marks=SLOW) for a in PUBLISHED if a.relu and a.side == 64],
)
def test_ablationcam_where_the_layer_has_zeros(name: str, place: str) -> None:
    assert peers.ablation_peer_gap(name, place) <= 1


def test_fullgrad() -> None:
    assert peers.full_gap(mnasnet()) <= 1


@SLOW
@pytest.mark.parametrize("name", ["resnet18", "mnasnet0_5", "densenet121"])
def test_fullgrad_as_published(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=16).eval()
    assert peers.full_gap(stir(model).double()) <= 1


@pytest.mark.parametrize(
    "name",
    ["efficientnet", "vgg", "convnext"]
    + [pytest.param(n, marks=SLOW) for n in ("efficientnet_b0", "vgg16_bn", "convnext_tiny")],
)
def test_shapleycam(name: str) -> None:
    assert peers.shapley_gap(name, "middle") <= 1


@pytest.mark.parametrize(
    "name",
    ["regnet", "convnext", "vit"]
    + [pytest.param(n, marks=SLOW) for n in ("regnety_002", "convnext_tiny", "vit_small_patch16_224")],
)
def test_finercam(name: str) -> None:
    assert peers.finer_gap(name, "middle") <= 1


def test_guided_backpropagation() -> None:
    assert peers.guided_gap(mnasnet()) <= 1
