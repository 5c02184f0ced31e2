"""Decoding: upright, typed failures, and every pixel mode by its documented rule."""

import io
import subprocess
import sys
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFile

from camray.errors import ErrorCode as E
from camray.errors import ImageError
from camray.image.decode import decode, upright
from tests.archive.makers import encoded, spec

MAX = 100_000_000
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pytest undoes the filter that decode sets


def code_of(content, max_pixels=MAX):
    with pytest.raises(ImageError) as caught:
        decode(content, spec(), max_pixels)
    message = caught.value.message
    assert message.isprintable()
    assert "0x" not in message
    assert "\n" not in message
    assert len(message) <= 300
    return caught.value.code, message


def outcome(content, max_pixels=MAX):
    """(error code or None, pixels or None): nothing but ImageError may be raised."""
    try:
        return None, upright(content, max_pixels)
    except ImageError as error:
        return error.code, None


def photo(width=64, height=48, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_pixels_are_what_the_contract_says():
    got = decode(encoded(photo()), spec((32, 40), (40, 40)), MAX)
    assert got.pixels.dtype == np.uint8
    assert got.pixels.shape == (32, 40, 3)
    assert got.pixels.flags["C_CONTIGUOUS"]
    assert got.pixels.flags["OWNDATA"]
    assert (got.format, got.geometry.width, got.geometry.height) == ("PNG", 64, 48)


# what each EXIF orientation asks for, as array operations on (row, column, channel)
ORIENTATION = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("fmt", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation(orientation, fmt):
    stored = np.asarray(photo(24, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(fmt, {})
    content = encoded(Image.fromarray(stored), fmt, exif=exif, **options)
    expected = ORIENTATION.get(orientation, ORIENTATION[1])(stored)
    got = upright(content, MAX)
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).mean() < (4 if fmt == "JPEG" else 1e-9)


def test_broken_exif_is_ignored():
    content = encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    assert upright(content, MAX).shape == (48, 64, 3)


@pytest.mark.parametrize("fmt", ["PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "JPEG", "AVIF"])
def test_formats(fmt):
    picture = Image.new("RGB", (20, 10), (200, 100, 50))
    got = decode(encoded(picture, fmt), spec(), MAX)
    assert got.format == fmt
    assert np.abs(got.pixels.astype(int) - (200, 100, 50)).max() <= 6


def test_a_broken_colour_profile_is_ignored():
    for fmt in ("JPEG", "PNG", "TIFF", "WEBP"):
        for profile in (b"garbage", b"\xff" * 5000):
            plain, odd = encoded(photo(), fmt), encoded(photo(), fmt, icc_profile=profile)
            assert outcome(odd)[0] is None
            assert np.array_equal(outcome(odd)[1], outcome(plain)[1]), fmt


def test_mpo_gives_its_first_picture():
    second = Image.new("RGB", (64, 48), (0, 0, 200))
    content = encoded(Image.new("RGB", (64, 48), (200, 0, 0)), "MPO", save_all=True, append_images=[second])
    assert np.abs(upright(content, MAX).astype(int) - (200, 0, 0)).max() <= 3


@pytest.mark.parametrize("fmt", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_gives_its_first_frame(fmt):
    frames = [Image.new("RGB", (10, 10), c) for c in [(250, 0, 0), (0, 250, 0), (0, 0, 250)]]
    options = {"lossless": True} if fmt == "WEBP" else {}
    content = encoded(frames[0], fmt, save_all=True, append_images=frames[1:], **options)
    assert np.abs(upright(content, MAX).astype(int) - (250, 0, 0)).max() <= 2


# ── pixel modes ──────────────────────────────────────────────────────────────────────────────────


def test_grey_and_one_bit():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(upright(encoded(Image.fromarray(ramp)), MAX), np.repeat(ramp[..., None], 3, 2))
    bits = Image.fromarray(ramp > 99)
    assert np.array_equal(upright(encoded(bits), MAX)[..., 0], np.where(ramp > 99, 255, 0))


def test_palette():
    picture = Image.new("P", (2, 1))
    picture.putpalette([1, 2, 3, 4, 5, 6])
    picture.putpixel((1, 0), 1)
    assert upright(encoded(picture), MAX).tolist() == [[[1, 2, 3], [4, 5, 6]]]


@pytest.mark.parametrize(("alpha", "expected"), [(255, 100), (0, 255), (128, 177), (51, 224)])
def test_alpha_over_white(alpha, expected):
    content = encoded(Image.new("RGBA", (4, 4), (100, 100, 100, alpha)))
    assert np.abs(upright(content, MAX).astype(int) - expected).max() <= 1
    content = encoded(Image.new("LA", (4, 4), (100, alpha)))
    assert np.abs(upright(content, MAX).astype(int) - expected).max() <= 1


def test_opaque_alpha_changes_nothing():
    picture = photo(200, 100)
    with_alpha = picture.copy()
    with_alpha.putalpha(255)
    assert np.array_equal(upright(encoded(with_alpha), MAX), np.asarray(picture))


def test_one_transparent_colour_is_white():
    picture = Image.new("RGB", (2, 1), (10, 20, 30))
    picture.putpixel((1, 0), (40, 50, 60))
    got = upright(encoded(picture, transparency=(10, 20, 30)), MAX)
    assert got.tolist() == [[[255] * 3, [40, 50, 60]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([1, 2, 3, 4, 5, 6])
    palette.putpixel((1, 0), 1)
    assert upright(encoded(palette, transparency=b"\0\xff"), MAX).tolist() == [[[255] * 3, [4, 5, 6]]]


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14, 16])
def test_integers_keep_their_brightness(bits, fmt):
    full = 2**bits - 1
    values = np.linspace(0, full, 64).astype(np.uint16).reshape(8, 8)
    got = upright(encoded(Image.fromarray(values), fmt), MAX)[..., 1]
    assert np.array_equal(got, np.rint(values * 255.0 / full).astype(np.uint8))


def test_dim_integers_below_8_bits_are_not_stretched():
    values = np.full((4, 4), 200, np.uint16)
    assert upright(encoded(Image.fromarray(values)), MAX).max() == 200


def test_signed_integers_are_stretched():
    values = np.array([[-1000, 0, 1000]], np.int32)
    assert upright(encoded(Image.fromarray(values), "TIFF"), MAX)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([1000.0, 1000.0, 1000.0], [128, 128, 128]),
    ],
)
def test_floats(values, expected):
    content = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert upright(content, MAX)[0, :, 2].tolist() == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite(value):
    values = np.zeros((8, 8), np.float32)
    values[3, 4] = value
    assert code_of(encoded(Image.fromarray(values), "TIFF"))[0] == E.NONFINITE_PIXELS


def test_cmyk():
    got = upright(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), MAX)
    assert got[0, 0].tolist() == [255, 0, 0]


def test_colour_space_without_a_rule_is_refused():
    lab = Image.new("LAB", (8, 8), (128, 128, 128))
    assert code_of(encoded(lab, "TIFF"))[0] == E.FORMAT_NOT_ALLOWED


# ── failures ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (b"", E.EMPTY_FILE, "0 bytes"),
        (b"<html><body>404</body></html>", E.NOT_AN_IMAGE, "HTML"),
        (b"\xff\xfeh\0i\0", E.NOT_AN_IMAGE, "text"),
        (b"version https://git-lfs.github.com/spec/v1\n", E.NOT_AN_IMAGE, "git-lfs"),
        (b'{"error": "denied"}', E.NOT_AN_IMAGE, "JSON"),
        (b"PK\x03\x04....", E.NOT_AN_IMAGE, "ZIP"),
        (bytes(1000), E.NOT_AN_IMAGE, "zeros"),
        (b"\x13\x37" * 50, E.NOT_AN_IMAGE, "unknown"),
        (b"%PDF-1.7\n", E.FORMAT_NOT_ALLOWED, "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", E.FORMAT_NOT_ALLOWED, "EPS"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", E.FORMAT_NOT_ALLOWED, "SVG"),
        (b"<?xml version='1.0'?>\n<svg/>", E.FORMAT_NOT_ALLOWED, "SVG"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", E.FORMAT_NOT_ALLOWED, "MP4"),
        (b"P7\nWIDTH 1\n", E.FORMAT_NOT_ALLOWED, "PAM"),
        (b"8BPS\0\1", E.FORMAT_NOT_ALLOWED, "PSD"),
        (b"\x89PNG\r\n\x1a\n", E.CORRUPT_IMAGE, "PNG"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0", E.TRUNCATED_IMAGE, "runcated"),
    ],
)
def test_what_is_not_decoded_is_named(content, code, says):
    got, message = code_of(content)
    assert got == code
    assert says in message


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF"])
def test_every_cut_is_a_typed_error_or_the_whole_picture(fmt):
    content = encoded(photo(40, 30), fmt)
    whole = upright(content, MAX)
    for cut in range(0, len(content), max(len(content) // 25, 1)):
        code, got = outcome(content[:cut])
        assert code in (None, E.EMPTY_FILE, E.TRUNCATED_IMAGE, E.CORRUPT_IMAGE, E.NOT_AN_IMAGE)
        assert code is not None or np.array_equal(got, whole), "half a picture came out in silence"


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF"])
def test_damaged_bytes_never_raise_anything_else(fmt):
    rng = np.random.default_rng(5)
    content = np.frombuffer(encoded(photo(40, 30), fmt), np.uint8)
    for _ in range(60):
        damaged = content.copy()
        at = rng.integers(0, min(len(damaged), 400), 4)
        damaged[at] = rng.integers(0, 256, 4)
        code, got = outcome(damaged.tobytes(), 1_000_000)
        assert code is not None or got.dtype == np.uint8


@pytest.mark.parametrize(
    "error", [TypeError("x"), MemoryError(), SyntaxError("a\nb"), RecursionError(), KeyError(1)]
)
def test_whatever_a_decoder_raises_is_mapped(monkeypatch, error):
    def fail(self):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert code_of(encoded(photo()))[0] == E.CORRUPT_IMAGE


def test_addresses_and_control_characters_stay_out_of_messages(monkeypatch):
    def fail(self):
        raise OSError(f"bad {io.BytesIO()!r} \x1b[31m\n at 0x7fffdeadbeef")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    code_of(encoded(photo()))


def test_size_is_checked_before_decoding():
    content = encoded(
        Image.new("1", (20_000, 10_000)), compress_level=1
    )  # Pillow itself would refuse or warn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code, message = code_of(content)
    assert code == E.TOO_MANY_PIXELS
    assert "200,000,000" in message
    assert Image.MAX_IMAGE_PIXELS is None
    assert code_of(encoded(photo(10, 10)), 99)[0] == E.TOO_MANY_PIXELS
    assert upright(encoded(photo(10, 10)), 100).shape == (10, 10, 3)


def test_trailing_garbage_is_no_error():
    content = encoded(photo(), "JPEG")
    assert np.array_equal(upright(content + b"\0junk" * 900, MAX), upright(content, MAX))


def test_threads_do_not_disturb_each_other():
    contents = [encoded(photo(50 + i, 40, i)) for i in range(12)]
    alone = [decode(c, spec(), MAX).pixels for c in contents]
    wrong = []

    def work(i):
        for _ in range(5):
            if not np.array_equal(decode(contents[i], spec(), MAX).pixels, alone[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_damaged_tiffs_print_nothing():
    script = (
        "import io, random; from PIL import Image; from camray.image.decode import upright\n"
        "from camray.errors import ImageError\n"
        "b = io.BytesIO(); Image.new('RGB', (64, 64), 9).save(b, 'TIFF', compression='tiff_lzw')\n"
        "r = random.Random(1)\n"
        "for _ in range(200):\n"
        "    d = bytearray(b.getvalue())\n"
        "    for _ in range(6): d[r.randrange(len(d))] = r.randrange(256)\n"
        "    try: upright(bytes(d), 10**6)\n"
        "    except ImageError: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""


def smooth(width, height):
    """Large enough to be reduced, without detail that a reduction would lose."""
    return photo(13, 9, seed=3).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(1601, 1001), (1000, 1999), (3999, 4000)])
def test_fast_decode_sees_the_same_part_of_a_large_jpeg(size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(smooth(*size), "JPEG", quality=95, exif=exif)
    whole = decode(content, spec((64, 64), (72, 72)), MAX)
    fast = decode(content, replace(spec((64, 64), (72, 72)), fast_decode=True), MAX)
    assert fast.geometry == whole.geometry
    assert (fast.geometry.width, fast.geometry.height) == (size if orientation == 1 else size[::-1])
    difference = np.abs(whole.pixels.astype(int) - fast.pixels)
    assert difference.max() <= 3


def test_fast_decode_leaves_out_detail_that_the_resize_would_average_away():
    content = encoded(photo(1600, 1600), "JPEG", quality=95)
    whole = decode(content, spec((64, 64), (64, 64)), MAX).pixels
    fast = decode(content, replace(spec((64, 64), (64, 64)), fast_decode=True), MAX).pixels
    assert not np.array_equal(whole, fast)


@pytest.mark.parametrize(("name", "size"), [("PNG", (1600, 1600)), ("JPEG", (127, 127))])
def test_fast_decode_changes_nothing_else(name, size):
    """Other formats know no reduced scale, and half of 127 pixels would be less than twice 32."""
    content = encoded(photo(*size), name)
    fast = decode(content, replace(spec((32, 32), (32, 32)), fast_decode=True), MAX).pixels
    assert np.array_equal(decode(content, spec((32, 32), (32, 32)), MAX).pixels, fast)
