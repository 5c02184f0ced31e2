"""The rows of a scores table as arrays, image by image and method by method.

Flows in: an Arrow table with the columns of the scores table. Flows out: `Arranged`. An image is a place in
the archive (shard and index); its weight in resamples comes from its content, so that results repeat on
another machine and copies of one image are resampled together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camray.compare.standing import Sample
from camray.measure.bootstrap import Floats
from camray.measure.boxes import CUTS, OVERLAPS
from camray.measure.catalogue import CONTROLS, METRICS

Codes = NDArray[np.int64]
Chosen = NDArray[np.bool_]


@dataclass(frozen=True)
class Arranged:
    """All that was measured on one sample. Lists and first axes follow the sample's images and methods."""

    sample: Sample
    labels: Mapping[int, str]  # of the classes explained, where they have names
    failed: Mapping[str, int]  # images without scores, by error code
    maps: list[Floats]  # of each method (images, cells), nan where there is no map of use
    curves: Mapping[str, Mapping[str, Floats]]  # metric -> method -> (images with a curve, steps + 1)
    hits: Mapping[str, tuple[list[str], Floats]]  # method -> ids, (images with a box, overlaps, cuts)
    panels: Mapping[str, str]  # method -> panel id

    @classmethod
    def of(cls, rows: pa.Table, subjects: Mapping[str, str]) -> Arranged:
        """Arrange rows; `subjects` (panel id -> text) tells methods of several panels apart."""
        lost = rows.filter(pc.equal(rows["status"], "failed"))
        failed = lost.group_by("error_code").aggregate([([], "count_all")]).to_pylist()
        rows = rows.filter(pc.is_valid(rows["method"])).sort_by(
            [("shard", "ascending"), ("index", "ascending")]
        )
        place = pc.binary_join_element_wise(rows["shard"], pc.cast(rows["index"], pa.string()), "\0")
        image, names = _codes(place)
        first = np.unique(image, return_index=True)[1]
        ids = [str(v) for v in rows["content_sha256"].take(pa.array(first)).to_pylist()]
        method, methods, panels = _methods(rows, subjects)
        shape = (len(names), len(methods))
        metric, metrics = _codes(rows["metric"])
        values, states = _values(rows, image, method, metric, metrics, shape)
        classes = np.asarray(rows["target_class"].take(pa.array(first)).fill_null(-1), dtype=np.int64)
        texts = rows["target_label"].take(pa.array(first)).to_pylist()
        curves: dict[str, dict[str, Floats]] = {
            name: _curves(rows, metric == metrics.index(name), method, methods)
            for name in ("insertion", "deletion")
            if name in metrics
        }
        return cls(
            Sample(tuple(ids), classes, tuple(methods), values, states),
            {int(c): t for c, t in zip(classes, texts, strict=True) if t is not None},
            {row["error_code"]: row["count_all"] for row in failed},
            _maps(rows, metric == metrics.index("map"), image, method, shape),
            curves,
            _hits(rows, image, method, methods, ids),
            panels,
        )  # fmt: skip


def named(method: str, subject: str) -> str:
    """Write a method as a table shows it: with what it was measured on where there are several."""
    return f"{method} @ {subject}" if subject else method


def _codes(column: pa.ChunkedArray) -> tuple[Codes, list[str]]:
    """Give each row the number of its value, and the values in order of appearance."""
    encoded = column.combine_chunks().dictionary_encode()
    encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    return np.asarray(encoded.indices, dtype=np.int64), encoded.dictionary.to_pylist()


def _methods(rows: pa.Table, subjects: Mapping[str, str]) -> tuple[Codes, list[str], dict[str, str]]:
    """Give each row the number of its method, the methods (controls last), and the panel of each."""
    pair, pairs = _codes(pc.binary_join_element_wise(rows["panel"], rows["method"], "\0"))
    told = []
    for text in pairs:
        panel, name = text.split("\0")
        told.append((named(name, subjects[panel]), name in CONTROLS, panel))
    order = sorted(range(len(told)), key=lambda i: told[i][1])
    methods = list(dict.fromkeys(told[i][0] for i in order))
    code = np.array([methods.index(label) for label, _, _ in told], dtype=np.int64)
    return code[pair], methods, {label: panel for label, _, panel in reversed(told)}


def _values(
    rows: pa.Table,
    image: Codes,
    method: Codes,
    metric: Codes,
    metrics: list[str],
    shape: tuple[int, int],
) -> tuple[dict[str, Floats], dict[str, NDArray[np.str_]]]:
    value = np.asarray(rows["value"].to_numpy(), dtype=np.float64)  # null becomes nan
    status = np.asarray(rows["score_status"].to_pylist(), dtype="U12")
    values, states = {}, {}
    for name in METRICS:
        if name not in metrics:
            continue
        own = metric == metrics.index(name)
        values[name] = np.full(shape, np.nan)
        states[name] = np.full(shape, "", dtype="U12")
        values[name][image[own], method[own]] = value[own]
        states[name][image[own], method[own]] = status[own]
    kept = {n: v for n, v in values.items() if not np.isnan(v).all()}  # what nothing is marked for
    return kept, {n: states[n] for n in kept}


def _maps(
    rows: pa.Table,
    own: Chosen,
    image: Codes,
    method: Codes,
    shape: tuple[int, int],
) -> list[Floats]:
    held = rows.filter(pa.array(own)).select(["heatmap", "score_status"])
    good = np.asarray(pc.equal(held["score_status"], "ok"))
    maps = held["heatmap"].combine_chunks()
    start, flat = np.asarray(maps.offsets), np.asarray(maps.values, dtype=np.float64)
    where, which = image[own], method[own]
    found = []
    for j in range(shape[1]):
        mine = np.flatnonzero(which == j)
        cells = int(start[mine[0] + 1] - start[mine[0]])
        stack = np.full((shape[0], cells), np.nan)
        for i in mine[good[mine]]:
            stack[where[i]] = flat[start[i] : start[i + 1]]
        found.append(stack)
    return found


def _curves(
    rows: pa.Table,
    own: Chosen,
    method: Codes,
    methods: list[str],
) -> dict[str, Floats]:
    ok = own & np.asarray(pc.equal(rows["score_status"], "ok"))
    curves = rows["curve"].filter(pa.array(ok)).to_pylist()
    which = method[ok]
    return {
        name: np.array([c for c, j in zip(curves, which, strict=True) if j == k], dtype=np.float64)
        for k, name in enumerate(methods)
    }


def _hits(
    rows: pa.Table,
    image: Codes,
    method: Codes,
    methods: list[str],
    ids: list[str],
) -> dict[str, tuple[list[str], Floats]]:
    own = np.asarray(pc.is_valid(rows["hits"]))
    packed = rows["hits"].filter(pa.array(own)).to_pylist()
    found: dict[str, tuple[list[str], Floats]] = {}
    size = len(OVERLAPS) * len(CUTS)
    for k, name in enumerate(methods):
        mine = [i for i, j in enumerate(method[own]) if j == k]
        bits = [np.unpackbits(np.frombuffer(packed[i], np.uint8), count=size) for i in mine]
        hits = np.array(bits, dtype=np.float64).reshape(-1, len(OVERLAPS), len(CUTS))
        found[name] = ([ids[v] for v in image[own][mine]], hits)
    return found
