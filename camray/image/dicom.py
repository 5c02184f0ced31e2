"""A DICOM file to an upright 8-bit picture, by the file's own window. Needs the extra `camray[dicom]`.

    stored values ──modality LUT or slope, intercept──> values ──window, or VOI LUT, or full range──> 0..255

* the frame asked for; the first of several windows; a window counts before a VOI LUT
* neither, up to 8 bits and no rescaling: by the largest value its bits can hold (8 bits: as they are);
  deeper: from the smallest to the largest value, padding apart
* MONOCHROME1 is turned over, so that large values are dark in the file's sense and bright in none
* colour (RGB, YBR, palette): as RGB, by the largest value the bits can hold
* bits outside `BitsStored` (overlays of old files) are no part of a value
* the rows are taken as stored and the pixels as square; overlays and presentation states are left alone

Each encoding has one codec, whatever else is installed: a record does not depend on a machine's packages.
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
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_WITH_PIXELS = (" Image ", " Dose ", " Map ", " Volume ", " Segmentation ")  # in names of SOP classes
_CODECS = {  # of pydicom's keyword of an encoding, its plugin; the rest are unpacked by pydicom itself
    "JPEGBaseline8Bit": "pillow",
    "JPEGExtended12Bit": "gdcm",
    "JPEGLossless": "gdcm",
    "JPEGLosslessSV1": "gdcm",
    "JPEGLSLossless": "gdcm",
    "JPEGLSNearLossless": "gdcm",
    "JPEG2000Lossless": "pylibjpeg",
    "JPEG2000": "pylibjpeg",
    "HTJ2KLossless": "pylibjpeg",
    "HTJ2KLosslessRPCL": "pylibjpeg",
    "HTJ2K": "pylibjpeg",
    "RLELossless": "pydicom",
}
_LOSSY = ("JPEGLSNearLossless", "JPEG2000", "HTJ2K")
_PACKAGES = {"gdcm": "python-gdcm", "pylibjpeg": "pylibjpeg-openjpeg"}
_YBR = np.array(
    [[1, 0, 1.402], [1, -0.114 * 1.772 / 0.587, -0.299 * 1.402 / 0.587], [1, 1.772, 0]], np.float32
)
"""PS3.3 C.7.6.3.1.2: rows give R, G, B of Y and of Cb and Cr about their middle."""


def is_dicom(head: bytes) -> bool:
    """Tell DICOM by its mark, or, where the preamble is missing, by a first element of group 2 or 8."""
    if head[128:132] == b"DICM":
        return True
    if head[:2] in (b"\x02\0", b"\x08\0"):
        length = int.from_bytes(head[4:8], "little")  # where the element has no VR
        return head[4:6] in _FIRST_VR or (head[3:4] == b"\0" and 0 < length < 1024 and length % 2 == 0)
    return head[:2] in (b"\0\x02", b"\0\x08") and head[4:6] in _FIRST_VR


def read_dicom(content: bytes, max_pixels: int, frame: int = 0) -> tuple[Image.Image, str | None]:
    """Give a frame in mode RGB, and the rule its values followed (None: they were 8 bits already).

    Raises:
        ImageError: no pydicom, no codec, no picture inside, too many pixels, or not finite ones; NO_PIXELS
            of an object that is no image by its SOP class.
        Exception: whatever pydicom raises of a damaged file.
    """
    data = _opened(content)
    if not any(name in data for name in _PIXELS):
        code = ErrorCode.NOT_AN_IMAGE if _should_have_pixels(data) else ErrorCode.NO_PIXELS
        raise ImageError(code, printable(f"DICOM without pixels ({_kind(data)})"))
    check_size(int(data.get("Columns") or 0), int(data.get("Rows") or 0), max_pixels)
    values, space = _stored(data, frame)
    if space in ("MONOCHROME1", "MONOCHROME2") and values.ndim == 2:
        return _grey(data, values, frame)
    if space == "PALETTE COLOR" and values.ndim == 2:
        return _scaled(*_palette(data, values))
    if space.startswith(("RGB", "YBR")) and values.shape[2:] == (3,):
        return _colour(values, int(data.BitsStored), space)
    raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, printable(f"DICOM, {space} of this shape is not decoded"))


def count_frames(content: bytes) -> int:
    """Give the number of frames that the header claims; at least 1.

    Raises:
        ImageError: no pydicom.
        Exception: as `read_dicom`.
    """
    return max(1, int(_opened(content).get("NumberOfFrames") or 1))


def _opened(content: bytes) -> Dataset:
    pydicom = _pydicom()
    if _DEFLATED in content[:4096]:
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, "DICOM with a deflated data set is not decoded")
    data: Dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    return data


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
    return str(getattr(_sop_class(data), "name", None) or "unknown kind")


def _sop_class(data: Dataset) -> Any:
    return data.get("SOPClassUID") or getattr(data, "file_meta", {}).get("MediaStorageSOPClassUID")


def _should_have_pixels(data: Dataset) -> bool:
    """Tell a damaged image from a report, a presentation state, a directory: by its SOP class.

    One that no standard names is an image where it has a size.
    """
    identifier, kind = _sop_class(data), f" {_kind(data)} "
    if identifier and str(identifier) not in kind:
        return any(word in kind for word in _WITH_PIXELS) and "Surface Segmentation" not in kind
    return not identifier or "Rows" in data


# ── stored values ────────────────────────────────────────────────────────────────────────────────


def _stored(data: Dataset, frame: int) -> tuple[NDArray[Any], str]:
    """Unpack a frame: its values as stored, (H, W) or (H, W, 3), and the colour space they are in."""
    if int(data.get("SamplesPerPixel") or 1) > 1:
        data.PixelRepresentation = 0  # colour has no sign
    decoder, codec = _decoder(data)
    said = {"as_rgb": False, "correct_unused_bits": False, "decoding_plugin": codec or ""}
    if codec == "gdcm" and "JPEGLS" not in decoder.UID.keyword:
        said["bits_stored"] = int(data.BitsAllocated)  # of fewer it ends the process
    values, facts = decoder.as_array(data, index=frame, **said)
    space = str(facts["photometric_interpretation"])
    if codec == "pillow" and space.startswith("YBR") and _is_rgb_already(data, frame):
        space = "RGB"
    return (_own_bits(data, values, decoder.UID.keyword) if "PixelData" in data else values), space


def _decoder(data: Dataset) -> tuple[Any, str | None]:
    """Choose pydicom's decoder and its plugin; a file without a header is told by its encoding.

    Raises:
        ImageError: FORMAT_NOT_ALLOWED, with the encoding and the package that reads it.
    """
    pydicom = _pydicom()
    if "TransferSyntaxUID" not in data.file_meta:
        implicit, little = data.original_encoding
        known = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
        data.file_meta.TransferSyntaxUID = known if little else pydicom.uid.ExplicitVRBigEndian
    syntax = data.file_meta.TransferSyntaxUID
    codec = _CODECS.get(syntax.keyword)
    if syntax == pydicom.uid.JPEGExtended12Bit and int(data.BitsStored) > 8:
        # GDCM reads any JPEG by its own header; pydicom would keep these from it, other than lossless ones
        data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLossless
    elif syntax == pydicom.uid.JPEGExtended12Bit:
        codec = "pillow"
    try:
        decoder = pydicom.pixels.get_decoder(data.file_meta.TransferSyntaxUID)
    except NotImplementedError:
        raise _not_decoded(syntax, " is not decoded") from None
    if codec is None and syntax.is_encapsulated:
        raise _not_decoded(syntax, " is not decoded")
    if codec is not None and codec not in decoder.available_plugins:
        raise _not_decoded(syntax, f" needs {_PACKAGES.get(codec, codec)}: {EXTRA}")
    return decoder, codec


def _not_decoded(syntax: Any, why: str) -> ImageError:
    return ImageError(ErrorCode.FORMAT_NOT_ALLOWED, printable(f"DICOM, {syntax.name}{why}"))


def _is_rgb_already(data: Dataset, frame: int) -> bool:
    """Tell whether Pillow turned a JPEG into RGB: it does where an Adobe marker says what is inside."""
    frames = int(data.get("NumberOfFrames") or 1)
    encoded = _pydicom().encaps.get_frame(data.PixelData, frame, number_of_frames=frames)
    with Image.open(io.BytesIO(encoded), formats=("JPEG",)) as image:
        return "adobe_transform" in image.info


def _own_bits(data: Dataset, values: NDArray[Any], syntax: str) -> NDArray[Any]:
    """Keep the bits of the value alone, with its sign: those beside it may hold an overlay, or anything."""
    width, bits = values.dtype.itemsize * 8, int(data.BitsStored)
    if int(data.BitsAllocated) == 1 or bits >= width:
        return values
    if syntax in _LOSSY and values.dtype.kind == "u":  # too large is what the loss made too large
        return np.asarray(np.minimum(values, 2**bits - 1))
    has_codec = _CODECS.get(syntax, "pydicom") != "pydicom"  # those keep the value in the lower bits
    high = bits - 1 if has_codec else int(data.get("HighBit", bits - 1))
    if not bits - 1 <= high < width:
        return values
    return np.asarray(np.right_shift(np.left_shift(values, width - 1 - high), width - bits))


# ── stored values to a picture ───────────────────────────────────────────────────────────────────


def _colour(values: NDArray[Any], bits: int, space: str) -> tuple[Image.Image, str | None]:
    full = 2**bits - 1
    if space in ("YBR_FULL", "YBR_FULL_422"):
        middle = np.array([0, 2 ** (bits - 1), 2 ** (bits - 1)], np.float32)
        values = np.clip(np.floor((values.astype(np.float32) - middle) @ _YBR.T + 0.5), 0, full)
    elif space != "RGB":
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, printable(f"DICOM, {space} is not decoded"))
    return _scaled(values, full)


def _palette(data: Dataset, values: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Look the colours up; give also the largest value that their bits can hold."""
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    if f"{names[0]}Data" in data:
        tables = [
            _look_up(data, data[f"{name}Descriptor"].value, data[f"{name}Data"].value, values)
            for name in names
        ]
        return np.stack([table for table, _ in tables], -1), tables[0][1]
    count, _, bits = (int(number) for number in data[f"{names[0]}Descriptor"].value)
    if bits == 8 and count not in range(1, 257):  # pydicom counts modulo 256 there
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, f"DICOM, a segmented palette of {count} entries")
    colours = _pydicom().pixels.apply_color_lut(values.astype(np.int32), data)
    return colours[..., :3], 2**bits - 1


