"""Numbers of the picture, against NumPy and SciPy."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage

from camray.image.health import image_health


def picture(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def test_against_numpy_and_scipy() -> None:
    view = picture(0)
    found = image_health(view)
    grey = np.rint(view @ np.array([0.299, 0.587, 0.114]))
    assert found["image_mean"] == pytest.approx(grey.mean(), abs=0.2)
    assert found["image_std"] == pytest.approx(grey.std(), abs=0.2)
    rough = ndimage.laplace(grey, mode="mirror")
    assert found["image_sharpness"] == pytest.approx(rough.var(), rel=0.02)


def test_colours_quantiles_noise_and_blocks_by_hand() -> None:
    view = picture(1)
    found = image_health(view)
    r, g, b = (view[..., i].astype(float) for i in range(3))
    luminance = np.rint(view @ np.array([0.299, 0.587, 0.114]))
    for name, plane in (
        ("image_red", r - luminance),
        ("image_blue", b - luminance),
        ("image_saturation", np.maximum(np.maximum(r, g), b) - np.minimum(np.minimum(r, g), b)),
    ):
        assert found[name] == pytest.approx(plane.mean(), abs=0.2)
        assert found[f"{name}_std"] == pytest.approx(plane.std(), abs=0.2)
    dark, light = np.percentile(luminance, [2, 98], method="inverted_cdf")
    assert (found["image_dark"], found["image_light"]) == (
        pytest.approx(dark, abs=1),
        pytest.approx(light, abs=1),
    )
    assert found["image_noise"] == pytest.approx(
        np.median(abs(ndimage.laplace(luminance, mode="mirror"))), abs=1
    )
    across, down = abs(np.diff(luminance, axis=1)), abs(np.diff(luminance, axis=0))
    on = np.concatenate([across[:, 7::8].ravel(), down[7::8].ravel()]).mean()
    off = np.concatenate(
        [np.delete(across, np.s_[7::8], 1).ravel(), np.delete(down, np.s_[7::8], 0).ravel()]
    ).mean()
    assert found["image_blockiness"] == pytest.approx((on + 1) / (off + 1), rel=0.02)


def test_what_was_done_to_a_picture_moves_its_number() -> None:
    view = picture(5, 64, 64)
    plain = image_health(view)
    buffer = io.BytesIO()
    Image.fromarray(view).save(buffer, "JPEG", quality=12)
    packed = image_health(np.asarray(Image.open(buffer)))
    assert packed["image_blockiness"] > plain["image_blockiness"] + 0.2
    warm = image_health((view * [1.0, 0.9, 0.8]).astype(np.uint8))
    assert warm["image_red"] > plain["image_red"] + 4
    assert warm["image_blue"] < plain["image_blue"] - 4
    noisy = view + np.random.default_rng(0).normal(0, 8, view.shape)
    assert image_health(noisy.clip(0, 255).astype(np.uint8))["image_noise"] > plain["image_noise"] + 5
    grey = image_health(np.repeat(view[..., :1], 3, 2))
    assert (grey["image_red"], grey["image_blue"], grey["image_saturation"]) == (0, 0, 0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (8, 8), (9, 9)])
def test_tiny_and_flat_views_have_no_blocks(shape: tuple[int, int]) -> None:
    found = image_health(np.full((*shape, 3), 77, np.uint8))
    assert found["image_blockiness"] == 1
    assert found["image_dark"] == found["image_light"] == 77


def test_extremes() -> None:
    black, white = (image_health(np.full((32, 32, 3), v, np.uint8)) for v in (0, 255))
    assert (black["image_mean"], black["image_std"], black["image_sharpness"]) == (0, 0, 0)
    assert white["image_mean"] == 255
    assert image_health(np.zeros((1, 1, 3), np.uint8))["image_hash"] == "0" * 16


def test_the_hash_survives_brightness_and_jpeg_and_tells_others_apart() -> None:
    def differing(a: np.ndarray, b: np.ndarray) -> int:
        return bin(int(image_health(a)["image_hash"], 16) ^ int(image_health(b)["image_hash"], 16)).count("1")

    for seed in range(20):
        view = picture(seed, 224, 224)
        soft = np.asarray(Image.fromarray(view).filter(ImageFilter.GaussianBlur(1)))
        assert differing(view, (view * 0.8).astype(np.uint8)) <= 3
        assert differing(view, soft) <= 3
        assert differing(view, picture(seed + 100, 224, 224)) >= 12


def test_a_blurred_picture_is_less_sharp() -> None:
    view = picture(3)
    soft = np.asarray(Image.fromarray(view).filter(ImageFilter.GaussianBlur(2)))
    assert image_health(soft)["image_sharpness"] < 0.5 * image_health(view)["image_sharpness"]
