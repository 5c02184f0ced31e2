"""E: ViT, Swin and PVT-v2 with own weights: the layer and its token layout are found, or given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from tests.workflows.workflow_truth import records

CASES = [
    ("vit_tiny_patch16_224", None, "blocks.11.norm1", (14, 14)),
    ("vit_tiny_patch16_224", "blocks.-2.norm1", "blocks.10.norm1", (14, 14)),
    pytest.param("swin_tiny_patch4_window7_224", None, None, (7, 7), marks=pytest.mark.slow),
    pytest.param("pvt_v2_b3", None, None, (7, 7), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "layer", "found", "grid"), CASES)
def test_own_weights(
    name: str, layer: str | None, found: str | None, grid: tuple[int, int], pictures: Path,
    explain: Callable[..., object], tmp_path: Path,
) -> None:  # fmt: skip
    torch.manual_seed(5)
    model = timm.create_model(name, pretrained=False, num_classes=5).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "own.pth")
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    explain(
        pictures, tmp_path / "out", name, model__checkpoint=str(tmp_path / "own.pth"),
        model__class_names=str(tmp_path / "names.txt"), **({"method__layer": layer} if layer else {}),
    )  # fmt: skip
    transform = create_transform(**resolve_data_config(model=model))
    for member, row in records(tmp_path / "out").items():
        with torch.inference_mode(), Image.open(pictures / member) as image:
            p = model(transform(image.convert("RGB"))[None]).softmax(1)[0]
        assert row["predicted_class"] == int(p.argmax())
        assert [t["score"] for t in row["topk"]] == pytest.approx(
            p.sort(descending=True).values.tolist(), abs=1e-4
        )
        assert (row["heat_h"], row["heat_w"]) == grid
        assert found is None or row["target_layer"] == found
        assert row["heat_status"] in ("ok", "dead")
