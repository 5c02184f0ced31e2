"""Folders of transformers through the whole job: a classifier, and a tower with prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.workflows.workflow_truth import records

transformers = pytest.importorskip("transformers")
from tests.models.hugging_face_zoo import FOLDERS  # noqa: E402 - they need transformers
from tests.models.test_heads import save_pair, zero_shot  # noqa: E402


def test_a_classifier_by_its_folder(pictures: Path, explain: Callable[..., object], tmp_path: Path) -> None:
    """Every record says what transformers says; a second night finds nothing to do."""
    folder, out = tmp_path / "vit", tmp_path / "out"
    network = FOLDERS[0].save(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    explain(pictures, out, folder)
    for member, row in records(out).items():
        with torch.inference_mode(), Image.open(pictures / member) as image:
            p = network(**processor(image.convert("RGB"), return_tensors="pt")).logits.softmax(1)[0]
        assert row["predicted_label"] == f"thing {int(p.argmax())}"
        scores = [t["score"] for t in row["topk"]]
        assert scores == pytest.approx(p.sort(descending=True).values[:5].tolist(), abs=0.02)  # of resizers
        assert (row["heat_h"], row["heat_w"], row["heat_status"]) == (4, 4, "ok")
    again = explain(pictures, out, folder)
    assert again.accounting.members == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_tower_with_prompts(
    kind: str, pictures: Path, explain: Callable[..., object], tmp_path: Path
) -> None:
    folder, out = tmp_path / kind, tmp_path / "out"
    whole = save_pair(folder, kind)
    (tmp_path / "classes.txt").write_text("one: a photo of thing1\ntwo: a drawing of thing2\n")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    explain(pictures, out, folder, model__prompts=str(tmp_path / "classes.txt"), method__target="two")
    for member, row in records(out).items():
        with Image.open(pictures / member) as image:
            pixels = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
        _, p = zero_shot(folder, whole, kind, ["a photo of thing1", "a drawing of thing2"], pixels)
        found = {t["label"]: t["score"] for t in row["topk"]}
        assert found == pytest.approx({"one": float(p[0, 0]), "two": float(p[0, 1])}, abs=0.02)
        assert (row["target_label"], row["heat_h"], row["heat_w"]) == ("two", 4, 4)
