"""A model of each kind through the whole job: killed and gone on with, a second night, audit and report."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from camray.audit.job import audit
from camray.errors import ExitCode
from camray.flow.progress import Reporter
from camray.job import run
from camray.ledger.table import Table
from camray.options import load
from camray.storage import open_folder
from tests.models.shapes import scene, trained

Settings = dict[str, Any]
HERE = Path(__file__).parent
FEW = {"method.min_score": 0.3, "method.max_detections": 3}


def classifier(folder: Path) -> Settings:
    from tests.models.hugging_face_zoo import FOLDERS

    FOLDERS[0].save(folder)
    return {"model.name": str(folder)}


def prompts(folder: Path) -> Settings:
    from tests.models.test_open_clip import prompts, save_folder

    save_folder(folder)
    return {"model.name": str(folder), "model.prompts": prompts(folder, "a square", "a disc")}


def torchvision_detector(folder: Path) -> Settings:
    save_file(trained(), folder / "w.safetensors")
    name = f"{HERE}/shape_detector.py:shape_detector"
    return {"model.name": name, "model.checkpoint": str(folder / "w.safetensors"), **FEW}


def detr(folder: Path) -> Settings:
    from tests.models.test_detectors import hugging_face_detector

    hugging_face_detector("detr", folder)
    return {"model.name": str(folder), **FEW, "method.min_score": 0.1}


def yolo(folder: Path) -> Settings:
    from tests.models.test_yolo import saved

    return {"model.name": str(saved("yolov8n", folder)), **FEW}


def segmenter(folder: Path) -> Settings:
    from tests.models.test_segmenters import trained_segmenter

    save_file(trained_segmenter().state_dict(), folder / "w.safetensors")
    return {
        "model.name": f"{HERE}/shape_segmenter.py:ShapeSegmenter", "model.task": "segmentation",
        "model.checkpoint": str(folder / "w.safetensors"), "preprocess.input_size": 128,
        "preprocess.resize": 128, "preprocess.mean": 0.5, "preprocess.std": 0.25,
    }  # fmt: skip


def similarity(folder: Path) -> Settings:
    import timm

    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), folder / "w.safetensors")
    Image.fromarray(scene(99)[0]).save(folder / "ref.png")
    return {"model.name": "test_resnet", "model.checkpoint": str(folder / "w.safetensors"),
            "method.target": f"similarity:{folder}/ref.png"}  # fmt: skip


KINDS = (classifier, prompts, torchvision_detector, detr, yolo, segmenter, similarity)


def add(archive: Path, *numbers: int) -> None:
    """Write archives of four scenes each."""
    archive.mkdir(exist_ok=True)
    for number in numbers:
        with tarfile.open(archive / f"{number}.tar", "w") as tar:
            for i in range(number * 4, number * 4 + 4):
                png = io.BytesIO()
                Image.fromarray(scene(i)[0]).save(png, "PNG")
                told = tarfile.TarInfo(f"{i}.png")
                told.size = len(png.getvalue())
                tar.addfile(told, io.BytesIO(png.getvalue()))


def rows_of(out: Path) -> list[tuple[Any, ...]]:
    """What each record says, whichever run wrote it."""
    table = Table(open_folder(str(out), "OUT"))
    table.update()
    rows = table.dataset().to_table().to_pylist()
    told = [
        (r["shard"], r["member"], r["detection"], r["status"], r["predicted_class"], r["heatmap"])
        for r in rows
    ]
    return sorted(told, key=lambda row: (row[1], -1 if row[2] is None else row[2]))


def killed_once(named: Settings) -> None:
    """Run the command in a process of its own, and kill it at its first commit."""
    code = (
        "import json, sys; from camray.flow.progress import Reporter; from camray.job import run; "
        "from camray.options import load; run.explain(load(None, json.loads(sys.argv[1])), Reporter())"
    )
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(named)], stderr=subprocess.DEVNULL)
    log = Path(named["out"]) / "records" / "_delta_log"
    while process.poll() is None and not [*log.glob("*1.json")]:
        time.sleep(0.01)
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_nights_resume_audit_and_report(
    make: Callable[[Path], Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a kill left is gone on with; the second night explains what is new alone; the report is there."""
    (tmp_path / "model").mkdir()
    archive, given = tmp_path / "in", make(tmp_path / "model")
    named = {**given, "archive.path": str(archive), "run.engine": "here", "overlay.policy": "all"}
    named["run.max_failed"] = 0
    add(archive, 0, 1)
    killed_once(named | {"out": str(tmp_path / "out")})
    for out in ("out", "whole"):
        done = run.explain(load(None, named | {"out": str(tmp_path / out)}), Reporter())
        assert done.code == ExitCode.DONE
    first = rows_of(tmp_path / "whole")
    assert rows_of(tmp_path / "out") == first
    assert {row[1] for row in first} == {f"{i}.png" for i in range(8)}
    assert {row[3] for row in first} == {"ok"}
    assert sum(row[5] is not None for row in first) >= 4
    add(archive, 2)
    for _ in range(2):  # the second has nothing to do
        done = run.explain(load(None, named | {"out": str(tmp_path / "out")}), Reporter())
        assert done.code == ExitCode.DONE
        both = rows_of(tmp_path / "out")
        assert [row for row in both if row[1] in {r[1] for r in first}] == first
        assert {row[1] for row in both} == {f"{i}.png" for i in range(12)}
        assert len({row[:3] for row in both}) == len(both)
    audited = audit(load(None, named | {"out": str(tmp_path / "audited")}, "audit"), Reporter())
    assert audited.code == ExitCode.DONE
    judged = f"{'12 new records' if make is similarity else '12 new images explained'}, 0 failed."
    assert judged in capsys.readouterr().err
    assert {row[1] for row in rows_of(tmp_path / "audited")} == {f"{i}.png" for i in range(12)}
    assert (tmp_path / "audited" / "report" / "index.html").is_file()
    pictures = [*(tmp_path / "out" / "overlays").rglob("*.jpg")]
    assert len(pictures) >= sum(row[5] is not None for row in both)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_rays_actors_write_the_same_records(make: Callable[[Path], Settings], tmp_path: Path) -> None:
    """They build the network from plain data alone, in processes that never saw its folder being read."""
    (tmp_path / "model").mkdir()
    named = {**make(tmp_path / "model"), "archive.path": str(tmp_path / "in"), "run.max_failed": 0}
    add(tmp_path / "in", 0, 1)
    for engine in ("here", "ray"):
        more = {"run.engine": engine, "run.actors": 1, "out": str(tmp_path / engine)}
        assert run.explain(load(None, named | more), Reporter()).code == ExitCode.DONE
    here, ray = rows_of(tmp_path / "here"), rows_of(tmp_path / "ray")
    assert [row[:5] for row in here] == [row[:5] for row in ray]
    for own, other in zip(here, ray, strict=True):
        assert (own[5] is None) == (other[5] is None)
        if own[5] is not None:
            assert np.abs(np.subtract(own[5], other[5])).max() <= 1e-5 * np.abs(own[5]).max()
