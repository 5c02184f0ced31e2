"""Where an architecture comes from, and how any worker builds it again.

    resnet50 · local-dir:FOLDER · FOLDER        timm
    FOLDER                                      transformers, where `save_pretrained` wrote it; open_clip;
                                                segmentation_models_pytorch
    hf-hub:OWNER/NAME                           either, fetched from the Hugging Face hub
    torchvision:vgg16                           torchvision.models
    path/to/file.py:ClassName                   the user's own file; its text travels
    package.module:factory                      an installed package, or one in the current folder
    FILE.pt                                     ultralytics, where it saved a network

Flows in: `ModelConfig`. Flows out: `Source`, with a `Recipe` that is plain data: what it names is part of the
explainer's identity, and `build` makes the bare architecture of it anywhere.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import json
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import torch
from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from torch import nn

from camray.config import ModelConfig
from camray.errors import CamrayError, ModelError, printable
from camray.models import adapters, checkpoints, heads, hugging_face, open_clip, yolo
from camray.models.hugging_face import Contrast
from camray.models.libraries import offline, timm, torchvision
from camray.models.own_code import OwnCode, collect_code, importable, load_object

Kind = Literal["timm", "torchvision", "transformers", "open_clip", "ultralytics", "own"]

# torchvision's ports of Google's networks: with weights they take images normalised to mean and std of 0.5.
NORMALISE_AGAIN = ("googlenet", "inception_v3")
_LONGEST_NAME = 1000
_SMP = "segmentation_models_pytorch"
_TASKS = {  # of torchvision's folders
    "video": "a classifier of videos, not of single images",
    "optical_flow": "a model of motion: it takes two images and has no classes",
    "quantization": "quantised: its whole numbers have no gradient",
}
_CHANNELS = ("in_chans", "in_channels", "num_channels", "input_channels", "n_channels", "channels", "in_ch")
_PATIENCE_S = 5.0  # for the hub to take a connection


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to build an architecture, in plain data."""

    kind: Kind
    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # own code: path -> text
    head: Mapping[str, Any] = field(default_factory=dict)  # arguments of `heads.Headed`
    task: str = ""  # of a network that does not give classes of the whole image: detection, segmentation

    @property
    def code(self) -> OwnCode:
        """Where the class or function is found, of a recipe of kind own."""
        module, _, name = self.name.rpartition(":")
        return OwnCode(module, name, self.files)

    def with_classes(self, count: int) -> Recipe:
        """Ask for a head of this size."""
        return replace(self, args={**self.args, "num_classes": count})

    @staticmethod
    def from_dict(parts: Mapping[str, Any]) -> Recipe:
        """Read it from what `to_dict` gave, whatever else stands beside it."""
        return Recipe(**{f.name: parts[f.name] for f in fields(Recipe) if f.name in parts})

    def to_dict(self) -> dict[str, Any]:
        """Give what `build` needs, as JSON knows it."""
        parts = {"kind": self.kind, "name": self.name, "args": dict(self.args)}
        parts |= {"files": dict(self.files), "head": dict(self.head), "task": self.task}
        return {name: value for name, value in parts.items() if value}


@dataclass(frozen=True, slots=True)
class Source:
    """An architecture, where its weights lie and what is known of it."""

    recipe: Recipe
    weights: Path | None = None  # None: pretrained ones, or none at all (own code)
    class_names: tuple[str, ...] = ()
    pretrained_cfg: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None  # of transformers: weights, processor, text side
    contrast: Contrast | None = None
    gives_classes: bool = True

    @property
    def code(self) -> OwnCode | None:
        """The user's own code, if it is that."""
        return self.recipe.code if self.recipe.kind == "own" else None


def find_source(config: ModelConfig) -> Source:
    """Tell what the name of a model means.

    Raises:
        ModelError: nothing of that name, or a description that cannot be read.
    """
    name = config.name
    if "\0" in name or len(name) > _LONGEST_NAME:
        raise ModelError("--model", f"{printable(name, 60)!r} is no name of a model", "see --help")
    weights = _checkpoint(config.checkpoint) if config.checkpoint else None
    if "://" in name:
        fix = "fetch the file, then --model NAME --checkpoint FILE"
        raise ModelError("--model", f"{printable(name)} is an address", fix)
    if name.startswith("torchvision:"):
        source = _torchvision(name.partition(":")[2])
    elif name.startswith("hf-hub:"):
        source = _from_hub(name, config)
    elif not name.startswith("local-dir:") and (".py:" in name or name.endswith(".py")):
        source = _own(name)
    else:
        folder = Path(name.removeprefix("local-dir:")).expanduser()
        described = any((folder / file).is_file() for file in ("config.json", adapters.CONFIG))
        if _is_open_clip(folder, with_prompts=config.prompts is not None):
            source = _open_clip(folder, config)
        elif name.startswith("local-dir:") or described:
            source = _local_folder(folder, need_weights=weights is None)
        else:
            source = _own(name) if ":" in name else _timm(name)
    recipe = replace(source.recipe, args={**source.recipe.args, **config.args})
    if config.num_classes is not None:
        recipe = recipe.with_classes(config.num_classes)
    return replace(source, recipe=recipe, weights=weights or source.weights)


