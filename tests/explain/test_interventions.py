"""What is changed in an image, against plain loops, OpenCV's filter and cases worked by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from camray.explain import interventions as change

SIDE = 40


@pytest.fixture
def x() -> torch.Tensor:
    smooth = torch.rand(3, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(smooth, (SIDE, SIDE), mode="bicubic").clamp(0.05, 0.95)


def test_the_hottest_twentieth_of_the_pixels_is_marked_whatever_the_map() -> None:
    maps = torch.zeros(3, 8, 8)
    maps[0, 7, 0] = 1
    maps[1] = torch.arange(64.0).view(8, 8)
    maps[2] = 1  # flat
    marked = change.hottest(maps, (SIDE, SIDE))
    assert marked.flatten(1).sum(1).tolist()[1:] == [SIDE * SIDE // 20] * 2
    rows, columns = np.nonzero(marked[0, 0].numpy())  # one cell of 5 pixels: the heat ends before
    assert rows.min() >= SIDE * 6 // 8
    assert columns.max() < SIDE * 2 // 8
    assert len(rows) > 20
    assert not change.hottest(torch.zeros(1, 8, 8), (SIDE, SIDE)).any()
    assert marked[1, 0, -1, -1]


def test_a_hole_is_filled_by_normalised_convolution_as_opencv_computes_it(x: torch.Tensor) -> None:
    hole = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)
    hole[:, :, 10:15, 20:26] = True
    found = change.filled(x, hole)
    known = (~hole[0, 0]).numpy().astype(np.float32)
    sigma = SIDE / 10
    size = (2 * int(np.ceil(3 * sigma)) + 1,) * 2

    def blur(image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image, size, sigma, borderType=cv2.BORDER_CONSTANT)

    expected = blur(x[0, 0].numpy() * known) / blur(known)
    assert np.allclose(found[0, 0][hole[0, 0]], expected[hole[0, 0].numpy()], atol=1e-4)
    assert torch.equal(found[~hole.expand_as(x)], x[~hole.expand_as(x)])


def test_nothing_of_a_sticker_is_left_and_no_hole_stays_open(x: torch.Tensor) -> None:
    """A blur would keep its colour; and a hole of nearly all of the image has a value too."""
    sticker = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)
    sticker[:, :, 2:8, 30:36] = True
    plain = torch.full_like(x, 0.25)
    assert torch.allclose(change.filled(torch.where(sticker, 1.0, plain), sticker), plain, atol=1e-4)
    nearly = torch.ones(1, 1, SIDE, SIDE, dtype=torch.bool)
    nearly[:, :, 0, 0] = False
    assert change.filled(plain, nearly).isfinite().all()
    assert torch.allclose(change.filled(plain, nearly), plain, atol=1e-3)


def test_a_frame_and_the_hot_border_are_where_they_should_be() -> None:
    marked = change.ring((32, 48))[0, 0]
    assert int(marked.sum()) == 32 * 48 - 28 * 42  # two rows above and below, three columns at each side
    assert not marked[2:30, 3:45].any()
    maps = torch.zeros(1, 8, 8)
    maps[0, 7, 0] = 1
    rows, columns = np.nonzero(change.hot_border(maps, (32, 32))[0, 0].numpy())
    assert len(rows) > 0
    assert ((rows >= 28) | (columns < 4)).all()
    assert rows.min() >= 24


def test_what_is_carried_lies_where_it_lay(x: torch.Tensor) -> None:
    mask = torch.zeros(3, 1, SIDE, SIDE, dtype=torch.bool)
    mask[:, :, 3, 4] = True
    found = change.carried(x, mask, x.flip(0))
    assert torch.equal(found[0, :, 3, 4], x[0, :, 3, 4])
    assert torch.equal(found[0, :, 5], x[2, :, 5])


def test_surroundings_are_carried_upside_down_and_exchanged_as_they_are(x: torch.Tensor) -> None:
    """SIDE is 40: the outer seven or eight pixels of each side, the middle stays the host's."""
    maps, typical, hosts = torch.rand(3, 4, 4), change.Typical.of(x), x.flip(0)
    edge = round(SIDE * 3 / 16)
    found = change.changed("carry_surround", x, maps, typical, hosts)
    assert torch.equal(found[:, :, 0], x[:, :, -1])
    assert torch.equal(found[:, :, edge:-edge, edge:-edge], hosts[:, :, edge:-edge, edge:-edge])
    found = change.changed("surround", x, maps, typical, hosts)
    assert torch.equal(found[:, :, 0], hosts[:, :, 0])
    assert torch.equal(found[:, :, edge:-edge, edge:-edge], x[:, :, edge:-edge, edge:-edge])


