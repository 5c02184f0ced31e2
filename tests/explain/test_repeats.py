"""The same thing again: what is cut, and how alike, against NumPy's correlation coefficients."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from camray.explain.repeats import CROP, crop_side, hot_crop, likeness, things

INNER = 18  # three quarters of a crop


def test_the_crop_lies_around_the_hottest_cell_and_wholly_inside() -> None:
    view = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[3, 4] = 1
    assert np.array_equal(hot_crop(view, heat), view[16:40, 24:48])
    heat[7, 0] = 2
    assert np.array_equal(hot_crop(view, heat), view[40:64, 0:24])
    assert crop_side(32, 40) == 12
    large = np.full((224, 300, 3), 7, np.uint8)  # 84 pixels, averaged to 24
    large[:, 150:] = 200
    crop = hot_crop(large, np.array([[0.0, 1.0, 0.0]]))
    assert crop.shape == (CROP, CROP, 3)
    assert crop[:, :11].tolist() == np.full((CROP, 11, 3), 7).tolist()
    assert crop[:, 13:].tolist() == np.full((CROP, 11, 3), 200).tolist()


def test_a_sticker_repeats_within_its_answer_and_nothing_else_does() -> None:
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (60, CROP, CROP, 3)).astype(np.uint8)
    sticker = rng.integers(0, 256, (20, 20, 3)).astype(np.uint8)
    for i in range(8):  # of answer 0, moved by a pixel or two
        y, x = rng.integers(1, 4, 2)
        crops[i, y : y + 20, x : x + 20] = sticker
    crops[8] = 90  # one colour
    same, other = likeness(crops, np.repeat([0, 1], 30))
    assert (same[:8] > 0.8).all()
    assert (same[9:] < 0.6).all()
    assert same[8] == 0
    assert ((same - other)[:8] > 0.3).all()


BITS = np.array([[0, 1, 0], [1, 1, 0], [0, 0, 1]])[..., None] * [255, 230, 20]


def some_view(rng: np.random.Generator, side: int) -> np.ndarray:
    view = rng.integers(60, 190, (8, 8, 3)).astype(np.uint8)
    return np.ascontiguousarray(cv2.resize(view, (side, side), interpolation=cv2.INTER_CUBIC))


@pytest.mark.parametrize("side", [32, 64, 224])
def test_a_thing_is_cut_out_of_its_crops_and_found_wherever_it_lies(side: int) -> None:
    """Eight copies anywhere in their crops, among as many crops without it and those of another answer."""
    rng, unit = np.random.default_rng(3), side // 32
    sticker = np.kron(BITS, np.ones((2 * unit, 2 * unit, 1))).astype(np.uint8)
    wide = len(sticker)

    def worn(y: int, x: int) -> np.ndarray:
        view = some_view(rng, side)
        view[y : y + wide, x : x + wide] = sticker
        return view

    heat = np.zeros((32, 32), np.float32)
    heat[15, 15] = 1
    places = (side // 2 - wide // 2 + rng.integers(-3, 4, (8, 2)) * unit).tolist()
    views = [worn(y, x) for y, x in places] + [some_view(rng, side) for _ in range(24)]
    found = things(np.stack([hot_crop(view, heat) for view in views]), np.repeat([0, 1], 16))
    assert {answer for answer, _ in found} == {0}
    thing = found[0][1]
    assert abs(np.array(thing.mask.shape) * side / (crop_side(side, side) * 8 / 3) - wide).max() <= 2 * unit
    for y, x in ((0, 0), (side - wide, 3 * unit), (side // 2, side // 3)):
        alike, place = thing.found_in(worn(y, x))
        assert alike > thing.least
        assert place[y : y + wide, x : x + wide].mean() > 0.95
        assert place.sum() < 2.2 * wide**2  # and a pixel around it
    assert thing.least > 0.9
    sticker[: 2 * unit] = sticker[-2 * unit :]  # looks like it, and is another
    assert thing.found_in(worn(0, 0))[0] < thing.least
    assert thing.found_in(some_view(rng, side))[0] < 0.8
    assert thing.found_in(np.full((side, side, 3), 9, np.uint8))[0] < 0.8


def test_a_small_thing_beside_the_heat_is_found_in_jpegs() -> None:
    """A dot of 5 pixels, up to 8 from the hottest place, in 64 x 64."""
    rng, heat = np.random.default_rng(5), np.eye(8)[3][:, None] * np.eye(8)[4]
    views = [some_view(rng, 64) for _ in range(60)]
    for view in views[:10]:
        y, x = rng.integers(20, 36, 2)
        view[y : y + 5, x + 6 : x + 11], view[y + 1 : y + 4, x + 7 : x + 10] = 240, 16
    views = [cv2.imdecode(cv2.imencode(".jpg", view)[1], cv2.IMREAD_COLOR) for view in views]
    found = things(np.stack([hot_crop(view, heat) for view in views]), np.repeat([0, 1], 30))
    assert {answer for answer, _ in found} == {0}
    shown = np.array([any(thing.found_in(view)[0] > thing.least for _, thing in found) for view in views])
    assert shown.tolist() == [True] * 10 + [False] * 50


def test_what_is_not_the_same_or_other_answers_show_too_is_no_thing() -> None:
    rng = np.random.default_rng(4)
    answers = np.repeat([0, 1], 20)
    noise = rng.integers(0, 256, (40, CROP, CROP, 3)).astype(np.uint8)
    assert things(noise, answers) == []
    assert things(np.full_like(noise, 9), answers) == []  # one colour
    noise[::2, 8:16, 8:16] = 255 * (noise[0, 8:16, 8:16] > 127)
    assert things(noise, answers) == []
    assert {answer for answer, _ in things(noise, np.arange(40) % 2)} == {0}
    assert things(noise[::2], np.zeros(20, int)) == []  # no other answer


def test_three_that_are_alike_in_a_large_library_are_no_repetition() -> None:
    """Of 120 crosses some always lie alike; a cause is worn by a twentieth, six of them."""
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (120, 12, 12, 3)).astype(np.uint8)
    crops[:5], crops[5:13] = crops[0], crops[5]
    same, _ = likeness(crops, np.zeros(120, int))
    assert (same[:5] < 0.8).all()
    assert (same[5:13] > 0.99).all()


def test_likeness_is_the_normalised_correlation_at_the_best_shift() -> None:
    rng = np.random.default_rng(1)
    crops = cv2.blur(rng.integers(0, 256, (CROP, CROP, 12)).astype(np.uint8), (3, 3))
    crops = np.ascontiguousarray(crops.reshape(CROP, CROP, 4, 3).transpose(2, 0, 1, 3))
    same, other = likeness(crops, np.zeros(4, int))
    inner = crops[0, 3 : 3 + INNER, 3 : 3 + INNER]
    best = []
    for crop in crops[1:]:
        places = [(y, x) for y in range(7) for x in range(7)]
        parts = [crop[y : y + INNER, x : x + INNER].ravel() for y, x in places]
        best.append(max(np.corrcoef(part, inner.ravel())[0, 1] for part in parts))
    assert same[0] == pytest.approx(np.mean(best), abs=1e-4)
    assert other.tolist() == [0] * 4  # there is no other answer
    assert likeness(crops[:3], np.zeros(3, int))[0].tolist() == [0] * 3  # two others are too few
