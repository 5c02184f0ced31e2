"""How sure is a mean, and is one method better than another: effect sizes first, then p values, then ranks.

Flows in: ids of images and their values by method (n, columns), nan where there is none. Flows out: means
with intervals, win rates, Wilcoxon tests with Holm's correction, ranks with a critical difference, Kendall's
W. Needs numpy and scipy only.

Intervals are of the Poisson bootstrap, whose parts add up: over batches, shards, restarts and machines. An
image's weights come from its id alone, so two methods measured on the same images are resampled together: a
column of differences has a paired interval.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
RESAMPLES = 1000
EVEN = (0.45, 0.55)  # win rates between which two methods are not told apart, whatever p says
# P(X <= k) of a Poisson variable of mean 1, k = 0..17: the rest is below 1e-16
_CUMULATIVE = np.array(list(accumulate(math.exp(-1) / math.factorial(k) for k in range(18))))


@lru_cache(maxsize=65536)
def _seed(image: str) -> int:
    return int.from_bytes(hashlib.sha256(image.encode("utf-8", "surrogateescape")).digest()[:16], "big")


def weights(image: str, resamples: int = RESAMPLES) -> NDArray[np.uint8]:
    """How often each resample holds the image: Poisson(1) numbers, (resamples,).

    Made from raw bits of a Philox generator keyed by the id, which no release of numpy may change.
    """
    bits = np.random.Philox(key=_seed(image)).random_raw(resamples)
    uniform = (bits >> np.uint64(11)) * 2.0**-53
    return np.searchsorted(_CUMULATIVE, uniform, side="right").astype(np.uint8)


@dataclass(frozen=True)
class Means:
    """Sums behind the means of some columns, over all images and over each resample."""

    count: NDArray[np.int64]  # (columns,) images with a value
    total: Floats  # (columns,)
    weight: Floats  # (resamples, columns)
    weighted: Floats  # (resamples, columns)

    @classmethod
    def of(cls, images: Sequence[str], values: Floats, resamples: int = RESAMPLES) -> Means:
        """Sum values (n, columns); nan is left out of its column."""
        known = ~np.isnan(values)
        filled = np.where(known, values, 0.0)
        w = np.stack([weights(i, resamples) for i in images], 1).astype(np.float64)  # (resamples, n)
        return cls(known.sum(0), filled.sum(0), w @ known, w @ filled)

    def __add__(self, other: Means) -> Means:
        return Means(
            self.count + other.count,
            self.total + other.total,
            self.weight + other.weight,
            self.weighted + other.weighted,
        )

    @property
    def mean(self) -> Floats:
        """Means (columns,), nan where no image has a value."""
        means = np.full(len(self.total), np.nan)
        np.divide(self.total, self.count, out=means, where=self.count > 0)
        return means

    def interval(self, level: float = 0.95) -> Floats:
        """Percentile intervals of the means: (2, columns), nan for fewer than two images."""
        shape = self.weight.shape
        means = np.divide(self.weighted, self.weight, out=np.full(shape, np.nan), where=self.weight > 0)
        ends = np.full((2, shape[1]), np.nan)
        enough = self.count > 1
        tail = (1 - level) / 2
        ends[:, enough] = np.nanquantile(means[:, enough], (tail, 1 - tail), axis=0)
        return ends


def win_rate(first: Floats, second: Floats, high_is_good: bool = True) -> float:
    """Share of images on which the first is better, ties counting half: 0..1, nan without a pair."""
    gain = _pairs(first, second) * (1 if high_is_good else -1)
    return float(((gain > 0) + 0.5 * (gain == 0)).mean()) if len(gain) else math.nan


def _pairs(first: Floats, second: Floats) -> Floats:
    """Differences on the images that have both values."""
    difference = first - second
    return difference[~np.isnan(difference)]


def wilcoxon(first: Floats, second: Floats) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; 1 where nothing differs, nan without a pair.

    Differences of zero are ranked and then dropped (Pratt): ties are common here and say something.
    """
    difference = _pairs(first, second)
    if not len(difference):
        return math.nan
    if not difference.any():
        return 1.0
    return float(stats.wilcoxon(difference, zero_method="pratt").pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction of several p values; nan stays nan and does not count."""
    known = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    found, highest = [math.nan] * len(p), 0.0
    for place, (value, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - place) * value))
        found[i] = highest
    return found


@dataclass(frozen=True)
class Difference:
    """How a method compares with another on one metric."""

    method: str
    other: str
    images: int  # with both values
    win_rate: float
    median: float  # of method - other
    mean: float
    low: float  # 95 % interval of the mean, paired
    high: float
    p: float
    p_holm: float = math.nan

    @property
    def distinguishable(self) -> bool:
        """Whether the win rate leaves 0.45..0.55 and p, corrected, is below .05."""
        return not EVEN[0] <= self.win_rate <= EVEN[1] and self.p_holm < 0.05


def differences(
    images: Sequence[str],
    values: Floats,
    methods: Sequence[str],
    reference: str,
    high_is_good: bool = True,
    resamples: int = RESAMPLES,
) -> list[Difference]:
    """Compare every method with the reference, image by image: values (n, methods); Holm over the lot."""
    base = values[:, methods.index(reference)]
    gaps = values - base[:, None]
    means = Means.of(images, gaps, resamples)
    low, high = means.interval()
    found = []
    for j, method in enumerate(methods):
        if method == reference:
            continue
        pairs = _pairs(values[:, j], base)
        found.append(
            Difference(
                method, reference, len(pairs), win_rate(values[:, j], base, high_is_good),
                float(np.median(pairs)) if len(pairs) else math.nan, float(means.mean[j]),
                float(low[j]), float(high[j]), wilcoxon(values[:, j], base),
            )
        )  # fmt: skip
    corrected = holm([d.p for d in found])
    return [replace(d, p_holm=p) for d, p in zip(found, corrected, strict=True)]


@dataclass(frozen=True)
class Ranks:
    """Mean ranks over blocks, 1 the best, and how far apart two must be."""

    mean: Floats  # (methods,)
    blocks: int
    critical_difference: float  # Nemenyi; nan for fewer than two methods or blocks
    friedman_p: float  # nan for fewer than three methods


def rank(blocks: Floats, high_is_good: bool = True, alpha: float = 0.05) -> Ranks:
    """Rank methods within each block, (blocks, methods) -> mean ranks; blocks with a gap are left out.

    Blocks are classes (or shards), not images: images of one class are not independent, and with
    thousands of them every difference is significant. Demsar, "Statistical Comparisons of Classifiers
    over Multiple Data Sets", JMLR 2006: CD = q sqrt(k (k + 1) / (6 N)).
    """
    full = _complete(blocks)
    n, k = full.shape
    if n == 0:
        return Ranks(np.full(k, np.nan), 0, math.nan, math.nan)
    ranks = stats.rankdata(-full if high_is_good else full, axis=1)
    cd = friedman = math.nan
    if n > 1 and k > 1:
        cd = _studentized(1 - alpha, k) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * n))
    if n > 1 and k > 2:
        friedman = 1.0 if (ranks == ranks[:, :1]).all() else float(stats.friedmanchisquare(*full.T).pvalue)
    return Ranks(ranks.mean(0), n, cd, friedman)


@lru_cache(maxsize=64)
def _studentized(level: float, groups: int) -> float:
    """Quantile of the studentised range, degrees of freedom infinite; it takes SciPy seconds."""
    return float(stats.studentized_range.ppf(level, groups, np.inf))


def kendall_w(values: Floats) -> float:
    """Kendall's W: how far images agree on the order of the methods, (images, methods) -> 0..1.

    The reliability of a metric: below 0.1 it does not tell these methods apart here. Equal values share
    a rank, and W is corrected for them; nan without two images, two methods and one difference.
    """
    full = _complete(values)
    n, k = full.shape
    if n < 2 or k < 2:
        return math.nan
    ranks = stats.rankdata(full, axis=1)
    spread = ((ranks.sum(0) - n * (k + 1) / 2) ** 2).sum()
    ties = sum((c**3 - c).sum() for row in ranks for c in [np.unique(row, return_counts=True)[1]])
    whole = n**2 * (k**3 - k) - n * ties
    return float(12 * spread / whole) if whole > 0 else math.nan


def _complete(values: Floats) -> Floats:
    return values[~np.isnan(values).any(axis=1)]
