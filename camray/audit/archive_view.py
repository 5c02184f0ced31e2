"""What only the whole archive tells of an image: where its class looks, what its label's images look like.

Flows in: batches of records, once. Flows out: for any batch, lift, label suspects and duplicates. Memory:
one map a class and 16 bytes an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camray.audit.columns import Floats, heat_shares, number, topk_scores
from camray.records import Status

PRIOR = 20.0  # images: a class with few of its own is taken to look where all classes look
FEW_LABELS = 5  # images of a label, below which nothing is said of it


class ArchiveView:
    """Sums over an archive. `add` every batch first, then ask `of` any batch."""

    def __init__(self, num_classes: int) -> None:
        self._sums: Floats | None = None  # (classes, cells)
        self._maps = np.zeros(num_classes)  # summed, of each class
        self._own_score, self._labelled = np.zeros(num_classes), np.zeros(num_classes)
        self._contents, self._looks = _Repeats("content_sha256"), _Repeats("image_hash")
        self._grid = (0, 0)

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
        label = number(batch, "label_class")
        rows, ids, scores = topk_scores(batch)
        own = ids == np.nan_to_num(label, nan=-1)[rows]
        np.add.at(self._own_score, ids[own], scores[own])
        ok = batch.column("status").to_numpy(zero_copy_only=False) == Status.OK
        np.add.at(self._labelled, label[~np.isnan(label) & ok].astype(int), 1)
        self._contents.add(batch)
        self._looks.add(batch)

    def of(self, batch: pa.RecordBatch) -> dict[str, NDArray[Any]]:
        """Tell of each row: `lift`, `label_suspect`, `suggested_class` (-1: none), duplicates."""
        suggested = self._suggested(batch)
        return {
            "lift": self._lift(batch),
            "label_suspect": suggested >= 0,
            "suggested_class": suggested,
            "exact_duplicate": self._contents.of(batch),
            "near_duplicate": self._looks.of(batch),
        }

    def _lift(self, batch: pa.RecordBatch) -> Floats:
        """Sum of q ln(mean map of the class / mean map of all): high where this class looks unlike others.

        The mean map of a class is drawn towards that of all classes.
        """
        found = np.full(len(batch), np.nan)
        if self._sums is None:
            return found
        shares, _ = heat_shares(batch, self._grid)
        classes = number(batch, "predicted_class")
        usable = ~np.isnan(shares[:, 0]) & ~np.isnan(classes)
        pooled = self._sums.sum(0) / max(self._maps.sum(), 1)
        mean_maps = (self._sums + PRIOR * pooled) / (self._maps + PRIOR)[:, None]  # (classes, cells)
        ratio = np.log((mean_maps + 1e-9) / (pooled + 1e-9))
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
        return np.where(~np.isnan(label) & (best >= 0) & (best != np.nan_to_num(label, nan=-1)), best, -1)


class _Repeats:
    """Which hashes of a column come more than once, told by their first 64 bits; missing ones never do."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._seen: list[NDArray[np.uint64]] = []
        self._repeated: NDArray[np.uint64] | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        self._seen.append(self._numbers(batch))

    def of(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        if self._repeated is None:
            values, counts = np.unique(
                np.concatenate([*self._seen, np.array([], np.uint64)]), return_counts=True
            )
            self._repeated, self._seen = values[(counts > 1) & (values > 0)], []
        return np.isin(self._numbers(batch), self._repeated)

    def _numbers(self, batch: pa.RecordBatch) -> NDArray[np.uint64]:
        digits = batch.column(self._column).to_pylist()
        return np.array([int(d[:16], 16) if d else 0 for d in digits], np.uint64)
