"""Parity and closed forms on trained MobileNetV2 weights; skipped where the shared data is not there."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from camray.cam import explain, find_target_layer
from tests.cam.cam_zoo import relative

DATA = Path(__file__).parents[2].parent / "shared" / "data"
WEIGHTS = DATA / "weights" / "mobilenetv2_100_imagenet" / "model.safetensors"
pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="needs ../shared/data with trained weights")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return timm.create_model("mobilenetv2_100", checkpoint_path=str(WEIGHTS)).eval()


@pytest.fixture(scope="module")
def batch() -> Tensor:
    image = pytest.importorskip("PIL.Image")
    make = timm.data.create_transform(224, crop_pct=0.875, interpolation="bicubic")
    paths = sorted((DATA / "imagenet_val").rglob("*.JPEG"))[:4]
    return torch.stack([make(image.open(p).convert("RGB")) for p in paths])


def test_gradient_methods_and_perturbations(model: nn.Module, batch: Tensor) -> None:
    pgc = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is a development extra")
    layer = find_target_layer(model)
    kinds = {
        "gradcam": "GradCAM",
        "gradcam++": "GradCAMPlusPlus",
        "xgradcam": "XGradCAM",
        "hirescam": "HiResCAM",
        "gradcam-elementwise": "GradCAMElementWise",
        "layercam": "LayerCAM",
        "fem": "FEM",
    }
    for name in (layer.name, "blocks.3"):
        found = explain(model, batch, name, list(kinds))
        for ours, theirs in kinds.items():
            cam = getattr(pgc, theirs)(model, [model.get_submodule(name)])
            made: list[object] = []
            inner = cam.get_cam_image
            cam.get_cam_image = lambda *a, f=inner, m=made, **k: m.append(f(*a, **k)) or m[-1]
            cam(batch, None)
            cam.activations_and_grads.release()
            worst = relative(found.maps[ours, name][:, 0], torch.as_tensor(made[0]).float())
            # denominators near zero, where values have both signs, magnify rounding
            loose = ours in ("xgradcam", "gradcam++") and name == "blocks.3"
            assert worst <= (1e-3 if loose else 1e-5), (ours, name)


def test_closed_forms_agree_behind_a_linear_head(model: nn.Module, batch: Tensor) -> None:
    layer = find_target_layer(model)
    found = explain(
        model, batch, layer, ["cam", "gradcam", "hirescam", "xgradcam", "ablationcam", "shapleycam"]
    )
    maps = {key[0]: value for key, value in found.maps.items()}
    cells = maps["cam"].shape[-1] * maps["cam"].shape[-2]
    for other in ("gradcam", "hirescam", "xgradcam", "shapleycam"):
        assert relative(maps[other] * cells, maps["cam"]) < 1e-4, other


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
    assert sum(hits) / len(hits) > sum(shares) / len(shares) + 0.1
