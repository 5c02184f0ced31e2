"""A DICOM file to an upright 8-bit picture, by the file's own window. Needs the extra `camray[dicom]`.

    stored values ──modality LUT or slope, intercept──> values ──window, or VOI LUT, or min-max──> 0..255

* the first frame; the first of several windows; a window counts before a VOI LUT
* neither, 8 bits and no rescaling: as they are; deeper: from the smallest to the largest value, padding apart
* MONOCHROME1 is turned over, so that large values are dark in the file's sense and bright in none
* colour (RGB, YBR, palette): as RGB; deeper than 8 bits: divided by the largest value the bits can hold
* the rows are taken as stored and the pixels as square; overlays and presentation states are left alone
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camray.errors import ErrorCode, ImageError, printable
from camray.image.pixels import check_size, grey, min_max

if TYPE_CHECKING:
    from pydicom import Dataset

EXTRA = "pip install camray[dicom]"
_FIRST_VR = frozenset((b"UL", b"OB", b"UI", b"CS", b"DA", b"TM", b"LO", b"SH", b"IS"))
_DEFLATED = b"1.2.840.10008.1.2.1.99"


def is_dicom(head: bytes) -> bool:
    """Tell DICOM by its mark, or, where the preamble is missing, by a first element of group 2 or 8."""
    if head[128:132] == b"DICM":
        return True
    if head[:2] in (b"\x02\0", b"\x08\0"):
        length = int.from_bytes(head[4:8], "little")  # where the element has no VR
        return head[4:6] in _FIRST_VR or (head[3:4] == b"\0" and 0 < length < 1024 and length % 2 == 0)
    return head[:2] in (b"\0\x02", b"\0\x08") and head[4:6] in _FIRST_VR


def read_dicom(content: bytes, max_pixels: int) -> tuple[Image.Image, str | None]:
    """Give the picture in mode RGB, and the rule its values followed (None: they were 8 bits already).

    Raises:
        ImageError: no pydicom, no codec, no picture inside, too many pixels, or not finite ones.
        Exception: whatever pydicom raises of a damaged file.
    """
    pydicom = _pydicom()
    if _DEFLATED in content[:4096]:
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, "DICOM with a deflated data set is not decoded")
    data = pydicom.dcmread(io.BytesIO(content), force=True)
    if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError(ErrorCode.NOT_AN_IMAGE, printable(f"DICOM without pixels ({_kind(data)})"))
    check_size(int(data.get("Columns") or 0), int(data.get("Rows") or 0), max_pixels)
    _check_codec(data)
    values = pydicom.pixels.pixel_array(data, index=0)
    if values.ndim == 3 or str(data.get("PhotometricInterpretation")) == "PALETTE COLOR":
        return _colour(data, values)
    return _grey(data, values)


@cache
def _pydicom() -> Any:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, f"DICOM needs an extra: {EXTRA}") from None
    warnings.filterwarnings("ignore", module=r"pydicom\.")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # what matters, it also raises
    return pydicom


def _kind(data: Dataset) -> str:
    identifier = data.get("SOPClassUID") or getattr(data, "file_meta", {}).get("MediaStorageSOPClassUID")
    return str(getattr(identifier, "name", None) or "unknown kind")


def _check_codec(data: Dataset) -> None:
    """Refuse what no installed codec can unpack; a file without a header is told by its encoding."""
    pydicom = _pydicom()
    if "TransferSyntaxUID" not in data.file_meta:
        implicit, little = data.original_encoding
        known = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
        data.file_meta.TransferSyntaxUID = known if little else pydicom.uid.ExplicitVRBigEndian
    syntax = data.file_meta.TransferSyntaxUID
    try:
        missing = "" if pydicom.pixels.get_decoder(syntax).is_available else "; no codec for it is installed"
    except NotImplementedError:
        missing = " is not decoded"
    depth = int(data.get("BitsStored") or 8)
    if syntax == pydicom.uid.JPEGExtended12Bit and depth > 8 and not _has_wide_jpeg():
        missing = f" of {depth} bits; no codec for it is installed"
    if missing:
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, printable(f"DICOM, {syntax.name}{missing}"))


def _has_wide_jpeg() -> bool:
    """Tell whether a JPEG codec for 12 bits is there beside Pillow's."""
    decoder = _pydicom().pixels.get_decoder(_pydicom().uid.JPEGExtended12Bit)
    return any(plugin != "pillow" for plugin in decoder.available_plugins)


