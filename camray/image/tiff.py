"""A TIFF to an upright 8-bit picture: which of its pages, and by which of its properties.

    bytes ──directories──> pages ──the full one──> Page ──Pillow, or strips and tiles here──> samples ──> RGB

Every property that decides how samples are read (sample type, bits, bands, planes, photometric, compression,
byte order) is in `Page`. `_pillow_reads` is the table of what Pillow reads rightly; the rest is read here, or
refused by the name of the property. LZW, PackBits and Zstandard need the extra `camray[tiff]` where Pillow
does not read them.

* the first page that is neither a reduced copy nor a mask; where every page is one, the largest
* a raw photograph (DNG) shows its largest preview, where that is not a mere thumbnail
* grey: as `pixels`; MINISWHITE is turned over; GDAL's nodata value is left out of the rule, and black
* colour deeper than 8 bits: the upper 8 bits; floats: one rule for all colours
* alpha over white; bands beyond the colours are left out, and said; grey with further bands is refused
"""

from __future__ import annotations

import io
import itertools
import lzma
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camray.errors import ErrorCode, ImageError, printable
from camray.image.pixels import check_bands, check_size, eight_bits, levels, to_mask, to_rgb, with_alpha

EXTRA = "pip install camray[tiff]"
_WHITE, _BLACK, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {_WHITE: 1, _BLACK: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_RAW = (32803, 34892)  # colour filter array, linear raw
_PHOTOMETRIC = {
    4: "transparency mask", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32803: "CFA (raw)", 32844: "LogL",
    32845: "LogLuv", 34892: "LinearRaw",
}  # fmt: skip
_COMPRESSION = {
    1: "none", 2: "CCITT RLE", 3: "CCITT group 3", 4: "CCITT group 4", 5: "LZW", 6: "old-style JPEG",
    7: "JPEG", 8: "deflate", 32773: "PackBits", 32946: "deflate", 33003: "JPEG 2000", 33005: "JPEG 2000",
    34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL",
    52546: "JPEG XL",
}  # fmt: skip
_OLD_JPEG = 6
_JPEG = (_OLD_JPEG, 7)
_PILLOW_UNPACKS = (1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32946, 34925, 50000)
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}  # of SampleFormat; 4 is "undefined": read as unsigned
_ALPHA = (1, 2, 999)  # associated, unassociated, and what Corel Draw writes
_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MOST_PAGES = 10_000
_THUMBNAIL = 1 / 8  # of the raw photograph's width: a smaller preview is none
_BLOCK_BYTES = 2**22
_SPREAD = 0.5  # of the pixels half transparent, in many degrees: no alpha, but a band

