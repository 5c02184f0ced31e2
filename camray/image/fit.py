"""How an upright image becomes the model's input: the arithmetic of timm's evaluation transform.

    (source size, InputSpec) ──plan_fit──> Fit ──fit_image──> the input, `spec.height` x `spec.width`
                                              └─geometry──> where the input lies in the source

crop mode   resized to                                                      then
center      the shorter side = `resize`, aspect kept                        centre crop
squash      exactly `resize`, aspect lost                                   centre crop
border      the longer side fits into `resize`, aspect kept                 centre crop, padded with `fill`
shrink      as border, but nothing is enlarged                              the same

Rounding follows torchvision and timm to the letter: lengths are truncated where torchvision resizes and
rounded half-to-even where timm does; crop offsets are rounded half-to-even, or down where transformers crops;
the odd padding pixel goes right and down. Where timm would fail (a side rounded to 0 pixels), the side is 1
pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from camray.config import InputSpec
from camray.records import Geometry

MAX_INTERMEDIATE_PIXELS = 64_000_000
"""No resized picture grows beyond this: of a longer strip only the crop is computed. It then differs from the
crop of the whole by rounding, at most 2 of 255 (nearest: by a neighbouring pixel)."""

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True)
class Fit:
    """A resize to `width` x `height` and, in its pixels, the offset of the crop (negative: padding)."""

    width: int
    height: int
    left: int
    top: int


def plan_fit(width: int, height: int, spec: InputSpec) -> Fit:
    """Decide the resize and the crop for an upright source of `width` x `height` pixels."""
    new_width, new_height = _resized(width, height, spec)
    left, top = (
        _offset(n, wanted, spec.crop_floor)
        for n, wanted in ((new_width, spec.width), (new_height, spec.height))
    )
    return Fit(new_width, new_height, left, top)


def geometry(width: int, height: int, fit: Fit, spec: InputSpec) -> Geometry:
    """Say where the input's edges lie in the source of `width` x `height` pixels."""
    across, down = width / fit.width, height / fit.height
    return Geometry(
        width=width,
        height=height,
        crop_x0=fit.left * across,
        crop_y0=fit.top * down,
        crop_x1=(fit.left + spec.width) * across,
        crop_y1=(fit.top + spec.height) * down,
    )


def fit_image(image: Image.Image, fit: Fit, spec: InputSpec) -> Image.Image:
    """Resize and crop an image, RGB or one band of floats, to the model's input size."""
    columns = (max(fit.left, 0), min(fit.left + spec.width, fit.width))
    rows = (max(fit.top, 0), min(fit.top + spec.height, fit.height))
    resample = FILTERS[spec.interpolation]
    if fit.width * fit.height <= MAX_INTERMEDIATE_PIXELS:
        whole = image.resize((fit.width, fit.height), resample)
        seen = whole.crop((columns[0], rows[0], columns[1], rows[1]))
    else:
        seen = _resize_window(image, fit, columns, rows, resample)
    if seen.size == (spec.width, spec.height):
        return seen
    fill = spec.fill if image.mode == "RGB" else 0
    canvas = Image.new(image.mode, (spec.width, spec.height), fill)
    canvas.paste(seen, (max(-fit.left, 0), max(-fit.top, 0)))
    return canvas


def _resize_window(
    image: Image.Image, fit: Fit, columns: tuple[int, int], rows: tuple[int, int], resample: int
) -> Image.Image:
    """Compute only these columns and rows (first, end) of the resized image."""
    across, left, right = _window_in_source(image.width, fit.width, columns)
    down, top, bottom = _window_in_source(image.height, fit.height, rows)
    part = image.crop((across[0], down[0], across[1], down[1]))
    size = (columns[1] - columns[0], rows[1] - rows[0])
    return part.resize(size, resample, box=(left, top, right, bottom))


def _window_in_source(
    length: int, resized: int, window: tuple[int, int]
) -> tuple[tuple[int, int], float, float]:
    """Find the source pixels a window of the resized axis needs, and the window's edges within them.

    Cropping first keeps the edges small numbers: Pillow holds them in 32-bit floats.
    """
    scale = length / resized
    margin = math.ceil(3 * max(scale, 1.0)) + 2  # Lanczos, the widest filter, reaches 3 pixels
    low, high = window[0] * scale, window[1] * scale
    start, end = max(math.floor(low) - margin, 0), min(math.ceil(high) + margin, length)
    return (start, end), low - start, min(high - start, end - start)


def _resized(width: int, height: int, spec: InputSpec) -> tuple[int, int]:
    """Give the (width, height) to resize to."""
    rows, columns = spec.resize
    if spec.crop_mode == "squash":
        return columns, rows
    if spec.crop_mode == "center" and rows == columns:
        if width <= height:
            return rows, max(int(rows * height / width), 1)
        return max(int(rows * width / height), 1), rows
    longest = 1.0 if spec.crop_mode in ("border", "shrink") else 0.0
    down, across = height / rows, width / columns
    ratio = max(down, across) * longest + min(down, across) * (1.0 - longest)
    if spec.crop_mode == "shrink":
        ratio = max(ratio, 1.0)
    return max(round(width * 1.0 / ratio), 1), max(round(height * 1.0 / ratio), 1)


def _offset(length: int, wanted: int, floor: bool) -> int:
    """Where a centred crop of `wanted` begins; negative where that much padding is needed before it."""
    if wanted > length:
        return -((wanted - length) // 2)
    return (length - wanted) // 2 if floor else round((length - wanted) / 2.0)