def _colour(data: Dataset, values: NDArray[Any]) -> tuple[Image.Image, str | None]:
    full = 2 ** int(data.get("BitsStored") or 8) - 1
    if values.ndim == 2:
        values = _pydicom().pixels.apply_color_lut(values, data)
        full = int(np.iinfo(values.dtype).max)
    if full <= 255:
        return Image.fromarray(np.ascontiguousarray(values, np.uint8)), None
    scaled = np.rint(np.clip(values * (255.0 / full), 0, 255)).astype(np.uint8)
    return Image.fromarray(scaled), f"0..{full}"


def _grey(data: Dataset, stored: NDArray[Any]) -> tuple[Image.Image, str]:
    values = _rescaled(data, stored)
    if not np.isfinite(values).all():
        raise ImageError(ErrorCode.NONFINITE_PIXELS, "DICOM pixels hold NaN or infinity")
    window = _window(data)
    if window is not None:
        out, rule = apply_window(values, *window), f"window {window[0]:g}/{window[1]:g}"
    elif data.get("VOILUTSequence"):
        out, rule = _voi_lut(data, values)
    elif stored.dtype == np.uint8 and np.array_equal(values, stored):
        out, rule = stored, "0..255"
    else:
        inside = values[stored != data.PixelPaddingValue] if "PixelPaddingValue" in data else values
        inside = inside if inside.size else values
        out, rule = min_max(values, float(inside.min()), float(inside.max()))
    if str(data.get("PhotometricInterpretation")) == "MONOCHROME1":
        out, rule = 255 - out, f"{rule}, inverted"
    return grey(np.ascontiguousarray(out), rule)


def apply_window(values: NDArray[Any], center: float, width: float, function: str) -> NDArray[np.uint8]:
    """Apply a window to values: 0..255, by the functions of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        share = 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -500, 500)))
    elif function == "LINEAR_EXACT":
        share = (values - center) / width + 0.5
    else:  # LINEAR, the default; a width of 1 is a step
        share = (values - (center - 0.5)) / max(width - 1, 1e-9) + 0.5
    return np.asarray(np.rint(np.clip(share, 0, 1) * 255), np.uint8)


def _window(data: Dataset) -> tuple[float, float, str] | None:
    """Find the first usable window: centre, width, function."""
    function = str(_fact(data, "VOILUTFunction") or "LINEAR").upper()
    center, width = (_first(_fact(data, name)) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or width < (1 if function == "LINEAR" else 1e-9):
        return None
    return center, width, function


def _rescaled(data: Dataset, stored: NDArray[Any]) -> NDArray[Any]:
    if data.get("ModalityLUTSequence"):
        return _look_up(data, data.ModalityLUTSequence[0], stored)[0]
    slope, intercept = (_first(_fact(data, name)) for name in ("RescaleSlope", "RescaleIntercept"))
    return stored.astype(np.float64) * (1.0 if slope is None else slope) + (intercept or 0.0)


def _voi_lut(data: Dataset, values: NDArray[Any]) -> tuple[NDArray[np.uint8], str]:
    looked_up, full = _look_up(data, data.VOILUTSequence[0], values)
    return np.asarray(np.rint(np.clip(looked_up * (255.0 / full), 0, 255)), np.uint8), "voi lut"


def _look_up(data: Dataset, item: Dataset, values: NDArray[Any]) -> tuple[NDArray[np.float64], int]:
    """Pass values through a table; give also the largest value its bits can hold.

    (pydicom 3.0's own look-up counts modulo 256 where a long table has entries of 8 bits.)
    """
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count or 2**16
    if first >= 2**15 and values.min() < 0:  # a negative number, read without its sign
        first -= 2**16
    entries = item.LUTData
    if isinstance(entries, bytes):
        order = "<" if data.original_encoding[1] else ">"
        entries = np.frombuffer(entries, f"{order}u2" if len(entries) >= 2 * count else "u1")
    table = np.asarray(entries, np.float64)[:count]
    place = np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)
    return table[place], 2 ** (bits if 8 <= bits <= 16 else 16) - 1


def _first(value: Any) -> float | None:
    """Give the first of one or several numbers; None where there is none."""
    if value is not None and not isinstance(value, str | float | int):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _fact(data: Dataset, name: str) -> Any:
    """Look a fact up: in the file, or in the functional groups of its first frame (enhanced files)."""
    found = (place.get(name) for place in _places(data))
    return next((value for value in found if value is not None), None)


def _places(data: Dataset) -> Iterator[Dataset]:
    yield data
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in (data.get(name) or [])[:1]:
            for element in group:
                if element.VR == "SQ":
                    yield from element.value[:1]
