"""Any pixel mode to 8-bit RGB, by one documented rule each. No image turns white or black in silence.

mode of the file                 becomes
RGB, YCbCr, CMYK, HSV            RGB as Pillow converts it (Adobe CMYK inverted where the file says so)
grey (L), 1-bit                  the grey three times; 1-bit is 0 or 255
palette                          its colours
alpha, one transparent colour    laid over white; an opaque alpha changes nothing
16- and 32-bit integers          divided by the smallest 2^k - 1 (k >= 8) that holds the largest value, so
                                 that 12 bits stored in 16 keep their brightness; with negatives: min-max
float                            0..1 times 255; within 0..255 as is, where some exceed 16; otherwise
                                 min-max (constant: mid-grey); NaN or infinity anywhere: refused
16 bits per channel in colour    the upper 8 bits, as Pillow reads them
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camray.errors import ErrorCode, ImageError

_PLAIN = ("RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX")
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_MID_GREY = 128
_DARK = 16  # of 255: floats that do not exceed it are no levels of grey, but shares with some above 1
_BANDS = 4  # numbers for each pixel that is allowed


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


def check_bands(width: int, height: int, bands: int, max_pixels: int) -> None:
    """Refuse a size before any pixel is decoded; many bands count as more pixels.

    Raises:
        ImageError: as `check_size`.
    """
    check_size(width, height, max_pixels)
    if width * height * bands > _BANDS * max_pixels:
        said = f"{width} x {height} pixels of {bands} bands: more than {_BANDS * max_pixels:,} numbers"
        raise ImageError(ErrorCode.TOO_MANY_PIXELS, said)


def to_rgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    """Convert a loaded image to mode RGB, and say by which rule its values became 8 bits.

    The rule is None where they were 8 bits already.

    Raises:
        ImageError: NONFINITE_PIXELS, or FORMAT_NOT_ALLOWED for a mode without a rule.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, None
    if image.mode.startswith(("I", "F")):
        return _deep_grey(np.asarray(image), image.info.get("transparency"))
    if image.mode in _ALPHA or (image.mode in _PLAIN and "transparency" in image.info):
        return _over_white(image), None
    if image.mode in _PLAIN:
        return image.convert("RGB"), None
    raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, f"pixel mode {image.mode} has no conversion to RGB")


def stored_channels(image: Image.Image) -> NDArray[Any]:
    """Give the channels (H, W, C) of a loaded image as they are stored.

    Raises:
        ImageError: FORMAT_NOT_ALLOWED for a palette, and for colours that are no channels.
    """
    if image.mode not in ("L", "LA", "RGB", "RGBA", "I;16") or "transparency" in image.info:
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, f"pixel mode {image.mode} is not read as bands")
    values = np.asarray(image)
    return values[..., None] if values.ndim == 2 else values


def to_mask(image: Image.Image | NDArray[Any]) -> Image.Image:
    """Convert a loaded image to a mask: 255 where it is neither 0, black, palette entry 0 nor transparent."""
    values = np.asarray(image)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim == 3:
        has_alpha = values.shape[2] in (2, 4)
        colours = values[..., :-1] if has_alpha else values
        opaque = values[..., -1] > 0 if has_alpha else np.ones(values.shape[:2], np.bool_)
        values = np.logical_and(colours.any(axis=2), opaque)
    return Image.fromarray(np.where(values, 255, 0).astype(np.uint8))


def grey(values: NDArray[np.uint8], rule: str) -> tuple[Image.Image, str]:
    """Make a grey picture in mode RGB, and pass the rule on."""
    return Image.fromarray(values).convert("RGB"), rule


def _deep_grey(values: NDArray[Any], transparent: int | None) -> tuple[Image.Image, str]:
    picture, rule = levels(values)
    if isinstance(transparent, int):  # of a PNG: one value that is not seen
        picture = np.where(values == transparent, np.uint8(255), picture)
    return grey(picture, rule)


def _over_white(image: Image.Image) -> Image.Image:
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
    return white