def build(recipe: Recipe) -> nn.Module:
    """Make the bare architecture, without weights; its random start is the same every time.

    Raises:
        ModelError: arguments it does not take, or code that fails.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = _build(recipe)
            if recipe.head:
                module = heads.Headed(module, **recipe.head)
    except CamrayError:
        raise
    except Exception as error:  # noqa: BLE001 - the user's own code may raise anything
        said = printable(f"{recipe.name}: {type(error).__name__}: {error}")
        raise ModelError("--model", said, "--model-arg NAME=VALUE gives an argument") from None
    if not isinstance(module, nn.Module):
        said = f"{recipe.name} gives a {type(module).__name__}, no nn.Module"
        raise ModelError("--model", said, "name a class")
    return module


def takes_num_classes(recipe: Recipe) -> bool:
    """Tell whether the size of the head is an argument of the architecture."""
    if recipe.kind != "own":
        return recipe.kind in ("timm", "torchvision") or "num_classes" in recipe.args
    parameters = _parameters(recipe)
    kinds = {p.kind for p in parameters.values()}
    return "num_classes" in parameters or inspect.Parameter.VAR_KEYWORD in kinds


def channels_argument(recipe: Recipe) -> str | None:
    """Give the name of the architecture's argument for the number of input channels, if it has one."""
    if recipe.kind == "own":
        return next((name for name in _CHANNELS if name in _parameters(recipe)), None)
    made_here = {} if recipe.task else {"torchvision": "in_chans"}
    return ({"timm": "in_chans", "transformers": "num_channels"} | made_here).get(recipe.kind)


def _parameters(recipe: Recipe) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(load_object(recipe.code)).parameters
    except (TypeError, ValueError):
        return {}


def _build(recipe: Recipe) -> Any:
    name, args = recipe.name, dict(recipe.args)
    if recipe.kind == "timm":
        return timm.create_model(name, pretrained=False, **args)
    if recipe.kind == "torchvision":
        if name.startswith(("googlenet", "inception", "vgg")):
            args.setdefault("init_weights", False)  # many seconds of drawing numbers that weights replace
        if name in NORMALISE_AGAIN:
            args.setdefault(
                "transform_input", True
            )  # as torchvision's builder sets it where weights are given
        epsilon, channels = args.pop("norm_eps", None), args.pop("in_chans", None)
        module = torchvision.models.get_model(name, weights=None, **args)
        if channels is not None:  # torchvision has no argument for it
            module.transform_input = False
            stem = next(m for m in module.modules() if isinstance(m, nn.Conv2d))
            stem.in_channels = channels
            stem.weight = nn.Parameter(stem.weight.new_zeros(len(stem.weight), channels, *stem.kernel_size))
        for part in module.modules() if epsilon is not None else ():
            if isinstance(part, nn.BatchNorm2d):
                part.eps = epsilon
        return module
    if recipe.kind == "transformers":
        return hugging_face.build(name, args)
    if recipe.kind == open_clip.KIND:
        return open_clip.build(args)
    if recipe.kind == "ultralytics":
        return yolo.build(name, args)
    with importable(recipe.code):
        return load_object(recipe.code)(**args)


