"""Did the archive change? Two nights compared in six families, each statistic with its own null.

pixel       luminance, colours, noise, blocks, ...    PSI
confidence  confidence, margin                        PSI
heat        border, corner, entropy of the heat       PSI; the mean map, told but never firing
classes     what is predicted                         Jensen-Shannon distance
labels      wrong answers, label suspects             two shares
failures    broken images, dead maps                  two shares

PSI (population stability index) is sum (c - r) ln (c / r) over deciles of the reference. Without any drift
it is about (1/n + 1/m) times chi-square with bins - 1 degrees of freedom (Yurdakul and Naranjo 2020), so that
a fixed limit of 0.1 fires nearly always at 50 images: a statistic fires where it exceeds its rule of thumb
*and* its p-value survives: Bonferroni within a family, Benjamini-Hochberg over the families. So a family of
few statistics (failures) keeps its power: 10 broken images of 480 where there were none fire. What one of the
nights did not measure (records of an earlier camray) is unknown, and never a change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2, chi2_contingency, false_discovery_control, norm

from camray.audit.columns import Floats
from camray.audit.counts import HISTOGRAMS, RATES, NightState

Level = Literal["none", "moderate", "major"]

FALSE_ALARMS = 0.02  # share of nights without drift that may fire
DECILES = 10
PSI_MODERATE, PSI_MAJOR = 0.1, 0.25
DISTANCE_MODERATE, DISTANCE_MAJOR = 0.1, 0.2
TIMES_MODERATE, TIMES_MAJOR = 2.0, 4.0  # how much rarer or more frequent
FEWEST = 30  # images on each side, below which nothing is said
_MAJOR = {"PSI": PSI_MAJOR, "JS distance": DISTANCE_MAJOR, "times": TIMES_MAJOR}


@dataclass(frozen=True, slots=True)
class Finding:
    """One statistic of a comparison. `limit`: from which value it fires; `p`: under no drift at all."""

    family: str
    name: str
    statistic: str
    value: float
    limit: float
    p: float
    level: Level = "none"


def compare_nights(reference: NightState, tonight: NightState) -> list[Finding]:
    """Compare two nights; nothing where one of them has fewer than 30 images."""
    if min(reference.counts["ok"], tonight.counts["ok"]) < FEWEST:
        return []
    pairs = {name: (reference.histograms[name], tonight.histograms[name]) for name in HISTOGRAMS}
    found = [_psi(name, *pair) for name, pair in pairs.items() if min(h.sum() for h in pair) >= FEWEST]
    found.append(_class_mix(reference, tonight))
    found += [_rate(name, reference, tonight) for name in RATES if name in reference.counts]
    return [*_with_levels(found), _mean_map(reference, tonight)]


def level_of(findings: Sequence[Finding]) -> Level:
    """Give the worst level."""
    levels = {f.level for f in findings}
    return "major" if "major" in levels else "moderate" if "moderate" in levels else "none"


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Sort by level, family and name."""
    order = {"major": 0, "moderate": 1, "none": 2}
    return sorted(findings, key=lambda f: (order[f.level], f.family, f.name))


def psi(reference: Floats, current: Floats) -> tuple[float, int]:
    """Give the index of two histograms over the same fine bins, and the number of bins it used.

    Fine bins are joined to at most ten that hold about the same share of the reference. Half an image is
    added to every bin, so that an empty one is not infinitely surprising.
    """
    ends = np.cumsum(reference) / reference.sum()
    bin_of = np.minimum((ends - reference / reference.sum() / 2) * DECILES, DECILES - 1).astype(int)
    _, bin_of = np.unique(bin_of, return_inverse=True)
    bins = int(bin_of.max()) + 1
    r = np.bincount(bin_of, reference, bins) + 0.5
    c = np.bincount(bin_of, current, bins) + 0.5
    r, c = r / r.sum(), c / c.sum()
    return float(((c - r) * np.log(c / r)).sum()), bins


def _psi(name: str, reference: Floats, current: Floats) -> Finding:
    value, bins = psi(reference, current)
    spread = 1 / reference.sum() + 1 / current.sum()
    floor = float(chi2.isf(FALSE_ALARMS, max(bins - 1, 1)) * spread)
    p = float(chi2.sf(value / spread, max(bins - 1, 1)))
    return Finding(HISTOGRAMS[name][0], name, "PSI", value, max(PSI_MODERATE, floor), p)


def _class_mix(reference: NightState, tonight: NightState) -> Finding:
    classes = sorted(reference.classes.keys() | tonight.classes.keys())
    r = np.array([reference.classes.get(c, 0) for c in classes], float)
    c = np.array([tonight.classes.get(c, 0) for c in classes], float)
    distance = _distance(r, c)
    p = float(chi2_contingency([r, c], correction=False).pvalue)
    return Finding("classes", "predicted_class", "JS distance", distance, DISTANCE_MODERATE, p)


def _rate(name: str, reference: NightState, tonight: NightState) -> Finding:
    """Compare a share; the value says how many times it grew or shrank, half an image added to each."""
    family, of = RATES[name]
    (a, n), (b, m) = ((s.counts[name], max(s.counts[of], 1)) for s in (reference, tonight))
    times = ((b + 0.5) / (m + 1)) / ((a + 0.5) / (n + 1))
    pooled = (a + b) / (n + m)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    p = float(2 * norm.sf(abs(a / n - b / m) / spread)) if spread > 0 else 1.0
    return Finding(family, f"{name}_rate", "times", max(times, 1 / times), TIMES_MODERATE, p)


def _mean_map(reference: NightState, tonight: NightState) -> Finding:
    """Compare where both nights looked on average: it has no published limit, so it never fires."""
    if not reference.map_sums or not tonight.map_sums or reference.grid != tonight.grid:
        return Finding("heat", "mean_map", "JS divergence", 0.0, math.inf, 1.0)
    r, c = (np.sum(list(s.map_sums.values()), axis=0) for s in (reference, tonight))
    return Finding("heat", "mean_map", "JS divergence", _distance(r, c) ** 2, 1.0, 1.0)


def _distance(p: Floats, q: Floats) -> float:
    """Jensen-Shannon distance of two histograms: 0 equal .. 1 disjoint."""
    with np.errstate(invalid="ignore"):  # of equal ones rounding can leave the root of less than nothing
        return float(np.nan_to_num(jensenshannon(p, q, base=2)))


def _surviving(findings: Sequence[Finding]) -> list[bool]:
    """Correct for many tests: Bonferroni within a family, Benjamini-Hochberg over the families."""
    families = sorted({f.family for f in findings})
    size = {name: sum(f.family == name for f in findings) for name in families}
    corrected = [f.p * size[f.family] for f in findings]
    best = [min(p for p, f in zip(corrected, findings, strict=True) if f.family == name) for name in families]
    adjusted = dict(zip(families, false_discovery_control(np.minimum(best, 1)).tolist(), strict=True))
    alarms = [adjusted[f.family] <= FALSE_ALARMS for f in findings]
    return [alarm and p <= FALSE_ALARMS for alarm, p in zip(alarms, corrected, strict=True)]


def _with_levels(findings: Sequence[Finding]) -> list[Finding]:
    survives = _surviving(findings)
    levels: list[Level] = [
        "none" if not kept or f.value <= f.limit else "major" if f.value > _MAJOR[f.statistic] else "moderate"
        for f, kept in zip(findings, survives, strict=True)
    ]
    return [replace(f, level=level) for f, level in zip(findings, levels, strict=True)]
