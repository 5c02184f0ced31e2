"""Intervals by the Poisson bootstrap, whose parts add up: over batches, shards, restarts and machines.

Flows in: ids of images and their values (n, columns), nan where there is none. Flows out: `Means`, the sum
of any number of which is that of all images at once. An image's weights come from its id alone, so
two methods measured on the same images are resampled together: a column of differences has a paired
interval.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 1000
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
