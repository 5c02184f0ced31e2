"""A detector through the whole job: rows, accounting, resume, pictures, audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from camray.cli.main import main
from tests.models.shape_detector import shape_detector


@pytest.fixture
def model(tmp_path: Path) -> list[str]:
    """Random weights: about as many boxes as are allowed in any image but an empty one."""
    torch.manual_seed(0)
    net = shape_detector()
    torch.nn.init.normal_(net.head.classification_head.cls_logits.weight, std=1.0)
    torch.nn.init.constant_(net.head.classification_head.cls_logits.bias, 1.0)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    code = Path(__file__).parents[1] / "models/shape_detector.py"
    return ["--model", f"{code}:shape_detector", "--checkpoint", str(tmp_path / "w.safetensors"), "--engine",
            "here", "--input-size", "192", "--min-score", "0.5", "--max-detections", "3", "--chunk-size",
            "4"]  # fmt: skip


def archive(folder: Path, first: int, count: int) -> None:
    folder.mkdir(exist_ok=True)
    for i in range(first, first + count):
        picture = Image.new("RGB", (120 + 10 * i, 100), (90, 100, 110))
        ImageDraw.Draw(picture).rectangle((20, 30, 60, 70), fill=(240, 200, 20 * i))
        picture.save(folder / f"{i}.png")


def records(out: Path) -> list[dict[str, Any]]:
    files = sorted((out / "records").rglob("*.parquet"))
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def test_a_detector_through_nights_verify_and_audit(
    tmp_path: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, out = tmp_path / "a", tmp_path / "out"
    archive(pictures, 0, 6)
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    budget = ["--max-failed", "1.0"]
    assert main(["explain", str(pictures), str(out), *model, *budget, "--overlays", "all"]) == 0
    assert "7 members = 6 ok + 1 failed" in capsys.readouterr().err
    rows = records(out)
    found = [row for row in rows if row["detection"] is not None]
    assert len(found) > 6  # several of a member
    for row in found:
        assert 0 <= row["box_x0"] <= row["box_x1"] <= row["width"]
        assert 0 <= row["box_y0"] <= row["box_y1"] <= row["height"]
        assert row["heat_status"] == "dead" or 0 <= row["heat_in_box"] <= 1
    drawn = [row["overlay_path"] for row in found if row["overlay_path"]]
    assert len(set(drawn)) == len(drawn) > 6  # each detection has a picture of its own
    assert main(["verify", str(out)]) == 0
    archive(pictures, 6, 3)
    assert main(["audit", str(pictures), str(out), *model, *budget]) == 0
    said = capsys.readouterr()
    assert "An audit judges the surest detection" in said.err
    assert main(["verify", str(out)]) == 0
    assert "10 members: all accounted for" in capsys.readouterr().out
