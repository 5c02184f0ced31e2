"""Drift against simulation, scipy and hand computation."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from camray.audit.drift import benjamini_hochberg, compare_nights, level_of, psi
from camray.audit.night_state import EDGES, RATES, NightState
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
        r, c = (np.histogram(rng.random(n), EDGES["confidence"])[0].astype(float) for _ in range(2))
        value, bins = psi(r, c)
        values.append(value / (2 / n))
        floor += value / (2 / n) > stats.chi2.isf(0.05, bins - 1)
    assert np.mean(values) == pytest.approx(9, abs=0.8)
    assert floor / 400 == pytest.approx(0.05, abs=0.03)


def test_psi_by_hand() -> None:
    reference, current = np.array([50.0, 50.0]), np.array([80.0, 20.0])
    r, c = np.array([50.5, 50.5]) / 101, np.array([80.5, 20.5]) / 101
    assert psi(reference, current) == (pytest.approx(((c - r) * np.log(c / r)).sum()), 2)


def test_benjamini_hochberg_as_scipy_does_it() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        p = rng.random(12) ** 4
        expected = stats.false_discovery_control(p) <= 0.05
        assert benjamini_hochberg(p.tolist(), 0.05) == expected.tolist()


def test_states_add_up_and_survive_a_file() -> None:
    one, two = state(1), state(2, 100)
    both = NightState.from_json(json.loads(json.dumps((one + two).to_json())))
    assert both.counts == {n: one.counts[n] + two.counts[n] for n in ("rows", "ok", "labelled", *RATES)}
    assert both.classes == {c: one.classes[c] + two.classes[c] for c in one.classes}
    for name in EDGES:
        assert (both.histograms[name] == one.histograms[name] + two.histograms[name]).all()
    for c, total in both.map_sums.items():
        assert np.allclose(total, one.map_sums[c] + two.map_sums[c], atol=1e-3)
    assert compare_nights(both, both)[-1].value == pytest.approx(0, abs=1e-6)
