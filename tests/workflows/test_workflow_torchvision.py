"""F: torchvision's own architectures and a JSON of labels; and real ImageNet weights."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

from tests.workflows.workflow_truth import IMAGENET, gradcam, heat, logits, recipe, records, relative


@pytest.mark.slow
def test_vgg16_and_its_last_convolution(
    pictures: Path, shared: Path, explain: Callable[..., object], tmp_path: Path
) -> None:
    torch.manual_seed(6)
    model = torchvision.models.vgg16(weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "vgg16.pth")
    explain(
        pictures, tmp_path / "out", "torchvision:vgg16", model__checkpoint=str(tmp_path / "vgg16.pth"),
        model__class_names=str(shared / "imagenet_classes.json"), method__layer="features.29",
        archive__limit=2,
    )  # fmt: skip
    transform = recipe(256, 224, *IMAGENET)
    for name, row in records(tmp_path / "out").items():
        with Image.open(pictures / name) as image:
            x = transform(image.convert("RGB"))[None]
        p = model(x).softmax(1)[0].detach()
        assert row["predicted_class"] == int(p.argmax())
        assert len(row["topk"]) == 5
        assert all(t["label"] for t in row["topk"])
        best = row["predicted_class"]
        assert relative(heat(row), gradcam(model, "features.29", x, lambda s: s[0, best])) < 1e-3  # noqa: B023


@pytest.fixture(scope="module")
def truth(shared: Path) -> dict[str, int]:
    with (shared / "imagenet_val.csv").open() as file:
        return {row["file"]: int(row["index"]) for row in csv.DictReader(file)}


@pytest.mark.slow
def test_squeezenet_with_real_weights(
    shared: Path, truth: dict[str, int], explain: Callable[..., object], tmp_path: Path
) -> None:
    """Top-1 on the shared validation images is that of a plain forward, and near PROVENANCE.md's."""
    weights = shared / "weights" / "squeezenet1_0_imagenet.safetensors"
    explain(
        shared / "imagenet_val", tmp_path / "out", "torchvision:squeezenet1_0",
        model__checkpoint=str(weights), model__class_names=str(shared / "imagenet_classes.json"),
        overlay__policy="none",
    )  # fmt: skip
    model = torchvision.models.squeezenet1_0(weights=None)
    model.load_state_dict(load_file(weights))
    files = sorted((shared / "imagenet_val").rglob("*.JPEG"))
    plain = logits(model, recipe(256, 224, *IMAGENET), files).argmax(1).tolist()
    rows = {Path(member).name: row for member, row in records(tmp_path / "out").items()}
    assert [rows[f.name]["predicted_class"] for f in files] == plain
    top1 = sum(rows[n]["predicted_class"] == c for n, c in truth.items()) / len(truth)
    print(f"top-1 of {len(truth)} images: {100 * top1:.1f} %; PROVENANCE.md: 57.5 % of 1000")
    assert abs(top1 - 0.575) < 3 * (0.575 * 0.425 / len(truth)) ** 0.5  # three standard errors


def test_names_that_do_not_fit(pictures: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    assert "did you mean vgg19 or vgg16" in refused(pictures, "torchvision:vgg61")
    assert "are not on this machine" in refused(pictures, "torchvision:squeezenet1_1")
