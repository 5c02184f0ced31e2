"""59 difficult files, each with what must become of it and why. Needs the collection beside the checkout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camray.archive.listing import list_archive
from camray.archive.members import read_members
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ImageError
from camray.image.decode import decode, upright
from camray.records import Shard, Status
from tests.archive.makers import spec

FOLDER = Path(__file__).parents[2].parent / "shared" / "data" / "nasty"
pytestmark = [
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no collection of difficult files at {FOLDER}"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # pytest undoes the filter that decode sets
]

E = ErrorCode
OK = {  # name: (format, upright width, upright height)
    "Landscape_5.jpg": ("JPEG", 1800, 1200),  # EXIF 5: stored 1200 x 1800, mirrored
    "Portrait_8.jpg": ("JPEG", 1200, 1800),  # EXIF 8: stored 1800 x 1200
    "UPPER.JPEG": ("JPEG", 480, 270),
    "animated.gif": ("GIF", 200, 112),  # first of 4 frames
    "animated.png": ("PNG", 200, 112),
    "animated.webp": ("WEBP", 200, 112),
    "bad_idat_crc.png": ("PNG", 64, 48),  # Pillow does not check the CRC of image data; zlib's sum holds
    "bilevel.png": ("PNG", 273, 320),
    "cmyk.jpg": ("JPEG", 480, 270),
    "corrupt_middle.jpg": ("JPEG", 480, 270),  # 64 zeroed bytes are valid JPEG symbols: no decoder can tell
    "dup_a.jpg": ("JPEG", 480, 270),
    "dup_b.jpg": ("JPEG", 480, 270),
    "exif_rot6.jpg": ("JPEG", 480, 270),  # stored 270 x 480
    "exif_typeerror.jpg": ("JPEG", 800, 531),  # bad EXIF never fails an image
    "float32.tif": ("TIFF", 273, 320),  # 0..1
    "gray.jpg": ("JPEG", 480, 270),
    "gray12in16.png": ("PNG", 273, 320),
    "gray12in16.tif": ("TIFF", 273, 320),
    "gray16.png": ("PNG", 273, 320),
    "hopper_16bit.pgm": ("PPM", 128, 128),
    "hopper_bad_exif.jpg": ("JPEG", 500, 500),
    "invalid-exif.jpg": ("JPEG", 200, 200),
    "jpeg_no_extension": ("JPEG", 480, 270),
    "la.png": ("PNG", 273, 320),
    "multipage.tif": ("TIFF", 200, 112),  # first of 4 pages
    "no_palette.gif": ("GIF", 1, 1),  # a GIF without colour table is grey
    "one_by_one.png": ("PNG", 1, 1),
    "palette_alpha.png": ("PNG", 273, 320),
    "pil_sample_cmyk.jpg": ("JPEG", 100, 100),
    "png_named_jpg.jpg": ("PNG", 160, 120),  # the content decides, not the name
    "progressive.jpg": ("JPEG", 480, 270),
    "rainbow-451x461.heic": ("HEIC", 451, 461),
    "rgba.png": ("PNG", 273, 320),
    "spaces and ünïcode 图像 #1%20?.jpg": ("JPEG", 480, 270),
    "still.avif": ("AVIF", 480, 270),
    "still.bmp": ("BMP", 160, 120),
    "still.webp": ("WEBP", 480, 270),
    "strip_4000x1.png": ("PNG", 4000, 1),
    "strip_tall.jpg": ("JPEG", 8, 6000),
    "tiff_16bit_RGB.tiff": ("TIFF", 100, 40),
    "tiff_strip_cmyk_jpeg.tif": ("TIFF", 100, 100),
    "truncated_jpeg.jpg": ("JPEG", 100, 100),  # half of its end mark is all that is missing
    "truncated_last2.jpg": ("JPEG", 480, 270),  # the end mark is all that is missing
    "trailing_garbage.jpg": ("JPEG", 480, 270),  # what follows the end mark is no part of the image
}
FAILED = {
    "bad_chunk_type.png": E.CORRUPT_IMAGE,  # the first data chunk has no valid name
    "bomb_108mpx_1bit.png": E.TOO_MANY_PIXELS,  # 12000 x 9000
    "bomb_400mpx_1bit.png": E.TOO_MANY_PIXELS,
    "broken_data_stream.png": E.CORRUPT_IMAGE,
    "crash-63b1dffefc8c075ddc606c0a2f5fdc15ece78863.tif": E.FORMAT_NOT_ALLOWED,  # YCbCr without JPEG
    "decompression_bomb.gif": E.TOO_MANY_PIXELS,
    "float32_nan.tif": E.NONFINITE_PIXELS,
    "header_lies_60000.png": E.TOO_MANY_PIXELS,  # by the header alone, before its lie shows
    "html_error_page.jpg": E.NOT_AN_IMAGE,
    "oom-225817ca0f8c663be7ab4b9e717b02c661e66834.tif": E.CORRUPT_IMAGE,  # absurd samples per pixel
    "text_utf16.png": E.NOT_AN_IMAGE,
    "truncated_half.jpg": E.TRUNCATED_IMAGE,
    "truncated_header.jpg": E.TRUNCATED_IMAGE,
    "truncated_image.png": E.TRUNCATED_IMAGE,
    "zero_byte.jpg": E.EMPTY_FILE,
}


def content(name):
    return (FOLDER / name).read_bytes()


def test_the_table_names_every_file():
    assert sorted([*OK, *FAILED]) == sorted(p.name for p in FOLDER.iterdir())
    assert len(OK) + len(FAILED) == 59


@pytest.mark.parametrize("name", OK)
def test_decoded(name):
    got = decode(content(name), spec(), 100_000_000)
    assert (got.format, got.geometry.width, got.geometry.height) == OK[name]
    if name != "no_palette.gif":
        assert 5 < got.pixels.mean() < 250, "white or black"


@pytest.mark.parametrize("name", FAILED)
def test_failed(name, capfd):
    with pytest.raises(ImageError) as caught:
        decode(content(name), spec(), 100_000_000)
    assert caught.value.code == FAILED[name]
    assert caught.value.message.isprintable()
    assert capfd.readouterr().err == ""


def test_all_as_a_folder_of_loose_files():
    config = ArchiveConfig(path=str(FOLDER))
    listing = list_archive(config)
    group = Shard("group", "files", 0, "", files=listing.files, root=listing.root)
    members = list(read_members(group, config))
    assert [m.index for m in members] == list(range(59))
    assert {m.name for m in members} == {*OK, *FAILED}
    assert all(m.status == Status.OK and m.content == content(m.name) for m in members)


@pytest.mark.parametrize(("odd", "plain"), [("gray12in16.png", "gray16.png"), ("float32.tif", "gray16.png")])
def test_deep_greys_look_alike(odd, plain):
    """The same photograph at 12 bits, 16 bits and as floats comes out the same, give or take rounding."""
    a, b = (upright(content(name), 10**8).astype(int) for name in (odd, plain))
    assert np.abs(a - b).max() <= 2


def test_exif_variants_show_the_same_cat():
    straight = upright(content("dup_a.jpg"), 10**8).astype(int)
    assert np.abs(upright(content("exif_rot6.jpg"), 10**8) - straight).mean() < 3


def test_cmyk_is_not_inverted():
    cmyk = upright(content("cmyk.jpg"), 10**8).astype(int)
    assert np.abs(cmyk - upright(content("dup_a.jpg"), 10**8)).mean() < 6
    sample = np.asarray(Image.open(FOLDER / "pil_sample_cmyk.jpg").convert("RGB"))
    assert np.array_equal(upright(content("pil_sample_cmyk.jpg"), 10**8), sample)
