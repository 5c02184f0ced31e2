"""A classifier by name: architecture, weights, preprocessing and class names, checked before anything runs.

Flows in: `ModelConfig`. Flows out: `LoadedModel`, on the CPU, in eval mode, frozen, with finite weights.
Weights come from a file or a local folder; nothing is downloaded unless the user asked for it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import timm
import torch
from huggingface_hub import constants as hub
from timm.data import ImageNetInfo, resolve_data_config
from torch import Tensor, nn

from camray.config import InputSpec, ModelConfig
from camray.errors import ModelError, printable

IMAGENET_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to explain, with everything that decides its answers."""

    name: str
    build_args: dict[str, Any]  # timm.create_model(**build_args) gives the bare architecture
    module: nn.Module
    weights_sha256: str
    input: InputSpec
    class_names: tuple[str, ...]
    num_classes: int


@dataclass(frozen=True, slots=True)
class _Source:
    """Where architecture and weights come from."""

    name: str
    build_args: dict[str, Any]
    weights: Path | None  # None: timm's pretrained weights
    class_names: tuple[str, ...] = ()
    pretrained_cfg: dict[str, Any] = field(default_factory=dict)


def load_model(config: ModelConfig) -> LoadedModel:
    """Build the model and load its weights.

    Raises:
        ModelError: unknown name, no weights, a checkpoint that does not fit, NaN weights, no classifier.
    """
    source = _find(config)
    module = build(source.build_args) if source.weights else _pretrained(source, config.download)
    if source.weights:
        _load_weights(module, source.weights)
    module.eval().requires_grad_(False)
    _refuse_nonfinite(module)
    spec = input_spec(module, source.pretrained_cfg)
    num_classes = _count_classes(module, spec)
    names = _class_names(config, source, module, num_classes)
    digest = _file_sha256(source.weights) if source.weights else state_sha256(module.state_dict())
    return LoadedModel(source.name, source.build_args, module, digest, spec, names, num_classes)


def build(build_args: Mapping[str, Any]) -> nn.Module:
    """Make the bare architecture, without weights."""
    try:
        module: nn.Module = timm.create_model(**build_args, pretrained=False)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError("--model", printable(f"{build_args['model_name']}: {error}")) from None
    return module


def input_spec(module: nn.Module, overlay: Mapping[str, Any] | None = None) -> InputSpec:
    """Read the evaluation transform that belongs to a timm model."""
    cfg = resolve_data_config({**dict(overlay or {})}, model=module)
    _channels, height, width = cfg["input_size"]
    crop_pct = cfg["crop_pct"]
    return InputSpec(
        height=height,
        width=width,
        resize=(math.floor(height / crop_pct), math.floor(width / crop_pct)),
        crop_mode=cfg["crop_mode"],
        interpolation=cfg["interpolation"],
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
    )


def label_lookup(class_names: tuple[str, ...]) -> dict[str, int]:
    """Map what an archive may call a class to its index: full name, first synonym, WordNet id."""
    lookup: dict[str, int] = {}
    info = ImageNetInfo() if class_names == imagenet_names() else None
    for index, name in enumerate(class_names):
        lookup.setdefault(name, index)
        if info is not None:
            lookup[info.index_to_label_name(index)] = index
    for index, name in enumerate(class_names):
        lookup.setdefault(name.partition(",")[0], index)
    return lookup


def imagenet_names() -> tuple[str, ...]:
    """Name the 1000 classes of ImageNet, from timm's own table."""
    info = ImageNetInfo()
    return tuple(info.index_to_description(i) for i in range(IMAGENET_CLASSES))


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash tensors by name, type, shape and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().contiguous().cpu()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _find(config: ModelConfig) -> _Source:
    folder = Path(config.name.removeprefix("local-dir:")).expanduser()
    if config.name.startswith("local-dir:") or (folder / "config.json").is_file():
        return _local_folder(folder, config)
    if not timm.is_model(config.name.partition(".")[0]):
        near = difflib.get_close_matches(config.name, timm.list_models(), 3)
        fix = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
        raise ModelError("--model", f"{printable(config.name)!r} is no timm model and no local folder", fix)
    args: dict[str, Any] = {"model_name": config.name}
    if config.num_classes is not None:
        args["num_classes"] = config.num_classes
    return _Source(config.name, args, _checkpoint(config.checkpoint) if config.checkpoint else None)


def _local_folder(folder: Path, config: ModelConfig) -> _Source:
    """Read a folder in timm's own layout: config.json and model.safetensors or pytorch_model.bin."""
    try:
        described = json.loads((folder / "config.json").read_text("utf-8"))
        cfg = dict(described.get("pretrained_cfg") or {})
        args = {"model_name": str(described["architecture"]), **(described.get("model_args") or {})}
        classes = config.num_classes or described.get("num_classes") or cfg.get("num_classes")
        if classes:
            args["num_classes"] = int(classes)
        names = tuple(str(n) for n in described.get("label_names") or cfg.get("label_names") or ())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError("--model", f"{folder}/config.json: {error!r}", "give a timm model folder") from None
    weights = config.checkpoint or next(
        (str(folder / f) for f in ("model.safetensors", "pytorch_model.bin") if (folder / f).is_file()), None
    )
    if weights is None:
        raise ModelError("--model", f"{folder} holds no model.safetensors", "add it, or --checkpoint FILE")
    return _Source(args["model_name"], args, _checkpoint(weights), names, cfg)


