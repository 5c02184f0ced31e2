"""How pixels become the model's input: the model's own recipe, changed by what the user gave.

Flows in: what a source says of its preprocessing, and `PreprocessConfig`. Flows out: `InputSpec`, and on the
device normalised tensors (B, channels, H, W) of uint8 RGB views.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camray.config import InputSpec, PreprocessConfig
from camray.errors import ModelError
from camray.models.libraries import timm, torchvision

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_MOST_CHANNELS = 16  # that are tried: more are to be said
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601, as everywhere where colour becomes grey

# What most own models were trained with, in torchvision's words: Resize(256), CenterCrop(224).
USUAL: Mapping[str, Any] = {
    "input_size": (3, 224, 224), "crop_pct": 224 / 256, "resize": (256, 256), "crop_mode": "center",
    "interpolation": "bilinear", "mean": _IMAGENET[0], "std": _IMAGENET[1],
}  # fmt: skip


def timm_defaults(module: nn.Module, overlay: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read the evaluation transform that belongs to a timm model."""
    found: dict[str, Any] = timm.data.resolve_data_config({**dict(overlay or {})}, model=module)
    return found


def torchvision_defaults(name: str, checkpoint: str | None) -> dict[str, Any]:
    """Read the transform of torchvision's own weights: of the newest ones, without a file of weights.

    With one, of those whose file has its name; else, for own weights, of the first ones.
    """
    weights = torchvision.models.get_model_weights(name)
    file = None if checkpoint is None else Path(checkpoint).name
    named = [w for w in weights if w.url.endswith(f"/{file}")]
    chosen = weights.DEFAULT if file is None else next(iter(named or weights))
    t = chosen.transforms()
    (crop,), (resize,) = t.crop_size, t.resize_size
    return {
        "input_size": (3, crop, crop), "crop_pct": crop / resize, "resize": (resize, resize),
        "crop_mode": "center", "interpolation": t.interpolation.value, "mean": t.mean, "std": t.std,
    }  # fmt: skip


def input_spec(
    defaults: Mapping[str, Any],
    channels: int = 3,
    config: PreprocessConfig | None = None,
    bands: tuple[int, ...] = (),
) -> InputSpec:
    """Join the model's recipe with what the user gave; `bands` are those to look at, of images of bands.

    Raises:
        ModelError: numbers of channels that images cannot have, or that mean and std do not have.
    """
    given = config or PreprocessConfig()
    if channels not in (1, 3) and not bands:
        said = f"it takes {channels} channels; pictures have 3, or 1 as grey"
        shown = "1,2,3" if channels > 2 else "1"
        raise ModelError("--model", said, f"--bands {shown}: images are {channels} bands, these are shown")
    if bands and (len(bands) not in (1, 3) or max(bands) > channels):
        said = f"{','.join(map(str, bands))} of a model that takes {channels} bands"
        raise ModelError("--bands", said, f"give three numbers, or one, of 1..{channels}")
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
        crop_floor=bool(defaults.get("crop_floor")),
        bands=bands,
    )


def input_channels(module: nn.Module, height: int, width: int) -> int:
    """Find how many channels the network takes, by running it: 3 where it takes colour.

    Else as many as what receives the image wants; where nothing says so, the lowest number that runs, and 1
    last: one channel runs, too, where a mean of several is subtracted.
    """
    with torch.no_grad():
        wanted = _wanted_channels(module, torch.zeros(1, 3, height, width))
        tried: list[int] = [3, *wanted, *range(2, _MOST_CHANNELS + 1), 1]
        for channels in tried:
            try:
                module(torch.zeros(1, channels, height, width))
            except Exception:  # noqa: BLE001 - the user's own code may raise anything; what fits decides
                continue
            return channels
        first = next((m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)), 3)
        return wanted[0] if wanted else first


def _wanted_channels(module: nn.Module, image: Tensor) -> list[int]:
    """Give the channels of the modules that get the image and have a say in it, the first in front."""
    wanted: list[int] = []

    def watch(own: nn.Module, args: tuple[Any, ...]) -> None:
        count = getattr(own, "in_channels", getattr(own, "num_features", None))
        if args and isinstance(args[0], Tensor) and args[0].shape == image.shape and isinstance(count, int):
            wanted.append(count)

    handles = [m.register_forward_pre_hook(watch) for m in module.modules()]
    try:
        module(image)
    except Exception:  # noqa: BLE001, S110 - it fails: that is why it is asked; `read_output` tells the reason
        pass
    finally:
        for handle in handles:
            handle.remove()
    return wanted[:1]


def read_as_bands(channels: int, bands: tuple[int, ...]) -> tuple[str, ...]:
    """Say how images are read whose bands the model takes, in words, for people."""
    shown = ",".join(map(str, bands))
    return (
        f"images are {channels} bands, {shown} to look at: unsigned integers as shares of the largest of "
        "their type, other values as they are, then mean and std; an audit makes no second looks at them",
    )


def guessed(given: PreprocessConfig, is_sized: bool = False) -> tuple[str, ...]:
    """Say what of the preprocessing nobody named, so that ImageNet's is used: in words, for people.

    `is_sized`: of a folder that tells the size, and no more.
    """
    sizes: dict[str, object] = {
        "size 224": given.input_size,
        "crop of 224/256" if given.input_size else "resize 256": given.resize or given.crop_pct,
    }
    parts = ({} if is_sized else sizes) | {"mean": given.mean, "std": given.std}
    named = [part for part, said in parts.items() if not said]
    why = "there is no preprocessor_config.json" if is_sized else "own code names none"
    return (f"preprocessing of ImageNet ({', '.join(named)}): {why}",) if named else ()


def to_input(views: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise uint8 RGB (B, H, W, 3) to (B, C, H, W); with one channel, of the luminance.

    Bands, float32 (B, H, W, C), are taken as they are. Colours stay the innermost axis in memory
    (channels_last): convolutions take it as it comes, and with batch norms folded cost a tenth to a third
    less so.
    """
    is_rgb = views.dtype == torch.uint8
    x = views.float().div_(255) if is_rgb else views.to(torch.float32, copy=True)
    if is_rgb and len(mean) == 1:
        weights = torch.tensor(_LUMINANCE, device=x.device)
        x = torch.einsum("bchw,c->bhw", x.permute(0, 3, 1, 2), weights)[:, None]
        return (x - mean[:, None, None]) / std[:, None, None]
    width = x.shape[2]  # a whole line at once, in place: a third of the time
    x.flatten(2).sub_(mean.repeat(width)).div_(std.repeat(width))
    return x.permute(0, 3, 1, 2)


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
