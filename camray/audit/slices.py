"""Where it goes worse: every rate by the values of the archive's own columns (`--group-by site,scanner`).

    attributes of a record ──> slices: site=A, site=B, scanner=7 ... ──> rate of each against all the others

A slice of hard classes is no bad slice: hits are compared with those expected of images of the same labels
elsewhere (Mantel-Haenszel), so that a scanner is named for what it does. The number of hits is taken as
binomial with the mean and variance that the strata give: right for a rate of one in a thousand as well, where
a normal tail would be wrong. All slices and rates of a night are corrected together (Benjamini-Hochberg).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import betainc, gammainc
from scipy.stats import false_discovery_control

from camray.audit.columns import Floats, number
from camray.audit.verdicts import Marks

SLICED = ("wrong", "failed", "label_suspect", "shortcut_confirmed", "low_margin")  # at most 6
FALSE_ALARMS = 0.02  # share of nights without a bad slice on which one is named
FEWEST = 30  # images, below which nothing is said of a slice
_LABELLED, _EXPLAINED = 1 << len(SLICED), 2 << len(SLICED)  # two more bits
_NEEDS = {"wrong": _LABELLED, "label_suspect": _LABELLED, "failed": 0}  # the others: an explained image


@dataclass(frozen=True, slots=True)
class SliceRow:
    """One rate of one slice. `expected`: the hits of as many images of the same labels elsewhere."""

    attribute: str
    value: str
    rate: str
    images: int
    hits: int
    expected: float
    q: float  # the p-value, corrected for all that was tested

    @property
    def is_worse(self) -> bool:
        """Whether it is named."""
        return self.q <= FALSE_ALARMS


class Slices:
    """Counts a night's images by attribute: 5 bytes an image, and 4 for each attribute."""

    def __init__(self) -> None:
        self._strata: list[NDArray[np.int32]] = []
        self._flags: list[NDArray[np.uint8]] = []
        self._codes: dict[str, list[NDArray[np.int32]]] = {}  # by attribute: the number of the value, or -1
        self._values: dict[str, dict[str, int]] = {}
        self._rows = 0

    def add(self, batch: pa.RecordBatch, flags: Marks) -> None:
        """Take a judged batch into account."""
        maps = batch.column("attributes")
        if maps.null_count == len(maps) and not self._codes:
            self._skip(len(batch))
            return
        label, answer = number(batch, "label_class"), number(batch, "predicted_class")
        stratum = np.where(np.isnan(label), -2 - np.nan_to_num(answer, nan=-1), label)
        marks = [*(flags[name] for name in SLICED), ~np.isnan(number(batch, "correct")), ~np.isnan(answer)]
        bits = np.packbits(np.stack(marks, axis=1), axis=1, bitorder="little")[:, 0]
        self._strata.append(stratum.astype(np.int32))
        self._flags.append(bits)
        for name in {*self._codes, *pc.unique(maps.keys).to_pylist()}:
            self._codes.setdefault(name, [np.full(self._rows, -1, np.int32)]).append(self._coded(name, maps))
        self._rows += len(batch)

    def _skip(self, rows: int) -> None:
        """Pass images that nothing is said of."""
        self._strata.append(np.full(rows, -1, np.int32))
        self._flags.append(np.zeros(rows, np.uint8))
        self._rows += rows

    def _coded(self, name: str, maps: pa.MapArray) -> NDArray[np.int32]:
        known = self._values.setdefault(name, {})
        values = pc.map_lookup(maps, name, "first").to_pylist()
        return np.array([-1 if v is None else known.setdefault(v, len(known)) for v in values], np.int32)

    def found(self) -> list[SliceRow]:
        """Give the rate of every slice, those that are worse first, by how many hits are too many."""
        if not self._codes:
            return []
        strata, flags = np.concatenate(self._strata), np.concatenate(self._flags)
        rows: list[SliceRow] = []
        p: list[float] = []
        for attribute, parts in self._codes.items():
            codes, values = np.concatenate(parts), list(self._values[attribute])
            for place, rate in enumerate(SLICED):
                need = _NEEDS.get(rate, _EXPLAINED)
                chosen = (codes >= 0) & ((flags & need) == need)
                own = strata[chosen] if need else np.zeros(int(chosen.sum()), np.int32)
                for code, images, hits, mean, tail in _tested(
                    codes[chosen], own, (flags[chosen] >> place) & 1
                ):
                    rows.append(SliceRow(attribute, values[code], rate, images, hits, mean, 1.0))
                    p.append(tail)
        q = false_discovery_control(p) if p else []
        whole = [_with(row, float(corrected)) for row, corrected in zip(rows, q, strict=True)]
        return sorted(whole, key=lambda r: (not r.is_worse, r.q if not r.is_worse else r.expected - r.hits))


def _with(row: SliceRow, q: float) -> SliceRow:
    return SliceRow(row.attribute, row.value, row.rate, row.images, row.hits, row.expected, q)


def _tested(
    codes: NDArray[np.int32], strata: NDArray[np.int32], hit: NDArray[np.uint8]
) -> list[tuple[int, int, int, float, float]]:
    """Give code, images, hits, expected hits and p of each slice that is large enough, and not all there is.

    p: so many hits or more, where each stratum's hits fall on its images at random.
    """
    if not hit.any() or not len(codes):
        return []
    own = np.unique(strata, return_inverse=True)[1]
    whole = np.bincount(own).astype(float)
    share = np.bincount(own, hit) / whole
    cells, cell = np.unique(codes.astype(np.int64) * len(whole) + own, return_inverse=True)
    code, s = np.divmod(cells, len(whole))
    n = np.bincount(cell).astype(float)
    mean = n * share[s]
    spread = mean * (1 - share[s]) * (whole[s] - n) / np.maximum(whole[s] - 1, 1)
    images, expected, variance = (np.bincount(code, part).astype(float) for part in (n, mean, spread))
    seen = np.bincount(codes, hit, len(images)).astype(float)
    tails = _tails(seen, expected, variance)
    large = np.flatnonzero((images >= FEWEST) & (variance > 0))
    return [(c, int(images[c]), int(seen[c]), float(expected[c]), float(tails[c])) for c in large.tolist()]


def _tails(seen: Floats, mean: Floats, variance: Floats) -> Floats:
    """Give P(X >= seen) of a binomial (or Poisson) variable with this mean and variance."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = 1 - variance / mean
        trials = np.where(share > 1e-6, mean / share, np.inf)
        binomial = betainc(seen, np.maximum(trials - seen + 1, 1e-9), np.clip(share, 0, 1))
    tails: Any = np.where(
        np.isinf(trials), gammainc(np.maximum(seen, 1e-9), np.maximum(mean, 1e-9)), binomial
    )
    return np.where(seen > 0, np.nan_to_num(tails, nan=1.0), 1.0)
