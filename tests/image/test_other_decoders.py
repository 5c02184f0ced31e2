"""What the model is shown, against other decoders and the written values, over products of properties.

Files are made by code. Each is *equal* (correlation at least .999 and means within 2 levels of what the
documented rule makes of the written values, or of what another decoder reads), *refused* by the name of a
property, or *different*, which must not happen. The quick suite draws some of each by seed; the whole product
is marked slow. CAMRAY_REAL_IMAGES names folders (separated by `:`) of real files to compare as well.
"""

from __future__ import annotations

import io
import itertools
import os
import random
import shutil
import struct
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camray.errors import ErrorCode, ImageError
from camray.image import tiff
from camray.image.decode import decode, upright
from tests.archive.makers import encoded, spec

tifffile = pytest.importorskip("tifffile")
codecs = pytest.importorskip("imagecodecs")
pytestmark = pytest.mark.filterwarnings("ignore")

MAX = 4_000_000
HEIGHT, WIDTH = 48, 64
CONVERT = shutil.which("convert-im6.q16") or shutil.which("magick") or shutil.which("convert")
VIPS = shutil.which("vips")
REAL = [Path(folder) for folder in os.environ.get("CAMRAY_REAL_IMAGES", "").split(":") if folder]


def scene(bands, seed=0, height=HEIGHT, width=WIDTH):
    """Smooth values in 0..1 with a little noise, each band another: (H, W, bands)."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [(np.sin(x / (5 + 3 * i) + i) + np.cos(y / (7 + 2 * i))) / 4 + 0.5 for i in range(bands)]
    noise = np.random.default_rng(seed).normal(0, 0.02, (height, width, bands))
    return np.clip(np.stack(waves, -1) + noise, 0, 1)


def same(got, expected):
    got, expected = np.asarray(got, float), np.asarray(expected, float)
    if got.shape != expected.shape:
        return False
    flat = got.std() < 1 or expected.std() < 1
    correlation = 1.0 if flat else np.corrcoef(got.ravel(), expected.ravel())[0, 1]
    return correlation >= 0.999 and abs(got.mean() - expected.mean()) <= 2


def verdict(content, expected):
    """Judge one file: equal, refused or different; `expected` is (H, W, 3) in 0..255."""
    try:
        got = upright(content, MAX)
    except ImageError as error:
        return "refused" if error.code == ErrorCode.FORMAT_NOT_ALLOWED else f"different: {error}"
    return "equal" if same(got, expected) else "different: other pixels"


def judged(files):
    """Count verdicts by kind; print them; none may be different."""
    counts, wrong = Counter(), []
    for name, content, expected in files:
        found = verdict(content, expected)
        counts[name[0], found.partition(":")[0]] += 1
        if found.startswith("different"):
            wrong.append((name, found))
    for kind in sorted({kind for kind, _ in counts}):
        print(kind, {what: counts[kind, what] for what in ("equal", "refused", "different")})
    assert wrong == []
    return counts


def on_white(colours, alpha):
    return colours * alpha + 255 * (1 - alpha)


# ── TIFF ─────────────────────────────────────────────────────────────────────────────────────────

KINDS = {  # name: bands, photometric, further bands as the file marks them
    "grey": (1, "minisblack", ()), "white": (1, "miniswhite", ()), "rgb": (3, "rgb", ()),
    "grey alpha": (2, "minisblack", ("unassalpha",)),
    "grey premultiplied": (2, "minisblack", ("assocalpha",)),
    "grey other": (2, "minisblack", ("unspecified",)),
    "rgb alpha": (4, "rgb", ("unassalpha",)), "rgb premultiplied": (4, "rgb", ("assocalpha",)),
    "rgb other": (4, "rgb", ("unspecified",)), "rgb alpha other": (5, "rgb", ("unassalpha", "unspecified")),
    "three bands": (3, "minisblack", ("unspecified",) * 2),
    "four bands": (4, "minisblack", ("unspecified",) * 3),
    "cmyk": (4, "separated", ()), "cmyk other": (5, "separated", ("unspecified",)),
    "lab": (3, "cielab", ()), "ycbcr": (3, "ycbcr", ()),
}  # fmt: skip
TYPES = ("u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8")
BITS = (1, 2, 4, 10, 12, 14)
PACKINGS = (None, "lzw", "zlib", "packbits", "zstd", "lzma", "predictor")


def values_of(kind, dtype, bits=0):
    """Make the samples of a kind: the whole range of their type; floats in 0..1."""
    values = scene(KINDS[kind][0])
    if "alpha" in kind or kind.endswith("premultiplied"):
        cover = values[..., 1 if kind.startswith("grey") else 3]
        cover[:] = np.where(cover > 0.3, 1, cover)
    if kind.endswith("premultiplied"):
        values[..., :-1] *= values[..., -1:]
    kind_of = np.dtype(dtype)
    if kind_of.kind == "f":
        return values.astype(kind_of)
    full = 2**bits - 1 if bits else np.iinfo(kind_of).max
    return ((values * 2 - 1) * full if kind_of.kind == "i" else values * full).astype(kind_of)


def by_the_rule(kind, values, bits=0):
    """Give what docs/format.md promises of these samples: (H, W, 3) in 0..255."""
    if values.dtype.kind == "u":
        bits = bits or values.dtype.itemsize * 8
        shown = values * (255 / (2**bits - 1)) if bits <= 8 else (values >> (bits - 8)).astype(float)
    elif values.dtype.kind == "f":
        shown = values.astype(float) * 255
    elif values.shape[2] > 1:
        return np.zeros((HEIGHT, WIDTH, 3))  # signed colours are refused
    else:
        low, high = float(values.min()), float(values.max())
        shown = (values - low) / (high - low) * 255
    if kind == "white":
        shown = 255 - shown
    if kind.startswith("cmyk"):
        return (255 - shown[..., :3]) * (255 - shown[..., 3:4]) / 255
    if kind in ("rgb alpha", "rgb alpha other"):
        return on_white(shown[..., :3], shown[..., 3:4] / 255)
    if kind.endswith("premultiplied"):
        return shown[..., [0, 0, 0] if kind.startswith("grey") else [0, 1, 2]] + 255 - shown[..., -1:]
    if kind == "grey alpha":
        return on_white(shown[..., [0, 0, 0]], shown[..., 1:2] / 255)
    return shown[..., [0, 1, 2] if kind.startswith(("rgb", "lab", "ycbcr")) else [0, 0, 0]]


def tiff_of(kind, values, planar=1, packing=None, tiled=False, order="<", big=False, **more):
    bands, photometric, extra = KINDS[kind]
    data = values[..., 0] if bands == 1 else (values if planar == 1 else np.moveaxis(values, -1, 0))
    out = io.BytesIO()
    options = {"tile": (16, 16)} if tiled else {"rowsperstrip": 13}
    if bands > 1:
        options |= {"planarconfig": planar}
    if packing:
        options |= {"compression": "zlib" if packing == "predictor" else packing}
        options |= {"predictor": packing == "predictor"}
    with tifffile.TiffWriter(out, byteorder=order, bigtiff=big) as writer:
        writer.write(
            data, photometric=photometric, extrasamples=extra or None, metadata=None, **options | more
        )
    return out.getvalue()


def tiff_variants():
    """List every combination of the properties: (kind, type or bits, planes, packing, tiles, order, big)."""
    layouts = ((False, True), "<>", (False, True))
    whole = itertools.product(KINDS, TYPES, (1, 2), PACKINGS, *layouts)
    layouts = ((False, True), "<", (False, True))  # tifffile swaps the bytes of what it has packed
    packed = itertools.product(("grey", "white", "rgb"), BITS, (1, 2), (None,), *layouts)
    return [v for v in itertools.chain(whole, packed) if v[2] == 1 or KINDS[v[0]][0] > 1]


def made(variants) -> Iterator[tuple]:
    for kind, depth, *layout in variants:
        bits = depth if isinstance(depth, int) else 0
        dtype = ("u1" if bits <= 8 else "u2") if bits else depth
        values = values_of(kind, dtype, bits)
        content = tiff_of(kind, values, *layout, **({"bitspersample": bits} if bits else {}))
        yield ("TIFF", kind, depth, *layout), content, by_the_rule(kind, values, bits)


def test_tiff_of_drawn_properties():
    judged(made(random.Random(7).sample(tiff_variants(), 250)))


@pytest.mark.slow
def test_tiff_of_all_properties():
    counts = judged(made(tiff_variants()))
    assert counts["TIFF", "equal"] > 6000


def test_what_was_written_is_what_tifffile_reads():
    """The truth of this module is the written array: the peer reads the same from the file."""
    for kind, dtype, planar in (("rgb", "u2", 2), ("white", "u4", 1), ("grey", "f8", 1)):
        values = values_of(kind, dtype)
        read = tifffile.TiffFile(io.BytesIO(tiff_of(kind, values, planar, "lzw", True, ">"))).asarray()
        wanted = (
            values[..., 0] if values.shape[2] == 1 else (values if planar == 1 else np.moveaxis(values, 2, 0))
        )
        assert np.array_equal(read, wanted)


SPECIMENS = [("rgb", "u2", 2), ("rgb", "u4", 1), ("white", "u4", 1)]


@pytest.mark.parametrize("fault", ["planes swapped", "polarity", "a band dropped", "bytes swapped"])
def test_the_judge_notices(fault, monkeypatch):
    real = tiff._samples
    spoilt = {
        "planes swapped": lambda values: values[..., ::-1],
        "polarity": lambda values: values.max() - values,
        "a band dropped": lambda values: np.repeat(values[..., :1], values.shape[2], axis=2),
        "bytes swapped": lambda values: values.byteswap(),
    }[fault]
    monkeypatch.setattr(tiff, "_samples", lambda *about: spoilt(real(*about)))
    files = list(made([(kind, dtype, planar, None, False, ">", False) for kind, dtype, planar in SPECIMENS]))
    assert any(verdict(content, wanted).startswith("different") for _, content, wanted in files)


def pages(*parts):
    """A TIFF of several pages: (values, subfile type)."""
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        for values, subfile in parts:
            writer.write(values, photometric="rgb", subfiletype=subfile, metadata=None)
    return out.getvalue()


def rgb8(seed=0, height=HEIGHT, width=WIDTH):
    return (scene(3, seed, height, width) * 255).astype(np.uint8)


def test_a_thumbnail_first_is_not_the_picture(monkeypatch):
    """Page 0 is marked as a reduced copy: the full page is shown, and named."""
    full = rgb8()
    content = pages((full[::4, ::4], 1), (full, 0))
    got = decode(content, spec(), MAX)
    assert (got.pixel_rule, got.geometry.width) == ("page 2 of 2", WIDTH)
    assert verdict(content, full) == "equal"
    monkeypatch.setattr(tiff.Page, "is_full", True)
    assert verdict(content, full).startswith("different")


def test_the_full_page_may_be_a_sub_page():
    full, out = rgb8(), io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(full[::4, ::4], photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        writer.write(full, photometric="rgb", metadata=None)
    assert verdict(out.getvalue(), full) == "equal"


def test_of_several_full_pages_the_first_and_it_is_said():
    first, second = rgb8(), rgb8(1)[::-1]
    content = pages((first, 0), (second, 0))
    assert verdict(content, first) == "equal"
    assert decode(content, spec(), MAX).pixel_rule == "page 1 of 2"
    assert decode(pages((first, 0)), spec(), MAX).pixel_rule is None


def raw(preview_width):
    """A raw photograph 160 pixels wide, with a JPEG-compressed preview before it."""
    preview, out = rgb8(0, preview_width * 3 // 4, preview_width), io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(
            preview, photometric="ycbcr", subfiletype=1, compression="jpeg", compressionargs={"level": 98},
            subsampling=(1, 1), subifds=1, metadata=None, extratags=[(50706, "B", 4, (1, 4, 0, 0), True)],
        )  # fmt: skip
        sensor = (scene(1, 0, 120, 160)[..., 0] * 4095).astype(np.uint16)
        writer.write(sensor, photometric=32803, metadata=None)
    return out.getvalue(), tifffile.TiffFile(io.BytesIO(out.getvalue())).pages[0].asarray()


def test_a_raw_photograph_shows_its_preview_and_says_so():
    content, preview = raw(80)
    assert verdict(content, preview) == "equal"
    assert decode(content, spec(), MAX).pixel_rule == "preview of a raw photograph, page 1 of 2"


def test_a_raw_photograph_with_a_mere_thumbnail_is_refused():
    with pytest.raises(ImageError, match="raw photograph of 160 x 120 pixels; its largest preview: 16 x 12"):
        decode(raw(16)[0], spec(), MAX)


def nodata_tag(text):
    return [(42113, "s", 0, text, True)]


@pytest.mark.parametrize(("dtype", "empty", "text"), [
    ("f4", np.float32(-3.4e38), "-3.4e+38"), ("f4", np.nan, "nan"), ("f8", -9999.0, "-9999"),
    ("i2", -32768, "-32768"), ("u2", 65535, "65535"),
])  # fmt: skip
def test_nodata_has_no_part_in_the_rule_and_its_share_is_told(dtype, empty, text):
    values = np.rint(scene(1)[..., 0] * 1000 + 50).astype(dtype)
    hole = np.zeros(values.shape, bool)
    hole[:, : WIDTH // 4] = True
    values[hole] = empty
    content = tiff_of("grey", values[..., None], extratags=nodata_tag(text))
    seen = values[~hole].astype(float)
    low, high = (
        (0, 2 ** int(seen.max()).bit_length() - 1) if dtype in ("u2", "i2") else (seen.min(), seen.max())
    )
    wanted = np.where(hole, 0, (values.astype(float) - low) / (high - low) * 255)
    assert verdict(content, np.repeat(np.nan_to_num(wanted)[..., None], 3, 2)) == "equal"
    assert decode(content, spec(), MAX).pixel_rule.endswith("nodata 0.250")
    assert "nodata" not in decode(tiff_of("grey", values[:, 20:, None]), spec(), MAX).pixel_rule


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("bands", [4, 14])
def test_bands_without_colours_are_refused_by_their_number(bands, planar):
    values = (scene(bands) * 65535).astype(np.uint16)
    out = io.BytesIO()
    data = values if planar == 1 else np.moveaxis(values, -1, 0)
    tifffile.imwrite(out, data, photometric="minisblack", planarconfig=planar, metadata=None)
    with pytest.raises(ImageError, match=f"{bands} bands, and no word which") as caught:
        decode(out.getvalue(), spec(), MAX)
    assert caught.value.code == ErrorCode.FORMAT_NOT_ALLOWED


def test_bands_beyond_the_colours_are_said():
    content = tiff_of("rgb other", values_of("rgb other", "u1"))
    assert decode(content, spec(), MAX).pixel_rule == "bands 1-3 of 4"


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_a_band_marked_as_alpha_that_is_a_picture_is_refused(dtype):
    """Near infrared as a fourth band, under the mark of alpha, would wash the picture out."""
    values = (scene(4) * 0.8 * np.iinfo(dtype).max).astype(dtype)
    with pytest.raises(ImageError, match="marked as alpha, yet differs"):
        decode(tiff_of("rgb alpha", values), spec(), MAX)


@pytest.mark.parametrize("scale", [257, 1])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_palettes_in_either_scale(dtype, scale):
    """Some writers scale a palette to 255, not to 65535: it is not black."""
    count = 2 ** (8 * np.dtype(dtype).itemsize)
    table = np.random.default_rng(3).integers(1, 256, (3, count)).astype(np.uint16)
    index = (scene(1)[..., 0] * (count - 1)).astype(dtype)
    out = io.BytesIO()
    tifffile.imwrite(out, index, photometric="palette", colormap=table * scale, metadata=None)
    assert verdict(out.getvalue(), table.T[index]) == "equal"


@pytest.mark.parametrize("kind", ["grey", "rgb", "ycbcr"])
def test_tiff_with_jpeg_inside(kind):
    values = (scene(KINDS[kind][0]) * 255).astype(np.uint8)
    more = {"compression": "jpeg", "compressionargs": {"level": 98}}
    content = tiff_of(kind, values, **more)
    read = tifffile.TiffFile(io.BytesIO(content)).asarray()
    assert verdict(content, read if read.ndim == 3 else read[..., None].repeat(3, 2)) == "equal"


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_tiff(orientation, dtype):
    from tests.image.test_decode import ORIENTATION

    values = values_of("rgb", dtype)
    content = tiff_of("rgb", values, extratags=[(274, "H", 1, orientation, True)])
    assert verdict(content, ORIENTATION[orientation](by_the_rule("rgb", values))) == "equal"


def test_tiles_that_are_listed_as_strips():
    """As old writers do: libtiff reads them."""
    values = values_of("grey", "u1")
    content = bytearray(tiff_of("grey", values, tiled=True))
    at = struct.unpack_from("<I", content, 4)[0]
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", content, at)[0], 12):
        tag = struct.unpack_from("<H", content, entry)[0]
        struct.pack_into("<H", content, entry, {324: 273, 325: 279}.get(tag, tag))
    assert verdict(bytes(content), by_the_rule("grey", values)) == "equal"


def test_jpeg_that_is_not_read_is_named_and_not_called_damaged():
    """Lossless JPEG of 16 bits, and JPEG as old programs put it into a TIFF."""
    deep = (scene(1)[..., 0] * 65535).astype(np.uint16)
    lossless = io.BytesIO()
    tifffile.imwrite(
        lossless, deep, compression="jpeg", compressionargs={"lossless": True, "bitspersample": 16}
    )
    assert np.array_equal(tifffile.imread(io.BytesIO(lossless.getvalue())), deep)
    with pytest.raises(ImageError, match="compression JPEG of 1 x uint16 is not read"):
        upright(lossless.getvalue(), MAX)
    old = tiff_of("grey", values_of("grey", "u1"))
    entry = struct.pack("<HHIH", 259, 3, 1, 1)
    assert old.count(entry) == 1
    with pytest.raises(ImageError, match="old-style JPEG, of a kind that is not read"):
        upright(old.replace(entry, struct.pack("<HHIH", 259, 3, 1, 6)), MAX)


@pytest.mark.parametrize("kind", ["grey", "rgb"])
@pytest.mark.parametrize("highest", [1.00003, 1.6, 12.0])
def test_floats_with_some_above_1_are_not_black(kind, highest):
    """Resampling, and lamps in photographs, make a little more than 1 of shares of it."""
    values = scene(KINDS[kind][0]).astype("f4")
    values[:4, :4] = highest
    wanted = (values - values.min()) / (values.max() - values.min()) * 255
    assert verdict(tiff_of(kind, values), wanted if kind == "rgb" else wanted.repeat(3, 2)) == "equal"


@pytest.mark.parametrize("kind", ["rgb", "grey", "cmyk"])
def test_a_cut_tiff_is_told_not_padded(kind):
    """Whichever reader: half a picture never comes out."""
    for dtype, packing in itertools.product(("u1", "u2", "u4"), (None, "zlib", "lzw", "packbits", "zstd")):
        values = values_of(kind, dtype)
        content = tiff_of(kind, values, packing=packing, order=">", big=True, software=False)
        offsets, counts = (tiff.pages_of(content)[0].tags[tag] for tag in (273, 279))
        shorter = bytearray(content)
        shorter[offsets[-1] + counts[-1] // 2 : offsets[-1] + counts[-1]] = b""
        try:
            got = upright(bytes(shorter), MAX)
        except ImageError as error:
            assert error.code in (ErrorCode.TRUNCATED_IMAGE, ErrorCode.CORRUPT_IMAGE)  # noqa: PT017
        else:
            assert same(got, by_the_rule(kind, values))


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imagecodecs", None)
    values = values_of("rgb", "u4")
    assert verdict(tiff_of("rgb", values, packing="zlib"), by_the_rule("rgb", values)) == "equal"
    with pytest.raises(ImageError, match=r"LZW of 3 x uint32 needs an extra: pip install camray\[tiff\]"):
        decode(tiff_of("rgb", values, packing="lzw"), spec(), MAX)


# ── PNG ──────────────────────────────────────────────────────────────────────────────────────────


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(values, depth, colour_type, more=b""):
    """Write a PNG of samples (H, W, bands), without filters."""
    height, width, _ = values.shape
    if depth < 8:
        bits = (values.reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
        rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    else:
        rows = np.ascontiguousarray(values.astype(f">u{depth // 8}")).view(np.uint8).reshape(height, -1)
    lines = np.pad(rows, ((0, 0), (1, 0)))
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = (
        chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(lines.tobytes())) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


def pngs():
    for colour_type, bands, depths in (
        (0, 1, (1, 2, 4, 8, 16)),
        (2, 3, (8, 16)),
        (4, 2, (8, 16)),
        (6, 4, (8, 16)),
    ):
        for depth, transparent in itertools.product(depths, (False, True)):
            full = 2**depth - 1
            values = np.rint(scene(bands) * full).astype(int)
            shown = values * (255 / full) if depth <= 8 or bands == 1 else (values >> 8).astype(float)
            picture = shown[..., [0, 1, 2] if bands > 2 else [0, 0, 0]]
            if bands in (2, 4):
                picture = on_white(picture, shown[..., -1:] / 255)
            more = b""
            if transparent and bands in (1, 3):
                values[8:24, 8:24] = key = values[4, 4]
                picture[(values == key).all(-1)] = 255
                more = chunk(b"tRNS", struct.pack(f">{bands}H", *key))
            yield ("PNG", colour_type, depth, transparent), png_of(values, depth, colour_type, more), picture
    for depth, transparent in itertools.product((1, 2, 4, 8), (False, True)):
        table = np.random.default_rng(depth).integers(0, 256, (2**depth, 3))
        index = np.rint(scene(1) * (2**depth - 1)).astype(int)
        more, picture = chunk(b"PLTE", table.astype(np.uint8).tobytes()), table[index[..., 0]].astype(float)
        if transparent:
            more += chunk(b"tRNS", b"\0\x80")
            cover = np.array([0, 128 / 255] + [1] * (2**depth - 2))[index]
            picture = on_white(picture, cover)
        yield ("PNG", 3, depth, transparent), png_of(index, depth, 3, more), picture


def test_png_of_all_types_and_depths():
    counts = judged(pngs())
    assert counts["PNG", "refused"] == 1  # one transparent colour of 16 bits a channel


# ── JPEG ─────────────────────────────────────────────────────────────────────────────────────────


def without_adobe(content):
    at = content.index(b"Adobe") - 4
    return content[:at] + content[at + 2 + struct.unpack_from(">H", content, at + 2)[0] :]


def jpegs():
    picture = Image.fromarray(rgb8())
    ways = {f"subsampling {way}": {"subsampling": way} for way in ("4:4:4", "4:2:2", "4:2:0")}
    ways |= {"progressive": {"progressive": True}, "restarts": {"restart_marker_blocks": 2}}
    ways |= {"as RGB": {"keep_rgb": True}, "optimised": {"optimize": True}}
    for name, options in ways.items():
        content = encoded(picture, "JPEG", quality=97, **options)
        yield ("JPEG", name), content, codecs.jpeg8_decode(content)
    for way in ("411", "440"):
        content = codecs.jpeg8_encode(rgb8(), 97, subsampling=way)
        yield ("JPEG", way), content, codecs.jpeg8_decode(content)
    ink = encoded(picture.convert("CMYK"), "JPEG", quality=97)
    yield ("JPEG", "CMYK of Adobe, inverted"), ink, np.asarray(picture)
    bare = without_adobe(ink)  # readers take Adobe's polarity without its mark, too
    yield ("JPEG", "CMYK without a mark"), bare, np.asarray(picture)
    deep = codecs.jpeg_encode((scene(3) * 4095).astype(np.uint16), 95, bitspersample=12)
    yield ("JPEG", "12 bits"), deep, rgb8()
    lossless = codecs.ljpeg_encode((scene(1)[..., 0] * 4095).astype(np.uint16), bitspersample=12)
    yield ("JPEG", "lossless"), lossless, rgb8()


def test_jpeg_of_all_kinds():
    counts = judged(jpegs())
    assert counts["JPEG", "refused"] == 2


@pytest.mark.parametrize("options", [
    {}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 3}, {"optimize": True},
])  # fmt: skip
def test_a_jpeg_that_lacks_its_end_mark_alone_is_whole(options):
    """What a common viewer shows whole is shown, and flagged; a byte of the data less, and it is cut."""
    content = encoded(Image.fromarray(rgb8()), "JPEG", quality=90, **options)
    assert content.endswith(b"\xff\xd9")
    whole = upright(content, MAX)
    for cut in (1, 2):
        assert np.array_equal(upright(content[:-cut], MAX), whole)
        assert decode(content[:-cut], spec(), MAX).pixel_rule == "missing_end"
    for cut in (4, 10, 40, len(content) // 4, len(content) // 2):
        with pytest.raises(ImageError) as caught:
            upright(content[:-cut], MAX)
        assert caught.value.code == ErrorCode.TRUNCATED_IMAGE


def test_a_progressive_jpeg_cut_between_two_scans_is_cut():
    content = encoded(Image.fromarray(rgb8()), "JPEG", progressive=True)
    starts = [at for at in range(len(content) - 1) if content[at : at + 2] in (b"\xff\xda", b"\xff\xc4")]
    for start in starts[1:]:
        with pytest.raises(ImageError) as caught:
            upright(content[:start], MAX)
        assert caught.value.code in (ErrorCode.TRUNCATED_IMAGE, ErrorCode.CORRUPT_IMAGE)


# ── others ───────────────────────────────────────────────────────────────────────────────────────


def pnms():
    for full in (100, 255, 1000, 4095, 65535):
        for (text, binary), bands in (((2, 5), 1), ((3, 6), 3)):
            values = np.rint(scene(bands) * full).astype(int)
            picture = (values * (255 / full))[..., [0, 1, 2] if bands == 3 else [0, 0, 0]]
            head = f"{WIDTH} {HEIGHT}\n{full}\n".encode()
            written = " ".join(map(str, values.ravel())).encode()
            yield ("PNM", text, full), b"P%d\n%b%b\n" % (text, head, written), picture
            stored = values.astype(">u2" if full > 255 else "u1").tobytes()
            yield ("PNM", binary, full), b"P%d\n%b%b" % (binary, head, stored), picture
    black = scene(1)[..., 0] > 0.5
    picture = np.where(black, 0, 255)[..., None].repeat(3, 2)
    size = f"{WIDTH} {HEIGHT}\n".encode()
    yield ("PNM", 1), b"P1\n%b%b\n" % (size, " ".join(map(str, black.ravel().astype(int))).encode()), picture
    yield ("PNM", 4), b"P4\n%b%b" % (size, np.packbits(black, axis=1).tobytes()), picture
    values = scene(1)[..., 0].astype("<f4")
    yield (
        ("PNM", "Pf"),
        b"Pf\n%b-1.0\n%b" % (size, values[::-1].tobytes()),
        (values * 255)[..., None].repeat(3, 2),
    )
    yield ("PNM", "PF"), b"PF\n%b-1.0\n%b" % (size, scene(3).astype("<f4").tobytes()), picture
    yield ("PNM", "P7"), b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nENDHDR\nabc", picture


def lossless():
    picture = Image.fromarray(rgb8())
    pixels = np.asarray(picture)
    cover = np.where(scene(1, 5)[..., 0] > 0.5, 255, 90).astype(np.uint8)
    clear = Image.fromarray(np.dstack([pixels, cover]))
    white = on_white(pixels.astype(float), cover[..., None] / 255)
    frames = {"save_all": True, "append_images": [picture.transpose(Image.Transpose.ROTATE_180)]}
    yield ("WebP", "plain"), encoded(picture, "WEBP", lossless=True), pixels
    yield ("WebP", "alpha"), encoded(clear, "WEBP", lossless=True, exact=True), white
    yield ("WebP", "animated"), encoded(picture, "WEBP", lossless=True, **frames), pixels
    lossy = encoded(picture, "WEBP", quality=90)
    yield ("WebP", "lossy"), lossy, codecs.webp_decode(lossy)
    paletted = picture.quantize(64)
    for disposal in range(4):
        content = encoded(paletted, "GIF", disposal=disposal, **frames)
        yield ("GIF", disposal), content, codecs.gif_decode(content, index=0)
    for mode in ("RGB", "L", "P", "1", "RGBA"):  # a fourth byte without a mask of its own is padding
        stored = clear if mode == "RGBA" else picture.convert(mode)
        yield ("BMP", mode), encoded(stored, "BMP"), np.asarray(stored.convert("RGB"))
    flipped = bytearray(encoded(picture, "BMP"))  # the top row first: a negative height
    start = struct.unpack_from("<I", flipped, 10)[0]
    struct.pack_into("<i", flipped, 22, -HEIGHT)
    flipped[start:] = pixels[..., ::-1].tobytes()
    yield ("BMP", "top down"), bytes(flipped), pixels


def avifs():
    from tests.image.test_decode import ORIENTATION

    for bits in (8, 10, 12):
        values = (scene(3) * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
        content = codecs.avif_encode(values, 95, speed=10, bitspersample=bits)
        yield ("AVIF", bits), content, codecs.avif_decode(content).astype(float) * (255 / (2**bits - 1))
    for orientation, turn in ORIENTATION.items():
        exif = Image.Exif()
        exif[0x0112] = orientation  # becomes irot and imir
        content = encoded(
            Image.fromarray(rgb8()), "AVIF", quality=95, speed=10, subsampling="4:4:4", exif=exif
        )
        yield ("AVIF", f"turned {orientation}"), content, turn(rgb8())


def test_pnm_webp_gif_bmp_and_avif():
    counts = judged(itertools.chain(pnms(), lossless(), avifs()))
    assert counts["PNM", "refused"] == 2  # PAM, and PFM in colour
    assert sum(count for (_, what), count in counts.items() if what == "refused") == 2


XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_an_orientation_in_xmp_alone_turns_nothing(name):
    """As browsers, ImageMagick and libvips: EXIF's counts, XMP's does not."""
    picture = Image.fromarray(rgb8())
    more = {"xmp": XMP}
    if name == "PNG":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        more = {"pnginfo": info}
    if name == "TIFF":
        more = {"tiffinfo": {700: XMP}}
    content = encoded(picture, name, **more)
    assert b'tiff:Orientation="6"' in content
    assert verdict(content, rgb8()) == "equal" or name in ("JPEG", "WEBP", "AVIF")
    assert upright(content, MAX).shape == rgb8().shape


# ── formats of an extra ──────────────────────────────────────────────────────────────────────────


def extras():
    for codec, kind, options in (
        (codecs.jpeg2k_encode, "JPEG 2000", {"level": 0, "reversible": True}),
        (codecs.jpegxl_encode, "JPEG XL", {"lossless": True}),
    ):
        for tiff_kind, dtype in itertools.product(("grey", "rgb", "grey alpha", "rgb alpha"), ("u1", "u2")):
            values = values_of(tiff_kind, dtype)
            squeezed = values[..., 0] if values.shape[2] == 1 else values
            yield (kind, tiff_kind, dtype), codec(squeezed, **options), by_the_rule(tiff_kind, values)
    for bits in (10, 12):
        values = (scene(3) * (2**bits - 1)).astype(np.uint16)
        content = codecs.jpeg2k_encode(values, level=0, reversible=True, bitspersample=bits)
        yield ("JPEG 2000", bits), content, values >> (bits - 8)
    signed = codecs.jpeg2k_encode((scene(1)[..., 0] * 200 - 100).astype(np.int8), level=0)
    yield ("JPEG 2000", "signed"), signed, rgb8()
    floats = scene(3).astype(np.float32)
    yield ("JPEG XL", "floats"), codecs.jpegxl_encode(floats, lossless=True), floats * 255


def test_jpeg_2000_and_jpeg_xl():
    counts = judged(extras())
    assert counts["JPEG 2000", "refused"] == 1
    assert counts["JPEG XL", "refused"] == 0


def test_heic():
    heif = pytest.importorskip("pillow_heif")
    picture = Image.fromarray(rgb8())
    out = io.BytesIO()
    heif.from_pillow(picture).save(out, quality=98, chroma=444)
    assert verdict(out.getvalue(), np.asarray(picture)) == "equal"
    assert decode(out.getvalue(), spec(), MAX).format == "HEIC"


@pytest.mark.parametrize(("head", "package", "extra"), [
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow_heif", "heif"),
    (b"\xff\x0a\0\0", "imagecodecs", "codecs"), (b"\0\0\0\x0cjP  \r\n\x87\n", "imagecodecs", "codecs"),
])  # fmt: skip
def test_a_format_without_its_extra_names_it(head, package, extra, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ImageError, match=rf"needs an extra: pip install camray\[{extra}\]") as caught:
        decode(head, spec(), MAX)
    assert caught.value.code == ErrorCode.FORMAT_NOT_ALLOWED


@pytest.mark.parametrize("kind", ["JPEG 2000", "JPEG XL", "HEIC", "TIFF"])
def test_the_size_is_checked_before_anything_is_decoded(kind, monkeypatch):
    values = rgb8()
    if kind == "HEIC":
        heif = pytest.importorskip("pillow_heif")
        out = io.BytesIO()
        heif.from_pillow(Image.fromarray(values)).save(out)
        content = out.getvalue()
    else:
        content = {
            "JPEG 2000": lambda: codecs.jpeg2k_encode(values, level=0),
            "JPEG XL": lambda: codecs.jpegxl_encode(values),
            "TIFF": lambda: tiff_of("rgb", values_of("rgb", "u4"), packing="zlib"),
        }[kind]()
    for name in ("jpeg2k_decode", "jpegxl_decode"):
        monkeypatch.setattr(codecs, name, lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(ImageError) as caught:
        upright(content, WIDTH * HEIGHT - 1)
    assert caught.value.code == ErrorCode.TOO_MANY_PIXELS


# ── programs, and real files ─────────────────────────────────────────────────────────────────────


def by_magick(content, ending):
    """Decode with ImageMagick: upright, over white, sRGB, 8 bits; None where it cannot."""
    command = [CONVERT, f"{ending}:-[0]", "-auto-orient", "-background", "white", "-alpha", "remove"]
    command += ["-colorspace", "sRGB", "-depth", "8", "ppm:-"]
    done = subprocess.run(command, input=content, capture_output=True, check=False, timeout=60)
    return np.asarray(Image.open(io.BytesIO(done.stdout)).convert("RGB")) if done.stdout else None


def by_vips(path):
    """Decode with libvips to 8 bits; None where it cannot."""
    out = path.with_suffix(".ppm")
    done = subprocess.run(
        [VIPS, "colourspace", str(path), str(out), "srgb"], capture_output=True, check=False
    )
    return np.asarray(Image.open(out).convert("RGB")) if done.returncode == 0 else None


@pytest.mark.slow
@pytest.mark.skipif(CONVERT is None or VIPS is None, reason="no ImageMagick or no libvips here")
def test_tiff_as_imagemagick_and_libvips_read_it(tmp_path):
    """Unsigned integers over their whole range, where all agree on what 8 bits are."""
    variants = [
        v for v in tiff_variants() if v[1] in ("u1", "u2") and v[0] in ("grey", "white", "rgb", "rgb alpha")
    ]
    counts = Counter()
    for name, content, _ in made(random.Random(3).sample(variants, 150)):
        path = tmp_path / "x.tif"
        path.write_bytes(content)
        got = upright(content, MAX)
        peers = {"magick": by_magick(content, "tiff")}
        if name[1] != "rgb alpha":
            peers["vips"] = by_vips(path)
        for peer, read in peers.items():
            what = "cannot" if read is None else "equal" if same(got, read) else "different"
            counts[peer, what] += 1
            assert what != "different", (name, peer)
    print(dict(counts))
    assert counts["magick", "equal"] > 100


@pytest.mark.slow
@pytest.mark.skipif(not REAL or CONVERT is None, reason="CAMRAY_REAL_IMAGES names no folder")
def test_real_files():
    """Whatever is shown of a real file of 8 bits, ImageMagick shows alike; the rest is listed for people."""
    counts, listed = Counter(), []
    for path in sorted(file for folder in REAL for file in folder.rglob("*") if file.is_file()):
        content = path.read_bytes()
        try:
            picture = decode(content, spec(), 20_000_000)
            got = upright(content, 20_000_000)
        except ImageError as error:
            counts["refused", str(error.code)] += 1
            continue
        read = by_magick(content, picture.format.lower().replace("jpeg 2000", "jp2"))
        if read is None or picture.pixel_rule:
            counts[picture.format, "shown alone"] += 1
        else:
            what = "equal" if same(got, read) else "different"
            counts[picture.format, what] += 1
            listed += [str(path)] if what == "different" else []
    for what, count in sorted(counts.items()):
        print(*what, count)
    print("to be looked at:", *listed, sep="\n")
    assert len(listed) <= sum(counts.values()) // 50
