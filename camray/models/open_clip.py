"""Folders of open_clip: the tower that sees, what is done to an image, and the text side.

    open_clip_config.json ──describe──> fields of the tower, what is done to an image     driver
    weights ──load_weights──> the tower, its names mapped as open_clip maps them
    fields ──build──> the bare tower, from plain data alone                               any worker

The network is the library's own, so every tower that it builds is read, those of timm among them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import nn

from camray.errors import ModelError, printable
from camray.models import hugging_face
from camray.models.hugging_face import Contrast, TextSide
from camray.models.libraries import offline, timm

CONFIG = "open_clip_config.json"
KIND = "open_clip"
_TEXTS_AT_ONCE = 64
_RESAMPLING = {"bilinear": 2, "bicubic": 3}  # as Pillow numbers them


def describe(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any], Contrast]:
    """Read the configuration: name and arguments of `build`, preprocessing, and how it compares.

    Raises:
        ModelError: no open_clip here, or a configuration that cannot be read.
    """
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        model = config["model_cfg"]
        vision = {**model["vision_cfg"], "timm_model_pretrained": False}
        args = {"embed_dim": int(model["embed_dim"]), "vision_cfg": vision,
                "quick_gelu": bool(model.get("quick_gelu", False))}  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError("--model", printable(f"{folder}/{CONFIG}: {error!r}"), "fetch it again") from None
    name = vision.get("timm_model_name")
    if name and not timm.is_model(name):
        raise ModelError("--model", printable(f"{folder}: timm has no model {name!r}"), "a newer timm")
    activation: Any = "sigmoid" if model.get("init_logit_bias") is not None else "softmax"
    contrast = Contrast("CLIP", KIND, "output", activation)
    cfg = _preprocessing(folder, {**config.get("preprocess_cfg", {}), "size": vision.get("image_size", 224)})
    own = "ModifiedResNet" if isinstance(vision.get("layers"), list) else "VisionTransformer"
    return name or own, args, cfg, contrast


def _preprocessing(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Say what the library does to an image, as its own transform proves it."""
    transforms = _library().transform
    asked = transforms.PreprocessCfg(**transforms.merge_preprocess_dict(transforms.PreprocessCfg(), given))
    own = transforms.image_transform_v2(asked, is_train=False)

    class Processor(SimpleNamespace):
        def __call__(self, image: Image.Image, **_: Any) -> dict[str, Any]:
            return {"pixel_values": own(image)[None].numpy()}

    height, width = asked.input_size[1:]
    sides = (
        {"shortest_edge": height} if asked.resize_mode == "shortest" else {"height": height, "width": width}
    )
    processor = Processor(
        image_mean=asked.mean, image_std=asked.std, size=SimpleNamespace(**sides),
        resample=_RESAMPLING.get(asked.interpolation, 3),
    )  # fmt: skip
    try:
        return hugging_face.proved(processor, crop_floor=False)
    except ModelError:
        said = f"{folder}: resize_mode {asked.resize_mode!r} of its images is not done here"
        raise ModelError("--model", printable(said), "shortest or squash in preprocess_cfg") from None


def build(args: Mapping[str, Any]) -> nn.Module:
    """Make the bare tower."""
    tower: nn.Module = _library().model._build_vision_tower(**args)
    return tower


def load_weights(folder: Path, _name: str, args: Mapping[str, Any]) -> tuple[nn.Module, tuple[str, ...]]:
    """Make the tower with the folder's weights; nothing to tell.

    Raises:
        ModelError: weights that are missing, damaged or of other shapes.
    """
    tower = build(args)
    tower.load_state_dict(_whole(folder).visual.state_dict())
    return tower, ()


def embed_texts(folder: Path, texts: Sequence[str]) -> TextSide:
    """Embed texts as the whole model does, with its own tokenizer.

    Raises:
        ModelError: no tokenizer, or weights that cannot be loaded.
    """
    whole, parts, cut = _whole(folder).eval(), [torch.empty(0, 0)] * (not texts), 0
    try:
        with offline(), torch.no_grad():
            tokenizer: Any = _library().get_tokenizer(f"local-dir:{folder}") if texts else None
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                some = list(texts[start : start + _TEXTS_AT_ONCE])
                parts.append(whole.encode_text(tokenizer(some)))
                cut += sum(_length(tokenizer, text) > whole.context_length for text in some)
    except Exception as error:  # noqa: BLE001 - transformers raises its own types, and those of tokenizers
        reason = printable(str(error).strip().partition("\n")[0], 200)
        said = f"{folder}: its text side cannot be used ({reason})"
        raise ModelError("--prompts", said, "fetch it whole") from None
    bias = None if whole.logit_bias is None else whole.logit_bias.detach().reshape(1)
    return TextSide(torch.cat(parts), float(whole.logit_scale.detach().exp()), bias, cut)


def _length(tokenizer: Any, text: str) -> int:
    """Count the tokens of a text, uncut, with the marks around it."""
    if hasattr(tokenizer, "encode"):
        return len(tokenizer.encode(text)) + 2
    return len(tokenizer.tokenizer(text)["input_ids"])


def _whole(folder: Path) -> Any:
    """Load both sides, from the folder alone."""
    try:
        with offline():
            return _library().create_model(f"local-dir:{folder}", require_pretrained=True)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - open_clip raises many types, and those of transformers
        reason = printable(str(error).strip().partition("\n")[0], 200)
        said = f"{folder}: its weights cannot be loaded ({reason})"
        raise ModelError("--model", said, "fetch it again") from None


def _library() -> Any:
    """Import open_clip, which is an extra."""
    try:
        import open_clip
    except ImportError:
        raise ModelError(
            "--model", "the folder is of open_clip, which is not installed", "pip install 'camray[open-clip]'"
        ) from None
    return open_clip
