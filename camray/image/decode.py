"""Encoded bytes to the model's input, exactly as timm's evaluation transform would see the upright image.

    bytes ──open──> header: format allowed? pixels bounded? ──load──> upright (EXIF) ──pixels──> RGB
          ──fit──> uint8 (H, W, 3) of the input, its geometry in the source, boxes, mask

The format is decided by content, never by name. Animated files give their first frame. EXIF orientation is
applied, a broken EXIF block is ignored; XMP and colour profiles are ignored. A truncated image is an error,
never a half-grey picture; only a JPEG whose end mark alone is missing is shown (`jpeg`). The conversion of
pixel modes is in `pixels`, the geometry in `fit`; DICOM and TIFF go their own ways, in `dicom` and `tiff`;
HEIC, JPEG XL and JPEG 2000 in `extras`. Boxes and mask are taken to be of the upright image, as a browser or
an annotation tool shows it.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import io
import logging
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from camray.archive import sniff
from camray.config import InputSpec
from camray.errors import ErrorCode, ImageError, printable
from camray.image import extras, jpeg
from camray.image.bands import Bands, as_bands, fit_bands, read_bands
from camray.image.bands import picture as show_bands
from camray.image.dicom import is_dicom, read_dicom
from camray.image.fit import FILTERS, fit_image, geometry, plan_fit
from camray.image.frames import seek_frame
from camray.image.pixels import check_size, stored_channels, to_mask, to_rgb
from camray.image.tiff import is_tiff, read_tiff, read_tiff_mask
from camray.records import Boxes, Geometry

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "PPM", "AVIF")
"""What Pillow may try (its JPEG opens MPO too). Most of its security history lies in the other decoders."""


def silence_libtiff() -> bool:
    """Take away libtiff's message handlers in this process; tell whether it worked.

    One fuzzed TIFF can print hundreds of lines, and a cluster forwards each to the driver's terminal. What
    matters of it arrives as an exception anyway. Works on the copy that Pillow's wheels bring along, or else
    on the system's.
    """
    site = Path(PIL.__file__).parent
    bundled = [*site.parent.glob("pillow.libs/libtiff*"), *site.glob(".dylibs/libtiff*")]
    name = str(bundled[0]) if bundled else ctypes.util.find_library("tiff")
    if name is None:
        return False
    try:
        library = ctypes.CDLL(name)  # already loaded by Pillow: this gives the same copy
        for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)
    except (OSError, AttributeError):
        return False
    return True


# Process-wide and set once: changing these per call would race between decoding threads.
# The size is checked here before any pixel is decoded, against the caller's own limit.
Image.MAX_IMAGE_PIXELS = None
ImageFile.LOAD_TRUNCATED_IMAGES = False
warnings.filterwarnings("ignore", module=r"PIL\.")  # a warning per bad EXIF block would flood the log
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it logs, it also raises
silence_libtiff()

_ORIENTATION_TAG = 0x0112
_XMP = ("xmp", "XML:com.adobe.xmp")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = tuple(_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))
_ASPECT_SLACK = 0.02  # between a mask and its image
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>|0x[0-9a-fA-F]{6,}")
_TRUNCATED = re.compile(r"truncat|unexpected end|not enough|incomplete|less than expected", re.IGNORECASE)

Edges = tuple[float, float, float, float]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Decoded:
    """One decoded image: pixels uint8 (H, W, 3), C-contiguous, at the model's input size."""

    pixels: NDArray[np.uint8]
    geometry: Geometry
    format: str
    pixel_rule: str | None = None  # how deep or medical values became 8 bits
    boxes: tuple[Edges, ...] = ()  # edges, in shares of the upright image's sides
    mask: NDArray[np.uint8] | None = None  # (H, W) of the input, 255 on the object
    bands: NDArray[np.float32] | None = None  # (H, W, C) of the input, where the model takes bands


