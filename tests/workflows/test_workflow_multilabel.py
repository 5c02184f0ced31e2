"""D: DenseNet-121 with 14 sigmoid outputs, saved under DataParallel in a nest, at 384 pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from tests.workflows.workflow_truth import IMAGENET, all_records, gradcam, heat, recipe, relative

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
METHODS = (
    "gradcam", "gradcam++", "xgradcam", "layercam", "hirescam", "eigengradcam", "gradcam(eigen_smooth=True)",
    "gradcam(aug_smooth=True)",
    "ablationcam", "guidedbackprop", "guided-gradcam", "scorecam(channels=8)",
)  # fmt: skip


@pytest.fixture(scope="module")
def densenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    torch.manual_seed(4)
    model = torchvision.models.densenet121(weights=None, num_classes=14).eval()
    path = tmp_path_factory.mktemp("densenet") / "chest.pth.tar"
    parallel = nn.DataParallel(model)
    torch.save({"epoch": 7, "state_dict": parallel.state_dict(), "best_auroc": np.float64(0.8)}, path)
    return path, model


@pytest.fixture
def names(tmp_path: Path) -> str:
    (tmp_path / "findings.csv").write_text(
        "\n".join(["index,name", *(f"{i},{n}" for i, n in enumerate(FINDINGS))])
    )
    return str(tmp_path / "findings.csv")


SIZE = {"preprocess__input_size": 384, "preprocess__resize": 384}


def test_every_finding_above_the_threshold(
    densenet: tuple[Path, nn.Module], names: str, pictures: Path, explain: Callable[..., object],
    tmp_path: Path, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path, model = densenet
    explain(
        pictures, tmp_path / "out", "torchvision:densenet121", model__checkpoint=str(path), **SIZE,
        model__activation="sigmoid", model__class_names=names, method__target="above:0.5", archive__limit=2,
    )  # fmt: skip
    told = capfd.readouterr().err
    assert "weights of chest.pth.tar: taken from 'state_dict'" in told
    assert "prefix 'module.' of the weights' names undone" in told
    assert "head of 14 outputs, as in chest.pth.tar" in told
    rows = all_records(tmp_path / "out")
    transform = recipe(384, 384, *IMAGENET)
    for name in {row["member"] for row in rows}:
        with Image.open(pictures / name) as image:
            x = transform(image.convert("RGB"))[None]
        p = model(x).sigmoid()[0].detach()
        own = [row for row in rows if row["member"] == name]
        assert [r["target_class"] for r in own] == [i for i in range(14) if p[i] >= 0.5]
        top = sorted(range(14), key=lambda i: -p[i])[:5]
        assert [t["class_id"] for t in own[0]["topk"]] == top
        assert [t["score"] for t in own[0]["topk"]] == pytest.approx([float(p[i]) for i in top], abs=1e-4)
        assert own[0]["predicted_label"] == FINDINGS[top[0]]
        assert 0.9 < own[0]["entropy"] <= 1  # untrained: every answer is near one half
        assert [r["target_label"] for r in own] == [FINDINGS[r["target_class"]] for r in own]
        by_hand = gradcam(model, own[0]["target_layer"], x, lambda s: s[0, own[0]["target_class"]])  # noqa: B023
        assert relative(heat(own[0]), by_hand) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_methods_and_pictures(
    densenet: tuple[Path, nn.Module], names: str, pictures: Path, explain: Callable[..., object],
    tmp_path: Path, method: str,
) -> None:  # fmt: skip
    explain(
        pictures, tmp_path / "out", "torchvision:densenet121", model__checkpoint=str(densenet[0]), **SIZE,
        model__activation="sigmoid", model__class_names=names, method__name=method,
        method__target="Pneumonia", archive__limit=1, overlay__policy="all",
    )  # fmt: skip
    (row,) = all_records(tmp_path / "out")
    assert row["target_label"] == "Pneumonia"
    assert row["heat_status"] in ("ok", "dead")
    assert (tmp_path / "out" / row["overlay_path"]).stat().st_size > 1000
