"""What only the whole archive tells of an image: where its class looks, what its label's images look like.

Flows in: batches of records, once. Flows out: for any batch, lift, label suspects and duplicates. Memory:
one map a class and 16 bytes an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camray.audit.columns import heat_shares, number, topk_scores
from camray.records import Status

Floats = NDArray[np.float64]
PRIOR = 20.0  # images: a class with few of its own is taken to look where all classes look
FEW_LABELS = 5  # images of a label, below which nothing is said of it


class ArchiveView:
    """Sums over an archive. `add` every batch first, then ask `of` any batch."""

    def __init__(self, num_classes: int) -> None:
        self._sums: Floats | None = None  # (classes, cells)
        self.counts = np.zeros(num_classes)
        self._own_score, self._labelled = np.zeros(num_classes), np.zeros(num_classes)
        self._contents: list[NDArray[np.uint64]] = []
        self._looks: list[NDArray[np.uint64]] = []
        self._twice: dict[str, NDArray[np.uint64]] = {}
        self.grid = (0, 0)

    def add(self, batch: pa.RecordBatch) -> None:
        """Take one batch into account."""
        shares, grid = heat_shares(batch, self.grid)
        self.grid = grid
        classes = number(batch, "predicted_class")
        usable = ~np.isnan(shares[:, 0]) & ~np.isnan(classes) if shares.size else np.zeros(len(classes), bool)
        if usable.any():
            if self._sums is None:
                self._sums = np.zeros((len(self.counts), shares.shape[1]))
            known = classes[usable].astype(int)
            np.add.at(self._sums, known, shares[usable])
            np.add.at(self.counts, known, 1)
        label = number(batch, "label_class")
        rows, ids, scores = topk_scores(batch)
        own = ids == np.nan_to_num(label, nan=-1)[rows]
        np.add.at(self._own_score, ids[own], scores[own])
        np.add.at(self._labelled, label[~np.isnan(label) & _is_ok(batch)].astype(int), 1)
        self._contents.append(_as_numbers(batch.column("content_sha256")))
        self._looks.append(_as_numbers(batch.column("image_hash")))

    def mean_maps(self) -> Floats:
        """Where each class looks, shares that sum to 1, drawn towards all classes: (classes, cells)."""
        assert self._sums is not None
        pooled = self._sums.sum(0) / max(self.counts.sum(), 1)
        maps: Floats = (self._sums + PRIOR * pooled) / (self.counts + PRIOR)[:, None]
        return maps

    def of(self, batch: pa.RecordBatch) -> dict[str, NDArray[Any]]:
        """Tell of each row: `lift`, `label_suspect`, `suggested_class` (-1: none), duplicates."""
        suggested = self._suggested(batch)
        return {
            "lift": self._lift(batch),
            "label_suspect": suggested >= 0,
            "suggested_class": suggested,
            "exact_duplicate": self._seen_twice("_contents", _as_numbers(batch.column("content_sha256"))),
            "near_duplicate": self._seen_twice("_looks", _as_numbers(batch.column("image_hash"))),
        }

    def _lift(self, batch: pa.RecordBatch) -> Floats:
        """Sum of q ln(mean map of the class / mean map of all): high where this class looks unlike others."""
        found = np.full(len(batch), np.nan)
        if self._sums is None:
            return found
        shares, _ = heat_shares(batch, self.grid)
        classes = number(batch, "predicted_class")
        usable = ~np.isnan(shares[:, 0]) & ~np.isnan(classes)
        pooled = self._sums.sum(0) / max(self.counts.sum(), 1)
        ratio = np.log((self.mean_maps() + 1e-9) / (pooled + 1e-9))
        found[usable] = (shares[usable] * ratio[classes[usable].astype(int)]).sum(1)
        return found

    def _suggested(self, batch: pa.RecordBatch) -> NDArray[np.int64]:
        """Suggest another class than the label, by confident learning (Northcutt 2021), or -1.

        It is the one the model is surest of, among those it is at least as sure of as it is, on average, of
        the images that carry their label.
        """
        label = number(batch, "label_class")
        few = self._labelled < FEW_LABELS
        usual = np.where(few, np.inf, self._own_score / np.maximum(self._labelled, 1))
        rows, ids, scores = topk_scores(batch)
        best = np.full(len(batch), -1)
        sure = scores >= usual[ids]
        found, first = np.unique(rows[sure], return_index=True)  # the best come first
        best[found] = ids[sure][first]
        label_known = ~np.isnan(label)
        return np.where(label_known & (best >= 0) & (best != np.nan_to_num(label, nan=-1)), best, -1)

    def _seen_twice(self, which: str, asked: NDArray[np.uint64]) -> NDArray[np.bool_]:
        if which not in self._twice:
            parts = getattr(self, which)
            values, counts = np.unique(np.concatenate(parts) if parts else asked[:0], return_counts=True)
            self._twice[which] = values[(counts > 1) & (values > 0)]
            setattr(self, which, [])
        twice = self._twice[which]
        return np.isin(asked, twice)


def _is_ok(batch: pa.RecordBatch) -> NDArray[np.bool_]:
    return np.asarray(batch.column("status").to_numpy(zero_copy_only=False) == Status.OK)


def _as_numbers(digits: pa.Array) -> NDArray[np.uint64]:
    """Read the first 16 of hex digits as a number; 0 where there are none."""
    return np.array([int(d[:16], 16) if d else 0 for d in digits.to_pylist()], np.uint64)