def _checkpoint(path: str) -> Path:
    found = Path(path).expanduser()
    if not found.is_file():
        raise ModelError("--checkpoint", f"{path} is not a file", "give a .safetensors, .pth or .pt file")
    return found


def _pretrained(source: _Source, download: bool) -> nn.Module:
    """Load timm's pretrained weights from the local cache, or from the hub when asked to."""
    try:
        _refuse_other_head(source)
        with nullcontext() if download else _offline(source.name):
            module: nn.Module = timm.create_model(**source.build_args, pretrained=True)
    except (RuntimeError, OSError, ValueError) as error:
        fix = "--checkpoint FILE, or --download to fetch them" if not download else "--checkpoint FILE"
        reason = printable(str(error), 120) if download else "are not on this machine"
        raise ModelError("--model", f"pretrained weights of {source.name} {reason}", fix) from None
    return module


def _refuse_other_head(source: _Source) -> None:
    """Refuse a head of another size than the pretrained one: timm would fill it with random numbers."""
    asked = source.build_args.get("num_classes")
    cfg = timm.get_pretrained_cfg(source.name)
    if asked is not None and cfg is not None and asked != cfg.num_classes:
        raise ModelError(
            "--num-classes",
            f"{asked}, but the pretrained {source.name} has {cfg.num_classes} classes",
            "--checkpoint FILE with weights for such a head, or leave it out",
        )


@contextmanager
def _offline(name: str) -> Iterator[None]:
    """Allow cached weights only. The hub's own switch is read at its import, so it is turned here."""
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and isinstance(cfg.url, str) and not cfg.hf_hub_id:  # torch's cache has no switch
        cached = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(cfg.url).path).name)
        if not cached.is_file():
            raise FileNotFoundError(cached)
    before, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


def _load_weights(module: nn.Module, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = timm.models.load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - every loader raises its own types on a damaged file
        pickled = "weights_only" in str(error).lower().replace(" ", "_")
        reason = "is a whole pickled model or damaged" if pickled else "cannot be read"
        detail = printable(str(error).partition("\n")[0], 160)
        raise ModelError(
            "--checkpoint",
            f"{path.name} {reason} ({detail})",
            "give .safetensors, or a .pth that holds a state_dict",
        ) from None
    _refuse_misfit(module, state, path)
    module.load_state_dict(state)


def _refuse_misfit(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    odd = [k for k, v in state.items() if not isinstance(v, Tensor)]
    if odd:
        raise ModelError("--checkpoint", f"{path.name}: {odd[0]} is no tensor", "give a state_dict alone")
    own = module.state_dict()
    shapes = [k for k in own if k in state and tuple(own[k].shape) != tuple(state[k].shape)]
    missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    if shapes:
        key = shapes[-1]  # the classifier comes last
        have, want = tuple(state[key].shape), tuple(own[key].shape)
        fix = f"--num-classes {have[0]}" if have[1:] == want[1:] else "give the model this file belongs to"
        raise ModelError("--checkpoint", f"{path.name}: {key} is {have}, the model has {want}", fix)
    if missing or unexpected:
        examples = ", ".join((missing or unexpected)[:3])
        raise ModelError(
            "--checkpoint",
            f"{path.name}: {len(missing)} weights missing, {len(unexpected)} unexpected ({examples})",
            "give the --model this file belongs to",
        )


def _refuse_nonfinite(module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ModelError("--checkpoint", f"{name} holds NaN or infinity", "give an undamaged file")


def _count_classes(module: nn.Module, spec: InputSpec) -> int:
    with torch.inference_mode():
        output = module(torch.zeros(1, len(spec.mean), spec.height, spec.width))
    if getattr(module, "num_classes", None) == 0:
        raise ModelError("--model", "it has no head: its output is features", "give a classifier")
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] < 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError("--model", f"its output is {shape}, not (images, classes)", "give a classifier")
    return int(output.shape[1])


def _class_names(
    config: ModelConfig, source: _Source, module: nn.Module, num_classes: int
) -> tuple[str, ...]:
    names = source.class_names
    if config.class_names is not None:
        try:
            lines = Path(config.class_names).read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError("--class-names", f"{config.class_names}: {error}") from None
        names = tuple(line.strip() for line in lines if line.strip())
    if (names or config.class_names) and len(names) != num_classes:
        raise ModelError("--class-names", f"{len(names)} names for {num_classes} classes", "one name a line")
    if not names and num_classes == IMAGENET_CLASSES and config.num_classes is None:
        return imagenet_names()
    return names


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
