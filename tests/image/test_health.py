"""Numbers of the picture, against NumPy and SciPy."""

from __future__ import annotations

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
