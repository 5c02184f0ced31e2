"""HEIC, JPEG XL and JPEG 2000 to an upright picture by their extra; without it, a refusal that names it.

head ──kind_of──> HEIC ─pillow-heif─> image            turned by the container (irot, imir), never by EXIF
                  JPEG XL, JPEG 2000 ─imagecodecs─> samples ──> image
"""

from __future__ import annotations

import importlib
import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camray.archive import sniff
from camray.errors import ErrorCode, ImageError
from camray.image.pixels import check_size, from_samples, to_rgb

_PACKAGES = {
    "HEIC": ("pillow_heif", "heif"),
    "JPEG XL": ("imagecodecs", "codecs"),
    "JPEG 2000": ("imagecodecs", "codecs"),
}
_UNREAD_COLOURS = {18: "sYCC", 12: "CMYK", 14: "CIELab"}  # EnumCS of a JPEG 2000


def kind_of(head: bytes) -> str | None:
    """Name the format, where it is one of an extra (4096 bytes suffice)."""
    name = sniff.unsupported_image(head)
    return name if name in _PACKAGES else None


def read_extra(kind: str, content: bytes, max_pixels: int) -> tuple[Image.Image, str | None]:
    """Give the picture in mode RGB, and the rule its values followed (None: they were 8 bits already).

    Raises:
        ImageError: the extra is not installed, a property that is not read, too many pixels.
        Exception: whatever the decoder raises of a damaged file.
    """
    package, extra = _PACKAGES[kind]
    try:
        codec = importlib.import_module(package)
    except ImportError:
        message = f"{kind} needs an extra: pip install camray[{extra}]"
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, message) from None
    read: dict[str, Callable[[bytes, Any, int], tuple[Image.Image, str | None]]]
    read = {"HEIC": _heic, "JPEG XL": _jpeg_xl, "JPEG 2000": _jpeg_2000}
    return read[kind](content, codec, max_pixels)


def _heic(content: bytes, codec: Any, max_pixels: int) -> tuple[Image.Image, str | None]:
    codec.register_heif_opener(thumbnails=False, decode_threads=1)
    with Image.open(io.BytesIO(content), formats=("HEIF",)) as image:
        check_size(*image.size, max_pixels)
        image.load()
        return to_rgb(image)


# ── JPEG XL ──────────────────────────────────────────────────────────────────────────────────────


def _jpeg_xl(content: bytes, codec: Any, max_pixels: int) -> tuple[Image.Image, str | None]:
    check_size(*jpeg_xl_size(content), max_pixels)
    values = np.asarray(codec.jpegxl_decode(content, index=0, numthreads=1))
    return _picture(values, "JPEG XL", values.dtype.itemsize * 8)


def jpeg_xl_size(content: bytes) -> tuple[int, int]:
    """Read width and height of a JPEG XL, as stored (ISO 18181-1, SizeHeader).

    Raises:
        ValueError: no code stream.
    """
    stream = content if content[:2] == b"\xff\x0a" else _jpeg_xl_stream(content)
    bits = int.from_bytes(stream[2:14], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    def length(is_small: int) -> int:
        return 8 * (take(5) + 1) if is_small else take((9, 13, 18, 30)[take(2)]) + 1

    is_small = take(1)
    height = length(is_small)
    ratio = take(3)
    if ratio == 0:
        return length(is_small), height
    across, down = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * across // down, height


def _jpeg_xl_stream(content: bytes) -> bytes:
    """Find the start of the code stream among the boxes of a container."""
    for name, body in _boxes(content):
        if name == b"jxlc":
            return body
        if name == b"jxlp":
            return body[4:]
    raise ValueError("a container without a code stream")


# ── JPEG 2000 ────────────────────────────────────────────────────────────────────────────────────


def _jpeg_2000(content: bytes, codec: Any, max_pixels: int) -> tuple[Image.Image, str | None]:
    size, bits = _jpeg_2000_header(content)
    check_size(*size, max_pixels)
    values = np.asarray(codec.jpeg2k_decode(content, numthreads=1))
    return _picture(values, "JPEG 2000", bits)


def _jpeg_2000_header(content: bytes) -> tuple[tuple[int, int], int]:
    """Read size and bits of the components (ISO 15444-1, SIZ), which must be alike and unsigned."""
    colours = [body for name, body in _boxes(content) if name == b"jp2h"] if content[:1] == b"\0" else []
    inner = dict(_boxes(colours[0])) if colours else {}
    if b"pclr" in inner:
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, "JPEG 2000 with a palette is not read")
    colour = inner.get(b"colr", b"")
    if colour[:1] == b"\1" and (number := struct.unpack(">I", colour[3:7])[0]) in _UNREAD_COLOURS:
        message = f"JPEG 2000 with colours as {_UNREAD_COLOURS[number]} is not read"
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, message)
    start = content.index(b"\xff\x4f\xff\x51") + 8
    right, lower, left, upper = struct.unpack_from(">4I", content, start)
    count = struct.unpack_from(">H", content, start + 32)[0]
    components = content[start + 34 : start + 34 + 3 * count]
    depths, steps = set(components[::3]), {*components[1::3], *components[2::3]}
    if len(depths) != 1 or (depth := depths.pop()) > 15 or steps != {1}:
        message = "JPEG 2000 with signed or subsampled components, or of different depths, is not read"
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, message)
    return (right - left, lower - upper), depth + 1


# ── both ─────────────────────────────────────────────────────────────────────────────────────────


def _boxes(content: bytes) -> list[tuple[bytes, bytes]]:
    """List the boxes (name, body) of an ISO container; the last one may reach to the end."""
    found, at = [], 0
    while at + 8 <= len(content):
        size, name = struct.unpack_from(">I4s", content, at)
        head = 8
        if size == 1 and at + 16 <= len(content):
            size, head = struct.unpack_from(">Q", content, at + 8)[0], 16
        end = len(content) if size == 0 else at + size
        if end < at + head:
            break
        found.append((name, content[at + head : end]))
        at = end
    return found


def _picture(values: NDArray[Any], kind: str, bits: int) -> tuple[Image.Image, str | None]:
    bands = values[..., None] if values.ndim == 2 else values
    if bands.ndim != 3 or bands.shape[2] > 4:
        message = f"{kind} of {bands.shape[-1]} components is not read"
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, message)
    return from_samples(bands, bits)