def test_a_sticker_in_a_corner_is_carried_whole_with_the_rim(x: torch.Tensor) -> None:
    """Six of 32 pixels, two from the edges: an eighth would leave half of it."""
    x, maps = torch.zeros(1, 3, 32, 32), torch.zeros(1, 8, 8)
    x[:, :, 24:30, 2:8], maps[:, 6:, :2] = 1, 1
    found = change.changed("carry_rim", x, maps, change.Typical.of(x), torch.full_like(x, 0.5))
    assert torch.equal(found == 1, x == 1)


def test_a_tint_and_a_contrast_are_taken_away_by_the_levels_of_the_channels() -> None:
    """NumPy's quantiles of what was tinted or paled are those of the archive; other images take them over."""
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 0.8 + 0.1
    typical, tint = change.Typical.of(x), torch.tensor([1.0, 0.92, 0.76]).view(1, 3, 1, 1)
    by_hand = np.quantile(x.numpy(), (0.02, 0.98), axis=(2, 3)).mean(1)
    for cue in (x * tint, 0.65 * x + 0.17):
        found = change.levelled(cue, typical.levels)
        assert np.quantile(found.numpy(), (0.02, 0.98), axis=(2, 3)).mean(1) == pytest.approx(
            by_hand, abs=0.01
        )
        taken = change.changed("carry_levels", cue, torch.zeros(4, 8, 8), typical, x.flip(0))
        assert torch.allclose(change.levels(taken), change.levels(cue), atol=0.01)
    assert torch.isfinite(change.levelled(torch.full_like(x, 0.5), typical.levels)).all()


def test_the_spectrum_becomes_the_archives_and_mean_and_phase_stay() -> None:
    """Each ring of a blurred picture gets the mean log amplitude of sharp ones, by NumPy's transform."""
    sharp = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.2 + 0.4
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1, count_include_pad=False)
    found = change.restyled(blurred, change.Typical.of(sharp).spectrum)
    assert torch.allclose(found.mean((2, 3)), blurred.mean((2, 3)), atol=2e-3)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32))) / np.sqrt(0.5)
    top = frequency >= 15 / 16
    by_hand = np.log(np.abs(np.fft.fft2(sharp[0].numpy()))).mean(0)[top].mean()
    assert float(change.spectrum(sharp)[0, -1]) == pytest.approx(by_hand, abs=1e-3)

    def mean_log(images: torch.Tensor) -> float:
        return float(np.log(np.abs(np.fft.fft2(images.numpy())))[:, :, top].mean())

    assert mean_log(blurred) < mean_log(sharp) - 1
    assert mean_log(found) == pytest.approx(mean_log(sharp), abs=0.1)


def test_noise_is_as_strong_as_it_says_and_the_same_for_all() -> None:
    plain = torch.full((2, 3, 64, 64), 0.5)
    found = change.noisy(plain) - plain
    assert torch.equal(found[0], found[1])
    assert float(found.std()) == pytest.approx(change.NOISE, rel=0.05)


def test_every_name_is_an_intervention(x: torch.Tensor) -> None:
    maps, typical = torch.rand(3, 4, 4), change.Typical.of(x)
    for name in change.INTERVENTIONS:
        found = change.changed(name, x, maps, typical, x.flip(0))
        assert found.shape == x.shape, name
        assert (found != x).any(), name
        assert found.min() >= 0, name
        assert found.max() <= 1, name
