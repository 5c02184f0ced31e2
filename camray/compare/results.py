"""The rows of a scores table as arrays, image by image and method by method.

Flows in: an Arrow table with the columns of the scores table. Flows out: `Results`. An image is a place in
the archive (shard and index); its weight in resamples comes from its content, so that results repeat on
another machine and copies of one image are resampled together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camray.measure.catalogue import METRICS
from camray.measure.localisation import CUTS, OVERLAPS
from camray.measure.registry import CONTROLS
from camray.measure.statistics import Floats

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Values:
    """`values` and `states` by metric, (images, methods); images are named by their content."""

    images: tuple[str, ...]
    classes: Codes  # (images,), those explained
    methods: tuple[str, ...]  # "method", or "method @ layer" where there are several layers; controls last
    values: Mapping[str, Floats]  # nan where there is none
    states: Mapping[str, NDArray[np.str_]]  # "" where there is no row

    def only(self, methods: Sequence[str]) -> Values:
        """Keep some methods, in the order given."""
        place = [self.methods.index(m) for m in methods]
        values = {name: v[:, place] for name, v in self.values.items()}
        states = {name: v[:, place] for name, v in self.states.items()}
        return Values(self.images, self.classes, tuple(methods), values, states)

    def class_means(self, metric: str) -> Floats:
        """Mean of each class that occurs, (classes, methods): the blocks to rank methods in."""
        blocks = [self.values[metric][self.classes == c] for c in np.unique(self.classes)]
        known = np.stack([(~np.isnan(b)).sum(0) for b in blocks])
        sums = np.stack([np.nansum(b, axis=0) for b in blocks])
        return np.where(known > 0, sums / np.maximum(known, 1), np.nan)


@dataclass(frozen=True)
class Results(Values):
    """All that was measured on one sample. Lists and first axes follow the images and methods."""

    labels: Mapping[int, str]  # of the classes explained, where they have names
    failed: Mapping[str, int]  # images without scores, by error code
    maps: list[Floats]  # of each method (images, cells), nan where there is no map of use
    curves: Mapping[str, Mapping[str, Floats]]  # metric -> method -> (images with a curve, steps + 1)
    hits: Mapping[str, tuple[list[str], Floats]]  # method -> images, (images with a box, overlaps, cuts)
    panels: Mapping[str, str]  # method -> panel id

    @classmethod
    def of(cls, rows: pa.Table, subjects: Mapping[str, str]) -> Results:
        """Arrange rows; `subjects` (panel id -> text) tells methods of several panels apart."""
        lost = rows.filter(pc.equal(rows["status"], "failed"))
        failed = lost.group_by("error_code").aggregate([([], "count_all")]).to_pylist()
        rows = rows.filter(pc.is_valid(rows["method"])).sort_by(
            [("shard", "ascending"), ("index", "ascending")]
        )
        index = pc.cast(rows["index"], pa.string())
        image, _ = _codes(pc.binary_join_element_wise(rows["shard"], index, "\0"))
        first = pa.array(np.unique(image, return_index=True)[1])
        images = [str(v) for v in rows["content_sha256"].take(first).to_pylist()]
        method, methods, panels = _methods(rows, subjects)
        coded = _Coded(rows, image, method, images, methods)
        values, states = coded.values()
        classes = np.asarray(rows["target_class"].take(first).fill_null(-1), dtype=np.int64)
        texts = rows["target_label"].take(first).to_pylist()
        measured = set(rows["metric"].unique().to_pylist())
        return cls(
            tuple(images), classes, tuple(methods), values, states,
            labels={int(c): t for c, t in zip(classes, texts, strict=True) if t is not None},
            failed={row["error_code"]: row["count_all"] for row in failed},
            maps=coded.maps(),
            curves={name: coded.curves(name) for name in ("insertion", "deletion") if name in measured},
            hits=coded.hits(),
            panels=panels,
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
    split = [text.split("\0") for text in pairs]
    labels = [named(name, subjects[panel]) for panel, name in split]
    order = sorted(range(len(split)), key=lambda i: split[i][1] in CONTROLS)
    methods = list(dict.fromkeys(labels[i] for i in order))
    code = np.array([methods.index(label) for label in labels], dtype=np.int64)
    return code[pair], methods, {labels[i]: split[i][0] for i in reversed(range(len(split)))}


@dataclass(frozen=True)
class _Coded:
    """Rows with the number of the image and of the method of each."""

    rows: pa.Table
    image: Codes
    method: Codes
    images: list[str]
    methods: list[str]

    def _at(self, own: NDArray[np.bool_]) -> tuple[Codes, Codes]:
        return self.image[own], self.method[own]

    def values(self) -> tuple[dict[str, Floats], dict[str, NDArray[np.str_]]]:
        """Give values and states by metric, but of those that have no value at all."""
        metric = np.asarray(self.rows["metric"].to_pylist())
        value = np.asarray(self.rows["value"].to_numpy(), dtype=np.float64)  # null becomes nan
        state = np.asarray(self.rows["score_status"].to_pylist(), dtype="U12")
        shape = (len(self.images), len(self.methods))
        values, states = {}, {}
        for name in METRICS:
            own = metric == name
            if np.isnan(value[own]).all():
                continue
            values[name], states[name] = np.full(shape, np.nan), np.full(shape, "", dtype="U12")
            values[name][self._at(own)], states[name][self._at(own)] = value[own], state[own]
        return values, states

    def maps(self) -> list[Floats]:
        """Give the maps of each method."""
        own = np.asarray(pc.equal(self.rows["metric"], "map"))
        held = self.rows.filter(pa.array(own)).select(["heatmap", "score_status"])
        good = np.asarray(pc.equal(held["score_status"], "ok"))
        maps = held["heatmap"].combine_chunks()
        start, flat = np.asarray(maps.offsets), np.asarray(maps.values, dtype=np.float64)
        image, method = self._at(own)
        stacks = []
        for j in range(len(self.methods)):
            mine = np.flatnonzero(method == j)
            stack = np.full((len(self.images), int(start[mine[0] + 1] - start[mine[0]])), np.nan)
            for i in mine[good[mine]]:
                stack[image[i]] = flat[start[i] : start[i + 1]]
            stacks.append(stack)
        return stacks

    def curves(self, metric: str) -> dict[str, Floats]:
        """Give the curves of each method."""
        own = pc.and_(pc.equal(self.rows["metric"], metric), pc.equal(self.rows["score_status"], "ok"))
        _, method = self._at(np.asarray(own))
        curves = np.array(self.rows["curve"].filter(own).to_pylist(), dtype=np.float64)
        return {name: curves[method == j] for j, name in enumerate(self.methods)}

    def hits(self) -> dict[str, tuple[list[str], Floats]]:
        """Give the images with a box, and whether each is hit."""
        own = pc.is_valid(self.rows["hits"])
        image, method = self._at(np.asarray(own))
        unpacked = partial(np.unpackbits, count=len(OVERLAPS) * len(CUTS))
        bits = [unpacked(np.frombuffer(b, np.uint8)) for b in self.rows["hits"].filter(own).to_pylist()]
        hits = np.array(bits, dtype=np.float64).reshape(-1, len(OVERLAPS), len(CUTS))
        return {
            name: ([self.images[i] for i in image[method == j]], hits[method == j])
            for j, name in enumerate(self.methods)
        }
