"""A segmenter through the whole job: rows, accounting, a kill, the same command again, pictures, audit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from camray.cli.main import main
from tests.job.test_detector_job import archive, records
from tests.job.test_detector_job import model as detector
from tests.models.shape_segmenter import varied

assert detector  # a fixture


@pytest.fixture
def model(tmp_path: Path) -> list[str]:
    save_file(varied().state_dict(), tmp_path / "w.safetensors")
    code = Path(__file__).parents[1] / "models/shape_segmenter.py"
    return ["--model", f"{code}:ShapeSegmenter", "--checkpoint", str(tmp_path / "w.safetensors"),
            "--task", "segmentation", "--input-size", "64", "--crop-pct", "1", "--crop-mode", "border",
            "--mean", "0.5", "--std", "0.25", "--engine", "here", "--chunk-size", "4",
            "--min-share", "0.001"]  # fmt: skip


def test_a_segmenter_through_nights_verify_and_audit(
    tmp_path: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, out = tmp_path / "a", tmp_path / "out"
    archive(pictures, 0, 6)
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    budget = ["--max-failed", "1.0"]
    shown = ["--overlays", "all", "--overlay-on", "original", "--heat-mask"]
    assert main(["explain", str(pictures), str(out), *model, *budget, *shown]) == 0
    assert "7 members = 6 ok + 1 failed" in capsys.readouterr().err
    rows = records(out)
    found = [row for row in rows if row["detection"] is not None]
    assert len(found) > 6  # several of a member
    for member in {row["member"] for row in found}:
        own = [row for row in found if row["member"] == member]
        assert 0.99 < sum(row["segment_share"] for row in own) <= 1 + 1e-6
        assert [row["detection"] for row in own] == list(range(len(own)))
    drawn = [row["overlay_path"] for row in found if row["overlay_path"]]
    assert len(set(drawn)) == len(drawn) > 6  # each class has a picture of its own

    assert any((cv2.imread(str(out / path)).min(2) > 200).any() for path in drawn)  # the outline
    assert main(["verify", str(out)]) == 0
    archive(pictures, 6, 3)
    assert main(["audit", str(pictures), str(out), *model, *budget]) == 0
    assert "An audit judges the largest of each" in capsys.readouterr().err
    assert main(["verify", str(out)]) == 0
    assert "10 members: all accounted for" in capsys.readouterr().out
    assert list(out.glob("**/*.html"))


def test_the_heat_is_compared_with_the_masks_of_the_archive(tmp_path: Path, model: list[str]) -> None:
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / f"{i}.png")
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 7
    Image.fromarray(half).save(tmp_path / "half.png")
    (tmp_path / "list.csv").write_text("path,mask\n0.png,half.png\n1.png,\n")
    assert main(["explain", str(tmp_path / "list.csv"), str(tmp_path / "out"), *model]) == 0
    compared = 0
    for row in records(tmp_path / "out"):
        heat = np.maximum(np.array(row["heatmap"]).reshape(row["heat_h"], row["heat_w"]), 0)
        if row["member"] == "1.png" or heat.sum() == 0:
            assert row["heat_in_mask"] is None
            continue
        compared += 1
        share = heat[:, : row["heat_w"] // 2].sum() / heat.sum()
        assert row["heat_in_mask"] == pytest.approx(share, abs=1e-5)
    assert compared


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["detector", "model"])
def test_killed_and_started_again_every_member_is_there_once(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As if it had never been killed: the same rows, and none twice."""
    given: list[str] = request.getfixturevalue(kind)
    pictures, out, whole = tmp_path / "a", tmp_path / "out", tmp_path / "whole"
    archive(pictures, 0, 24)
    command = [sys.executable, "-m", "camray.cli", "explain", str(pictures), str(out), *given]
    killed = 0
    for count in (1, 3):  # files of records that are there when it is killed
        run = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        while run.poll() is None and len([*(out / "records").rglob("*.parquet")]) < count:
            time.sleep(0.01)
        killed += run.poll() is None
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert killed
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert main(["explain", str(pictures), str(whole), *given]) == 0
    assert main(["verify", str(out)]) == 0
    assert answers(out) == answers(whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["detector", "model"])
def test_ray_gives_the_same_records(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    given: list[str] = request.getfixturevalue(kind)
    pictures, out, whole = tmp_path / "a", tmp_path / "out", tmp_path / "whole"
    archive(pictures, 0, 8)
    assert main(["explain", str(pictures), str(whole), *given]) == 0
    given[given.index("here")] = "ray"
    assert main(["explain", str(pictures), str(out), *given]) == 0
    assert main(["verify", str(out)]) == 0
    assert answers(out) == answers(whole)


def answers(place: Path) -> list[tuple[str, int, int, float]]:
    """Give member, number, class and score of every row; scores to what rounding leaves alone."""
    return sorted(
        (row["member"], row["detection"] or 0, row["target_class"] or 0, round(row["confidence"] or 0, 4))
        for row in records(place)
    )
