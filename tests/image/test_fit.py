"""The model's input equals timm's evaluation transform bit for bit, and the geometry points at the truth."""

import math

import numpy as np
import pytest
from PIL import Image

from camray.image import fit
from camray.image.decode import decode
from camray.image.fit import fit_image, plan_fit
from tests.archive.makers import encoded, spec

MEAN = (0.485, 0.456, 0.406)
SIZES = [(1, 1), (1, 2), (3, 3), (223, 224), (256, 256), (257, 255), (480, 270), (333, 500)]
SIZES += [(1000, 37), (37, 1000), (100, 1), (1, 100), (7, 500), (500, 7), (640, 480)]


def noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def as_timm(image, size, crop_pct, mode, interpolation):
    """What timm makes of it, before ToTensor; None where timm itself fails."""
    data = pytest.importorskip("timm.data")
    options = {"crop_pct": crop_pct, "crop_mode": mode, "interpolation": interpolation}
    transform = data.create_transform(
        (3, *size), is_training=False, use_prefetcher=True, mean=MEAN, std=(1, 1, 1), **options
    )
    try:
        return np.asarray(transform(image)).transpose(1, 2, 0)
    except ValueError:
        return None


def as_camray(image, size, crop_pct, mode, interpolation):
    fill = tuple(round(255 * m) for m in MEAN) if mode == "border" else (0, 0, 0)
    resize = tuple(math.floor(x / crop_pct) for x in size)
    s = spec(size, resize, mode, interpolation, fill)
    return decode(encoded(image, compress_level=1), s, 10**8).pixels


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("source", SIZES, ids=str)
def test_equals_timm_bit_for_bit(source, mode):
    image = noise(*source)
    failed_in_timm = 0
    for size, crop_pct in [((224, 224), 0.875), ((192, 160), 0.9), ((64, 64), 1.2)]:
        for interpolation in ["bicubic", "bilinear"]:
            expected = as_timm(image, size, crop_pct, mode, interpolation)
            got = as_camray(image, size, crop_pct, mode, interpolation)
            if expected is None:
                failed_in_timm += 1
                assert got.shape == (*size, 3)
            else:
                assert np.array_equal(got, expected), (size, crop_pct, interpolation)
    assert failed_in_timm == 0 or mode == "border"  # a side rounded to 0 pixels


@pytest.mark.parametrize("interpolation", ["nearest", "lanczos"])
def test_rarer_filters_equal_timm(interpolation):
    for source in [(480, 270), (100, 150), (500, 333)]:
        image = noise(*source)
        for mode in ("center", "squash", "border"):
            args = (image, (128, 128), 0.9, mode, interpolation)
            assert np.array_equal(as_camray(*args), as_timm(*args))


@pytest.mark.parametrize("source", [(900, 10), (10, 900), (200, 3), (3, 200), (300, 299)], ids=str)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_window_of_a_strip_is_the_crop_of_the_whole(monkeypatch, source, interpolation):
    image, s = noise(*source), spec(interpolation=interpolation)
    whole = np.asarray(fit_image(image, plan_fit(*source, s), s)).astype(int)
    monkeypatch.setattr(fit, "MAX_INTERMEDIATE_PIXELS", 1)
    window = np.asarray(fit_image(image, plan_fit(*source, s), s))
    assert np.abs(window - whole).max() <= 2
    assert np.abs(window - whole).mean() < 0.01


@pytest.mark.parametrize("source", [(4000, 1), (1, 4000), (10_000_000, 1)], ids=str)
def test_extreme_strips_stay_small(source):
    shades = np.linspace(0, 200, max(source)).astype(np.uint8)
    grey = shades.reshape(source[1], source[0])
    image = Image.merge("RGB", [Image.fromarray(grey)] * 3)
    s = spec()
    got = np.asarray(fit_image(image, plan_fit(*source, s), s))
    assert got.shape == (224, 224, 3)
    assert np.abs(got.astype(int) - 100).max() <= 1  # the middle of the strip


HOT_SPOTS = [(0.5, 0.5), (0.3, 0.4), (0.62, 0.71), (0.45, 0.35)]


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("source", [(640, 480), (480, 640), (301, 299), (900, 500)], ids=str)
def test_geometry_points_at_the_hot_spot(source, mode):
    """A bright disc at a known source pixel is found again through the input and the geometry."""
    width, height = source
    ys, xs = np.mgrid[:height, :width]
    for fx, fy in HOT_SPOTS:
        cx, cy = fx * width, fy * height
        disc = (np.hypot(xs + 0.5 - cx, ys + 0.5 - cy) < 20) * np.uint8(255)
        got = decode(encoded(Image.merge("RGB", [Image.fromarray(disc)] * 3)), spec(mode=mode), 10**8)
        heat = got.pixels[..., 0].astype(float)
        v, u = (np.mgrid[:224, :224] * heat).sum((1, 2)) / heat.sum()
        g = got.geometry
        assert abs(g.crop_x0 + (u + 0.5) * (g.crop_x1 - g.crop_x0) / 224 - cx) < 0.5
        assert abs(g.crop_y0 + (v + 0.5) * (g.crop_y1 - g.crop_y0) / 224 - cy) < 0.5


def test_geometry_by_hand():
    g = decode(encoded(noise(512, 256)), spec(), 10**8).geometry  # resized to itself, the middle 224 cut out
    assert (g.width, g.height) == (512, 256)
    assert (g.crop_x0, g.crop_y0, g.crop_x1, g.crop_y1) == (144, 16, 368, 240)
    g = decode(encoded(noise(400, 200)), spec(mode="border", resize=224), 10**8).geometry
    assert (g.crop_x0, g.crop_x1) == (0, 400)
    assert (g.crop_y0, g.crop_y1) == (-100, 300)  # padded above and below


def test_geometry_is_that_of_the_upright_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    g = decode(encoded(noise(512, 256), "JPEG", exif=exif), spec(), 10**8).geometry
    assert (g.width, g.height, g.crop_x0, g.crop_y0) == (256, 512, 16, 144)
