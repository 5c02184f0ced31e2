"""Networks of ultralytics: a file read without running it, built again, and asked for boxes.

    FILE.pt ──read──> description, names, tensors          plain data: no object of the file comes to life
    description ──build──> the network, its batch norms folded as its own predict folds them     any worker
    image ──find──> boxes as its own predict gives them, and the cell of a level that each was read from

A file holds pickled modules. What ultralytics builds today from the same description may differ from them
(an activation, a number): such differences are read from the file and made again, and layers of other
kinds are refused.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from camray.errors import ModelError, printable

TASKS = {"DetectionModel": "detection", "SegmentationModel": "detection", "PoseModel": "detection",
         "ClassificationModel": ""}  # fmt: skip
_HEADS = ("Detect", "v10Detect", "Segment", "Segment26", "Pose", "Pose26", "Classify")
# of a run
_PASSING = {"training", "shape", "export", "format", "type", "np", "inplace", "dynamic", "momentum"}
_PLAIN = (bool, int, float, str, tuple, type(None))
_NAME = re.compile(r"(nn\.)?\w+")
_ACTIVATION = re.compile(r"(torch\.)?nn\.\w+\([\w=., -]*\)")
_ALONE = {"YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false", "YOLO_AUTOINSTALL": "false"}
_IOU, _MOST = 0.7, 300  # of its own predict


class Pickled:
    """What stands in a file for an object: the name of its class, and its state."""

    state: Any = None

    def __init__(self, *given: Any, **_more: Any) -> None:
        self.given = given

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def modules(self, name: str = "") -> Iterator[tuple[str, Pickled]]:
        """Give itself and the modules inside it, by name."""
        yield name, self
        for part, inner in (self.state or {}).get("_modules", {}).items():
            if isinstance(inner, Pickled):
                yield from inner.modules(f"{name}.{part}" if name else part)

    def tensors(self) -> dict[str, Tensor]:
        """Give parameters and buffers, as float32."""
        found = {}
        for name, part in self.modules():
            own = {**part.state.get("_parameters", {}), **part.state.get("_buffers", {})}
            for key, value in own.items():
                if isinstance(value, Tensor):
                    found[f"{name}.{key}".lstrip(".")] = value.float() if value.is_floating_point() else value
        return found


@dataclass(frozen=True, slots=True)
class File:
    """A network as a file describes it: `args` of `build`, its kind, names, input and tensors."""

    name: str
    kind: str
    args: dict[str, Any]
    class_names: tuple[str, ...]
    tensors: dict[str, Tensor]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Say what a classifier of this kind does to an image: shorter side, middle, values in 0..1."""
        side = self.args["imgsz"]
        return {
            "input_size": (3, side, side), "crop_pct": 1.0, "resize": (side, side), "crop_mode": "center",
            "interpolation": "bilinear", "mean": (0.0,) * 3, "std": (1.0,) * 3,
        }  # fmt: skip


def read(path: Path) -> File:
    """Read a file of ultralytics; nothing in it is run.

    Raises:
        ModelError: damaged, of YOLOv5's own repository, or a network that gives no boxes and no classes.
    """
    try:
        content = _content(path)
        whole = content.get("ema") or content["model"]
        module, kind = type(whole).__module__, type(whole).__name__
        yaml, called = whole.state.get("yaml"), whole.state.get("names") or {}
        side = (content.get("train_args") or {}).get("imgsz") or 640
    except Exception as error:  # noqa: BLE001 - torch raises its own types on a damaged file
        said = printable(f"{path.name}: {type(error).__name__}: {error}", 160)
        raise ModelError("--model", said, "fetch it again, or save it with ultralytics") from None
    if not module.startswith("ultralytics.") or not isinstance(yaml, Mapping):
        said = f"{path.name} is of YOLOv5's own repository ({module}), whose boxes ultralytics cannot read"
        raise ModelError("--model", said, "train it again with ultralytics, or a detector of torchvision")
    _check(yaml, kind, path.name)
    side = max(side) if isinstance(side, list | tuple) else side
    listed = tuple(str(n) for n in (called.values() if isinstance(called, Mapping) else called))
    args = {"yaml": dict(yaml), "imgsz": int(side)}
    changed = _changes(whole, _made(kind, args))
    stem = Path(str(yaml.get("yaml_file") or kind)).stem
    return File(stem, kind, args | ({"changed": changed} if changed else {}), listed, whole.tensors())