def _timm(name: str) -> Source:
    if timm.is_model(name.partition(".")[0]):
        return Source(Recipe("timm", name))
    if (Path(name).expanduser() / "saved_model.pb").is_file():
        said = f"{printable(name)} is a SavedModel of TensorFlow: a fixed graph"
        raise ModelError("--model", said, "convert its weights, then --model NAME --checkpoint FILE")
    if Path(name).expanduser().is_dir():
        raise ModelError("--model", f"{printable(name)} holds no config.json", "give a timm model folder")
    if Path(name).expanduser().is_file():
        what, way = checkpoints.look(Path(name).expanduser())
        if what and way != checkpoints.FORMATS:
            raise ModelError("--model", f"{printable(name)} is {what}", way)
        if checkpoints.is_yolo(Path(name).expanduser()):
            return _ultralytics(Path(name).expanduser())
        fix = "--model NAME (or path/to/file.py:ClassName) --checkpoint " + printable(name)
        raise ModelError("--model", f"{printable(name)} is a file of weights, not an architecture", fix)
    near = difflib.get_close_matches(name, timm.list_models(), 3)
    fix = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
    if name in torchvision.models.list_models():
        fix = f"it is torchvision's: --model torchvision:{name}"
    elif "/" in name:
        fix = f"hf-hub:{printable(name)} to fetch it, or the path of a folder"
    raise ModelError("--model", f"{printable(name)!r} is no timm model, no local folder and no file", fix)


def _ultralytics(path: Path) -> Source:
    found = yolo.read(path)
    recipe = Recipe("ultralytics", found.kind, found.args, task=yolo.TASKS[found.kind])
    return Source(recipe, path, found.class_names, found.preprocessing)


def _torchvision(name: str) -> Source:
    known = torchvision.models.list_models(module=torchvision.models)
    for task in ("detection", "segmentation"):
        if name in torchvision.models.list_models(module=getattr(torchvision.models, task)):
            return Source(Recipe("torchvision", name, {"weights_backbone": None}, task=task))
    if name not in known:
        _refuse_other_task(name, known)
        near = " or ".join(difflib.get_close_matches(name, known, 3))
        fix = f"did you mean {near}?" if near else "see torchvision.models.list_models()"
        raise ModelError("--model", f"torchvision has no classifier {printable(name)!r}", fix)
    return Source(Recipe("torchvision", name, {"transform_input": True} if name in NORMALISE_AGAIN else {}))


def _refuse_other_task(name: str, known: list[str]) -> None:
    """Say what a model of torchvision is that is no classifier, and which classifier is inside it."""
    for task, what in _TASKS.items():
        if name in torchvision.models.list_models(module=getattr(torchvision.models, task)):
            inside = max((n for n in known if n in name), key=len, default="resnet50")
            fix = f"give an image classifier, as torchvision:{inside}"
            raise ModelError("--model", f"torchvision:{name} is {what}", fix)


def _own(name: str) -> Source:
    code = collect_code(name)
    return Source(Recipe("own", f"{code.module}:{code.name}", files=code.files))


def _local_folder(folder: Path, need_weights: bool) -> Source:
    """Read a folder of transformers or smp, or in timm's layout: config.json, and weights beside it."""
    if (folder / adapters.CONFIG).is_file() and not (folder / "config.json").is_file():
        fix = f"--model BASE_FOLDER --checkpoint {printable(str(folder))}/adapter_model.safetensors"
        raise ModelError("--model", f"{folder} holds adapters alone", fix)
    source = _described(folder / "config.json")
    if source.folder is not None:
        return replace(source, weights=hugging_face.weights_file(folder) if need_weights else None)
    found = [folder / f for f in ("model.safetensors", "pytorch_model.bin") if (folder / f).is_file()]
    if need_weights and not found:
        raise ModelError("--model", f"{folder} holds no model.safetensors", "add it, or --checkpoint FILE")
    return replace(source, weights=found[0] if found else None)


def _described(file: Path) -> Source:
    try:
        described = json.loads(file.read_text("utf-8"))
        if hugging_face.is_described(described):
            return _of_transformers(file)
        if "_model_class" in described:
            return _of_smp(described)
        cfg = dict(described.get("pretrained_cfg") or {})
        args = dict(described.get("model_args") or {})
        classes = described.get("num_classes") or cfg.get("num_classes")
        if classes:
            args["num_classes"] = int(classes)
        names = tuple(str(n) for n in described.get("label_names") or cfg.get("label_names") or ())
        recipe = Recipe("timm", str(described["architecture"]), args)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError("--model", f"{file}: {error!r}", "give a timm model folder") from None
    return Source(recipe, None, names, cfg)


def _of_transformers(file: Path) -> Source:
    found = hugging_face.describe(file)
    tasks = {hugging_face.DETECTOR: "detection", hugging_face.SEGMENTER: "segmentation"}
    task = next((task for ending, task in tasks.items() if found.architecture.endswith(ending)), "")
    channels = int(found.args.get("num_channels") or 3)
    cfg = {} if task == "detection" else hugging_face.read_processor(file.parent, channels)
    args = dict(found.args) | {key: True for key in (hugging_face.FLIPPED,) if cfg.pop(key, False)}
    recipe = Recipe("transformers", found.architecture, args, task=task)
    return Source(recipe, None, found.class_names, cfg, file.parent, found.contrast, found.gives_classes)


