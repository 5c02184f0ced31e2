"""Images of any number of bands, for networks that take them: every band as it is, three of them to look at.

    bytes ──> Bands (H, W, C)  ──fit_bands──>  float32 (height, width, C) of the input
                               ──picture────>  uint8 RGB of the bands that `--bands` names

Unsigned integers become shares of the largest that their type holds, of 16 bits 0..65535; signed ones and
floats stay as they are, so that mean and std say what the network was trained with. Of a TIFF the samples of
a pixel are its bands, or its pages where each has one; of a NumPy array the last axis, or the first. GDAL's
nodata value becomes 0.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camray.config import InputSpec
from camray.errors import ErrorCode, ImageError
from camray.image.fit import Fit, fit_image
from camray.image.pixels import check_bands, is_nodata
from camray.image.tiff import is_tiff, tiff_bands

_NPY = b"\x93NUMPY"
_FLAT = 128  # grey of a picture whose values are all the same
_STRETCH = (2, 98)  # percent: what is black and what is white of a picture of deeper values

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Bands:
    """All bands of an upright image, (H, W, C); `is_8_bit` says that they are pictures as they are."""

    values: Floats
    format: str
    rule: str
    is_8_bit: bool


def is_array(content: bytes) -> bool:
    """Tell a NumPy array by its first bytes."""
    return content.startswith(_NPY)


def read_bands(content: bytes, max_pixels: int, count: int, frame: int | None) -> Bands | None:
    """Read the `count` bands of a TIFF or a NumPy array; None of any other format.

    Raises:
        ImageError: another number of bands, NaN or infinity, a type or property that is not read.
        Exception: whatever a damaged file makes numpy or a codec raise.
    """
    if is_tiff(content):
        samples, bits, nodata = tiff_bands(content, count, max_pixels, frame)
        return as_bands(samples, count, "TIFF", bits, nodata)
    if is_array(content):
        return as_bands(_array(content, count, max_pixels), count, "NPY")
    return None


def as_bands(
    samples: NDArray[np.generic], count: int, name: str, bits: int | None = None, nodata: float | None = None
) -> Bands:
    """Make bands of samples (H, W, C), integers of `bits` bits.

    Raises:
        ImageError: another number of bands, NaN or infinity.
    """
    if samples.shape[2] != count:
        said = f"{name} of {samples.shape[2]} bands, and the model takes {count}"
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, said)
    said = f"{count} bands of {samples.dtype}"
    values = samples.astype(np.float32)
    empty = is_nodata(samples, nodata)
    if empty is not None:
        values[empty] = 0
    if not np.isfinite(values).all():
        raise ImageError(ErrorCode.NONFINITE_PIXELS, "bands hold NaN or infinity")
    if samples.dtype.kind == "u":
        largest = 2 ** (bits or 8 * samples.dtype.itemsize) - 1
        values /= largest
        said += f" / {largest}"
    said += "" if empty is None else f", nodata {empty.mean():.3f}"
    return Bands(values, name, said, samples.dtype == np.uint8)


def fit_bands(bands: Bands, fit: Fit, spec: InputSpec) -> Floats:
    """Resize and crop every band to the model's input: (height, width, C)."""
    planes = [
        fit_image(Image.fromarray(plane), fit, spec) for plane in np.moveaxis(bands.values, 2, 0).copy()
    ]
    return np.stack([np.asarray(plane, np.float32) for plane in planes], axis=2)


def picture(values: Floats, shown: Sequence[int], is_8_bit: bool) -> NDArray[np.uint8]:
    """Show three bands of (H, W, C), or one in grey, numbered from 1: uint8 (H, W, 3).

    What is deeper than 8 bits is stretched from its 2nd percentile to its 98th, the same for all three.
    """
    chosen = values[..., [number - 1 for number in shown]]
    low, high = (0.0, 1.0) if is_8_bit else np.percentile(chosen, _STRETCH)
    if high <= low:
        return np.full((*chosen.shape[:2], 3), _FLAT, np.uint8)
    levels = np.rint(np.clip((chosen - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels, (*levels.shape[:2], 3)))


def _array(content: bytes, count: int, max_pixels: int) -> NDArray[np.generic]:
    """Read a NumPy array as (H, W, C); its bands are its last axis or its first, whichever has `count`.

    Raises:
        ImageError: no numbers, another shape, or fewer bytes than its header says.
    """
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, kind = read(file)
    named = " x ".join(map(str, shape)) or "one number"
    if kind.hasobject or kind.kind not in "uifb":
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, f"NumPy array of {kind}: no numbers")
    sides = (*shape, 1) if len(shape) == 2 else shape
    axes = {axis for axis in (0, 2) if len(sides) == 3 and sides[axis] == count}
    if len(shape) == 3 and len(axes) == 2:
        said = f"NumPy array of {named}: its first axis or its last may be the bands"
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, said)
    if not axes or (len(shape) == 2 and 2 not in axes):
        said = f"NumPy array of {named}, and the model takes {count} bands"
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, said)
    height, width = sides[1:] if axes == {0} else sides[:2]
    check_bands(width, height, count, max_pixels)
    if len(content) - file.tell() < math.prod(shape) * kind.itemsize:
        raise ImageError(ErrorCode.TRUNCATED_IMAGE, f"NumPy array of {named}: its end is missing")
    found = np.ndarray(sides, kind, content, file.tell(), order="F" if is_fortran else "C")
    found = np.moveaxis(found, 0, 2) if axes == {0} else found
    return found.astype(np.uint8) if kind.kind == "b" else found
