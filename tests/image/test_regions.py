"""Boxes and masks of a decoded image; and the rule by which its pixels became 8 bits."""

import numpy as np
import pytest
from PIL import Image

from camray.errors import ErrorCode, ImageError
from camray.image.decode import decode, open_mask
from camray.records import Boxes
from tests.archive.makers import encoded, spec

MAX = 1_000_000
WIDE = encoded(Image.new("RGB", (200, 100)))  # of which the middle square is the input


def mask_of(content, size=50, **options):
    return decode(WIDE, spec(size, size, **options), MAX, mask=content).mask


@pytest.mark.parametrize("scale", [1, 2, 0.5])
def test_a_mask_is_fitted_as_its_image_is(scale):
    """The left half of the image is marked: the left half of the input is, whatever the mask's size."""
    mask = np.zeros((int(100 * scale), int(200 * scale)), np.uint8)
    mask[:, : mask.shape[1] // 2] = 1
    fitted = mask_of(encoded(Image.fromarray(mask)))
    assert fitted[:, :24].min() == 255
    assert fitted[:, 26:].max() == 0


def test_padding_is_outside():
    fitted = mask_of(encoded(Image.new("L", (200, 100), 9)), mode="border", fill=(200, 200, 200))
    assert fitted[:12].max() == fitted[-12:].max() == 0
    assert fitted[13:37].min() == 255


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_what_a_mask_marks(mode):
    mask = Image.new(mode, (2, 2))
    if mode == "P":
        mask.putpalette([255] * 768)  # entry 0 is the background, whatever its colour
    value = {"RGB": (0, 0, 9), "RGBA": (0, 9, 0, 255), "LA": (9, 255), "1": 1}.get(mode, 3)
    mask.putpixel((1, 0), value)
    if mode in ("RGBA", "LA"):
        mask.putpixel((0, 1), (*value[:-1], 0))  # transparent: not marked
    assert np.asarray(open_mask(encoded(mask), MAX)).tolist() == [[0, 255], [0, 0]]


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (encoded(Image.new("L", (100, 200))), ErrorCode.CORRUPT_IMAGE, "mask: 100 x 200 pixels, of another"),
        (b"<html>", ErrorCode.NOT_AN_IMAGE, "mask: looks like HTML"),
        (b"", ErrorCode.EMPTY_FILE, "mask: 0 bytes"),
    ],
)
def test_masks_that_do_not_fit(content, code, says):
    with pytest.raises(ImageError) as caught:
        mask_of(content)
    assert caught.value.code == code
    assert says in caught.value.message


def test_boxes_are_of_the_upright_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.new("RGB", (40, 100)), "JPEG", exif=exif)
    found = decode(content, spec(), MAX, Boxes(((25, 10, 50, 40),), in_pixels=True))
    assert (found.geometry.width, found.geometry.height) == (100, 40)
    assert (found.boxes, found.mask) == (((0.25, 0.25, 0.5, 1.0),), None)
    assert decode(content, spec(), MAX).boxes == ()


def test_boxes_are_cut_at_the_image_and_dropped_without_area():
    content = encoded(Image.new("RGB", (100, 20)))
    edges = ((-10, 5, 50, 20), (90, 0, 200, 10), (100, 0, 120, 10), (5, 5, 5, 9))
    assert decode(content, spec(), MAX, Boxes(edges, in_pixels=True)).boxes == (
        (0.0, 0.25, 0.5, 1.0),
        (0.9, 0.0, 1.0, 0.5),
    )
    assert decode(content, spec(), MAX, Boxes(((0.1, 0, 2, 1),), in_pixels=False)).boxes == ((0.1, 0, 1, 1),)


@pytest.mark.parametrize(
    ("values", "fmt", "rule"),
    [
        (np.array([[0, 4000]], np.uint16), "PNG", "0..4095"),
        (np.array([[0, 4000]], np.uint16), "TIFF", "0..4095"),
        (np.array([[-5, 7]], np.int32), "TIFF", "min-max -5..7"),
        (np.array([[0.0, 0.5]], np.float32), "TIFF", "0..1"),
        (np.array([[0.0, 77.0]], np.float32), "TIFF", "0..255"),
        (np.array([[0, 4]], np.uint8), "PNG", None),
    ],
)
def test_the_rule_is_told(values, fmt, rule):
    assert decode(encoded(Image.fromarray(values), fmt), spec(), MAX).pixel_rule == rule