def _scaled(values: NDArray[Any], full: int) -> tuple[Image.Image, str | None]:
    """Make colours of 0..`full` a picture."""
    if full == 255:
        return Image.fromarray(np.ascontiguousarray(np.clip(values, 0, 255), np.uint8)), None
    scaled = np.rint(np.clip(values * (255.0 / full), 0, 255)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(scaled)), f"0..{full}"


def _grey(data: Dataset, stored: NDArray[Any], frame: int) -> tuple[Image.Image, str]:
    values = _rescaled(data, stored, frame)
    if not np.isfinite(values).all():
        raise ImageError(ErrorCode.NONFINITE_PIXELS, "DICOM pixels hold NaN or infinity")
    window, bits = _window(data, frame), int(data.get("BitsStored") or 64)
    if window is not None:
        out, rule = apply_window(values, *window), f"window {window[0]:g}/{window[1]:g}"
    elif data.get("VOILUTSequence"):
        out, rule = _voi_lut(data, values)
    elif bits <= 8 and stored.dtype.kind == "u" and np.array_equal(values, stored):
        full = 2**bits - 1
        out, rule = np.asarray(np.rint(values * (255 / full)), np.uint8), f"0..{full}"
    else:
        inside = values[~_is_padding(data, stored)]
        inside = inside if inside.size else values
        out, rule = min_max(values, float(inside.min()), float(inside.max()))
    if str(data.get("PhotometricInterpretation")) == "MONOCHROME1":
        out, rule = 255 - out, f"{rule}, inverted"
    return grey(np.ascontiguousarray(out), rule)