def _content(path: Path) -> Any:
    """Read a file with a stand-in for each class, also for those that others told torch are safe to make."""
    told = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stubs: list[Any] = [(type(n.rpartition(".")[2], (Pickled,), {"__module__": n.rpartition(".")[0]}), n)
                            for n in names]  # fmt: skip
        with torch.serialization.safe_globals(stubs):
            return torch.load(path, map_location="cpu", weights_only=True)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(told)


def _check(yaml: Mapping[str, Any], kind: str, file: str) -> None:
    """Refuse other tasks, and descriptions that name anything but layers: ultralytics would run it."""
    layers = [str(layer[2]) for layer in (*yaml.get("backbone", ()), *yaml.get("head", ()))]
    known = _tasks()
    for layer in layers:
        at, name = (nn, layer[3:]) if layer.startswith("nn.") else (known, layer)
        found = getattr(at, name, None) if _NAME.fullmatch(layer) else None
        if layer == "TorchVision" or not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise ModelError("--model", printable(f"{file}: {layer!r} is no layer"), "fetch it again")
    if not _ACTIVATION.fullmatch(str(yaml.get("activation") or "nn.SiLU()")):
        raise ModelError("--model", printable(f"{file}: {yaml['activation']!r} is no activation"),
                         "fetch it again")  # fmt: skip
    if kind not in TASKS or layers[-1] not in _HEADS:
        said = f"{file} is a {kind} of ultralytics with the head {layers[-1] if layers else '?'}"
        raise ModelError("--model", printable(said), "one that detects, or classifies (-cls)")


