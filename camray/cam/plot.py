"""A grid to look at: for each image a row, the image and its overlay for each map, with captions.

Flows in: an `Explanation` and the images it is of. Flows out: one picture; a notebook shows it by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from camray.cam.finish import blend, finish
from camray.errors import UsageError

if TYPE_CHECKING:
    from camray.cam.engine import Explanation

CAPTION = 18  # pixels of height above each picture


def plot(found: Explanation, images: Tensor, side: int = 224, alpha: float = 0.5) -> Image.Image:
    """Draw images (B, 3, H, W), float as the model saw them or uint8, and their overlays as one RGB grid.

    Floats are stretched from each image's least to its greatest value, so colours are near, not exact.

    Raises:
        UsageError: images that are not those of the explanation.
    """
    if images.ndim != 4 or images.shape[1] != 3 or len(images) != len(found.logits):
        raise UsageError("images", f"{tuple(images.shape)}", f"({len(found.logits)}, 3, H, W)")
    height = round(side * images.shape[2] / images.shape[3])
    pictures = _to_rgb(images.detach().cpu())
    columns = [("image", [""] * len(images), pictures)]
    for (method, layer), maps in found.maps.items():
        heat = finish(maps.detach().cpu(), (images.shape[2], images.shape[3]))
        for k in range(maps.shape[1]):
            aims = [_aim(found, row, k) if maps.shape[1] == found.classes.shape[1] else f"map {k}"
                    for row in range(len(images))]  # fmt: skip
            columns.append((f"{method} {layer}", aims, blend(pictures, heat[:, k], alpha)))
    grid = Image.new("RGB", (len(columns) * (side + 4), CAPTION + len(images) * (height + CAPTION)), "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(size=12)
    for x, (title, aims, drawn) in enumerate(columns):
        draw.text((x * (side + 4), 2), title, fill="black", font=font)
        for y, (aim, array) in enumerate(zip(aims, drawn, strict=True)):
            top = CAPTION + y * (height + CAPTION)
            draw.text((x * (side + 4), top + 2), aim, fill="black", font=font)
            grid.paste(Image.fromarray(array.numpy()).resize((side, height)), (x * (side + 4), top + CAPTION))
    return grid


def _to_rgb(images: Tensor) -> Tensor:
    """Bring images (B, 3, H, W) to (B, H, W, 3) uint8."""
    rows = images.permute(0, 2, 3, 1)
    if images.dtype == torch.uint8:
        return rows
    low, high = rows.amin((1, 2, 3), keepdim=True), rows.amax((1, 2, 3), keepdim=True)
    return ((rows - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8)


def _aim(found: Explanation, row: int, k: int) -> str:
    if int(found.classes[row, k]) < 0:
        return "no such class"
    return f"class {int(found.classes[row, k])}: {float(found.scores[row, k]):.2f}"
