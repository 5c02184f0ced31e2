"""What only the whole archive tells of an image: where its class looks, what its label's images look like.

Flows in: batches of records, once; or what the night before carried over, and the new ones. Flows out: for
any batch, lift, label suspects and duplicates; which earlier images are told of otherwise now. Memory: one
map a class, 24 bytes an image, some 60 for each that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camray.audit.columns import Floats, heat_shares, label_scores, number, topk_scores

PRIOR = 20.0  # images: a class with few of its own is taken to look where all classes look
FEW_LABELS = 5  # images of a label, below which nothing is said of it
LIFT_LAG, FEW = 0.05, 0.05  # nats that a class moves, share of the images: within, earlier lifts stand
SUSPECTS_LAG = 0.02  # of the suspects: so many more or fewer do not move the line for all

Arrays = Mapping[str, NDArray[Any]]


class ArchiveView:
    """Sums over an archive. `add` every batch first, then ask `of` any batch.

    `before`: what `carried` gave the night before; then only new batches are added.
    """

    def __init__(self, num_classes: int, before: Arrays | None = None) -> None:
        old = before or {}
        self._sums: Floats | None = old.get("sums")  # (classes, cells)
        self._maps = old.get("maps", np.zeros(num_classes))  # summed, of each class
        self._grid: tuple[int, int] = tuple(old.get("grid", np.zeros(2, int)).tolist())
        self._judged: Floats | None = old.get("ratio")  # as all were judged by last
        self._ratio: Floats | None = None
        self._shards = {shard: i for i, shard in enumerate(old.get("shards", np.array([], str)).tolist())}
        self._places = [old.get("places", np.zeros((0, 2), np.int32))]  # number of the shard, index
        self._rows = len(self._places[0])
        self._labels = _Labels(num_classes, old)
        self._contents = _Repeats("content_sha256", old)
        self._looks = _Repeats("image_hash", old)

    def add(self, batch: pa.RecordBatch) -> None:
        """Take one batch into account."""
        shares, self._grid = heat_shares(batch, self._grid)
        classes = number(batch, "predicted_class")
        usable = ~np.isnan(shares[:, 0]) & ~np.isnan(classes)
        if usable.any():
            if self._sums is None:
                self._sums = np.zeros((len(self._maps), shares.shape[1]))
            known = classes[usable].astype(int)
            np.add.at(self._sums, known, shares[usable])
            np.add.at(self._maps, known, 1)
        self._labels.add(batch, self._rows)
        self._contents.add(batch)
        self._looks.add(batch)
        shards = pc.fill_null(batch.column("shard"), "").dictionary_encode()
        numbers = [self._shards.setdefault(s, len(self._shards)) for s in shards.dictionary.to_pylist()]
        own = np.array(numbers, np.int32)[shards.indices.to_numpy()]
        index = pc.fill_null(batch.column("index"), 0).to_numpy()
        self._places.append(np.stack([own, index], axis=1).astype(np.int32))
        self._rows += len(batch)

    def of(self, batch: pa.RecordBatch) -> dict[str, NDArray[Any]]:
        """Tell of each row: `lift`, `label_suspect`, `suggested_class` (-1: none), duplicates."""
        suspects = self._labels.suspects(batch)
        predicted = np.nan_to_num(number(batch, "predicted_class"), nan=-1).astype(np.int64)
        return {
            "lift": self._lift(batch),
            "label_suspect": suspects,
            "suggested_class": np.where(suspects, predicted, -1),
            "exact_duplicate": self._contents.of(batch),
            "near_duplicate": self._looks.of(batch),
        }

    def has_moved(self) -> bool:
        """Tell whether the lift of too many earlier images would be another one.

        A class moves by the mean distance of its log ratios, weighed by where its images look.
        """
        if self._sums is None or self._judged is None or self._judged.shape != self._sums.shape:
            return self._sums is not None
        mean = self._sums / np.maximum(self._maps, 1)[:, None]
        moved = (mean * np.abs(self._log_ratio() - self._judged)).sum(1) > LIFT_LAG
        return bool(self._maps[moved].sum() > FEW * self._maps.sum())

    def moved(self) -> set[tuple[str, int]]:
        """Give shard and index of earlier images that are suspects or duplicates now, or no more."""
        parts = (self._labels.moved(), self._contents.moved(), self._looks.moved())
        shards, places = list(self._shards), self._places[0]
        return {(shards[s], i) for s, i in places[np.concatenate(parts)].tolist()}

    def carried(self) -> dict[str, NDArray[Any]]:
        """Give what the next night needs; its new rows are then judged by the same numbers."""
        found: dict[str, NDArray[Any]] = {
            "maps": self._maps, "grid": np.array(self._grid), "shards": np.array(list(self._shards), str),
            "places": np.concatenate(self._places),
        }  # fmt: skip
        if self._sums is not None:
            found |= {
                "sums": self._sums,
                "ratio": self._log_ratio() if self._judged is None else self._judged,
            }
        return found | self._labels.carried() | self._contents.carried() | self._looks.carried()

    def _log_ratio(self) -> Floats:
        """Give ln(mean map of a class / mean map of all), each drawn towards that of all classes."""
        if self._ratio is None:
            assert self._sums is not None
            pooled = self._sums.sum(0) / max(self._maps.sum(), 1)
            mean_maps = (self._sums + PRIOR * pooled) / (self._maps + PRIOR)[:, None]  # (classes, cells)
            self._ratio = np.log((mean_maps + 1e-9) / (pooled + 1e-9))
        return self._ratio

    def _lift(self, batch: pa.RecordBatch) -> Floats:
        """Sum of q ln(mean map of the class / mean map of all): high where this class looks unlike others."""
        found = np.full(len(batch), np.nan)
        if self._sums is None:
            return found
        shares, _ = heat_shares(batch, self._grid)
        classes = number(batch, "predicted_class")
        usable = ~np.isnan(shares[:, 0]) & ~np.isnan(classes)
        found[usable] = (shares[usable] * self._log_ratio()[classes[usable].astype(int)]).sum(1)
        return found


class _Labels:
    """Which labels are suspected: as many as confident learning counts, those that the model believes least.

    Confident learning (Northcutt 2021) counts an image where the model is at least as sure of another class
    as it is, on average, of the images that carry that label. Ranking by the score of the given label finds
    more of the wrong labels among as many images (its `low_self_confidence`).
    """

    def __init__(self, num_classes: int, old: Arrays) -> None:
        self._scores = old.get("label_sums", np.zeros(num_classes))
        self._labelled = old.get("labelled", np.zeros(num_classes))
        self._judged = float(old["cutoff"]) if "cutoff" in old else None
        self._cutoff: float | None = None
        self._wrong: list[tuple[NDArray[Any], ...]] = []  # row, label, its score, classes, how sure of each
        if "wrong_rows" in old:
            self._wrong.append(tuple(old[f"wrong_{name}"] for name in _WRONG))
        self._before = len(self._wrong)

    def add(self, batch: pa.RecordBatch, row: int) -> None:
        label, scores = number(batch, "label_class"), label_scores(batch)
        known = ~np.isnan(label) & ~np.isnan(scores)
        np.add.at(self._scores, label[known].astype(int), scores[known])
        np.add.at(self._labelled, label[known].astype(int), 1)
        wrong = known & (number(batch, "predicted_class") != label)
        rows, ids, best = topk_scores(batch)
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)  # in the list of its row
        classes = np.full((len(batch), place.max(initial=0) + 1), -1, np.int32)
        sure = np.full(classes.shape, -1, np.float32)
        classes[rows, place], sure[rows, place] = ids, best
        at = row + np.flatnonzero(wrong)
        self._wrong.append((at, label[wrong], scores[wrong], classes[wrong], sure[wrong]))

    def suspects(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        wrong = number(batch, "predicted_class") != number(batch, "label_class")
        return np.asarray(wrong & (label_scores(batch) <= self._line()))

    def moved(self) -> NDArray[np.int64]:
        """Give the rows of before that the line has passed since."""
        low, high = sorted((self._line(), -1.0 if self._judged is None else self._judged))
        rows = [r[(scores > low) & (scores <= high)] for r, _, scores, _, _ in self._wrong[: self._before]]
        return np.concatenate([*rows, np.array([], np.int64)])

    def carried(self) -> dict[str, NDArray[Any]]:
        line, wide = self._line(), max([c.shape[1] for _, _, _, c, _ in self._wrong] or [1])
        padded = [
            (
                r,
                label,
                scores,
                *(np.pad(a, ((0, 0), (0, wide - a.shape[1])), constant_values=-1) for a in both),
            )
            for r, label, scores, *both in self._wrong
        ]
        parts = zip(_WRONG, zip(*padded, strict=True), strict=True) if padded else ()
        found = {"label_sums": self._scores, "labelled": self._labelled, "cutoff": np.array(line)}
        return found | {f"wrong_{name}": np.concatenate(part) for name, part in parts}

    def _line(self) -> float:
        """Give the label score of the last suspect, -1 where there is none; that of before if it is near."""
        if self._cutoff is None:
            few = self._labelled < FEW_LABELS
            usual = np.where(few, np.inf, self._scores / np.maximum(self._labelled, 1))
            count = 0
            for _, label, _, classes, sure in self._wrong:
                above = sure >= usual[classes]
                first = classes[np.arange(len(above)), above.argmax(1)]  # the best come first
                count += int((above.any(1) & (first != label)).sum())
            scores = np.concatenate([scores for _, _, scores, _, _ in self._wrong] or [np.empty(0)])
            self._cutoff = float(np.partition(scores, count - 1)[count - 1]) if count else -1.0
            said = -1 if self._judged is None else int((scores <= self._judged).sum())
            if abs(said - count) <= SUSPECTS_LAG * count and self._judged is not None:
                self._cutoff = self._judged
        return self._cutoff


_WRONG = ("rows", "labels", "scores", "classes", "sure")


class _Repeats:
    """Which hashes of a column come more than once, told by their first 64 bits; missing ones never do."""

    def __init__(self, column: str, old: Arrays) -> None:
        self._column = column
        self._old: NDArray[np.uint64] = old.get(column, np.array([], np.uint64))
        self._before: NDArray[np.uint64] = old.get(f"{column}_repeated", np.array([], np.uint64))
        self._seen: list[NDArray[np.uint64]] = []
        self._repeated: NDArray[np.uint64] | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        self._seen.append(self._numbers(batch))

    def of(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        return np.isin(self._numbers(batch), self._found())

    def moved(self) -> NDArray[np.int64]:
        """Give the rows of before that are repeated since."""
        return np.flatnonzero(_is_in(self._old, np.setdiff1d(self._found(), self._before)))

    def carried(self) -> dict[str, NDArray[Any]]:
        return {
            self._column: np.concatenate([self._old, *self._seen]), f"{self._column}_repeated": self._found()
        }  # fmt: skip

    def _found(self) -> NDArray[np.uint64]:
        if self._repeated is None:
            values, counts = np.unique(
                np.concatenate([*self._seen, np.array([], np.uint64)]), return_counts=True
            )
            new = values[(counts > 1) | _is_in(values, self._old[_is_in(self._old, values)])]
            self._repeated = np.union1d(self._before, new[new > 0])
        return self._repeated

    def _numbers(self, batch: pa.RecordBatch) -> NDArray[np.uint64]:
        digits = batch.column(self._column).to_pylist()
        return np.array([int(d[:16], 16) if d else 0 for d in digits], np.uint64)


def _is_in(values: NDArray[np.uint64], some: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Tell which values are among some few, without sorting the many."""
    return np.asarray(pc.is_in(pa.array(values), value_set=pa.array(some)).to_numpy(zero_copy_only=False))
