"""Any pixel mode to 8-bit RGB, by one documented rule each. No image turns white or black in silence.

mode of the file                 becomes
RGB, YCbCr, CMYK, HSV            RGB as Pillow converts it (Adobe CMYK inverted where the file says so)
grey (L), 1-bit                  the grey three times; 1-bit is 0 or 255
palette                          its colours
alpha, one transparent colour    laid over white; an opaque alpha changes nothing
16- and 32-bit integers          divided by the smallest 2^k - 1 (k >= 8) that holds the largest value, so
                                 that 12 bits stored in 16 keep their brightness; with negatives: min-max
float                            0..1 times 255; within 0..255 as is; otherwise min-max (constant:
                                 mid-grey); NaN or infinity anywhere: refused
16 bits per channel in colour    the upper 8 bits, as Pillow reads them
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camray.errors import ErrorCode, ImageError

_PLAIN = ("RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX")
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_MID_GREY = 128


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse a size before any pixel is decoded.

    Raises:
        ImageError: CORRUPT_IMAGE, TOO_MANY_PIXELS.
    """
    if width < 1 or height < 1:
        raise ImageError(ErrorCode.CORRUPT_IMAGE, f"the header says {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError(
            ErrorCode.TOO_MANY_PIXELS,
            f"{width} x {height} = {width * height:,} pixels, more than {max_pixels:,}",
        )


def to_rgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    """Convert a loaded image to mode RGB, and say by which rule its values became 8 bits.

    The rule is None where they were 8 bits already.

    Raises:
        ImageError: NONFINITE_PIXELS, or FORMAT_NOT_ALLOWED for a mode without a rule.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, None
    if image.mode.startswith("I"):
        return grey(*_grey_from_integers(np.asarray(image)))
    if image.mode == "F":
        return grey(*_grey_from_floats(np.asarray(image)))
    if image.mode in _ALPHA or (image.mode in _PLAIN and "transparency" in image.info):
        return _over_white(image), None
    if image.mode in _PLAIN:
        return image.convert("RGB"), None
    raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, f"pixel mode {image.mode} has no conversion to RGB")


def to_mask(image: Image.Image) -> Image.Image:
    """Convert a loaded image to a mask: 255 where it is neither 0, black, palette entry 0 nor transparent."""
    values = np.asarray(image)
    if values.ndim == 3:
        has_alpha = values.shape[2] in (2, 4)
        colours = values[..., :-1] if has_alpha else values
        opaque = values[..., -1] > 0 if has_alpha else np.ones(values.shape[:2], np.bool_)
        values = np.logical_and(colours.any(axis=2), opaque)
    return Image.fromarray(np.where(values, 255, 0).astype(np.uint8))


def grey(values: NDArray[np.uint8], rule: str) -> tuple[Image.Image, str]:
    """Make a grey picture in mode RGB, and pass the rule on."""
    return Image.fromarray(values).convert("RGB"), rule


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
    return white


def _grey_from_integers(values: NDArray[Any]) -> tuple[NDArray[np.uint8], str]:
    low, high = int(values.min()), int(values.max())
    if low < 0:
        return min_max(values.astype(np.float64), low, high)
    full = 2 ** max(high.bit_length(), 8) - 1
    return np.asarray(np.rint(values * (255.0 / full)), np.uint8), f"0..{full}"


def _grey_from_floats(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], str]:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low) or not np.isfinite(high):  # NaN spreads to min and max
        raise ImageError(ErrorCode.NONFINITE_PIXELS, "float pixels hold NaN or infinity")
    if low >= 0 and high <= 1:
        return np.asarray(np.rint(values * 255.0), np.uint8), "0..1"
    if low >= 0 and high <= 255:
        return np.asarray(np.rint(values), np.uint8), "0..255"
    return min_max(values.astype(np.float64), low, high)


def min_max(values: NDArray[np.float64], low: float, high: float) -> tuple[NDArray[np.uint8], str]:
    """Stretch values from `low` to black and `high` to white; constant ones are mid-grey."""
    rule = f"min-max {low:g}..{high:g}"
    if high == low:
        return np.full(values.shape, _MID_GREY, np.uint8), rule
    scaled = (values - low) * (255.0 / (high - low))
    return np.asarray(np.rint(np.clip(scaled, 0.0, 255.0)), np.uint8), rule
