from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from camray.compare.results import Values
from camray.compare.summary import overall_rank, standings
from camray.measure.registry import ScoreStatus
from camray.measure.statistics import kendall_w

METHODS = {"good": 0.3, "idle": 0.0, "random": 0.0, "center": 0.05, "sobel": 0.02}


def sample(count: int = 120, seed: int = 0) -> Values:
    """A good method, one that knows nothing, and controls; every tenth good map is dead."""
    rng = np.random.default_rng(seed)
    gains, dead = np.array([*METHODS.values()]), np.arange(count) % 10 == 0
    values, states = {}, {}
    for metric, sign in (("road", 1), ("deletion", -1), ("entropy", 1)):
        noise = rng.normal(0.5, 0.3, (count, 1)) + sign * rng.normal(0, 0.1, (count, len(gains)))
        values[metric] = noise + sign * gains
        states[metric] = np.full(values[metric].shape, "ok", dtype="U12")
        values[metric][dead, 0], states[metric][dead, 0] = np.nan, "dead"
    images = tuple(f"i{i:03}" for i in range(count))
    return Values(images, np.arange(count) % 4, tuple(METHODS), values, states)


def test_lines_count_what_has_no_value_and_mark_what_is_above_the_controls() -> None:
    made = sample()
    lines = {(line.method, line.metric): line for line in standings(made, 200)}
    good = lines["good", "road"]
    assert (good.images, good.dead, good.nonfinite) == (108, 12, 0)
    assert good.low < good.mean < good.high
    assert good.above_controls
    assert lines["good", "deletion"].above_controls  # low is good there
    assert lines["idle", "road"].above_controls is False
    assert lines["center", "road"].above_controls is None
    assert lines["good", "entropy"].above_controls is None
    values = made.values["road"][:, 0]
    by_class = [np.nanmean(values[made.classes == c]) for c in range(4)]
    assert good.class_mean == pytest.approx(np.mean(by_class))
    assert made.class_means("road").shape == (4, 5)


def test_order_of_images_changes_nothing() -> None:
    some, turned = sample(30), np.random.default_rng(1).permutation(30)
    other = Values(
        tuple(some.images[i] for i in turned), some.classes[turned], some.methods,
        {name: v[turned] for name, v in some.values.items()},
        {name: v[turned] for name, v in some.states.items()},
    )  # fmt: skip
    for line, twin in zip(standings(some, 50), standings(other, 50), strict=True):
        assert (line.method, line.metric, line.images, line.above_controls) == (
            twin.method, twin.metric, twin.images, twin.above_controls,
        )  # fmt: skip
        assert (line.mean, line.low, line.high) == pytest.approx((twin.mean, twin.low, twin.high))


def test_overall_rank_and_reliability() -> None:
    ranks = overall_rank(sample())
    assert min(ranks, key=lambda m: ranks[m]) == "good"
    assert kendall_w(sample().values["road"]) > 0.3


def test_methods_are_told_apart_from_the_controls_of_their_own_layer() -> None:
    """At the second layer the controls are shifted far above every method of the first."""
    one, other = sample(60), sample(60, seed=1)
    both = Values(
        one.images, one.classes,
        tuple(f"{m} @ {layer}" for layer in ("maps", "early") for m in one.methods),
        {name: np.concatenate([v, other.values[name] + 9], 1) for name, v in one.values.items()},
        {name: np.concatenate([v, other.states[name]], 1) for name, v in one.states.items()},
    )  # fmt: skip
    lines = {(line.method, line.metric): line for line in standings(both, 20)}
    assert len(lines) == 2 * len(standings(one, 20))
    assert lines["good @ maps", "road"].above_controls
    assert lines["good @ early", "road"].above_controls
    assert lines["random @ early", "road"].above_controls is None


def test_some_of_the_methods_keep_their_columns() -> None:
    few = sample().only(["center", "good"])
    assert few.methods == ("center", "good")
    assert np.array_equal(few.values["road"], sample().values["road"][:, [3, 0]], equal_nan=True)
    assert few.states["road"][0].tolist() == ["ok", "dead"]


def test_statistics_need_no_torch() -> None:
    code = "import sys, camray.measure.statistics, camray.measure.registry; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_names_every_status() -> None:
    page = (Path(__file__).parents[2] / "docs" / "comparison.md").read_text()
    assert [status for status in ScoreStatus if f"`{status}`" not in page] == []