_REDUCED, _OLD_REDUCED = 254, 255
_WIDTH, _HEIGHT, _BITS, _SCHEME, _PHOTO, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_ORIENTATION, _SAMPLES, _ROWS, _PLANAR, _PREDICTOR, _MAP = 274, 277, 278, 284, 317, 320
_TILE_WIDTH, _TILE_HEIGHT, _SUB_IFDS, _EXTRA_SAMPLES, _FORMAT, _NODATA = 322, 323, 330, 338, 339, 42113
_STRIPS, _TILES = (273, 279), (324, 325)  # offsets, counts of bytes
_WANTED = frozenset((
    _REDUCED, _OLD_REDUCED, _WIDTH, _HEIGHT, _BITS, _SCHEME, _PHOTO, _FILL_ORDER, *_STRIPS, _ORIENTATION,
    _SAMPLES, _ROWS, _PLANAR, _PREDICTOR, _MAP, _TILE_WIDTH, _TILE_HEIGHT, *_TILES, _SUB_IFDS,
    _EXTRA_SAMPLES, _FORMAT, _NODATA,
))  # fmt: skip
Tags = dict[int, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Page:
    """One picture of a TIFF, as its directory at `offset` describes it."""

    offset: int
    order: str  # of bytes: "<" or ">"
    big: bool  # BigTIFF
    tags: Tags

    def number(self, tag: int, default: int = 0) -> int:
        """Give the first value of a tag."""
        return int(self.tags.get(tag, (default,))[0])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as stored."""
        return self.number(_WIDTH), self.number(_HEIGHT)

    @property
    def is_full(self) -> bool:
        """Whether it is neither a reduced copy of another page nor a mask."""
        return not self.number(_REDUCED) & 5 and self.number(_OLD_REDUCED, 1) != 2

    @property
    def photometric(self) -> int:
        """What the samples mean: grey, RGB, palette, ..."""
        return self.number(_PHOTO)

    @property
    def samples(self) -> int:
        """Samples of a pixel."""
        return self.number(_SAMPLES, 1)

    @property
    def bits(self) -> int:
        """Bits of a sample; 0 where they differ."""
        found = set(self.tags.get(_BITS, (1,))[: self.samples])
        return int(found.pop()) if len(found) == 1 else 0

    @property
    def kind(self) -> str:
        """Type of the samples: u, i, f; empty for mixed and complex ones."""
        found = set(self.tags.get(_FORMAT, (1,)))
        return _KINDS.get(found.pop(), "") if len(found) == 1 else ""

    @property
    def extra(self) -> tuple[int, ...]:
        """Meaning of each sample beyond the colours: 0 unspecified, 1 and 2 alpha."""
        count = max(self.samples - _COLOURS.get(self.photometric, self.samples), 0)
        said = tuple(2 if value == 999 else value for value in self.tags.get(_EXTRA_SAMPLES, ()))
        if not said and count == 1 and self.photometric == _RGB:
            return (2,)  # as most readers take it
        return (said + (0,) * count)[:count]

    @property
    def is_planar(self) -> bool:
        """Whether each band is stored by itself."""
        return self.number(_PLANAR, 1) == 2 and self.samples > 1

    @property
    def compression(self) -> int:
        """Number of the compression."""
        return self.number(_SCHEME, 1)

    @property
    def nodata(self) -> float | None:
        """GDAL's value for "no data"; None where none is said, or nothing that can be read."""
        text = b"".join(self.tags.get(_NODATA, ())).split(b"\0")[0]
        try:
            return float(text) if text.strip() else None
        except ValueError:
            return None


def is_tiff(head: bytes) -> bool:
    """Tell a TIFF by its first four bytes."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_tiff(content: bytes, max_pixels: int, frame: int | None = None) -> tuple[Image.Image, str | None]:
    """Give the picture in mode RGB, upright, and what was done to get it (None: nothing worth a word).

    `frame` counts the pages of full resolution, from 0; None is the page that is the picture.

    Raises:
        ImageError: a property that cannot be read, too many pixels, a cut file, or no finite values.
        Exception: whatever a damaged file makes Pillow, numpy or a codec raise.
    """
    page, said = _chosen(content, frame)
    picture = _loaded(content, page, max_pixels)
    if isinstance(picture, np.ndarray):
        image, rule = _from_samples(picture, page)
    elif picture.mode.startswith(("I", "F")):
        image, rule = _from_samples(_pillow_values(picture, page)[..., None], page)
    else:
        if picture.mode.endswith(("A", "a")):
            _check_alpha(picture.getchannel(len(picture.getbands()) - 1))
        image, rule = to_rgb(picture)
    return image, ", ".join(part for part in (rule, *_bands_said(page), *said) if part) or None


def read_tiff_mask(content: bytes, max_pixels: int) -> Image.Image:
    """Give the picture as a mask, upright: 255 where a sample is not 0, palettes by their index.

    Raises:
        ImageError: as `read_tiff`.
    """
    return to_mask(_loaded(content, _chosen(content)[0], max_pixels))


def tiff_bands(
    content: bytes, count: int, max_pixels: int, frame: int | None = None
) -> tuple[NDArray[Any], int, float | None]:
    """Give all samples, upright (H, W, bands), their bits and GDAL's nodata value.

    Bands are the samples of a pixel; or the pages, where there are `count` of one sample and one size.

    Raises:
        ImageError: as `read_tiff`; colours that are no bands.
    """
    page, full = _chosen(content, frame)[0], full_pages(content)
    is_stack = page.samples == 1 and frame is None and len(full) == count
    pages = full if is_stack and len({_kind_of(p) for p in full}) == 1 else [page]
    for each in pages:
        check_bands(*each.size, each.samples * len(pages), max_pixels)
        problem = _storage_problem(each)
        if each.photometric in (_WHITE, _PALETTE, _YCBCR):
            problem = "colours that are no bands (white is 0, a palette, YCbCr)"
        if problem:
            raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, printable(f"TIFF with {problem} is not read"))
    samples = [_turned(_samples(content, p, max_pixels), p.number(_ORIENTATION, 1)) for p in pages]
    return np.concatenate(samples, axis=2), page.bits, page.nodata


def _kind_of(page: Page) -> tuple[Any, ...]:
    return (*page.size, page.samples, page.bits, page.kind)


def _loaded(content: bytes, page: Page, max_pixels: int) -> Image.Image | NDArray[Any]:
    """Give the page upright: an image that Pillow read, or samples (H, W, bands)."""
    check_size(*page.size, max_pixels)
    if _pillow_reads(page):
        with Image.open(io.BytesIO(_starting_at(content, page)), formats=("TIFF",)) as image:
            image.info.pop("xmp", None)  # Pillow would turn the picture by what XMP says
            try:
                image.load()
            except OSError:
                if page.compression != _OLD_JPEG:
                    raise
                message = f"TIFF with compression {_COMPRESSION[_OLD_JPEG]}, of a kind that is not read"
                raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, message) from None
            return image
    _check_readable(page)
    values = _samples(content, page, max_pixels)
    return _turned(values, page.number(_ORIENTATION, 1))


# ── directories ──────────────────────────────────────────────────────────────────────────────────


def pages_of(content: bytes) -> list[Page]:
    """List the pages in the order of the file, each followed by its sub-pages.

    Raises:
        ImageError: CORRUPT_IMAGE where not even the first directory can be read.
    """
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    found: list[Page] = []
    try:
        offset = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)[0]
        _walk(content, offset, order, big, found)
    except (struct.error, OverflowError, ValueError):
        if not found:
            message = "starts like TIFF, but its header cannot be read"
            raise ImageError(ErrorCode.CORRUPT_IMAGE, message) from None
    return found


def _walk(content: bytes, offset: int, order: str, big: bool, found: list[Page], depth: int = 0) -> None:
    """Follow a chain of directories, and those of sub-pages; each is visited once."""
    seen = {page.offset for page in found}
    while offset and offset not in seen and len(found) < _MOST_PAGES:
        seen.add(offset)
        tags, following = _directory(content, offset, order, big)
        if _WIDTH in tags and _HEIGHT in tags:
            found.append(Page(offset, order, big, tags))
        for place in tags.get(_SUB_IFDS, ())[:64] if depth == 0 else ():
            _walk(content, place, order, big, found, depth + 1)
        offset = following if depth == 0 else 0


def _directory(content: bytes, offset: int, order: str, big: bool) -> tuple[Tags, int]:
    """Read the wanted tags of a directory, and the place of the next."""
    count = struct.unpack_from(order + ("Q" if big else "H"), content, offset)[0]
    entry = struct.Struct(order + ("HHQ" if big else "HHI"))
    start, step = offset + (8 if big else 2), 20 if big else 12
    tags: Tags = {}
    for at in range(start, start + step * min(count, 4096), step):
        tag, kind, length = entry.unpack_from(content, at)
        if tag in _WANTED and kind in _TYPES:
            form = f"{order}{length}{_TYPES[kind]}"
            place, inline = at + entry.size, 8 if big else 4
            if struct.calcsize(form) > inline:
                place = struct.unpack_from(order + ("Q" if big else "I"), content, place)[0]
            if place + struct.calcsize(form) <= len(content) and length:
                tags[tag] = struct.unpack_from(form, content, place)
    following = struct.unpack_from(order + ("Q" if big else "I"), content, start + step * count)
    return tags, following[0]


def _starting_at(content: bytes, page: Page) -> bytes:
    """Give the file with this page as its first."""
    form, at = (page.order + "Q", 8) if page.big else (page.order + "I", 4)
    head = struct.pack(form, page.offset)
    return (
        content if content[at : at + len(head)] == head else content[:at] + head + content[at + len(head) :]
    )


def full_pages(content: bytes) -> list[Page]:
    """List the pages of full resolution: no thumbnails, no levels of a pyramid, no masks.

    Raises:
        ImageError: as `pages_of`.
    """
    return [page for page in pages_of(content) if page.is_full]


def _chosen(content: bytes, frame: int | None = None) -> tuple[Page, list[str]]:
    """Choose the page that is the picture, and say which where there is a choice."""
    pages = pages_of(content)
    if not pages:
        raise ImageError(ErrorCode.CORRUPT_IMAGE, "TIFF without a picture")
    full = [page for page in pages if page.is_full]
    if frame is not None:
        if frame >= max(1, len(full)):
            raise ImageError(ErrorCode.NO_SUCH_FRAME, f"no frame {frame}")
        return (full or pages)[frame], []
    page = full[0] if full else max(pages, key=lambda page: page.size[0] * page.size[1])
    if page.photometric in _RAW:
        return _preview(page, pages)
    several = len(full) > 1 or page is not pages[0]
    return page, [f"page {pages.index(page) + 1} of {len(pages)}"] if several else []


def _preview(raw: Page, pages: list[Page]) -> tuple[Page, list[str]]:
    """Choose the largest picture that a raw photograph brings along."""
    ready = [page for page in pages if page.photometric not in _RAW and _pillow_reads(page)]
    best = max(ready, key=lambda page: page.size[0] * page.size[1], default=None)
    if best is None or best.size[0] < _THUMBNAIL * raw.size[0]:
        largest = "none" if best is None else f"{best.size[0]} x {best.size[1]} pixels"
        message = f"raw photograph of {raw.size[0]} x {raw.size[1]} pixels; its largest preview: {largest}"
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, message)
    return _as_turned(best, pages[0]), [
        f"preview of a raw photograph, page {pages.index(best) + 1} of {len(pages)}"
    ]


def _as_turned(page: Page, first: Page) -> Page:
    """Give the page the file's orientation, where it has none of its own."""
    turn = first.tags.get(_ORIENTATION, (1,))
    return replace(page, tags={_ORIENTATION: turn} | page.tags)


# ── what can be read ─────────────────────────────────────────────────────────────────────────────


_PILLOW = frozenset(  # photometric, type and bits of the samples, bands beyond the colours
    [(means, "u", bits, ()) for means in (_WHITE, _BLACK, _PALETTE) for bits in (1, 2, 4, 8)]
    + [(_RGB, "u", bits, extra) for bits in (8, 16) for extra in ((), (0,), (1,), (2,))]
    + [(_BLACK, "u", 8, (1,)), (_BLACK, "u", 8, (2,)), (_PALETTE, "u", 8, (2,)), (_BLACK, "u", 16, ())]
    + [(_CMYK, "u", 8, ()), (_CMYK, "u", 8, (0,)), (_CMYK, "u", 16, ())]
)
_PILLOW_LITTLE = frozenset((means, kind, bits, ()) for means, kind, bits in (
    (_WHITE, "u", 16), (_BLACK, "i", 16), (_BLACK, "i", 32), (_BLACK, "f", 32),
))  # fmt: skip
_PILLOW_PLANES = frozenset(((_RGB, "u", 8, ()), (_RGB, "u", 8, (2,)), (_CMYK, "u", 8, ())))


def _pillow_reads(page: Page) -> bool:
    """Tell whether Pillow 13 reads this variant rightly (tests/image/test_other_decoders.py)."""
    if (page.big and page.order == ">") or page.compression not in _PILLOW_UNPACKS:
        return False
    if (_TILE_WIDTH in page.tags and _TILES[0] not in page.tags) or (page.compression == 7 and page.bits > 8):
        return False
    if page.photometric == _YCBCR or page.compression == _OLD_JPEG:
        return page.compression in _JPEG and page.bits == 8 and not page.extra
    variant = (page.photometric, page.kind, page.bits, page.extra)
    if page.is_planar:
        return variant in _PILLOW_PLANES
    if page.photometric == _PALETTE and max(page.tags.get(_MAP, (256,))) < 256:
        return False  # a palette scaled to 255, not 65535: Pillow makes it black
    return variant in _PILLOW or (page.order == "<" and variant in _PILLOW_LITTLE)


def _check_readable(page: Page) -> None:
    """Refuse, by its name, what is not read here."""
    means, bits, kind, bands = page.photometric, page.bits, page.kind, page.samples
    colours = _COLOURS.get(means, 0)
    alpha = sum(value in _ALPHA for value in page.extra)
    problem = None
    if means == _YCBCR or not colours:
        name = "YCbCr" if means == _YCBCR else _PHOTOMETRIC.get(means, f"photometric {means}")
        problem = f"colours as {name}"
    elif bands < colours:
        problem = f"{bands} samples a pixel where its colours need {colours}"
    elif means in (_WHITE, _BLACK) and (len(page.extra) != alpha or alpha > 1):
        problem = f"{bands} bands, and no word which of them are red, green and blue"
    elif kind == "i" and bands > 1:
        problem = "signed samples in several bands"
    elif means == _PALETTE and (kind != "u" or bits > 16):
        problem = f"a palette for samples of {bits} bits"
    problem = problem or _storage_problem(page)
    if problem:
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, printable(f"TIFF with {problem} is not read"))