def decode(
    content: bytes,
    spec: InputSpec,
    max_pixels: int,
    boxes: Boxes | None = None,
    mask: bytes | None = None,
    frame: int | None = None,
) -> Decoded:
    """Decode an image to the model's input; with what the archive says of it, fitted to the same.

    `frame` is one of those of `image.frames`; None: the first, of whatever kind.

    Raises:
        ImageError: with one of the image codes of `ErrorCode` and a printable one-line message. A mask that
            cannot be decoded, or is of another shape than the image, is one of them.
    """
    if spec.bands:
        return _decode_bands(content, spec, max_pixels, boxes, mask, frame)
    picture = _open_upright(content, max_pixels, spec if spec.fast_decode else None, frame)
    try:
        fit = plan_fit(*picture.size, spec)
        pixels = np.array(fit_image(picture.image, fit, spec))
    except (MemoryError, ValueError, OSError) as error:
        raise ImageError(ErrorCode.CORRUPT_IMAGE, f"cannot be resized: {_reason(error)}") from None
    where = geometry(*picture.size, fit, spec)
    return Decoded(
        np.ascontiguousarray(pixels),
        where,
        picture.format,
        picture.pixel_rule,
        _in_shares(boxes, where) if boxes else (),
        _mask_on_input(mask, where, spec, max_pixels) if mask is not None else None,
    )


def _decode_bands(
    content: bytes, spec: InputSpec, max_pixels: int, boxes: Boxes | None, mask: bytes | None,
    frame: int | None,
) -> Decoded:  # fmt: skip
    found = _open_bands(content, len(spec.mean), max_pixels, frame)
    height, width = found.values.shape[:2]
    fit = plan_fit(width, height, spec)
    where = geometry(width, height, fit, spec)
    values = fit_bands(found, fit, spec)
    return Decoded(
        show_bands(values, spec.bands, found.is_8_bit), where, found.format, found.rule,
        _in_shares(boxes, where) if boxes else (),
        _mask_on_input(mask, where, spec, max_pixels) if mask is not None else None,
        values,
    )  # fmt: skip


def _open_bands(content: bytes, count: int, max_pixels: int, frame: int | None) -> Bands:
    """Read all bands; of what Pillow reads, its channels."""
    found = _guarded(partial(read_bands, count=count, frame=frame), content, max_pixels)
    if found is not None:
        return found
    name = _reader_of(content, frame)[0]
    if name:
        raise ImageError(
            ErrorCode.FORMAT_NOT_ALLOWED, f"{name} is not read as bands: TIFF and NumPy arrays are"
        )
    samples, _, name = _opened(content, max_pixels, stored_channels, frame=frame)
    return as_bands(samples, count, name)


def upright(
    content: bytes, max_pixels: int, frame: int | None = None, spec: InputSpec | None = None
) -> NDArray[np.uint8]:
    """Decode an image at its own size, EXIF applied: uint8 (h, w, 3); of bands (`spec`) those to look at.

    Raises:
        ImageError: as `decode`.
    """
    if spec is not None and spec.bands:
        found = _open_bands(content, len(spec.mean), max_pixels, frame)
        return show_bands(found.values, spec.bands, found.is_8_bit)
    return np.ascontiguousarray(np.array(_open_upright(content, max_pixels, frame=frame).image))


def open_mask(content: bytes, max_pixels: int) -> Image.Image:
    """Decode a mask at its own size, EXIF applied: grey, 255 on the object, 0 elsewhere.

    Raises:
        ImageError: as `decode`.
    """
    if is_tiff(content):
        return _guarded(read_tiff_mask, content, max_pixels)
    return _opened(content, max_pixels, to_mask)[0]


def _in_shares(boxes: Boxes, where: Geometry) -> tuple[Edges, ...]:
    """Give boxes as shares of the sides, cut at the image's edges; what has no area in it is left out."""
    across, down = (where.width, where.height) if boxes.in_pixels else (1, 1)
    shares = (
        tuple(min(max(edge / side, 0.0), 1.0) for edge, side in zip(edges, (across, down) * 2, strict=True))
        for edges in boxes.edges
    )
    return tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in shares if x1 > x0 and y1 > y0)


