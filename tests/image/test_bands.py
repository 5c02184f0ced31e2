"""Images of any number of bands reach the network as they were written; three of them are the picture.

The truth is the array that was written, by tifffile and NumPy, and resizing by torchvision.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from camray.errors import ErrorCode, ImageError
from camray.image.decode import decode, upright
from camray.image.guarded import GuardedDecoder
from camray.models.preprocessing import to_input
from tests.archive.makers import encoded, spec

tifffile = pytest.importorskip("tifffile")

MAX = 100_000
HEIGHT, WIDTH = 24, 32
LARGEST = {"u1": 255, "u2": 65535, "i2": 1, "f4": 1, "f8": 1}


def scene(bands: int, kind: str = "u2") -> np.ndarray[Any, Any]:
    """Random values of every band, over the whole type: (H, W, bands)."""
    rng = np.random.default_rng(bands)
    if kind.startswith("f"):
        return rng.normal(0, 3, (HEIGHT, WIDTH, bands)).astype(kind)
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    return rng.integers(low, high, (HEIGHT, WIDTH, bands), kind, endpoint=True)


def taken(bands: int, *shown: int) -> Any:
    return replace(
        spec(HEIGHT, HEIGHT), height=HEIGHT, width=WIDTH, resize=(HEIGHT, WIDTH), crop_mode="squash",
        mean=(0.0,) * bands, std=(1.0,) * bands, bands=shown or (1,),
    )  # fmt: skip


def tiff(values: np.ndarray[Any, Any], **how: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="minisblack", **how)
    return file.getvalue()


def npy(values: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


WAYS = {
    "pixels": lambda v: tiff(v, planarconfig="contig"),
    "planes": lambda v: tiff(np.moveaxis(v, 2, 0), planarconfig="separate"),
    "pages": lambda v: tiff(np.moveaxis(v, 2, 0)),
    "big and tiled": lambda v: tiff(v, planarconfig="contig", tile=(16, 16), bigtiff=True, byteorder=">"),
    "deflated": lambda v: tiff(v, planarconfig="contig", compression="zlib", predictor=v.dtype.kind != "f"),
    "npy": npy,
    "npy, bands first": lambda v: npy(np.ascontiguousarray(np.moveaxis(v, 2, 0))),
    "npy, Fortran's order": lambda v: npy(np.asfortranarray(v)),
    "npy, big end first": lambda v: npy(v.astype(v.dtype.newbyteorder(">"))),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", LARGEST)
def test_bands_are_the_values_that_were_written(way: str, kind: str) -> None:
    for bands in (2, 4, 7):
        values = scene(bands, kind)
        found = decode(WAYS[way](values), taken(bands), MAX).bands
        assert found is not None
        assert found.dtype == np.float32
        assert np.array_equal(found, (values.astype(np.float32) / np.float32(LARGEST[kind])))


def test_one_band_is_the_grey_that_was_written() -> None:
    values = scene(1, "i2")
    for content in (tiff(values[..., 0]), npy(values[..., 0]), npy(values)):
        found = decode(content, taken(1), MAX).bands
        assert found is not None
        assert np.array_equal(found, values.astype(np.float32))


def test_the_network_gets_them_with_their_own_mean_and_std() -> None:
    values, mean, std = scene(5), (0.1, 0.2, 0.3, 0.4, 0.5), (0.5, 0.4, 0.3, 0.2, 0.1)
    found = decode(tiff(values, planarconfig="contig"), taken(5), MAX).bands
    x = to_input(torch.from_numpy(np.stack([found])), torch.tensor(mean), torch.tensor(std))
    wanted = (values / 65535 - mean) / std
    assert x.shape == (1, 5, HEIGHT, WIDTH)
    assert np.allclose(np.moveaxis(x[0].numpy(), 0, 2), wanted, rtol=0, atol=1e-5)


def test_they_are_resized_and_cropped_as_torchvision_does() -> None:
    values = scene(4, "f4")
    wanted = replace(
        taken(4), height=12, width=12, resize=(16, 16), crop_mode="center", interpolation="bilinear"
    )
    found = decode(npy(values), wanted, MAX).bands
    resized = v2.functional.resize(torch.from_numpy(np.moveaxis(values, 2, 0).copy()), [16], antialias=True)
    cropped = v2.functional.center_crop(resized, [12, 12]).numpy()
    assert found is not None
    assert np.allclose(np.moveaxis(found, 2, 0), cropped, rtol=0, atol=1e-4)


def test_a_tiff_of_twelve_bits_is_a_share_of_4095() -> None:
    pytest.importorskip("imagecodecs")  # by which tifffile packs
    values = scene(1)[..., 0] >> 4
    found = decode(tiff(values, bitspersample=12), taken(1), MAX)
    assert found.pixel_rule == "1 bands of uint16 / 4095"
    assert found.bands is not None
    assert np.array_equal(found.bands[..., 0], values.astype(np.float32) / np.float32(4095))


def test_the_picture_is_of_the_bands_named() -> None:
    values = scene(4, "u1")
    content = tiff(values, planarconfig="contig")
    assert np.array_equal(decode(content, taken(4, 4, 2, 1), MAX).pixels, values[..., [3, 1, 0]])
    assert np.array_equal(upright(content, MAX, spec=taken(4, 2)), values[..., [1, 1, 1]])
    deep = scene(4)
    seen = decode(npy(deep), taken(4, 3, 2, 1), MAX).pixels.astype(float)
    low, high = np.percentile(deep[..., :3], (2, 98))
    wanted = np.clip((deep[..., [2, 1, 0]] - low) / (high - low), 0, 1) * 255
    assert np.abs(seen - wanted).max() <= 0.51


def test_channels_of_ordinary_formats_are_bands_too() -> None:
    values = scene(4, "u1")
    found = decode(encoded(Image.fromarray(values, "RGBA")), taken(4), MAX).bands
    assert found is not None
    assert np.array_equal(found, values.astype(np.float32) / np.float32(255))


REFUSED = {
    "three of four": (lambda: npy(scene(3)), "NumPy array of 24 x 32 x 3, and the model takes 4 bands"),
    "six of four": (lambda: tiff(scene(6), planarconfig="contig"), "TIFF of 6 bands, and the model takes 4"),
    "grey": (lambda: npy(scene(1)[..., 0]), "NumPy array of 24 x 32, and the model takes 4 bands"),
    "either axis": (lambda: npy(scene(4)[:4]), "its first axis or its last may be the bands"),
    "text": (lambda: npy(np.array(["a"])), "no numbers"),
    "objects": (lambda: npy(np.array([{}], object)), "no numbers"),
    "a photograph": (lambda: encoded(Image.new("RGB", (9, 9)), "JPEG"), "JPEG of 3 bands"),
    "palette": (lambda: encoded(Image.new("P", (9, 9)), "GIF"), "pixel mode P is not read as bands"),
    "cut": (lambda: npy(scene(4))[:-1], "its end is missing"),
    "not finite": (lambda: npy(np.full((9, 9, 4), np.nan)), "NaN or infinity"),
    "too many": (lambda: npy(np.zeros((1000, 101, 4), "u1")), "more than 100,000"),
    "pages of two sizes": (
        lambda: _pages([scene(1)[..., 0]] * 3 + [scene(1)[:9, :, 0]]),
        "TIFF of 1 bands, and the model takes 4",
    ),
}  # fmt: skip


def _pages(pages: list[np.ndarray[Any, Any]]) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as out:
        for page in pages:
            out.write(page, photometric="minisblack")
    return file.getvalue()


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_other_bands_fails_and_says_so(case: str) -> None:
    made, said = REFUSED[case]
    with pytest.raises(ImageError, match=said) as caught:
        decode(made(), taken(4), MAX)
    assert caught.value.message.isprintable()


def test_nodata_is_0_and_said() -> None:
    values = scene(2, "f4")
    values[:6, :, 0] = -9999
    content = tiff(values, planarconfig="contig", extratags=[(42113, "s", 0, "-9999", True)])
    found = decode(content, taken(2), MAX)
    assert found.pixel_rule == "2 bands of float32, nodata 0.125"
    values[:6, :, 0] = 0
    assert found.bands is not None
    assert np.array_equal(found.bands, values)


def test_the_decoder_process_gives_the_same() -> None:
    held, content = GuardedDecoder(MAX), tiff(scene(5), planarconfig="contig")
    try:
        for wanted in (taken(5, 3, 2, 1), taken(5, 5)):
            found, plain = held.decode(content, wanted), decode(content, wanted, MAX)
            assert np.array_equal(found.bands, plain.bands)
            assert np.array_equal(found.pixels, plain.pixels)
            assert np.array_equal(held.upright(content, spec=wanted), upright(content, MAX, spec=wanted))
        with pytest.raises(ImageError) as caught:
            held.decode(content, taken(4))
        assert caught.value.code == ErrorCode.FORMAT_NOT_ALLOWED
    finally:
        held.close()
