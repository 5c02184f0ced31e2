"""Files of ultralytics: detections are those of its own predict, and nothing in a file is run."""

from __future__ import annotations

import copy
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from camray.config import Config, MethodConfig, ModelConfig
from camray.errors import ModelError
from camray.explain.explainer import resolve
from camray.models import detectors, yolo
from camray.models.load import load_model
from tests.models.shapes import scene
from tests.models.test_detectors import check_same, explained

if find_spec("ultralytics") is None:
    pytest.skip("ultralytics (camray[yolo]) is not installed", allow_module_level=True)
yolo._tasks()  # its import changes Pillow for all that come after, but for this
ultralytics = import_module("ultralytics")

KINDS = {"-seg": ("Segmentation", "segment"), "-pose": ("Pose", "pose"),
         "-cls": ("Classification", "classify")}  # fmt: skip


def saved(name: str, folder: Path, width: float | None = 0.0625, side: int = 128, **more: Any) -> Path:
    """Save a network of random weights whose scores differ, as ultralytics does; `more`: of its head."""
    from ultralytics.nn.tasks import yaml_model_load

    torch.manual_seed(0)
    described = yaml_model_load(f"{name}.yaml") | more
    if width is not None:
        described["scales"] = {"n": [0.33, width, 1024]}
    kind = next((KINDS[end] for end in KINDS if name.endswith(end)), ("Detection", "detect"))
    net = getattr(ultralytics.nn.tasks, f"{kind[0]}Model")(described, verbose=False)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():  # batch norms get the statistics of eight pictures
        pictures = (
            torch.from_numpy(np.stack([scene(i)[0] for i in range(8)])).permute(0, 3, 1, 2).float() / 255
        )
        net.train()(pictures)
        head, seen = net.eval().model[-1], dict[str, Any]()
        head.register_forward_pre_hook(lambda _module, given: seen.update(levels=given[0]))
        net(pictures)
        head._forward_pre_hooks.clear()
        for heads in ("cv3", "one2one_cv3"):  # scores as random numbers around -2 have them
            for scorer, level in zip(getattr(head, heads, None) or (), seen["levels"], strict=False):
                nn.init.normal_(scorer[-1].weight)
                scorer[-1].bias.zero_()
                scorer[-1].weight /= scorer(level).std()
                scorer[-1].bias.fill_(-2.0)
    path = folder / "own.pt"  # by the name of a published file it would be fetched
    train_args = {"imgsz": side, "task": kind[1]}
    torch.save({"model": copy.deepcopy(net).half(), "ema": None, "train_args": train_args}, path)
    return path


def wanted(path: Path, pictures: list[Image.Image], **more: Any) -> list[Any]:
    own = ultralytics.YOLO(str(path))
    return [own.predict(np.asarray(p)[..., ::-1], conf=0.01, verbose=False, **more)[0] for p in pictures]


def check_detections(path: Path, pictures: list[Image.Image], most: int = 5, **more: Any) -> None:
    found = [(r.boxes.xyxy, r.boxes.conf, r.boxes.cls.long()) for r in wanted(path, pictures, **more)]
    scores = torch.cat([scores for _, scores, _ in found]).sort(descending=True).values
    assert float(scores[0] - scores[min(len(scores), 20) - 1]) > 1e-3  # not all the same
    least = float(scores[min(len(scores) - 1, 30)]) - 1e-5
    method = MethodConfig(min_score=least, max_detections=most)
    rows = explained(Config(model=ModelConfig(name=str(path), args=more), method=method), pictures)
    assert check_same(rows, found, least, most) >= 3
    assert all(row["heat_status"] in ("ok", "dead") for row in rows if row["detection"] is not None)


def wide_and_tall() -> list[Image.Image]:
    views = [scene(seed)[0] for seed in (3, 5)]
    return [Image.fromarray(views[0][:90]), Image.fromarray(views[1][:, :75])]


@pytest.mark.parametrize(
    ("name", "more"), [("yolov8n", {}), pytest.param("yolo26n", {"nms": False}, marks=pytest.mark.slow)]
)
def test_detections_are_those_of_its_own_predict(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    """Letterboxed and suppressed, or from the head that needs no suppression."""
    check_detections(saved(name, tmp_path), wide_and_tall(), **more)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo26n", "yolov8n-seg",
        "yolo26n-seg", "yolov8n-pose",
    ],
)  # fmt: skip
def test_detections_of_every_generation_are_its_own(name: str, tmp_path: Path) -> None:
    check_detections(saved(name, tmp_path), wide_and_tall())


