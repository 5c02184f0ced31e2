"""`camray layers MODEL --maps LAYER --image X`: what single channels of a layer respond to, as one picture.

Flows in: a loaded model, the bytes of one image, a layer. Flows out: a grid of channels, uint8 RGB.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camray import cam
from camray.cam.split import as_found, run_split
from camray.image.decode import decode
from camray.models.load import LoadedModel
from camray.models.preprocessing import to_input

CHANNELS = 64  # shown at most, in a grid of 8 x 8
TILE = 96  # pixels a side at least
_GAP, _STRIP = 4, 14  # white between tiles; the line with the channel's number


def activation(loaded: LoadedModel, content: bytes, layer: str, max_pixels: int) -> Tensor:
    """Run one image and read a layer's activations, (C, h, w) float32.

    Raises:
        ImageError: the image cannot be decoded.
        ModelError: no such layer, or one without maps.
    """
    spec = loaded.input
    found = cam.find_target_layer(loaded.module, (len(spec.mean), spec.height, spec.width), layer)
    pixels = torch.from_numpy(decode(content, spec, max_pixels).pixels)[None]  # (1, H, W, 3)
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
