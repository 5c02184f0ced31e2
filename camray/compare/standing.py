"""From long rows to the table: means with intervals, marks against the controls, one line for one map.

Flows in: score rows and pair rows of any number of batches. Flows out: lines of a table, groups of
methods that are one map. Needs numpy and scipy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from camray.measure.bootstrap import RESAMPLES, Floats, Means
from camray.measure.catalogue import CONTROLS, METRICS, ScoreStatus
from camray.measure.tests_of_difference import differences, kendall_w, rank

if TYPE_CHECKING:
    from camray.measure.rows import PairRow, Row

SAME = 1e-3  # maps that differ by less than this share of their height, on every image, are one map
UNRELIABLE = 0.1  # Kendall's W below which a metric does not order these methods


@dataclass(frozen=True)
class Sample:
    """The values of a comparison as arrays: `values` and `states` by metric, (images, methods)."""

    images: tuple[str, ...]
    classes: NDArray[np.int64]  # (images,), those explained
    methods: tuple[str, ...]  # "method", or "method @ layer" where there are several layers
    values: Mapping[str, Floats]  # nan where there is none
    states: Mapping[str, NDArray[np.str_]]  # "" where there is no row


def arrange(rows: Iterable[Row]) -> Sample:
    """Arrange rows by image and method, images sorted by id; a repeated row overwrites."""
    kept = list(rows)
    several = len({r.layer for r in kept}) > 1
    images = {name: i for i, name in enumerate(sorted({r.image for r in kept}))}
    methods = {
        name: j for j, name in enumerate(dict.fromkeys(_label(r.method, r.layer, several) for r in kept))
    }
    shape = (len(images), len(methods))
    values = {name: np.full(shape, np.nan) for name in METRICS if any(r.metric == name for r in kept)}
    states = {name: np.full(shape, "", dtype="U12") for name in values}
    classes = np.full(len(images), -1, dtype=np.int64)
    for r in kept:
        place = images[r.image], methods[_label(r.method, r.layer, several)]
        values[r.metric][place] = math.nan if r.value is None else r.value
        states[r.metric][place] = r.status
        classes[images[r.image]] = r.target_class
    return Sample(tuple(images), classes, tuple(methods), values, states)


def only(sample: Sample, methods: Sequence[str]) -> Sample:
    """Keep some methods of a sample, in the order given."""
    place = [sample.methods.index(m) for m in methods]
    values = {name: v[:, place] for name, v in sample.values.items()}
    states = {name: v[:, place] for name, v in sample.states.items()}
    return Sample(sample.images, sample.classes, tuple(methods), values, states)


def _label(method: str, layer: str, several: bool) -> str:
    return f"{method} @ {layer}" if several else method


@dataclass(frozen=True)
class Line:
    """One method on one metric. Means are over the images with a value; the others are counted beside."""

    method: str
    metric: str
    images: int
    dead: int
    nonfinite: int
    mean: float
    low: float  # 95 % interval of the mean
    high: float
    class_mean: float  # mean of the means of classes
    above_controls: bool | None  # None for controls, and where no direction is good


def standings(sample: Sample, resamples: int = RESAMPLES) -> list[Line]:
    """Give every method's line for every metric.

    A method is above the controls where it wins against each of them on more than 55 % of the images
    and Holm's p is below .05.
    """
    found = []
    for metric, values in sample.values.items():
        means = Means.of(sample.images, values, resamples)
        low, high = means.interval()
        by_class = class_means(sample, metric)
        above = _above_controls(sample, metric, resamples)
        for j, method in enumerate(sample.methods):
            state = sample.states[metric][:, j]
            known = by_class[~np.isnan(by_class[:, j]), j]
            found.append(
                Line(
                    method, metric, int(means.count[j]),
                    int((state == ScoreStatus.DEAD).sum()), int((state == ScoreStatus.NONFINITE).sum()),
                    float(means.mean[j]), float(low[j]), float(high[j]),
                    float(known.mean()) if len(known) else math.nan, above.get(method),
                )
            )  # fmt: skip
    return found


def class_means(sample: Sample, metric: str) -> Floats:
    """Mean of each class that occurs, (classes, methods): the blocks to rank methods in."""
    values = sample.values[metric]
    blocks = [values[sample.classes == c] for c in np.unique(sample.classes)]
    known = [(~np.isnan(b)).sum(0) for b in blocks]
    sums = [np.nansum(b, axis=0) for b in blocks]
    return np.stack([np.where(n > 0, s / np.maximum(n, 1), np.nan) for s, n in zip(sums, known, strict=True)])


def _above_controls(sample: Sample, metric: str, resamples: int) -> dict[str, bool]:
    direction = METRICS[metric].high_is_good
    if direction is None:
        return {}
    controls = [m for m in sample.methods if m.partition(" @ ")[0] in CONTROLS]
    above = {m: True for m in sample.methods if m not in controls}
    for control in controls:
        layer = control.partition(" @ ")[2]
        rivals = [m for m in above if m.partition(" @ ")[2] == layer]
        columns = [sample.methods.index(m) for m in (*rivals, control)]
        values = sample.values[metric][:, columns]
        for d in differences(sample.images, values, (*rivals, control), control, direction, resamples):
            above[d.method] &= d.distinguishable and d.win_rate > 0.5
    return above


def reliability(sample: Sample) -> dict[str, float]:
    """Kendall's W of every metric over images; below 0.1 it does not order these methods."""
    return {metric: kendall_w(values) for metric, values in sample.values.items()}


def overall_rank(sample: Sample) -> dict[str, float]:
    """Mean over metrics fit to rank by of each method's mean rank over classes, 1 the best.

    One number where one is demanded; the metrics are those marked `ranks`, of what was measured.
    """
    used = [m for m in sample.values if METRICS[m].ranks]
    ranks = [rank(class_means(sample, m), METRICS[m].high_is_good is True).mean for m in used]
    return dict(zip(sample.methods, np.mean(ranks, axis=0).tolist(), strict=True)) if used else {}


def same_maps(pairs: Iterable[PairRow], methods: Sequence[str]) -> list[tuple[str, ...]]:
    """Group methods whose maps were one on every image; groups of one are left out.

    With a head that averages and is linear, Grad-CAM, HiResCAM, XGrad-CAM and CAM are one map; to rank
    them against each other would be to rank rounding.
    """
    kept = list(pairs)
    several = len({p.layer for p in kept} | {p.other_layer for p in kept}) > 1
    furthest: dict[frozenset[str], float] = {}
    for p in kept:
        if p.metric == "distance" and p.value is not None:
            key = frozenset((_label(p.method, p.layer, several), _label(p.other, p.other_layer, several)))
            furthest[key] = max(furthest.get(key, 0.0), p.value)
    groups: list[list[str]] = []
    for method in methods:
        for group in groups:
            if all(furthest.get(frozenset((method, m)), math.inf) <= SAME for m in group):
                group.append(method)
                break
        else:
            groups.append([method])
    return [tuple(g) for g in groups if len(g) > 1]
