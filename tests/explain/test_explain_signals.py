"""Signals against numbers worked out by hand, and against slow plain definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from camray.explain.signals import heat_signals, heat_status, top2_cosine


def signals(values: list[list[float]]) -> dict[str, float | str | None]:
    return {name: column[0] for name, column in heat_signals(torch.tensor([values])).items()}


def cell(h: int, w: int, row: int, column: int) -> list[list[float]]:
    return [[1.0 if (y, x) == (row, column) else 0.0 for x in range(w)] for y in range(h)]


def test_a_uniform_map() -> None:
    for size in (1, 4, 7, 8):
        found = signals([[3.0] * size] * size)
        assert found["heat_ring_mass"] == pytest.approx(1 - 0.75**2)  # the area outside the middle 6/8 x 6/8
        assert found["heat_corner_mass"] == pytest.approx((3 / 8) ** 2)
        assert found["heat_entropy"] == pytest.approx(1.0 if size > 1 else 0.0)
        assert found["heat_gini"] == pytest.approx(0.0, abs=1e-12)
        assert (found["heat_center_x"], found["heat_center_y"]) == pytest.approx((0.5, 0.5))
        assert found["heat_spread"] == pytest.approx(math.sqrt((size**2 - 1) / 12 * 2) / size)


def test_maps_of_the_two_best_classes() -> None:
    """Cosines by hand; a third class does not count, negative heat neither, a dead map gives none."""
    maps = torch.tensor([
        [[[3.0, 4.0]], [[4.0, 3.0]], [[0.0, 9.0]]],
        [[[2.0, 0.0]], [[-5.0, 1.0]], [[1.0, 1.0]]],
        [[[1.0, 2.0]], [[2.0, 4.0]], [[0.0, 0.0]]],
        [[[1.0, 2.0]], [[-1.0, 0.0]], [[1.0, 1.0]]],
    ])  # fmt: skip
    found = top2_cosine(maps)
    assert found[:3] == pytest.approx([24 / 25, 0.0, 1.0])
    assert found[3] is None
    assert top2_cosine(maps[:, :1]) == [None] * 4


def test_one_hot_cell_in_the_middle() -> None:
    found = signals(cell(8, 8, 3, 4))
    assert found["heat_ring_mass"] == pytest.approx(0, abs=1e-12)
    assert found["heat_corner_mass"] == 0
    assert found["heat_entropy"] == pytest.approx(0, abs=1e-12)
    assert found["heat_gini"] == pytest.approx(63 / 64)
    assert (found["heat_center_x"], found["heat_center_y"]) == pytest.approx((4.5 / 8, 3.5 / 8))
    assert (found["heat_peak_x"], found["heat_peak_y"]) == pytest.approx((4.5 / 8, 3.5 / 8))
    assert found["heat_spread"] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    ("row", "column", "corner"),
    [
        (0, 0, "top_left"),
        (0, 7, "top_right"),
        (7, 0, "bottom_left"),
        (7, 7, "bottom_right"),
        (2, 2, "top_left"),
    ],
)
def test_corners(row: int, column: int, corner: str) -> None:
    found = signals(cell(8, 8, row, column))
    assert (found["heat_corner"], found["heat_corner_mass"]) == (corner, pytest.approx(1))
    assert found["heat_ring_mass"] == pytest.approx(float(row in (0, 7) or column in (0, 7)))


def test_a_border_cell_of_a_coarse_map_counts_by_its_area() -> None:
    """7 cells a side: the ring, 1/8 wide, covers 7/8 of a border cell; the corner window 2 5/8 cells."""
    assert signals(cell(7, 7, 0, 3))["heat_ring_mass"] == pytest.approx(7 / 8)
    assert signals(cell(7, 7, 0, 0))["heat_ring_mass"] == pytest.approx(1 - (1 / 8) ** 2)
    assert signals(cell(7, 7, 2, 0))["heat_corner_mass"] == pytest.approx(5 / 8)


def test_a_wide_map_has_its_own_axes() -> None:
    found = signals(cell(2, 4, 1, 3))
    assert (found["heat_peak_x"], found["heat_peak_y"]) == pytest.approx((3.5 / 4, 1.5 / 2))
    assert found["heat_corner"] == "bottom_right"


def test_two_equal_cells() -> None:
    found = signals([[1.0, 0.0, 0.0, 1.0]])
    assert found["heat_center_x"] == pytest.approx(0.5)
    assert found["heat_spread"] == pytest.approx(3 / 8)
    assert found["heat_entropy"] == pytest.approx(math.log(2) / math.log(4))
    assert found["heat_gini"] == pytest.approx(0.5)


def test_negative_heat_does_not_count() -> None:
    signed = [[-5.0, 1.0], [-1.0, 3.0]]
    positive = [[0.0, 1.0], [0.0, 3.0]]
    assert signals(signed) == signals(positive)


@pytest.mark.parametrize("values", [[[0.0, 0.0]], [[-1.0, 0.0]], [[-1.0, -2.0]]])
def test_a_dead_map_has_no_signals(values: list[list[float]]) -> None:
    assert heat_status(torch.tensor([values])) == ["dead"]
    assert set(signals(values).values()) == {None}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_map_has_no_signals_and_its_neighbours_do(bad: float) -> None:
    maps = torch.tensor([cell(4, 4, 1, 1), [[1.0, 2.0, bad, 0.0]] * 4, cell(4, 4, 2, 2)])
    assert heat_status(maps) == ["ok", "nonfinite", "ok"]
    found = heat_signals(maps)
    assert {column[1] for column in found.values()} == {None}
    for i in (0, 2):
        assert {n: c[i] for n, c in found.items()} == signals(maps[i].tolist())


def test_a_map_has_the_same_signals_alone_and_among_many() -> None:
    maps = torch.randn(257, 7, 9, generator=torch.Generator().manual_seed(0))
    whole = heat_signals(maps)
    for i in (0, 100, 256):
        assert {name: column[i] for name, column in whole.items()} == signals(maps[i].tolist())


def test_tiny_and_huge_heat_is_still_heat() -> None:
    expected = signals([[1.0, 3.0], [0.0, 0.0]])
    for scale in (1e-40, 1e38):
        scaled = signals([[1.0 * scale, 3.0 * scale], [0.0, 0.0]])
        assert {k: v for k, v in scaled.items() if k != "heat_corner"} == pytest.approx(
            {k: v for k, v in expected.items() if k != "heat_corner"}, rel=1e-4
        )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_against_plain_loops(h: int, w: int, seed: int) -> None:
    maps = torch.randn(3, h, w, generator=torch.Generator().manual_seed(seed))
    found = heat_signals(maps)
    for i, one in enumerate(maps):
        if float(one.max()) <= 0:
            continue
        slow = by_hand(one)
        for name, value in slow.items():
            assert found[name][i] == pytest.approx(value, abs=1e-6), name


def by_hand(one: Tensor) -> dict[str, float]:
    h, w = one.shape
    q = {(y, x): max(0.0, float(one[y, x])) for y in range(h) for x in range(w)}
    total = sum(q.values())
    q = {k: v / total for k, v in q.items()}

    def overlap(i: int, n: int, low: float, high: float) -> float:
        return max(0.0, min((i + 1) / n, high) - max(i / n, low)) * n

    def window(x0: float, x1: float, y0: float, y1: float) -> float:
        return sum(v * overlap(x, w, x0, x1) * overlap(y, h, y0, y1) for (y, x), v in q.items())

    cx = sum(v * (x + 0.5) / w for (_, x), v in q.items())
    cy = sum(v * (y + 0.5) / h for (y, _), v in q.items())
    spread = sum(v * (((x + 0.5) / w - cx) ** 2 + ((y + 0.5) / h - cy) ** 2) for (y, x), v in q.items())
    values, n = list(q.values()), h * w
    return {
        "heat_ring_mass": 1 - window(1 / 8, 7 / 8, 1 / 8, 7 / 8),
        "heat_corner_mass": max(
            window(*xs, *ys) for xs in ((0, 3 / 8), (5 / 8, 1)) for ys in ((0, 3 / 8), (5 / 8, 1))
        ),
        "heat_entropy": -sum(v * math.log(v) for v in values if v > 0) / math.log(max(n, 2)),
        "heat_gini": sum(abs(a - b) for a in values for b in values) / (2 * n),
        "heat_center_x": cx,
        "heat_center_y": cy,
        "heat_spread": math.sqrt(max(spread, 0)),
        "heat_peaks": sum(is_peak(q, y, x) for y, x in q),
    }


def is_peak(q: dict[tuple[int, int], float], y: int, x: int) -> bool:
    around = [q.get((y + dy, x + dx), 0.0) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return q[y, x] == max(around) and q[y, x] > max(q.values()) / 2