def from_samples(values: NDArray[Any], bits: int) -> tuple[Image.Image, str | None]:
    """Make an RGB picture of samples (H, W, bands): grey or RGB, with or without a last band of alpha.

    Raises:
        ImageError: NONFINITE_PIXELS.
    """
    colours = 1 if values.shape[2] < 3 else 3
    shown, rule = values[..., :colours], None
    if values.dtype.kind == "u" and (colours > 1 or bits <= 8):
        picture = eight_bits(shown, bits)
    else:
        picture, rule = levels(shown)
    alpha = values[..., colours] if values.shape[2] > colours else None
    return with_alpha(picture, alpha, bits, "A"), rule


def eight_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Keep the upper 8 bits of unsigned samples; stretch those of fewer."""
    if bits >= 8:
        return (values >> (bits - 8)).astype(np.uint8)
    return np.asarray(np.rint(values * (255 / (2**bits - 1))), np.uint8)


def with_alpha(picture: NDArray[np.uint8], alpha: NDArray[Any] | None, bits: int, kind: str) -> Image.Image:
    """Make RGB of a picture (H, W, 1 or 3), laid over white where there is an alpha (H, W)."""
    colours = np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))
    if alpha is None:
        return Image.fromarray(colours)
    cover = eight_bits(alpha, bits) if alpha.dtype.kind == "u" else levels(alpha)[0]
    four = np.concatenate([colours, cover[..., None]], axis=2)
    return _over_white(Image.frombytes("RGB" + kind, (four.shape[1], four.shape[0]), four.tobytes()))


def levels(values: NDArray[Any], nodata: float | None = None) -> tuple[NDArray[np.uint8], str]:
    """Bring values of any shape to 0..255, and say by which rule; `nodata` has no part in it and is black.

    Raises:
        ImageError: NONFINITE_PIXELS.
    """
    empty = is_nodata(values, nodata)
    seen = values if empty is None else values[~empty]
    if seen.size == 0:
        return np.zeros(values.shape, np.uint8), "nodata everywhere"
    low, high = seen.min(), seen.max()
    if not np.isfinite(low) or not np.isfinite(high):  # NaN spreads to min and max
        raise ImageError(ErrorCode.NONFINITE_PIXELS, "float pixels hold NaN or infinity")
    if empty is not None:
        values = np.where(empty, low, values)
    of = _of_integers if values.dtype.kind in "iu" else _of_floats
    out, rule = of(values, low.item(), high.item())
    if empty is None:
        return out, rule
    return np.where(empty, np.uint8(0), out), f"{rule}, nodata {empty.mean():.3f}"


def is_nodata(values: NDArray[Any], nodata: float | None) -> NDArray[np.bool_] | None:
    """Find the values that stand for none; None where there are none of them."""
    if nodata is None:
        return None
    if math.isnan(nodata):
        found = np.isnan(values)
    elif values.dtype.kind == "f":
        found = np.isclose(values, values.dtype.type(nodata), rtol=1e-6, atol=0)
    else:
        found = values == nodata
    return found if found.any() else None


def _of_integers(values: NDArray[Any], low: int, high: int) -> tuple[NDArray[np.uint8], str]:
    if low < 0:
        return min_max(values.astype(np.float64), low, high)
    full = 2 ** max(high.bit_length(), 8) - 1
    return np.asarray(np.rint(values * (255.0 / full)), np.uint8), f"0..{full}"


def _of_floats(values: NDArray[Any], low: float, high: float) -> tuple[NDArray[np.uint8], str]:
    if low >= 0 and high <= 1:
        return np.asarray(np.rint(values * 255.0), np.uint8), "0..1"
    if low >= 0 and _DARK < high <= 255:
        return np.asarray(np.rint(values), np.uint8), "0..255"
    return min_max(values.astype(np.float64), low, high)


def min_max(values: NDArray[np.float64], low: float, high: float) -> tuple[NDArray[np.uint8], str]:
    """Stretch values from `low` to black and `high` to white; constant ones are mid-grey."""
    rule = f"min-max {low:g}..{high:g}"
    if high == low:
        return np.full(values.shape, _MID_GREY, np.uint8), rule
    scaled = (values - low) * (255.0 / (high - low))
    return np.asarray(np.rint(np.clip(scaled, 0.0, 255.0)), np.uint8), rule
