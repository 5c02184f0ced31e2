"""From the rows of a scores table to all that a page says: a plain tree of numbers and texts.

Flows in: rows of one sample, with the panels they belong to and what the methods cost. Flows out: a tree,
kept as JSON, so that a page can be drawn without statistics, and by others: means with intervals, marks
against the controls, ranks, one line for one map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from camray.compare.advice import advise
from camray.compare.results import Results, Values
from camray.measure.agreement import pair_agreement
from camray.measure.catalogue import METRICS
from camray.measure.localisation import max_box_acc_v2
from camray.measure.registry import CONTROLS, ScoreStatus
from camray.measure.statistics import RESAMPLES, Floats, Means, differences, kendall_w, rank, weights

Tree = dict[str, Any]
SAME = 1e-3  # maps that differ by less than this share of their height, on every image, are one map
_AGREEMENT = ("rank_correlation", "top_overlap", "same_peak")


def summarise(rows: pa.Table, subjects: Mapping[str, str], costs: Mapping[str, Tree]) -> Tree:
    """Compute the tree of a comparison.

    `rows` have the columns of the scores table; `subjects` name what a panel was measured on where there is
    more than one (panel id -> text, empty otherwise); `costs` are what `Trial.costs` gave, by panel id.
    """
    results = Results.of(rows, subjects)
    groups = same_maps(results)
    reference = _reference(results.methods)
    first = {m: g[0] for g in groups for m in g}
    apart = results.only([m for m in results.methods if first.get(m, m) == m])  # one of each group of twins
    overall = overall_rank(apart)
    tree: Tree = {
        "images": len(results.images),
        "failed": results.failed,
        "methods": list(results.methods),
        "controls": _controls(results.methods),
        "reference": reference,
        "groups": [list(g) for g in groups],
        "metrics": [_metric(name, kendall_w(values)) for name, values in apart.values.items()],
        "lines": [asdict(line) for line in standings(results)],
        "differences": _differences(results, reference),
        "ranks": _ranks(apart, results.methods, first),
        "overall": {m: overall[first.get(m, m)] for m in results.methods} if overall else {},
        "curves": _curves(results),
        "agreement": _agreement(results),
        "boxes": _box_lines(results),
        "classes": _classes(results),
        "cost": _costs(results, costs),
    }  # fmt: skip
    tree = _clean(tree)
    return tree | {"advice": advise(tree)}


def subject_of(method: str) -> tuple[str, str]:
    """Split a method into its own name and what it was measured on, "" where there is one such thing."""
    name, _, subject = method.partition(" @ ")
    return name, subject


def _controls(methods: Sequence[str]) -> list[str]:
    return [m for m in methods if subject_of(m)[0] in CONTROLS]


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


def standings(sample: Values, resamples: int = RESAMPLES) -> list[Line]:
    """Give every method's line for every metric.

    A method is above the controls where it wins against each of them on more than 55 % of the images
    and Holm's p is below .05.
    """
    lines = []
    for metric, values in sample.values.items():
        means = Means.of(sample.images, values, resamples)
        low, high = means.interval()
        by_class = sample.class_means(metric)
        above = _above_controls(sample, metric, resamples)
        for j, method in enumerate(sample.methods):
            state = sample.states[metric][:, j]
            known = by_class[~np.isnan(by_class[:, j]), j]
            lines.append(
                Line(
                    method, metric, int(means.count[j]),
                    int((state == ScoreStatus.DEAD).sum()), int((state == ScoreStatus.NONFINITE).sum()),
                    float(means.mean[j]), float(low[j]), float(high[j]),
                    float(known.mean()) if len(known) else math.nan, above.get(method),
                )
            )  # fmt: skip
    return lines


def _above_controls(sample: Values, metric: str, resamples: int) -> dict[str, bool]:
    direction = METRICS[metric].high_is_good
    if direction is None:
        return {}
    controls = _controls(sample.methods)
    above = {m: True for m in sample.methods if m not in controls}
    for control in controls:
        rivals = [m for m in above if subject_of(m)[1] == subject_of(control)[1]]
        columns = [sample.methods.index(m) for m in (*rivals, control)]
        values = sample.values[metric][:, columns]
        for d in differences(sample.images, values, (*rivals, control), control, direction, resamples):
            above[d.method] &= d.distinguishable and d.win_rate > 0.5
    return above


def overall_rank(sample: Values) -> dict[str, float]:
    """Mean over metrics fit to rank by of each method's mean rank over classes, 1 the best.

    One number where one is demanded; the metrics are those marked `ranks`, of what was measured.
    """
    used = [m for m in sample.values if METRICS[m].ranks]
    ranks = [rank(sample.class_means(m), METRICS[m].high_is_good is True).mean for m in used]
    return dict(zip(sample.methods, np.mean(ranks, axis=0).tolist(), strict=True)) if used else {}


def _ranks(apart: Values, methods: Sequence[str], first: Mapping[str, str]) -> Tree:
    """Rank one of each group of twins over classes; the others share its rank. Means follow `methods`."""
    tree: Tree = {}
    for metric in apart.values:
        direction = METRICS[metric].high_is_good
        if direction is None:
            continue
        ranks = rank(apart.class_means(metric), direction)
        place = [apart.methods.index(first.get(m, m)) for m in methods]
        tree[metric] = asdict(ranks) | {"mean": [ranks.mean[j] for j in place]}
    return tree


def same_maps(results: Results) -> list[tuple[str, ...]]:
    """Group methods whose maps, scaled to [0, 1], differ by less than 1e-3 on every image.

    With a head that averages and is linear, Grad-CAM, HiResCAM, XGrad-CAM and CAM are one map; to rank
    them against each other would be to rank rounding. Groups of one are left out.
    """
    groups: list[list[int]] = []
    for j in range(len(results.methods)):
        for group in groups:
            if all(_furthest(results.maps[i], results.maps[j]) <= SAME for i in group):
                group.append(j)
                break
        else:
            groups.append([j])
    return [tuple(results.methods[j] for j in g) for g in groups if len(g) > 1]


def _furthest(one: Floats, other: Floats) -> float:
    """Largest distance of two stacks of maps (n, h*w) where both are of use; infinite on other grids."""
    if one.shape != other.shape:
        return math.inf
    distance = np.abs(_unit(one) - _unit(other))
    known = distance[~np.isnan(distance)]
    return float(known.max()) if len(known) else math.inf


def _unit(maps: Floats) -> Floats:
    """Scale the positive part of maps (n, cells) to [0, 1]; nan where there is no map."""
    positive = np.maximum(maps, 0)
    low, high = positive.min(1, keepdims=True), positive.max(1, keepdims=True)
    unit: Floats = (positive - low) / np.where(high > low, high - low, np.nan)
    return unit


def _reference(methods: Sequence[str]) -> str:
    """Name the method that the others are compared with: Grad-CAM, else the first that is no control."""
    candidates = [m for m in methods if m not in _controls(methods)] or list(methods)
    return next((m for m in candidates if subject_of(m)[0] == "gradcam"), candidates[0])


def _metric(name: str, w: float) -> Tree:
    metric = METRICS[name]
    return {
        "name": name, "high_is_good": metric.high_is_good, "ranks": metric.ranks, "w": w,
        "group": metric.group, "says": metric.doc, "weakness": metric.weakness,
    }  # fmt: skip


def _differences(sample: Values, reference: str) -> list[Tree]:
    tree = []
    for metric, values in sample.values.items():
        direction = METRICS[metric].high_is_good
        if direction is not None:
            for d in differences(sample.images, values, sample.methods, reference, direction):
                tree.append(asdict(d) | {"metric": metric, "distinguishable": d.distinguishable})
    return tree


def _curves(results: Results) -> Tree:
    """Give mean curves by metric and method, images with a curve only."""
    tree: Tree = {}
    for metric, by_method in results.curves.items():
        tree[metric] = {m: [float(v) for v in np.mean(c, axis=0)] for m, c in by_method.items() if len(c)}
    return tree


def _agreement(results: Results) -> Tree:
    """Give mean agreement of every pair of methods, (methods, methods) nested lists; nan on other grids."""
    n = len(results.methods)
    means = np.full((len(_AGREEMENT), n, n), np.nan)
    for grid in {m.shape[1:] for m in results.maps}:
        places = [j for j, m in enumerate(results.maps) if m.shape[1:] == grid]
        stack = np.stack([results.maps[j] for j in places], 1)  # (images, methods, cells)
        sums, counts = np.zeros((2, len(_AGREEMENT), len(places), len(places)))
        for start in range(0, len(stack), 256):
            part = stack[start : start + 256]
            good = np.asarray(np.isfinite(part).all(axis=2))
            maps = torch.from_numpy(np.maximum(np.nan_to_num(part), 0))[:, :, None]  # (n, m, 1, cells)
            each = pair_agreement(maps)
            values = np.stack([each[name].numpy() for name in _AGREEMENT])  # (3, n, m, m)
            known = good[:, :, None] & good[:, None] & ~np.isnan(values)
            sums += np.where(known, values, 0).sum(1)
            counts += known.sum(1)
        means[np.ix_(range(len(_AGREEMENT)), places, places)] = sums / np.where(counts > 0, counts, np.nan)
    return dict(zip(_AGREEMENT, means.tolist(), strict=True))


def _box_lines(results: Results) -> list[Tree]:
    """Give MaxBoxAccV2 of every method with its interval, over the images that have a box."""
    lines = []
    for method, (images, hits) in results.hits.items():  # hits (n, overlaps, cuts)
        if not len(images):
            continue
        w = np.stack([weights(i, RESAMPLES) for i in images], 1).astype(np.float64)  # (resamples, n)
        each = w @ hits.reshape(len(images), -1) / np.maximum(w.sum(1, keepdims=True), 1)
        low, high = np.quantile(max_box_acc_v2(each.reshape(-1, *hits.shape[1:])), (0.025, 0.975))
        mean = max_box_acc_v2(hits.mean(0))
        lines.append({"method": method, "images": len(images), "mean": mean, "low": low, "high": high})
    return lines


def _classes(results: Results) -> list[Tree]:
    """Give each class explained: how many images, and the mean of each metric and method; largest first."""
    classes, counts = np.unique(results.classes, return_counts=True)
    means = {metric: results.class_means(metric).tolist() for metric in results.values}
    tree = [
        {"class": c, "label": results.labels.get(c), "images": n, "means": {m: means[m][k] for m in means}}
        for k, (c, n) in enumerate(zip(classes.tolist(), counts.tolist(), strict=True))
    ]
    return sorted(tree, key=lambda c: (-c["images"], c["class"]))


def _costs(results: Results, costs: Mapping[str, Tree]) -> Tree:
    tree: Tree = {}
    for method, panel in results.panels.items():
        price = costs.get(panel)
        if price is not None:
            own = price["methods"][subject_of(method)[0]]
            tree[method] = own | {"device": price["device"], "batch": price["batch"]}
    return tree


def _clean(tree: Any) -> Any:
    """Make a tree fit for JSON: numbers plain, nan and infinity null."""
    if isinstance(tree, Mapping):
        return {k: _clean(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_clean(v) for v in tree]
    if isinstance(tree, float | np.floating | np.ndarray):
        return float(tree) if math.isfinite(tree) else None
    return tree
