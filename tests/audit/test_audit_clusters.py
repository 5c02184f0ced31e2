"""Clusters of heatmaps: two ways of looking are told apart; eigenvalues as graph theory says."""

from __future__ import annotations

import numpy as np
import pytest

from camray.audit.clusters import clusters_of, spectrum


def looking_at(cell: int, count: int, seed: int) -> np.ndarray:
    maps = np.random.default_rng(seed).random((count, 49)) * 0.05
    maps[:, cell] += 1
    return maps / maps.sum(1, keepdims=True)


def test_two_ways_of_looking_are_two_clusters() -> None:
    found = clusters_of(np.concatenate([looking_at(24, 60, 0), looking_at(42, 30, 1)]))
    assert [c.size for c in found] == [60, 30]
    assert [int(c.mean_map.argmax()) for c in found] == [24, 42]


def test_parts_that_do_not_touch_have_as_many_zero_eigenvalues() -> None:
    maps = np.concatenate([looking_at(cell, 30, cell) for cell in (0, 20, 40)])
    values, vectors = spectrum(maps)
    assert values[:3] == pytest.approx([0, 0, 0], abs=1e-9)
    assert values[3] > 0.01
    assert vectors.shape == (90, 7)


def test_few_maps_are_one_group() -> None:
    (only,) = clusters_of(looking_at(3, 10, 0))
    assert only.size == 10
    assert clusters_of(np.zeros((0, 49))) == []