def _storage_problem(page: Page) -> str | None:
    """Say what of the way its samples are stored is not read here."""
    bits, kind = page.bits, page.kind
    if not 1 <= page.samples <= 4096:
        raise ImageError(ErrorCode.CORRUPT_IMAGE, f"TIFF of {page.samples} samples a pixel")
    if not kind or not bits:
        return "samples of mixed or complex type"
    if bits not in {"u": (*range(1, 17), 32, 64), "i": (8, 16, 32, 64), "f": (16, 32, 64)}[kind]:
        return f"samples of {bits} bits"
    if page.compression not in (1, 5, 8, 32773, 32946, 34925, 50000):
        named = _COMPRESSION.get(page.compression, f"number {page.compression}")
        return f"compression {named} of {_words(page)}"
    return None


def _words(page: Page) -> str:
    """Describe the samples: `uint16 in separate planes`, ..."""
    type_name = {"u": "uint", "i": "int", "f": "float"}.get(page.kind, "mixed ")
    return f"{page.samples} x {type_name}{page.bits}{' in separate planes' if page.is_planar else ''}"


# ── strips and tiles ─────────────────────────────────────────────────────────────────────────────


def _samples(content: bytes, page: Page, max_pixels: int) -> NDArray[Any]:
    """Read the samples (H, W, bands), in the machine's byte order.

    Raises:
        ImageError: TRUNCATED_IMAGE where a strip is cut, TOO_MANY_PIXELS where the samples are too many.
    """
    (width, height), bands, bits = page.size, page.samples, page.bits
    stored = _stored_type(page)
    if width * height * bands * stored.itemsize > 16 * max_pixels:
        message = f"{width} x {height} pixels of {_words(page)}: more than {16 * max_pixels:,} bytes"
        raise ImageError(ErrorCode.TOO_MANY_PIXELS, message)
    out = np.empty((height, width, bands), stored.newbyteorder("="))
    per = 1 if page.is_planar else bands
    across, rows_of_one = _grid(page)
    need_bytes = rows_of_one * math.ceil(across * per * bits / 8)
    if need_bytes > 16 * max_pixels + 2**20:
        raise ImageError(ErrorCode.CORRUPT_IMAGE, f"TIFF with strips of {need_bytes:,} bytes")
    for plane, row, column, place, count in _places(page):
        rows = rows_of_one if _TILE_WIDTH in page.tags else min(rows_of_one, height - row)
        need = rows * math.ceil(across * per * bits / 8)
        data = _unpacked(content[place : place + count], page, need)
        if len(data) < need:
            raise ImageError(ErrorCode.TRUNCATED_IMAGE, f"a strip or tile has {len(data)} of {need} bytes")
        block = _values(np.frombuffer(data, np.uint8, need).reshape(rows, -1), page, across, per)
        inside = out[row : row + rows, column : column + across, plane : plane + per]
        inside[...] = block[: inside.shape[0], : inside.shape[1]]
    return out


