"""How pixels become the model's input: the model's own recipe, changed by what the user gave.

Flows in: what a source says of its preprocessing, and `PreprocessConfig`. Flows out: `InputSpec`, and on the
device normalised tensors (B, channels, H, W) of uint8 RGB views.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from timm.data import resolve_data_config
from torch import Tensor, nn

from camray.config import InputSpec, PreprocessConfig
from camray.errors import ModelError

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601, as everywhere where colour becomes grey

# What most own models were trained with, in torchvision's words: Resize(256), CenterCrop(224).
USUAL: Mapping[str, Any] = {
    "input_size": (3, 224, 224), "crop_pct": 224 / 256, "resize": (256, 256), "crop_mode": "center",
    "interpolation": "bilinear", "mean": _IMAGENET[0], "std": _IMAGENET[1],
}  # fmt: skip


def timm_defaults(module: nn.Module, overlay: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read the evaluation transform that belongs to a timm model."""
    found: dict[str, Any] = resolve_data_config({**dict(overlay or {})}, model=module)
    return found


def torchvision_defaults(name: str, pretrained: bool) -> dict[str, Any]:
    """Read the transform of torchvision's own weights: the newest ones, or for own weights the first ones."""
    weights = torchvision.models.get_model_weights(name)
    chosen = weights.DEFAULT if pretrained else next(iter(weights))
    t = chosen.transforms()
    (crop,), (resize,) = t.crop_size, t.resize_size
    return {
        "input_size": (3, crop, crop), "crop_pct": crop / resize, "resize": (resize, resize),
        "crop_mode": "center", "interpolation": t.interpolation.value, "mean": t.mean, "std": t.std,
    }  # fmt: skip


def input_spec(
    defaults: Mapping[str, Any], channels: int = 3, config: PreprocessConfig | None = None
) -> InputSpec:
    """Join the model's recipe with what the user gave.

    Raises:
        ModelError: numbers of channels that images cannot have, or that mean and std do not have.
    """
    given = config or PreprocessConfig()
    if channels not in (1, 3):
        raise ModelError("--model", f"it takes {channels} channels; images have 3, or 1 as grey", "")
    height, width = _pair(given.input_size) or tuple(defaults["input_size"][1:])
    return InputSpec(
        height=height,
        width=width,
        resize=_resize(defaults, given, height, width),
        crop_mode=given.crop_mode or defaults["crop_mode"],
        interpolation=given.interpolation or defaults["interpolation"],
        mean=_per_channel("--mean", given.mean, defaults["mean"], channels),
        std=_per_channel("--std", given.std, defaults["std"], channels),
        fast_decode=given.fast_decode,
    )


def input_channels(module: nn.Module) -> int:
    """Count the channels the network takes: those of its first convolution."""
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    return first.in_channels if first is not None else 3


def to_input(views: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise uint8 RGB (B, H, W, 3) to (B, C, H, W); with one channel, of the luminance."""
    x = views.permute(0, 3, 1, 2).float() / 255
    if len(mean) == 1:
        weights = torch.tensor(_LUMINANCE, device=x.device)
        x = torch.einsum("bchw,c->bhw", x, weights)[:, None]
    return (x - mean[:, None, None]) / std[:, None, None]


def _resize(defaults: Mapping[str, Any], given: PreprocessConfig, height: int, width: int) -> tuple[int, int]:
    asked = _pair(given.resize)
    if asked is not None:
        return asked
    if given.input_size is None and given.crop_pct is None and "resize" in defaults:
        return int(defaults["resize"][0]), int(defaults["resize"][1])
    share = given.crop_pct or defaults["crop_pct"]
    return math.floor(height / share + 1e-9), math.floor(width / share + 1e-9)


def _pair(sizes: tuple[int, ...] | None) -> tuple[int, int] | None:
    return None if not sizes else (sizes[0], sizes[-1])


def _per_channel(
    field: str, given: tuple[float, ...] | None, default: Any, channels: int
) -> tuple[float, ...]:
    """One number a channel; a single one counts for all, and a grey model takes the average of three."""
    values = tuple(float(v) for v in (given or default))
    if len(values) == 1:
        return values * channels
    if given is None and channels == 1:
        return (sum(values) / len(values),)
    if len(values) != channels:
        raise ModelError(field, f"{len(values)} numbers for {channels} channels", "give one for each channel")
    return values
