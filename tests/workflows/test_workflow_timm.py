"""A: timm's botnet26t_256 with a head of two classes, a state_dict .pth, X-rays in class folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn

from tests.workflows.workflow_truth import all_records, gradcam, heat, records, relative

LAYERS = ("final_conv", "stages.2.0.conv3_1x1")


@pytest.fixture(scope="module")
def botnet() -> nn.Module:
    torch.manual_seed(3)
    model = timm.create_model("botnet26t_256", pretrained=False)
    model.head.fc = nn.Linear(model.head.fc.in_features, 2)
    return model.eval()


@pytest.fixture
def checkpoint(botnet: nn.Module, tmp_path: Path) -> str:
    torch.save(botnet.state_dict(), tmp_path / "tuberculosis.pth")
    return str(tmp_path / "tuberculosis.pth")


def test_predictions_names_and_maps_of_both_classes(
    botnet: nn.Module, checkpoint: str, xrays: Path, explain: Callable[..., object], tmp_path: Path
) -> None:
    """The head's size is read from the file, the classes' names from the folders."""
    out = tmp_path / "out"
    explain(
        xrays, out, "botnet26t_256",
        model__checkpoint=checkpoint, method__target="top:2", method__layer=LAYERS[0],
    )  # fmt: skip
    found = {(row["member"], row["target_class"]): row for row in all_records(out)}
    assert len(found) == 8
    transform = create_transform(**resolve_data_config(model=botnet))
    for file in sorted(xrays.rglob("*.*")):
        x = transform(Image.open(file).convert("RGB"))[None]
        z = botnet(x)[0].detach()
        name = file.relative_to(xrays).as_posix()
        for c, label in enumerate(("No_findings", "Pneumonia")):
            row = found[name, c]
            assert row["predicted_class"] == int(z.argmax())
            assert row["confidence"] == pytest.approx(float(z.softmax(0).max()), abs=1e-4)
            assert row["label"] == file.parent.name
            assert row["target_label"] == label
            assert row["correct"] == (row["predicted_label"] == row["label"])
            by_hand = gradcam(botnet, LAYERS[0], x.clone(), lambda s, c=c: s[0, c])
            assert relative(heat(row), by_hand) < 1e-3
    (described,) = (out / "explainers").glob("*.json")
    said = json.loads(described.read_text())
    assert said["class_names"] == ["No_findings", "Pneumonia"]
    assert said["weights_sha256"] == row["weights_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "method",
    ["gradcam++", "xgradcam", "eigencam", "fullgrad", "ablationcam", "scorecam(channels=16)"],
)
def test_every_method_of_the_tutorial(
    checkpoint: str, xrays: Path, explain: Callable[..., object], tmp_path: Path, method: str, layer: str
) -> None:
    explain(
        xrays, tmp_path / "out", "botnet26t_256", archive__limit=1, model__checkpoint=checkpoint,
        method__name=method, method__layer=layer, overlay__policy="all", overlay__picture="triple",
    )  # fmt: skip
    (row,) = records(tmp_path / "out").values()
    assert row["heat_status"] in ("ok", "dead")
    assert (row["heat_h"], row["heat_w"]) == ((32, 32) if method == "fullgrad" else (8, 8) if layer ==
                                              LAYERS[0] else (row["heat_h"], row["heat_w"]))  # fmt: skip
    picture = Image.open(tmp_path / "out" / row["overlay_path"])
    assert picture.width > 2.5 * picture.height
