import math

import numpy as np
import pytest
from scipy import stats

from camray.measure.statistics import (
    Means,
    differences,
    holm,
    kendall_w,
    rank,
    weights,
    wilcoxon,
    win_rate,
)

GOLDEN = [1, 2, 1, 0, 0, 0, 1, 1, 1, 0, 1, 0]
IDS = [f"shard-{i // 100}/{i}.jpg" for i in range(400)]


def values(seed: int = 0, n: int = 400) -> np.ndarray:
    rng = np.random.default_rng(seed)
    common = rng.normal(size=n)  # images differ far more than methods
    return np.stack([common, common + 0.05 * rng.normal(size=n) + 0.02, rng.normal(size=n)], 1)


def test_weights_are_poisson_of_mean_one_and_come_from_the_id_alone() -> None:
    w = np.stack([weights(i) for i in IDS])
    once = 1 / math.sqrt(
        w.size
    )  # standard error of the mean; five of them are passed once in two million times
    assert w.mean() == pytest.approx(1, abs=5 * once)
    assert w.var() == pytest.approx(1, abs=5 * math.sqrt(3) * once)  # fourth moment 4, less the square of 1
    seen, truth = np.bincount(w.ravel(), minlength=6)[:6] / w.size, stats.poisson(1).pmf(range(6))
    assert bool((np.abs(seen - truth) <= 5 * np.sqrt(truth * (1 - truth)) * once).all())
    assert np.array_equal(weights("a"), weights("a"))
    assert abs(np.corrcoef(w[0], w[1])[0, 1]) < 5 / math.sqrt(w.shape[1])


def test_weights_of_a_known_image_never_change() -> None:
    assert weights("archive/0001.jpg", 12).tolist() == GOLDEN


def test_parts_add_up_to_the_whole_in_any_order() -> None:
    v = values()
    v[3, 0] = v[17, 2] = np.nan
    whole = Means.of(IDS, v)
    parts = [Means.of(IDS[s], v[s]) for s in (slice(250, 400), slice(0, 7), slice(7, 250))]
    total = parts[0] + parts[1] + parts[2]
    assert total.mean == pytest.approx(np.nanmean(v, axis=0))
    assert total.interval() == pytest.approx(whole.interval())
    assert total.count.tolist() == [399, 400, 399]


def test_intervals_are_those_of_theory_and_cover() -> None:
    v = np.random.default_rng(1).normal(size=(400, 1))
    low, high = Means.of(IDS, v).interval()
    half = 1.96 * v.std() / math.sqrt(400)
    assert float(high[0] - low[0]) == pytest.approx(2 * half, rel=0.1)
    covered = 0
    for seed in range(100):
        sample = np.random.default_rng(100 + seed).exponential(size=(80, 1))
        low, high = Means.of([f"{seed}/{i}" for i in range(80)], sample, 300).interval()
        covered += low[0] <= 1 <= high[0]
    # intervals of 95 % cover 93 % of such skewed samples; a draw in a thousand is outside; this is fixed
    assert stats.binom(100, 0.93).ppf(5e-4) <= covered <= 99


def test_differences_are_paired() -> None:
    found = differences(IDS, values(), ["a", "b", "c"], "a")
    near, far = found
    assert near.low < near.mean < near.high
    assert near.high - near.low < 0.1 * (far.high - far.low)  # what images share cancels
    assert near.low > 0
    assert near.win_rate == pytest.approx(0.66, abs=0.06)
    assert near.distinguishable
    assert near.p_holm <= 2 * near.p + 1e-12


def test_an_effect_too_small_to_name_is_not_named_however_many_images() -> None:
    rng = np.random.default_rng(0)
    v = rng.normal(size=(20000, 1))
    both = np.concatenate([v, v + 0.05 + rng.normal(size=v.shape)], 1)
    (found,) = differences([str(i) for i in range(20000)], both, ["a", "b"], "a", resamples=100)
    assert found.p_holm < 1e-6
    assert not found.distinguishable


def test_missing_values_leave_pairs_out() -> None:
    v = values()
    v[:100, 1] = np.nan
    found = differences(IDS, v, ["a", "b", "c"], "a")
    assert [d.images for d in found] == [300, 400]
    v[:, 1] = np.nan
    gone = differences(IDS, v, ["a", "b", "c"], "a")[0]
    assert gone.images == 0
    assert math.isnan(gone.p)
    assert math.isnan(gone.low)


def test_win_rate_by_hand() -> None:
    a, b = np.array([1.0, 2, 3, 4]), np.array([0.0, 2, 5, np.nan])
    assert win_rate(a, b) == pytest.approx(0.5)
    assert win_rate(a, b, high_is_good=False) == pytest.approx(0.5)
    assert win_rate(a[:2], b[:2]) == 0.75
    assert win_rate(a[:2], b[:2], high_is_good=False) == 0.25


def test_wilcoxon_is_scipys() -> None:
    a, b = values()[:60, 0], values()[:60, 1]
    assert wilcoxon(a, b) == pytest.approx(stats.wilcoxon(a, b, zero_method="pratt").pvalue)
    assert wilcoxon(a, a) == 1.0
    assert math.isnan(wilcoxon(a[:1] * np.nan, b[:1]))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    corrected = holm([0.5, math.nan, 0.9])
    assert corrected[0] == 1.0
    assert math.isnan(corrected[1])


DEMSAR = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}


@pytest.mark.parametrize("k", DEMSAR)
def test_critical_difference_is_that_of_the_published_table(k: int) -> None:
    found = rank(np.random.default_rng(0).normal(size=(14, k)))
    assert found.critical_difference == pytest.approx(DEMSAR[k] * math.sqrt(k * (k + 1) / 6 / 14), abs=1e-3)


def test_ranks_friedman_and_kendall_agree_with_scipy() -> None:
    v = np.random.default_rng(3).normal(size=(30, 5)) + np.arange(5) * 0.4
    found = rank(v)
    assert found.mean.tolist() == pytest.approx(stats.rankdata(-v, axis=1).mean(0).tolist())
    assert found.mean.argmin() == 4
    assert rank(v, high_is_good=False).mean.argmin() == 0
    friedman = stats.friedmanchisquare(*v.T)
    assert found.friedman_p == pytest.approx(friedman.pvalue)
    assert kendall_w(v) == pytest.approx(friedman.statistic / (30 * 4))
    tied = np.random.default_rng(4).integers(0, 3, (30, 5)).astype(float)
    assert kendall_w(tied) == pytest.approx(stats.friedmanchisquare(*tied.T).statistic / (30 * 4))


def test_kendalls_w_at_its_ends() -> None:
    assert kendall_w(np.tile([1.0, 2, 3], (9, 1))) == pytest.approx(1)
    assert kendall_w(np.random.default_rng(0).normal(size=(2000, 4))) < 0.01
    assert math.isnan(kendall_w(np.ones((5, 3))))
    assert math.isnan(kendall_w(np.ones((1, 3))))


def test_blocks_with_a_gap_are_left_out() -> None:
    v = np.array([[1.0, 2, 3], [1, np.nan, 3], [3, 2, 1], [1, 2, 3]])
    assert rank(v).blocks == 3
    assert rank(v[1:2]).blocks == 0
    assert math.isnan(rank(v[:1]).critical_difference)