def build(kind: str, args: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Make the network, bare or with the tensors of its file, its batch norms folded as predict folds them.

    `nms=False` among the arguments: by the head that needs no suppression, as its predict understands it.
    """
    made: Any = _made(kind, args)
    for where, value in (args.get("changed") or {}).items():
        name, _, key = where.partition(":")
        if key:
            setattr(made.get_submodule(name), key, tuple(value) if isinstance(value, list) else value)
        else:
            made.set_submodule(name, getattr(nn, str(value))())
    if tensors is not None:
        made.load_state_dict(tensors)
    made.imgsz = int(args["imgsz"])
    if hasattr(type(made), "end2end"):
        made.end2end = args.get("nms") is False
    folded: nn.Module = made.eval().fuse(verbose=False)
    return folded


def load(file: File, args: Mapping[str, Any]) -> nn.Module:
    """Make the network with the tensors of its file.

    Raises:
        ModelError: the tensors are not those of the description.
    """
    try:
        return build(file.kind, args, file.tensors)
    except RuntimeError as error:
        said = printable(f"{file.name}: {error}", 160)
        raise ModelError("--model", said, "save it with the ultralytics that is installed here") from None


def _made(kind: str, args: Mapping[str, Any]) -> nn.Module:
    yaml = deepcopy(dict(args["yaml"]))
    channels = int(yaml.get("channels") or yaml.get("ch") or 3)
    made: nn.Module = getattr(_tasks(), kind)(yaml, ch=channels, verbose=False)
    return made.eval()


def _changes(whole: Pickled, built: nn.Module) -> dict[str, Any]:
    """Name what the modules of a file have otherwise than those built today."""
    now, changed = dict(built.named_modules(remove_duplicate=False)), dict[str, Any]()
    for name, part in whole.modules():
        own, kind = now.get(name), type(part).__name__
        if own is None or not name:
            continue
        if type(own).__name__ != kind:
            plain = type(part).__module__.startswith("torch.nn.modules.") and not part.tensors()
            if not plain or not hasattr(nn, kind):
                said = f"{name} is a {kind}, and ultralytics builds a {type(own).__name__} today"
                raise ModelError("--model", printable(said), "save it with the ultralytics installed here")
            changed[name] = kind
            own = getattr(nn, kind)()
        for key, value in part.state.items():
            is_own = key[0] != "_" and key not in _PASSING and hasattr(own, key)
            if not is_own or type(value) not in _PLAIN or isinstance(getattr(type(own), key, None), property):
                continue
            if getattr(own, key) != value:
                changed[f"{name}:{key}"] = list(value) if isinstance(value, tuple) else value
    return changed


def is_one(module: nn.Module) -> bool:
    """Tell whether a network is a detector of ultralytics."""
    kind = type(module)
    return kind.__module__.startswith("ultralytics.") and bool(TASKS.get(kind.__name__))


def head_of(module: Any) -> Any:
    """Give the part that reads boxes from the levels."""
    return module.model[-1]


def scorers(module: nn.Module) -> Any:
    """Give the part of the head that scores the cells of each level."""
    head = head_of(module)
    return (head.one2one if head.end2end else head.one2many)["cls_head"]


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes (N, 4) in pixels of the image, their scores and classes, best first; and where they were read.

    `cells`: of each the number among the cells of all `levels` (1, C, h, w); `part`: of the input, the shares
    (top, bottom) and (left, right) between which the image lies.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    cells: Tensor
    levels: list[Tensor]
    part: tuple[tuple[float, float], tuple[float, float]]


@torch.no_grad()
def find(module: Any, image: Tensor, least: float) -> Boxes:
    """Find the objects of an image (3, H, W) in 0..1, as the library's own predict does."""
    from ultralytics.utils import nms, ops

    head, seen = head_of(module), dict[str, Any]()
    x, part = _letterboxed(module, image)
    hook = head.register_forward_pre_hook(lambda _module, given: seen.update(levels=list(given[0])))
    try:
        out = module(x)
    finally:
        hook.remove()
    given, raw = out[0], out[-1]
    given, protos = given if isinstance(given, tuple) else (given, None)
    (rows,), (cells,) = nms.non_max_suppression(
        given, max(least - 1e-6, 0.0), _IOU, max_det=_MOST, nc=head.nc, end2end=head.end2end, return_idxs=True
    )
    cells = cells.reshape(-1)
    if head.end2end:  # these are places in a list of the best: ask which cells were in it
        scores = raw["one2one"]["scores"].sigmoid().permute(0, 2, 1)
        cells = head.get_topk_index(scores, head.max_det)[2][0][cells]
    if protos is not None and len(rows) and hasattr(head, "proto"):  # it drops boxes without a mask
        masks = ops.process_mask(protos[0], rows[:, 6:], rows[:, :4], x.shape[2:], upsample=True)
        kept = masks.amax((1, 2)) > 0
        rows, cells = rows[kept], cells[kept]
    boxes = ops.scale_boxes(x.shape[2:], rows[:, :4].clone(), tuple(image.shape[1:]))
    return Boxes(boxes, rows[:, 4], rows[:, 5].long(), cells, seen["levels"], part)


def _letterboxed(module: Any, image: Tensor) -> tuple[Tensor, Any]:
    """Lay an image in the middle of the smallest input it fits in: (1, 3, h, w), and its part of that."""
    from ultralytics.data.augment import LetterBox

    stride = max(int(module.stride.max()), 32)
    side = -(-int(module.imgsz) // stride) * stride
    pixels = (image.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
    laid = LetterBox((side, side), auto=True, stride=stride)(image=pixels)
    height, width = laid.shape[:2]
    share = min(side / pixels.shape[0], side / pixels.shape[1])
    part = []
    for whole, own in ((height, pixels.shape[0]), (width, pixels.shape[1])):
        pieces = max(round(own * share), 1)
        start = round((whole - pieces) / 2 - 0.1)
        part.append((start / whole, (start + pieces) / whole))
    # laid out as predict lays it: another order of memory gives other last bits
    x = torch.from_numpy(laid.copy()).to(image.device).permute(2, 0, 1).contiguous().float().div_(255)
    return x[None], tuple(part)


@cache
def _tasks() -> Any:
    """Import ultralytics, which is an extra, and put back whatever its import changes in this process."""
    environment, threads = dict(os.environ), cv2.getNumThreads()
    numbers, texts = np.get_printoptions(), dict(vars(torch._tensor_str.PRINT_OPTS))
    opened, saved = Image.open, torch.save
    try:
        with tempfile.TemporaryDirectory() as folder:  # where its settings go
            os.environ |= _ALONE | {"YOLO_CONFIG_DIR": folder}
            tasks = import_module("ultralytics.nn.tasks")
            for name in ("utils.nms", "utils.ops", "data.augment"):
                import_module(f"ultralytics.{name}")
    except ImportError:
        raise ModelError("--model", "the file is of ultralytics, which is not installed",
                         "pip install 'camray[yolo]' (its licence is AGPL-3.0)") from None  # fmt: skip
    finally:
        os.environ.clear()
        os.environ |= environment
        cv2.setNumThreads(threads)
        np.set_printoptions(**numbers)
        vars(torch._tensor_str.PRINT_OPTS).update(texts)
        Image.open, torch.save = opened, saved
    return tasks
