"""How an upright image becomes the model's input: the arithmetic of timm's evaluation transform.

    (source size, InputSpec) ──plan_fit──> Fit ──fit_image──> the input, `spec.height` x `spec.width`
                                              └─geometry──> where the input lies in the source

crop mode   resized to                                                      then
center      the shorter side = `resize`, aspect kept                        centre crop
squash      exactly `resize`, aspect lost                                   centre crop
border      the longer side fits into `resize`, aspect kept                 centre crop, padded with `fill`

Rounding follows torchvision and timm to the letter: lengths are truncated where torchvision resizes and
rounded half-to-even where timm does; crop offsets are rounded half-to-even; the odd padding pixel goes right
and down. Where timm would fail (a side rounded to 0 pixels), the side is 1 pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from camray.config import InputSpec
from camray.records import Geometry

MAX_INTERMEDIATE_PIXELS = 64_000_000
"""No resized picture grows beyond this. Of a longer strip only the crop is computed, within 1/255."""

_FILTERS = {
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
    return Fit(new_width, new_height, _offset(new_width, spec.width), _offset(new_height, spec.height))


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
    """Resize and crop an RGB image to the model's input size.

    Pillow resizes rows first, then columns, with 8 bits in between. Doing the two apart, and dropping
    the columns outside the crop after the first, gives the same bits for less work and memory.
    """
    columns = (max(fit.left, 0), min(fit.left + spec.width, fit.width))
    rows = (max(fit.top, 0), min(fit.top + spec.height, fit.height))
    resample = _FILTERS[spec.interpolation]
    seen = _resize_width(image, fit.width, columns, resample)
    picture = _resize_height(seen, fit.height, rows, resample)
    if picture.size == (spec.width, spec.height):
        return picture
    canvas = Image.new("RGB", (spec.width, spec.height), spec.fill)
    canvas.paste(picture, (max(-fit.left, 0), max(-fit.top, 0)))
    return canvas


def _resize_width(image: Image.Image, width: int, window: tuple[int, int], resample: int) -> Image.Image:
    """Resize to `width`, the height kept, and keep the columns of `window` (first, end)."""
    first, end = window
    if width * image.height <= MAX_INTERMEDIATE_PIXELS:
        return image.resize((width, image.height), resample).crop((first, 0, end, image.height))
    near, low, high = _window_in_source(image.width, width, window)
    part = image.crop((near[0], 0, near[1], image.height))
    return part.resize((end - first, image.height), resample, box=(low, 0, high, image.height))


def _resize_height(image: Image.Image, height: int, window: tuple[int, int], resample: int) -> Image.Image:
    """Resize to `height`, the width kept, and keep the rows of `window` (first, end)."""
    first, end = window
    if height * image.width <= MAX_INTERMEDIATE_PIXELS:
        return image.resize((image.width, height), resample).crop((0, first, image.width, end))
    near, low, high = _window_in_source(image.height, height, window)
    part = image.crop((0, near[0], image.width, near[1]))
    return part.resize((image.width, end - first), resample, box=(0, low, image.width, high))


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
    longest = 1.0 if spec.crop_mode == "border" else 0.0
    down, across = height / rows, width / columns
    ratio = max(down, across) * longest + min(down, across) * (1.0 - longest)
    return max(round(width * 1.0 / ratio), 1), max(round(height * 1.0 / ratio), 1)


def _offset(length: int, wanted: int) -> int:
    """Where a centred crop of `wanted` begins; negative where that much padding is needed before it."""
    if wanted > length:
        return -((wanted - length) // 2)
    return round((length - wanted) / 2.0)