def _mask_on_input(content: bytes, where: Geometry, spec: InputSpec, max_pixels: int) -> NDArray[np.uint8]:
    try:
        mask = open_mask(content, max_pixels)
    except ImageError as error:
        raise ImageError(error.code, f"mask: {error.message}") from None
    stretch = (mask.width * where.height) / (mask.height * where.width)
    if abs(stretch - 1) > _ASPECT_SLACK:
        message = (
            f"mask: {mask.width} x {mask.height} pixels, of another shape than the image's "
            f"{where.width} x {where.height}"
        )
        raise ImageError(ErrorCode.CORRUPT_IMAGE, message)
    fit = plan_fit(where.width, where.height, spec)
    fitted = fit_image(mask.convert("RGB"), fit, replace(spec, interpolation="bilinear", fill=(0, 0, 0)))
    return np.ascontiguousarray(np.asarray(fitted)[..., 0])


@dataclass(frozen=True, slots=True)
class _Upright:
    """An RGB image, EXIF applied; `size` (width, height) is the file's, `image` may be a reduced one."""

    image: Image.Image
    size: tuple[int, int]
    format: str
    pixel_rule: str | None


def _open_upright(
    content: bytes, max_pixels: int, reduce_for: InputSpec | None = None, frame: int | None = None
) -> _Upright:
    name, read = _reader_of(content, frame)
    if read is not None:
        picture, rule = _guarded(read, content, max_pixels)
        return _Upright(picture, picture.size, name, rule)
    try:
        (image, rule), size, name = _opened(content, max_pixels, to_rgb, reduce_for, frame)
    except ImageError as error:
        if error.code != ErrorCode.TRUNCATED_IMAGE or not _lacks_only_its_end(content):
            raise
        (image, _), size, name = _opened(content + jpeg.END, max_pixels, to_rgb, reduce_for, frame)
        rule = "missing_end"
    return _Upright(image, size, name, rule)


_Read = Callable[[bytes, int], tuple[Image.Image, str | None]]


def _reader_of(content: bytes, frame: int | None) -> tuple[str, _Read | None]:
    """Name the format and its own reader; ("", None) for what Pillow reads by itself."""
    if is_dicom(content[:132]):
        return "DICOM", partial(read_dicom, frame=frame or 0)
    if is_tiff(content):
        return "TIFF", partial(read_tiff, frame=frame)
    kind = extras.kind_of(content[:4096])
    return (kind, partial(extras.read_extra, kind)) if kind else ("", None)


def _guarded(read: Callable[[bytes, int], _T], content: bytes, max_pixels: int) -> _T:
    try:
        return read(content, max_pixels)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise _unidentified(content) from None
    except Exception as error:  # noqa: BLE001 - damaged files make decoders raise almost anything
        raise _damaged(error) from None


def _lacks_only_its_end(content: bytes) -> bool:
    try:
        return content.startswith(b"\xff\xd8") and jpeg.lacks_only_its_end(content)
    except Exception:  # noqa: BLE001 - then it lacks more
        return False


def _opened(
    content: bytes,
    max_pixels: int,
    convert: Callable[[Image.Image], _T],
    reduce_for: InputSpec | None = None,
    frame: int | None = None,
) -> tuple[_T, tuple[int, int], str]:
    """Open, check, load, turn and convert an image; give also its upright size and the name of its format."""
    if not content:
        raise ImageError(ErrorCode.EMPTY_FILE, "0 bytes")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            name = image.format or "unknown"
            if frame is not None:
                seek_frame(image, frame)
            width, height = image.size
            check_size(width, height, max_pixels)
            if name == "PNG":
                _check_transparency(image, content)
            stored = image if reduce_for is None else _reduced(image, reduce_for)
            stored.load()
            method = _turn(image)
            size = (height, width) if method in _SIDEWAYS else (width, height)
            return convert(stored if method is None else stored.transpose(method)), size, name
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise _unidentified(content) from None
    except Exception as error:  # noqa: BLE001 - damaged files make decoders raise almost anything
        raise _failed(content, error) from None