@pytest.mark.slow
def test_the_map_is_the_gradient_of_the_score_through_the_whole_head(tmp_path: Path) -> None:
    net: Any = load_model(ModelConfig(name=str(saved("yolov8n", tmp_path)))).module
    image = torch.from_numpy(scene(5)[0]).permute(2, 0, 1).float() / 255
    own = detectors.Detector(net)(image, 0.0, 4)
    seen = yolo.find(net, image, 0.0)
    levels = [level.detach().requires_grad_() for level in seen.levels]
    raw = net.model[-1](levels)[1]["scores"][0]
    for k, one in enumerate(own):
        logit = raw[one.class_id, seen.cells[k]]
        assert float(logit.detach().sigmoid()) == pytest.approx(one.score, abs=1e-6)
        gradients = torch.autograd.grad(logit, levels, retain_graph=True, allow_unused=True)
        for level, g, a in zip(one.levels, gradients, levels, strict=True):
            by_hand = torch.zeros_like(a) if g is None else g * a.detach()
            by_hand = by_hand[0].sum(0)
            assert torch.allclose(level, by_hand, rtol=1e-4, atol=1e-5 * float(by_hand.abs().max()))


@pytest.mark.slow
def test_an_older_network_answers_as_it_was_saved(tmp_path: Path) -> None:
    """Its activations and numbers are the file's, not those that ultralytics builds today."""
    path = saved("yolov8n", tmp_path)
    content = torch.load(path, weights_only=False)
    net = content["model"]
    net.model[9].cv1.act = nn.LeakyReLU(0.2)
    net.model[2].cv1.bn.eps = 0.1
    torch.save(content, path)
    check_detections(path, wide_and_tall())
    changed = load_model(ModelConfig(name=str(path))).build_args["args"]["changed"]
    assert changed == {
        "model.9.cv1.act": "LeakyReLU", "model.9.cv1.act:negative_slope": 0.2, "model.2.cv1.bn:eps": 0.1,
    }  # fmt: skip


class Harm:
    def __reduce__(self) -> Any:
        return (os.mkdir, (os.environ["HARM"],))


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    path = saved("yolov8n", tmp_path)
    with torch.serialization.safe_globals([ultralytics.nn.tasks.DetectionModel]):  # as its own loader says
        assert load_model(ModelConfig(name=str(path))).build_args["task"] == "detection"
    content = torch.load(path, weights_only=False)
    content["model"].model[2].callback = Harm()
    torch.save(content, path)
    with pytest.raises(ModelError):
        load_model(ModelConfig(name=str(path)))
    del content["model"].model[2].callback
    content["model"].yaml["activation"] = "__import__('os').mkdir(__import__('os').environ['HARM'])"
    torch.save(content, path)
    with pytest.raises(ModelError, match="is no activation"):
        load_model(ModelConfig(name=str(path)))
    content["model"].yaml |= {"activation": None, "head": [[-1, 1, "torch_safe_load", ["x.pt"]]]}
    torch.save(content, path)
    with pytest.raises(ModelError, match="'torch_safe_load' is no layer"):
        load_model(ModelConfig(name=str(path)))
    assert not (tmp_path / "harm").exists()


@pytest.mark.slow
def test_probabilities_of_a_classifier_are_its_own(tmp_path: Path) -> None:
    path = saved("yolov8n-cls", tmp_path, nc=7)
    pictures = [Image.fromarray(scene(seed)[0][:110]) for seed in (3, 5)]
    rows = explained(Config(model=ModelConfig(name=str(path))), pictures)
    for row, own in zip(rows, wanted(path, pictures), strict=True):
        assert row["confidence"] == pytest.approx(float(own.probs.data.max()), abs=2e-3)  # another resizer
        assert row["predicted_class"] == own.probs.top1
        assert row["heat_status"] == "ok"


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved("yolov8n", tmp_path)
    yolo._tasks.cache_clear()
    for name in [n for n in sys.modules if n.partition(".")[0] == "ultralytics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(ModelError, match=r"camray\[yolo\]"):
        resolve(Config(model=ModelConfig(name=str(path))))