def _of_smp(described: Mapping[str, Any]) -> Source:
    """Read what `save_pretrained` of segmentation_models_pytorch wrote: a class, and its arguments."""
    if importlib.util.find_spec(_SMP) is None:
        said = f"the folder is of {_SMP}, which is not installed"
        raise ModelError("--model", said, "pip install 'camray[smp]'")
    source = _own(f"{_SMP}:{described['_model_class']}")
    if not isinstance(load_object(source.recipe.code), type):
        raise ModelError("--model", printable(f"{source.recipe.name} is no network"), "fetch it again")
    args = {name: value for name, value in described.items() if not name.startswith("_")}
    recipe = replace(source.recipe, args=args | {"encoder_weights": None}, task="segmentation")
    return replace(source, recipe=recipe)


def _is_open_clip(folder: Path, with_prompts: bool) -> bool:
    """Tell whether a folder is of open_clip; beside timm's description of the tower it is for prompts."""
    if not (folder / open_clip.CONFIG).is_file():
        return False
    beside = folder / "config.json"
    return not beside.is_file() or (with_prompts and '"architectures"' not in beside.read_text("utf-8"))


def _open_clip(folder: Path, config: ModelConfig) -> Source:
    for option, given in (("--checkpoint", config.checkpoint), ("--model-arg", config.args)):
        if given:
            fix = f"put yours there: open_clip_pytorch_model.bin, or {open_clip.CONFIG}"
            raise ModelError(option, "a folder of open_clip has its weights and its fields", fix)
    name, args, cfg, contrast = open_clip.describe(folder)
    recipe = Recipe("open_clip", name, args)
    return Source(recipe, None, (), cfg, folder, contrast, gives_classes=False)


def _from_hub(name: str, config: ModelConfig) -> Source:
    """Fetch description and weights of a model that the user named by its place on the hub."""
    repository, _, revision = name.removeprefix("hf-hub:").partition("@")
    fetch_weights = config.checkpoint is None
    try:
        with online_if_answered():
            try:
                file = Path(hf_hub_download(repository, "config.json", revision=revision or None))
            except EntryNotFoundError:
                return _open_clip(_snapshot(repository, revision or None, "open_clip_"), config)
            if hugging_face.is_described(json.loads(file.read_text("utf-8"))):
                return _local_folder(_snapshot(repository, revision or None), fetch_weights)
            source, weights = _described(file), None
            if fetch_weights:
                weights = Path(hf_hub_download(repository, "model.safetensors", revision=revision or None))
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - the hub's client has many exceptions
        reason = printable(str(error).partition("\n")[0], 160)
        raise ModelError(
            "--model", f"{printable(name)} cannot be fetched ({reason})",
            "go online once, or copy it here and give the folder",
        ) from None  # fmt: skip
    return replace(source, weights=weights)


def _snapshot(repository: str, revision: str | None, stem: str = "") -> Path:
    """Fetch what was saved: texts, and the weights as safetensors, or as pickles of tensors only."""
    folder = Path(
        snapshot_download(repository, revision=revision, allow_patterns=["*.json", "*.txt", "*.model"])
    )
    for pattern in (f"{stem}model*.safetensors", f"{stem}pytorch_model*.bin"):
        if not [*folder.glob(f"{stem}model*.safetensors")]:
            folder = Path(snapshot_download(repository, revision=revision, allow_patterns=[pattern]))
    return folder


@contextmanager
def online_if_answered() -> Iterator[None]:
    """Allow fetching where the hub answers; elsewhere cached files only.

    The hub's client retries half a minute for each file where there is no network; one short look decides.
    """
    if constants.HF_HUB_OFFLINE or _hub_answers():
        yield
        return
    with offline():
        yield


def _hub_answers() -> bool:
    """Tell whether the hub takes a connection; behind a proxy only the client itself can tell."""
    if urllib.request.getproxies().get("https"):
        return True
    place = urlparse(constants.ENDPOINT)
    try:
        socket.create_connection((place.hostname or "", place.port or 443), _PATIENCE_S).close()
    except OSError:
        return False
    return True


def _checkpoint(path: str) -> Path:
    found = Path(path).expanduser()
    if not found.is_file():
        raise ModelError("--checkpoint", f"{path} is not a file", "give a .safetensors, .pth or .pt file")
    return found
