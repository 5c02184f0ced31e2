"""Detectors of ultralytics: the same boxes as its own predict, each with the evidence of its own score."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from camray.config import Config, MethodConfig, ModelConfig
from camray.errors import ModelError
from camray.models import yolo
from tests.models.shapes import scene
from tests.models.test_detectors import check_same, coco, explained
from tests.models.yolo_shapes import trained

SIDE = 192
SCENES = [Image.fromarray(scene(i)[0]).crop((0, 0, 128, 128 - 20 * i)) for i in range(4)]
try:
    TASKS: Any = yolo._tasks()
except ModelError:
    pytest.skip("ultralytics is not installed", allow_module_level=True)


def views(real: bool) -> list[Image.Image]:
    return [*coco(3), SCENES[3]] if real else SCENES


@cache
def network(kind: str, real: bool = False) -> Any:
    """Give random weights whose scores differ: on these pictures those of each level are at most 0.9."""
    pictures = views(real)
    torch.manual_seed(0)
    net = TASKS.DetectionModel(f"{kind}.yaml", nc=80, verbose=False).train()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    seen = (
        torch.from_numpy(np.stack([np.asarray(p.resize((SIDE, SIDE))) for p in pictures]))
        .permute(0, 3, 1, 2)
        .float()
        / 255
    )
    from ultralytics.data.augment import LetterBox

    head = net.model[-1]
    with torch.no_grad():
        net(seen)
        net.eval()
        for name in ("cv3", "one2one_cv3"):
            for part in getattr(head, name, None) or ():
                given: list[Tensor] = []
                watched = part[-1].register_forward_hook(lambda *parts, to=given: to.append(parts[2]))
                for picture in pictures:
                    own = LetterBox((SIDE, SIDE), auto=True)(image=np.asarray(picture))
                    net(torch.from_numpy(own).permute(2, 0, 1)[None].float() / 255)
                watched.remove()
                best = torch.cat([one.amax(1).flatten() for one in given])
                scale = 6 / float(best.max() - best.median())
                part[-1].weight.mul_(scale)
                part[-1].bias.mul_(scale).sub_(float(best.max()) * scale - 2)
    net.names = {i: f"thing {i}" for i in range(80)}
    return net.requires_grad_(False)


def save(net: Any, file: Path, side: int = SIDE) -> Path:
    """Write what ultralytics' trainer writes."""
    net.args = {"imgsz": side, "task": "detect"}
    held = {"epoch": -1, "model": copy.deepcopy(net).half(), "ema": None, "train_args": net.args}
    torch.save(held, file)
    return file


def predicted(
    file: Path, pictures: list[Image.Image], least: float, **args: Any
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Ask ultralytics itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(file.parent))
        from ultralytics import YOLO  # type: ignore[attr-defined]

        peer = YOLO(file)
        found = [
            peer.predict(np.array(p)[:, :, ::-1], conf=least, **args, verbose=False)[0].boxes
            for p in pictures
        ]
    return [(one.xyxy, one.conf, one.cls) for one in found]


def config(file: Path, args: dict[str, Any], **method: Any) -> Config:
    return Config(model=ModelConfig(name=str(file), args=args), method=MethodConfig(**method))


FREE = {"nms": False}  # of the head without suppression
SLOW = [
    ("yolov8n", {}), ("yolov8n", {"imgsz": 320}), ("yolo11n", {}), ("yolo12n", {}), ("yolo26n", {}),
    ("yolo26n", FREE), ("yolov10n", {}), ("yolov10n", FREE), ("yolov5n", {}),
    ("yolov3-tiny", {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "args", "real"),
    [("yolov8n", {}, False), ("yolo26n", FREE, False)]
    + [pytest.param(*one, True, marks=pytest.mark.slow) for one in SLOW],
)
def test_detections_of_ultralytics_are_its_own(
    kind: str, args: dict[str, Any], real: bool, tmp_path: Path
) -> None:
    """Families, with the head that needs no suppression too, at the size the file was trained with."""
    pictures = views(real)
    file = save(network(kind, real), tmp_path / "best.pt")
    wanted = predicted(file, pictures, 0.25, **args)
    rows = explained(config(file, args, min_score=0.25, max_detections=4), pictures)
    assert check_same(rows, wanted, 0.25, 4) >= 6
    found = [row for row in rows if row["detection"] is not None]
    assert all(row["predicted_label"] == f"thing {row['predicted_class']}" for row in found)
    assert min(row["confidence"] for row in found) < 0.95
    assert sum(row["heat_status"] == "ok" for row in found) >= len(found) / 2


@pytest.mark.slow
def test_the_surroundings_stay_as_they_were(tmp_path: Path) -> None:
    """No settings in HOME, nothing printed, Pillow, torch, NumPy, OpenCV and the environment untouched."""
    file = save(network("yolov8n"), tmp_path / "best.pt")
    code = (
        "import os, cv2, numpy, torch, PIL.Image\n"
        "from camray.models import load\n"
        "def state(): return (dict(os.environ), cv2.getNumThreads(), numpy.get_printoptions(), torch.save,\n"
        "    dict(vars(torch._tensor_str.PRINT_OPTS)), torch.load, PIL.Image.open, torch.get_num_threads(),\n"
        "    set(torch.serialization.get_safe_globals()))\n"
        "before = state()\n"
        f"load.load_model(load.ModelConfig(name={str(file)!r}))\n"
        "assert state() == before\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    variables = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [*home.rglob("*")] == []


@pytest.mark.slow
def test_the_heat_of_a_detection_lies_in_its_own_box(tmp_path: Path) -> None:
    """At least 90 % of the detections have half of their heat inside their own box, letterboxed or not."""
    file = save(trained(TASKS), tmp_path / "best.pt", 128)
    scenes = [scene(seed) for seed in range(60)]
    pictures = [
        Image.fromarray(view).crop((0, 0, 128, 128 - seed)) for seed, (view, _, _) in enumerate(scenes)
    ]
    rows = explained(config(file, {}), pictures)
    found = [row for row in rows if row["detection"] is not None]
    assert len(found) >= 0.8 * sum(len(boxes) for _, boxes, _ in scenes)
    shares = np.array([row["heat_in_box"] or 0.0 for row in found])
    assert (shares >= 0.5).mean() >= 0.9


@pytest.mark.slow
def test_the_map_moves_when_the_object_is_moved(tmp_path: Path) -> None:
    """By as much, in pixels of the image, where the letterbox has borders on either side."""
    file = save(trained(TASKS), tmp_path / "best.pt", 128)
    places = []
    for x, y in ((16, 12), (80, 44)):
        picture = np.full((90, 128, 3), 110, np.uint8)
        picture[y : y + 32, x : x + 32] = (240, 200, 180)
        (row,) = (r for r in explained(config(file, {}), [Image.fromarray(picture)]) if r["detection"] == 0)
        low, high = (np.array([row[f"crop_{axis}{end}"] for axis in "xy"]) for end in (0, 1))
        place = low + (high - low) * [row["heat_center_x"], row["heat_center_y"]]
        assert np.abs(place - [x + 16, y + 16]).max() < 8
        places.append(place)
    assert places[1] - places[0] == pytest.approx(np.array([64, 32]), abs=6)