def _is_padding(data: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell where there is no picture: the padding value, or up to the limit of its range."""
    if data.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, np.bool_)
    limit = data.get("PixelPaddingRangeLimit")
    ends = sorted(
        int(end) for end in (data.PixelPaddingValue, data.PixelPaddingValue if limit is None else limit)
    )
    return np.asarray((stored >= ends[0]) & (stored <= ends[1]))


def apply_window(values: NDArray[Any], center: float, width: float, function: str) -> NDArray[np.uint8]:
    """Apply a window to values: 0..255, by the functions of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        share = 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -500, 500)))
    elif function == "LINEAR_EXACT":
        share = (values - center) / width + 0.5
    else:  # LINEAR, the default; a width of 1 is a step
        share = (values - (center - 0.5)) / max(width - 1, 1e-9) + 0.5
    return np.asarray(np.rint(np.clip(share, 0, 1) * 255), np.uint8)


def _window(data: Dataset, frame: int) -> tuple[float, float, str] | None:
    """Find the first usable window: centre, width, function."""
    function = str(_fact(data, frame, "VOILUTFunction") or "LINEAR").upper()
    center, width = (_first(_fact(data, frame, name)) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or width < (1 if function == "LINEAR" else 1e-9):
        return None
    return center, width, function


def _rescaled(data: Dataset, stored: NDArray[Any], frame: int) -> NDArray[Any]:
    if data.get("ModalityLUTSequence"):
        return _look_up(data, *_table(data.ModalityLUTSequence[0]), stored)[0]
    slope, intercept = (_first(_fact(data, frame, name)) for name in ("RescaleSlope", "RescaleIntercept"))
    return stored.astype(np.float64) * (1.0 if slope is None else slope) + (intercept or 0.0)


def _voi_lut(data: Dataset, values: NDArray[Any]) -> tuple[NDArray[np.uint8], str]:
    looked_up, full = _look_up(data, *_table(data.VOILUTSequence[0]), values)
    return np.asarray(np.rint(np.clip(looked_up * (255.0 / full), 0, 255)), np.uint8), "voi lut"


def _table(item: Dataset) -> tuple[Any, Any]:
    return item.LUTDescriptor, item.LUTData


def _look_up(
    data: Dataset, descriptor: Any, entries: Any, values: NDArray[Any]
) -> tuple[NDArray[np.float64], int]:
    """Pass values through a table; give also the largest value its bits can hold.

    (pydicom 3.0's own look-ups count modulo 256 where a long table has entries of 8 bits, and take the
    palettes of big-endian files for little-endian ones.)
    """
    count, first, bits = (int(number) for number in descriptor)
    count = count or 2**16
    if first >= 2**15 and values.min() < 0:  # a negative number, read without its sign
        first -= 2**16
    if isinstance(entries, bytes):
        words = np.frombuffer(entries[: len(entries) // 2 * 2], "<u2" if data.original_encoding[1] else ">u2")
        is_long = len(words) >= count
        entries, bits = (words, bits) if is_long else (words.astype("<u2").view(np.uint8), 8)
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


def _fact(data: Dataset, frame: int, name: str) -> Any:
    """Look a fact up: in the file, or in the functional groups of its frame (enhanced files)."""
    found = (place.get(name) for place in _places(data, frame))
    return next((value for value in found if value is not None), None)


def _places(data: Dataset, frame: int) -> Iterator[Dataset]:
    yield data
    shared = data.get("SharedFunctionalGroupsSequence") or []
    own = data.get("PerFrameFunctionalGroupsSequence") or []
    for group in (*shared[:1], *own[frame : frame + 1]):
        for element in group:
            if element.VR == "SQ":
                yield from element.value[:1]
