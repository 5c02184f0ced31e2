"""Drift against simulation, scipy and hand computation."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from camray.audit.counts import HISTOGRAMS, RATES, NightState
from camray.audit.drift import compare_nights, level_of, psi
from camray.audit.verdicts import FLAGS
from tests.audit.report_world import records


def state(seed: int, count: int = 480, **shift: float) -> NightState:
    """A night of made-up images; `shift` moves a column or sets the share of a flag."""
    rng = np.random.default_rng(seed)
    rows = records(1000 * seed + 100, count, "r", "s").combine_chunks()
    for name in ("image_mean", "heat_ring_mass", "confidence", "margin", "heat_corner_mass", "heat_entropy"):
        values = rng.beta(4, 3, count) * (255 if name == "image_mean" else 1) + shift.get(name, 0)
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, pa.float32()))
    flags = {name: rng.random(count) < shift.get(name, 0.02) for name in FLAGS}
    found = NightState()
    for batch in rows.to_batches(max_chunksize=200):
        size = len(batch)
        found.add(batch, {name: mark[:size] for name, mark in flags.items()})
        flags = {name: mark[size:] for name, mark in flags.items()}
    return found


def fired(reference: NightState, tonight: NightState) -> set[str]:
    return {f.family for f in compare_nights(reference, tonight) if f.level != "none"}


def test_nothing_fires_without_drift() -> None:
    """100 pairs: at 2 % a night at most 6 may fire (probability of more: 0.4 %)."""
    nights = [state(seed) for seed in range(40)]
    pairs = [(i, j) for i in range(40) for j in range(i)][::8][:97]
    pairs += [(0, 1), (2, 3), (4, 5)]
    assert len(pairs) >= 100
    assert sum(bool(fired(nights[i], nights[j])) for i, j in pairs) <= 6


@pytest.mark.parametrize(
    ("shift", "family"),
    [
        ({"image_mean": -40}, "pixel"), ({"confidence": 0.2}, "confidence"),
        ({"heat_ring_mass": 0.2}, "heat"),
        ({"wrong": 0.2}, "labels"), ({"failed": 0.15}, "failures"), ({"shortcut_confirmed": 0.2}, "heat"),
    ],
)  # fmt: skip
def test_the_right_family_fires_and_the_others_do_not(shift: dict[str, float], family: str) -> None:
    assert fired(state(1), state(2, **shift)) == {family}


def test_few_images_say_nothing() -> None:
    assert compare_nights(state(1, 20), state(2, 480, image_mean=100)) == []
    assert level_of([]) == "none"


def test_psi_is_chi_square_without_drift() -> None:
    """Over 400 nights PSI / (1/n + 1/m) has the mean and the tail of chi-square with 9 degrees of freedom."""
    rng, values, floor, n = np.random.default_rng(0), [], 0, 500
    for _ in range(400):
        r, c = (np.histogram(rng.random(n), HISTOGRAMS["confidence"][1])[0].astype(float) for _ in range(2))
        value, bins = psi(r, c)
        values.append(value / (2 / n))
        floor += value / (2 / n) > stats.chi2.isf(0.05, bins - 1)
    assert np.mean(values) == pytest.approx(9, abs=0.8)
    assert floor / 400 == pytest.approx(0.05, abs=0.03)


def test_psi_by_hand() -> None:
    reference, current = np.array([50.0, 50.0]), np.array([80.0, 20.0])
    r, c = np.array([50.5, 50.5]) / 101, np.array([80.5, 20.5]) / 101
    assert psi(reference, current) == (pytest.approx(((c - r) * np.log(c / r)).sum()), 2)


def test_a_state_survives_a_file_and_a_night_like_it_does_not_drift() -> None:
    one = state(1)
    again = NightState.from_json(json.loads(json.dumps(one.to_json())))
    assert set(again.counts) == {"rows", "ok", "labelled", *RATES}
    assert (again.counts, again.classes, again.grid) == (one.counts, one.classes, one.grid)
    for name in HISTOGRAMS:
        assert (again.histograms[name] == one.histograms[name]).all()
    for c, total in one.map_sums.items():
        assert np.allclose(again.map_sums[c], total, atol=1e-3)
    # The same mix three times over: rounding must not leave the root of less than nothing.
    thrice = replace(one, classes={c: 3 * n for c, n in one.classes.items()})
    found = {f.name: f for f in compare_nights(one, thrice)}
    assert found["predicted_class"].value == pytest.approx(0, abs=1e-7)
    assert found["mean_map"].value == pytest.approx(0, abs=1e-12)


def test_the_mix_of_classes_by_hand() -> None:
    """Jensen-Shannon distance, base 2, of (1, 0) and (1/2, 1/2): the entropies are 0, 1 and h(1/4)."""
    one, two = replace(state(1), classes={0: 40}), replace(state(2), classes={0: 40, 1: 40})
    (mix,) = [f for f in compare_nights(one, two) if f.name == "predicted_class"]
    h = -0.25 * math.log2(0.25) - 0.75 * math.log2(0.75)
    assert mix.value == pytest.approx(math.sqrt(h - 0.5))
    assert mix.p == pytest.approx(stats.chi2.sf(30, 1))  # 120 (40 * 40 - 0 * 40)^2 / (40 * 80 * 80 * 40)