def _stored_type(page: Page) -> np.dtype[Any]:
    size = page.bits // 8 if page.bits in (8, 16, 32, 64) else (1 if page.bits < 8 else 2)
    return np.dtype(f"{page.order}{page.kind}{size}")


def _grid(page: Page) -> tuple[int, int]:
    """Give the width and height of a tile or strip."""
    if _TILE_WIDTH in page.tags:
        return max(page.number(_TILE_WIDTH), 1), max(page.number(_TILE_HEIGHT), 1)
    width, height = page.size
    return width, max(min(page.number(_ROWS, height), height), 1)


def _places(page: Page) -> Iterator[tuple[int, int, int, int, int]]:
    """Give first band, row and column of each strip or tile, where its bytes start and their number."""
    across, rows = _grid(page)
    width, height = page.size
    listed = _TILES if _TILES[0] in page.tags else _STRIPS  # old writers list tiles as strips
    offsets, counts = (page.tags.get(tag, ()) for tag in listed)
    corners = itertools.product(
        range(page.samples if page.is_planar else 1), range(0, height, rows), range(0, width, across)
    )
    wanted = math.ceil(height / rows) * math.ceil(width / across) * (page.samples if page.is_planar else 1)
    if wanted > len(offsets) or wanted > len(counts):
        message = f"{min(len(offsets), len(counts))} of {wanted} strips or tiles are listed"
        raise ImageError(ErrorCode.TRUNCATED_IMAGE, message)
    for corner, place, count in zip(corners, offsets, counts, strict=False):
        yield (*corner, place, count)


