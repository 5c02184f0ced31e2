"""Parity and closed forms on trained MobileNetV2 weights; skipped where the shared data is not there."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import timm
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from camray.cam import explain, find_target_layer
from tests.cam.cam_zoo import Arch, relative
from tests.cam.cases import case_of
from tests.cam.tolerance import SAME, double_precision, gap

DATA = Path(__file__).parents[2].parent / "shared" / "data"
WEIGHTS = DATA / "weights" / "mobilenetv2_100_imagenet" / "model.safetensors"
pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="needs ../shared/data with trained weights")
MOBILENET = Arch("mobilenetv2_100", "bn2", "blocks.3")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return timm.create_model("mobilenetv2_100", checkpoint_path=str(WEIGHTS)).eval()


@pytest.fixture(scope="module")
def exact(model: nn.Module) -> nn.Module:
    """The same weights in double precision."""
    return timm.create_model("mobilenetv2_100", checkpoint_path=str(WEIGHTS)).eval().double()


@pytest.fixture(scope="module")
def batch() -> Tensor:
    image = pytest.importorskip("PIL.Image")
    make = timm.data.create_transform(96, crop_pct=0.875, interpolation="bicubic")
    paths = sorted((DATA / "imagenet_val").rglob("*.JPEG"))[:3]
    return torch.stack([make(image.open(p).convert("RGB")) for p in paths]).double()


@pytest.mark.parametrize("place", ["middle", pytest.param("last", marks=pytest.mark.slow)])
def test_gradient_methods(exact: nn.Module, batch: Tensor, place: str) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="grad-cam is a development extra")
    from tests.cam import peers

    with double_precision():
        c = case_of(MOBILENET, exact, batch, place)
    gaps = {method: peers.gradient_gap(method, c) for method in peers.GRADIENT}
    assert max(gaps.values()) <= 1, gaps


def test_closed_forms_agree_behind_a_linear_head(exact: nn.Module, batch: Tensor) -> None:
    """Where the head is linear in the layer's mean these five are one; XGrad-CAM but for its guard."""
    with double_precision():
        layer = find_target_layer(exact, (3, 96, 96))
        found = explain(exact, batch, layer, ["cam", "gradcam", "hirescam", "xgradcam", "shapleycam"])
    maps = {key[0]: value for key, value in found.maps.items()}
    cells = maps["cam"].shape[-1] * maps["cam"].shape[-2]
    for other in ("gradcam", "hirescam", "shapleycam"):
        assert relative(maps[other] * cells, maps["cam"]) < SAME, other
    # A_c >= 0 is at most its sum, of which the guard is 1e-7
    guard = 1e-7 * exact.classifier.weight[found.classes[:, 0]].abs().sum(1).view(-1, 1, 1, 1)
    assert gap(maps["xgradcam"] * cells, maps["cam"], guard.detach()) <= 1


def test_heat_lies_on_the_object_more_than_chance(model: nn.Module) -> None:
    """The peak of Grad-CAM falls into an annotated box more often than a random point would."""
    image = pytest.importorskip("PIL.Image")
    boxes: dict[str, list[list[float]]] = {}
    with (DATA / "imagenet_val_boxes.csv").open() as file:
        for row in csv.DictReader(file):
            corners = [float(row[k]) for k in ("xmin", "ymin", "xmax", "ymax")]
            boxes.setdefault(row["file"], []).append(corners)
    layer = find_target_layer(model)
    make = timm.data.create_transform(224, crop_pct=1.0, interpolation="bicubic")
    hits, shares = [], []
    for name in sorted(boxes)[:40]:
        picture = image.open(DATA / "imagenet_val" / name).convert("RGB")
        found = explain(model, make(picture.resize((224, 224)))[None], layer, "gradcam")
        heat = found.maps["gradcam", layer.name][0, 0]
        row, column = divmod(int(heat.argmax()), heat.shape[1])
        width, height = picture.size
        x, y = (column + 0.5) / heat.shape[1] * width, (row + 0.5) / heat.shape[0] * height
        hits.append(any(b[0] <= x <= b[2] and b[1] <= y <= b[3] for b in boxes[name]))
        shares.append(max((b[2] - b[0]) * (b[3] - b[1]) for b in boxes[name]) / (width * height))
    # no more than chance (the area of the boxes) would give as many hits less than once in a thousand
    assert binomtest(sum(hits), len(hits), sum(shares) / len(shares), "greater").pvalue < 1e-3
