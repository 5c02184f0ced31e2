"""C: a ResNet-18 of two classes saved whole with torch.save(model)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from tests.workflows.workflow_truth import IMAGENET, heat, recipe, records, relative


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    torch.manual_seed(2)
    model = torchvision.models.resnet18(weights=None)
    model.fc = nn.Linear(512, 2)
    path = tmp_path_factory.mktemp("whole") / "resnet18.pth"
    torch.save(model, path)
    return path, model.eval()


def test_it_is_refused_with_the_reason_and_both_ways_on(
    whole: tuple[Path, nn.Module], pictures: Path, refused: Callable[..., str]
) -> None:
    said = refused(pictures, "torchvision:resnet18", model__checkpoint=str(whole[0]))
    assert "resnet18.pth is a whole pickled model (torchvision.models.resnet." in said
    assert "a pickle runs code when opened" in said
    assert "Fix: save model.state_dict() where the file was made, or --trust-pickle" in said
    assert "is a file of weights, not an architecture. Fix: --model NAME" in refused(pictures, str(whole[0]))


def test_trusted_it_gives_the_classic_map_on_the_original(
    whole: tuple[Path, nn.Module], pictures: Path, explain: Callable[..., object], tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    (tmp_path / "names.json").write_text('{"cat": 0, "dog": 1}')
    explain(
        pictures, out, "torchvision:resnet18", model__checkpoint=str(whole[0]), model__trust_pickle=True,
        model__class_names=str(tmp_path / "names.json"), method__name="cam",
        overlay__on="original", overlay__caption=True, overlay__policy="all",
    )  # fmt: skip
    assert "WARNING: resnet18.pth is a pickle and was run as a program" in capfd.readouterr().err
    (described,) = (out / "explainers").glob("*.json")
    assert json.loads(described.read_text())["model_args"]["trust_pickle"] is True
    (run,) = (out / "runs").glob("*/run.json")
    assert json.loads(run.read_text())["config"]["model"]["trust_pickle"] is True
    model = whole[1]
    body = nn.Sequential(*list(model.children())[:-2])
    transform = recipe(256, 224, *IMAGENET)
    for name, row in records(out).items():
        with torch.inference_mode(), Image.open(pictures / name) as image:
            A = body(transform(image.convert("RGB"))[None])[0]  # (512, 7, 7)
            z = model.fc(A.mean((1, 2)))
        best = int(z.argmax())
        assert (row["predicted_class"], row["predicted_label"]) == (best, ("cat", "dog")[best])
        assert row["confidence"] == pytest.approx(float(z.softmax(0).max()), abs=1e-4)
        classic = torch.einsum("c,chw->hw", model.fc.weight[best].detach(), A)
        # The classic map is that of the averaged head: the mean, not the sum, of the cells is the score.
        scale = float(heat(row).abs().max() / classic.abs().max())
        assert relative(heat(row), classic * scale) < 1e-3
        assert row["predicted_label"] in Path(row["overlay_path"]).name
        with Image.open(out / row["overlay_path"]) as picture, Image.open(pictures / name) as image:
            assert picture.width == image.width
            assert picture.height >= image.height