def _unpacked(data: bytes, page: Page, need: int) -> bytes:
    """Undo the compression, to at most `need` bytes."""
    if page.number(_FILL_ORDER, 1) == 2:
        data = data.translate(_REVERSED)
    match page.compression:
        case 1:
            return data
        case 8 | 32946:
            return zlib.decompressobj().decompress(data, need)
        case 34925:
            return lzma.LZMADecompressor().decompress(data, need)
        case scheme:
            codecs = _codecs(_COMPRESSION[scheme], page)
            unpack = {5: codecs.lzw_decode, 32773: codecs.packbits_decode, 50000: codecs.zstd_decode}[scheme]
            return bytes(unpack(data, out=need))


def _codecs(scheme: str, page: Page) -> Any:
    try:
        import imagecodecs
    except ImportError:
        message = f"TIFF with compression {scheme} of {_words(page)} needs an extra: {EXTRA}"
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, message) from None
    return imagecodecs


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _values(rows: NDArray[np.uint8], page: Page, across: int, per: int) -> NDArray[Any]:
    """Make samples (rows, across, per) of the bytes of each row (rows, bytes); undo the predictor."""
    bits, predictor, kind = page.bits, page.number(_PREDICTOR, 1), _stored_type(page)
    if bits not in (8, 16, 32, 64):
        return _from_bits(rows, bits, kind, across * per).reshape(len(rows), across, per)
    if predictor == 3 and page.kind == "f":  # bytes of equal weight lie together, and are differences
        steps = np.add.accumulate(rows.reshape(len(rows), -1, per), axis=1, dtype=np.uint8)
        bytes_of = steps.reshape(len(rows), kind.itemsize, -1).transpose(0, 2, 1)
        return np.ascontiguousarray(bytes_of).view(kind.newbyteorder(">")).reshape(len(rows), across, per)
    values = rows.view(kind).reshape(len(rows), across, per)
    if predictor != 2:
        return values
    plain = np.dtype(f"u{kind.itemsize}")
    whole = values.view(np.dtype(page.order + plain.char)).astype(plain)
    return np.add.accumulate(whole, axis=1, dtype=plain).view(kind.newbyteorder("="))


