"""From the rows of a scores table to all that a page says: a plain tree of numbers and texts.

Flows in: rows of one sample, with the panels they belong to and what the methods cost. Flows out: a
`Summary`, kept as JSON, so that a page can be drawn without statistics, and by others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from camray.compare.advice import advise
from camray.compare.arranged import Arranged
from camray.compare.standing import SAME, Sample, class_means, only, overall_rank, reliability, standings
from camray.measure.agreement import pair_agreement
from camray.measure.bootstrap import RESAMPLES, Floats, weights
from camray.measure.boxes import CUTS, OVERLAPS
from camray.measure.catalogue import CONTROLS, METRICS
from camray.measure.tests_of_difference import differences, rank

Tree = dict[str, Any]
_AGREEMENT = ("rank_correlation", "top_overlap", "same_peak")


def summarise(rows: pa.Table, subjects: Mapping[str, str], costs: Mapping[str, Tree]) -> Tree:
    """Compute the tree of a comparison.

    `rows` have the columns of the scores table; `subjects` name what a panel was measured on where there is
    more than one (panel id -> text, empty otherwise); `costs` are what `Trial.costs` gave, by panel id.
    """
    found = Arranged.of(rows, subjects)
    sample = found.sample
    groups = same_maps(found)
    reference = _reference(sample.methods)
    first = {m: g[0] for g in groups for m in g}
    apart = only(sample, [m for m in sample.methods if first.get(m, m) == m])  # one of each group of twins
    overall = overall_rank(apart)
    tree: Tree = {
        "images": len(sample.images),
        "failed": found.failed,
        "methods": list(sample.methods),
        "controls": [m for m in sample.methods if m.partition(" @ ")[0] in CONTROLS],
        "reference": reference,
        "groups": [list(g) for g in groups],
        "metrics": [_metric(name, w) for name, w in reliability(apart).items()],
        "lines": [_clean(asdict(line)) for line in standings(sample)],
        "differences": _differences(sample, reference),
        "ranks": _ranks(apart, sample.methods, first),
        "overall": _clean({m: overall[first.get(m, m)] for m in sample.methods} if overall else {}),
        "curves": _curves(found),
        "agreement": _agreement(found),
        "boxes": _box_lines(found),
        "classes": _classes(found),
        "cost": _costs(found, costs),
    }  # fmt: skip
    return tree | {"advice": advise(tree)}


def _ranks(apart: Sample, methods: Sequence[str], first: Mapping[str, str]) -> Tree:
    """Rank one of each group of twins over classes; the others share its rank. Means follow `methods`."""
    tree: Tree = {}
    for metric in apart.values:
        direction = METRICS[metric].high_is_good
        if direction is None:
            continue
        found = rank(class_means(apart, metric), direction)
        place = [apart.methods.index(first.get(m, m)) for m in methods]
        tree[metric] = _clean(asdict(found) | {"mean": [found.mean[j] for j in place]})
    return tree


def same_maps(found: Arranged) -> list[tuple[str, ...]]:
    """Group methods whose maps, scaled to [0, 1], differ by less than 1e-3 on every image."""
    groups: list[list[int]] = []
    for j in range(len(found.sample.methods)):
        for group in groups:
            if all(_furthest(found.maps[i], found.maps[j]) <= SAME for i in group):
                group.append(j)
                break
        else:
            groups.append([j])
    return [tuple(found.sample.methods[j] for j in g) for g in groups if len(g) > 1]


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
    candidates = [m for m in methods if m.partition(" @ ")[0] not in CONTROLS]
    return next(
        (m for m in candidates if m.partition(" @ ")[0] == "gradcam"), (candidates or list(methods))[0]
    )


def _metric(name: str, w: float) -> Tree:
    metric = METRICS[name]
    return _clean({"name": name, "high_is_good": metric.high_is_good, "ranks": metric.ranks, "w": w}) | {
        "group": metric.group, "says": metric.says, "weakness": metric.weakness,
    }  # fmt: skip


def _differences(sample: Any, reference: str) -> list[Tree]:
    found = []
    for metric, values in sample.values.items():
        direction = METRICS[metric].high_is_good
        if direction is None:
            continue
        for d in differences(sample.images, values, sample.methods, reference, direction):
            found.append(_clean(asdict(d)) | {"metric": metric, "distinguishable": d.distinguishable})
    return found


def _curves(found: Arranged) -> Tree:
    """Give mean curves by metric and method, images with a curve only."""
    tree: Tree = {}
    for metric, by_method in found.curves.items():
        tree[metric] = {m: [float(v) for v in np.mean(c, axis=0)] for m, c in by_method.items() if len(c)}
    return tree


def _agreement(found: Arranged) -> Tree:
    """Give mean agreement of every pair of methods, (methods, methods) nested lists; None on other grids."""
    n = len(found.sample.methods)
    tree: Tree = {name: [[None] * n for _ in range(n)] for name in _AGREEMENT}
    for grid in {m.shape[1:] for m in found.maps}:
        places = [j for j, m in enumerate(found.maps) if m.shape[1:] == grid]
        stack = np.stack([found.maps[j] for j in places], 1)  # (images, methods, cells)
        sums, counts = np.zeros((3, len(places), len(places))), np.zeros((3, len(places), len(places)))
        for start in range(0, len(stack), 256):
            part = stack[start : start + 256]
            good: NDArray[np.bool_] = np.asarray(np.isfinite(part).all(axis=2))
            maps = torch.from_numpy(np.maximum(np.nan_to_num(part), 0))[:, :, None]  # (n, m, 1, cells)
            each = pair_agreement(maps)
            both = good[:, :, None] & good[:, None]
            for k, name in enumerate(_AGREEMENT):
                values = each[name].numpy()
                known = both & ~np.isnan(values)
                sums[k] += np.where(known, values, 0).sum(0)
                counts[k] += known.sum(0)
        means = sums / np.where(counts > 0, counts, np.nan)
        for k, name in enumerate(_AGREEMENT):
            for a, i in enumerate(places):
                for b, j in enumerate(places):
                    tree[name][i][j] = None if math.isnan(means[k, a, b]) else float(means[k, a, b])
    return tree


def _box_lines(found: Arranged) -> list[Tree]:
    """Give MaxBoxAccV2 of every method with its interval, over the images that have a box."""
    lines = []
    for method, (images, hits) in found.hits.items():  # hits (n, overlaps, cuts)
        if not len(images):
            continue
        w = np.stack([weights(i, RESAMPLES) for i in images], 1).astype(np.float64)  # (resamples, n)
        each = w @ hits.reshape(len(images), -1) / np.maximum(w.sum(1, keepdims=True), 1)
        resampled = each.reshape(-1, len(OVERLAPS), len(CUTS)).max(2).mean(1)
        low, high = np.quantile(resampled, (0.025, 0.975))
        value = hits.mean(0).max(1).mean()
        lines.append(
            {
                "method": method,
                "images": len(images),
                "mean": float(value),
                "low": float(low),
                "high": float(high),
            }
        )
    return lines


def _classes(found: Arranged) -> list[Tree]:
    """Give each class explained: how many images, and the mean of each metric and method; largest first."""
    sample, tree = found.sample, []
    names, counts = np.unique(sample.classes, return_counts=True)
    means = {metric: class_means(sample, metric) for metric in sample.values}
    for k, (class_id, count) in enumerate(zip(names.tolist(), counts.tolist(), strict=True)):
        own = {m: [None if math.isnan(v) else float(v) for v in means[m][k]] for m in means}
        tree.append({"class": class_id, "label": found.labels.get(class_id), "images": count, "means": own})
    return sorted(tree, key=lambda c: (-c["images"], c["class"]))


def _costs(found: Arranged, costs: Mapping[str, Tree]) -> Tree:
    tree: Tree = {}
    for method, panel in found.panels.items():
        told = costs.get(panel)
        if told is not None:
            own = told["methods"][method.partition(" @ ")[0]]
            tree[method] = own | {"device": told["device"], "batch": told["batch"]}
    return tree


def _clean(tree: Mapping[str, Any]) -> Tree:
    """Make numbers fit for JSON: nan and infinity become null."""
    return {k: _number(v) for k, v in tree.items()}


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
