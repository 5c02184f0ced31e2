"""`camray layers MODEL`: every layer with its output shape, and the one camray would explain.

`--maps LAYER --image X`: what single channels of a layer respond to. Flows in: a model by name, one image.
Flows out: lines, or one picture for each layer, a grid of channels.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from camray import cam
from camray.cam.split import as_found, run_split
from camray.config import Config
from camray.errors import ExitCode, ImageError, UsageError
from camray.image.decode import decode
from camray.models.load import LoadedModel, load_classifier
from camray.models.preprocessing import to_input

CHANNELS = 64  # shown at most, in a grid of 8 x 8
TILE = 96  # pixels a side at least
_GAP, _STRIP = 4, 14  # white between tiles; the line with the channel's number


def print_layers(config: Config, show_all: bool, as_json: bool) -> ExitCode:
    """List the layers of a model; a named layer is checked first and refused with a reason."""
    loaded = load_classifier(config)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    spec = loaded.input
    size = (len(spec.mean), spec.height, spec.width)
    reading = config.method.pair, config.method.prefix
    if config.method.layer is not None:
        cam.find_target_layer(loaded.module, size, config.method.layer, *reading)
    infos = [info for info in cam.list_layers(loaded.module, size, *reading) if info.usable or show_all]
    if as_json:
        for info in infos:
            row = {"name": info.name, "type": info.type, "shape": info.shape, "chosen": info.chosen}
            print(json.dumps(row | {"problem": info.problem}))
        return ExitCode.DONE
    table = Table(box=None, pad_edge=False)
    for title in ("", "layer", "type", "output", "reads as"):
        table.add_column(title)
    for info in infos:
        shape = " x ".join(str(n) for n in info.shape[1:])
        reads = info.problem or (info.layer.layout if info.layer else "")
        mark = "*" if info.chosen else ""
        table.add_row(mark, info.name, info.type, shape, reads, style="bold" if info.chosen else None)
    Console(soft_wrap=True).print(table)
    chosen = next((i.layer for i in infos if i.chosen and i.layer), None)
    if chosen is not None:
        print(f"\n* chosen: {chosen.name} ({chosen.reason})")
    return ExitCode.DONE


def draw_maps(config: Config, layers: Sequence[str], image: str | None, folder: str) -> ExitCode:
    """Write one picture per layer: its channels' activations for one image, as a grid.

    Raises:
        UsageError: no image, an image that cannot be decoded, a folder that cannot be written.
    """
    if image is None:
        raise UsageError("--maps", "needs an image", "give --image FILE")
    loaded = load_classifier(config)
    try:
        content = Path(image).read_bytes()
        for layer in layers:
            maps = activation(loaded, content, layer, config.archive.max_pixels)
            channels = strongest(maps)
            target = Path(folder) / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', layer)}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grid(maps, channels)).save(target)
            shape = " x ".join(str(n) for n in maps.shape)
            print(f"{target}: {len(channels)} of {len(maps)} channels ({shape})")
    except ImageError as error:
        raise UsageError("--image", f"{image}: {error}", "give an image") from None
    except OSError as error:
        raise UsageError(
            "--maps", f"{error.filename}: {error.strerror}", "give a file and a folder"
        ) from None
    return ExitCode.DONE


def activation(loaded: LoadedModel, content: bytes, layer: str, max_pixels: int) -> Tensor:
    """Run one image and read a layer's activations, (C, h, w) float32.

    Raises:
        ImageError: the image cannot be decoded.
        ModelError: no such layer, or one without maps.
    """
    spec = loaded.input
    found = cam.find_target_layer(loaded.module, (len(spec.mean), spec.height, spec.width), layer)
    decoded = decode(content, spec, max_pixels)
    seen = decoded.pixels if decoded.bands is None else decoded.bands
    pixels = torch.from_numpy(seen)[None]  # (1, H, W, 3 or C)
    x = to_input(pixels, torch.tensor(spec.mean), torch.tensor(spec.std))
    with as_found(loaded.module):
        return run_split(loaded.module, x, [found], differentiate=False).activation(found.name)[0]


def strongest(maps: Tensor, count: int = CHANNELS) -> list[int]:
    """Pick the `count` channels of (C, h, w) that vary most over the image, in channel order."""
    best = maps.flatten(1).std(1, correction=0).topk(min(count, len(maps))).indices
    return sorted(best.tolist())


def grid(maps: Tensor, channels: list[int]) -> NDArray[np.uint8]:
    """Draw channels of (C, h, w) side by side, each from its own lowest (dark) to highest value (bright)."""
    columns = int(np.ceil(np.sqrt(len(channels))))
    rows = -(-len(channels) // columns)
    factor = max(1, round(TILE / max(maps.shape[1:])))  # whole, so that cells stay squares
    height, width = maps.shape[1] * factor, maps.shape[2] * factor
    cell_h, cell_w = height + _STRIP + _GAP, width + _GAP
    canvas = np.full((rows * cell_h + _GAP, columns * cell_w + _GAP, 3), 255, np.uint8)
    for place, channel in enumerate(channels):
        top, left = _GAP + place // columns * cell_h, _GAP + place % columns * cell_w
        one = maps[channel].numpy()
        span = float(one.max() - one.min())
        grey = np.round((one - one.min()) / (span or 1.0) * 255).astype(np.uint8)
        tile = cv2.applyColorMap(grey.repeat(factor, 0).repeat(factor, 1), cv2.COLORMAP_VIRIDIS)
        canvas[top : top + height, left : left + width] = tile[..., ::-1]
        cv2.putText(canvas, str(channel), (left, top + height + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.36,
                    (70, 70, 70), 1, cv2.LINE_AA)  # fmt: skip
    return canvas