def _from_bits(rows: NDArray[np.uint8], bits: int, kind: np.dtype[Any], count: int) -> NDArray[Any]:
    """Read `count` numbers of `bits` bits from each row, the highest bit first, some rows at a time."""
    out = np.zeros((len(rows), count), kind.newbyteorder("="))
    step = max(_BLOCK_BYTES // max(rows.shape[1] * 8, 1), 1)
    for start in range(0, len(rows), step):
        single = np.unpackbits(rows[start : start + step], axis=1)[:, : count * bits].reshape(-1, count, bits)
        for bit in range(bits):
            out[start : start + step] = (out[start : start + step] << 1) | single[..., bit]
    return out


def _turned(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply EXIF's orientation to samples (H, W, bands)."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return np.ascontiguousarray(values)


# ── samples to a picture ─────────────────────────────────────────────────────────────────────────


def _pillow_values(image: Image.Image, page: Page) -> NDArray[Any]:
    """Give the values (H, W) that Pillow read, in the type that the file says."""
    values = np.asarray(image)
    return values.astype(np.uint32) if page.kind == "u" and values.dtype == np.int32 else values


def _from_samples(values: NDArray[Any], page: Page) -> tuple[Image.Image, str | None]:
    """Make an RGB picture of samples (H, W, bands)."""
    colours = _COLOURS[page.photometric]
    at = next((place for place, means in enumerate(page.extra) if means in _ALPHA), None)
    alpha = None if at is None else values[..., colours + at]
    kind = "" if at is None else ("a" if page.extra[at] == 1 else "A")
    rule = None
    if page.photometric == _PALETTE:
        picture = _looked_up(values[..., 0], page)
    elif page.kind == "u" and (colours > 1 or page.bits <= 8):
        picture = eight_bits(values[..., :colours], page.bits)
    else:
        picture, rule = levels(values[..., :colours], page.nodata)
    if page.photometric == _WHITE:
        picture, rule = 255 - picture, f"{rule}, inverted" if rule else None
    if page.photometric == _CMYK:
        picture = np.asarray(Image.fromarray(np.ascontiguousarray(picture), "CMYK").convert("RGB"))
    if alpha is not None and alpha.dtype.kind == "u":
        _check_alpha(Image.fromarray(eight_bits(alpha, page.bits)))
    return with_alpha(picture, alpha, page.bits, kind), rule


def _looked_up(indices: NDArray[Any], page: Page) -> NDArray[np.uint8]:
    """Give the palette's colours; some writers scale them to 255, not 65535."""
    table = np.array(page.tags.get(_MAP, ()), np.uint16)
    if table.size != 3 * 2**page.bits:
        raise ImageError(ErrorCode.CORRUPT_IMAGE, f"TIFF with a palette of {table.size} values")
    table = (table if table.max() < 256 else table >> 8).astype(np.uint8)
    return np.asarray(table.reshape(3, -1).T[indices])


def _check_alpha(alpha: Image.Image) -> None:
    """Refuse an alpha that is a picture itself: near infrared under that name would wash all others out."""
    counts = alpha.histogram()
    between = counts[1:255]
    if sum(between) > _SPREAD * sum(counts) and sum(count > 0 for count in between) > 16:
        message = (
            "TIFF whose last band is marked as alpha, yet differs from pixel to pixel like a picture: "
            "write it without that mark if it is a band such as near infrared"
        )
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, message)


def _bands_said(page: Page) -> list[str]:
    """Say which bands are shown where some are not."""
    colours, unseen = (
        _COLOURS.get(page.photometric, 0),
        [means for means in page.extra if means not in _ALPHA],
    )
    return [f"bands 1-{colours} of {page.samples}"] if unseen and colours > 1 else []
