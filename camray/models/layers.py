"""`camray layers MODEL`: every layer with its output shape, and the one camray would explain."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table

from camray import cam
from camray.config import Config
from camray.errors import ExitCode, ImageError, UsageError
from camray.models import feature_maps
from camray.models.load import load_model


def print_layers(config: Config, show_all: bool, as_json: bool) -> ExitCode:
    """List the layers of a model; a named layer is checked first and refused with a reason."""
    loaded = load_model(config.model, config.preprocess)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    spec = loaded.input
    size = (len(spec.mean), spec.height, spec.width)
    if config.method.layer is not None:
        cam.find_target_layer(loaded.module, size, config.method.layer)
    infos = [info for info in cam.list_layers(loaded.module, size) if info.usable or show_all]
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
    loaded = load_model(config.model, config.preprocess)
    try:
        content = Path(image).read_bytes()
        for layer in layers:
            maps = feature_maps.activation(loaded, content, layer, config.archive.max_pixels)
            channels = feature_maps.strongest(maps)
            target = Path(folder) / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', layer)}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(feature_maps.grid(maps, channels)).save(target)
            shape = " x ".join(str(n) for n in maps.shape)
            print(f"{target}: {len(channels)} of {len(maps)} channels ({shape})")
    except ImageError as error:
        raise UsageError("--image", f"{image}: {error}", "give an image") from None
    except OSError as error:
        raise UsageError(
            "--maps", f"{error.filename}: {error.strerror}", "give a file and a folder"
        ) from None
    return ExitCode.DONE