def _check_transparency(image: Image.Image, content: bytes) -> None:
    """Bring a PNG's one transparent value to 8 bits, as Pillow does the pixels; refuse what this loses."""
    depth, colours = content[24], content[25]
    value = image.info.get("transparency")
    if value is None:
        return
    if (depth, colours) == (16, 2):
        message = "PNG with one transparent colour of 16 bits a channel is not read"
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, message)
    if colours == 0 and depth in (2, 4):
        image.info["transparency"] = value * 255 // (2**depth - 1)


def _reduced(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Give a JPEG at the size it is resized to, decoded at 1/2, 1/4 or 1/8, never below twice that size."""
    width, height = image.size
    sideways = image.format in ("JPEG", "MPO") and _turn(image) in _SIDEWAYS
    fit = plan_fit(height, width, spec) if sideways else plan_fit(width, height, spec)
    size = (fit.height, fit.width) if sideways else (fit.width, fit.height)
    drafted = image.draft(None, (2 * size[0], 2 * size[1]))
    if drafted is None or image.size == (width, height):
        return image
    # At 1/8 of 1601 pixels the last of 201 is partly padding: only the box is picture.
    return image.resize(size, FILTERS[spec.interpolation], box=drafted[1])


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Say how the EXIF orientation makes the image upright, after `load`."""
    for name in _XMP:  # Pillow would take its orientation where EXIF has none; no viewer does
        image.info.pop(name, None)
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # noqa: BLE001 - a broken EXIF block never fails an image
        return None
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _unidentified(content: bytes) -> ImageError:
    """Say what the bytes are, when no allowed decoder accepts them."""
    head = content[:4096]
    foreign, known = _foreign(content), sniff.supported_image(head)
    if foreign:
        return ImageError(ErrorCode.FORMAT_NOT_ALLOWED, f"{foreign} is not decoded")
    if known:
        return ImageError(ErrorCode.CORRUPT_IMAGE, f"starts like {known}, but its header cannot be read")
    return ImageError(ErrorCode.NOT_AN_IMAGE, f"looks like {sniff.looks_like(head)}")


def _failed(content: bytes, error: Exception) -> ImageError:
    """Give the code and message for whatever a decoder raised."""
    foreign = _foreign(content)
    if foreign:
        return ImageError(ErrorCode.FORMAT_NOT_ALLOWED, f"{foreign} is not decoded")
    reason = _reason(error)
    if reason.startswith("Unsupported BMP"):
        return ImageError(ErrorCode.FORMAT_NOT_ALLOWED, reason)
    return _damaged(error)


def _foreign(content: bytes) -> str | None:
    """Name a format, or a kind of JPEG, that is never decoded."""
    return sniff.unsupported_image(content[:4096]) or (
        jpeg.unread_kind(content) if content.startswith(b"\xff\xd8") else None
    )


def _damaged(error: Exception) -> ImageError:
    """Tell a cut image from a damaged one."""
    reason = _reason(error)
    if isinstance(error, EOFError) or _TRUNCATED.search(reason):
        return ImageError(ErrorCode.TRUNCATED_IMAGE, reason)
    return ImageError(ErrorCode.CORRUPT_IMAGE, reason)


def _reason(error: Exception) -> str:
    """Describe an exception in one printable line, without memory addresses."""
    text = _ADDRESS.sub("…", str(error)).strip()
    if isinstance(error, MemoryError):
        text = "the decoder asked for more memory than there is"
    elif isinstance(error, struct.error | TypeError | KeyError | IndexError | AttributeError) or not text:
        text = f"the decoder failed: {type(error).__name__}: {text}"
    return printable(text)
