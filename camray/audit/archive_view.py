"""What only the whole archive tells of an image: where its class looks, what its label's images look like.

Flows in: batches of records, once. Flows out: for any batch, lift, label suspects and duplicates. Memory:
one map a class, 16 bytes an image, some 60 for each that is wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camray.audit.columns import Floats, heat_shares, label_scores, number, topk_scores

PRIOR = 20.0  # images: a class with few of its own is taken to look where all classes look
FEW_LABELS = 5  # images of a label, below which nothing is said of it


class ArchiveView:
    """Sums over an archive. `add` every batch first, then ask `of` any batch."""

    def __init__(self, num_classes: int) -> None:
        self._sums: Floats | None = None  # (classes, cells)
        self._maps = np.zeros(num_classes)  # summed, of each class
        self._labels = _Labels(num_classes)
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
        self._labels.add(batch)
        self._contents.add(batch)
        self._looks.add(batch)

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


class _Labels:
    """Which labels are suspected: as many as confident learning counts, those that the model believes least.

    Confident learning (Northcutt 2021) counts an image where the model is at least as sure of another class
    as it is, on average, of the images that carry that label. Ranking by the score of the given label finds
    more of the wrong labels among as many images (its `low_self_confidence`).
    """

    def __init__(self, num_classes: int) -> None:
        self._scores, self._labelled = np.zeros(num_classes), np.zeros(num_classes)
        self._wrong: list[tuple[Floats, Floats, NDArray[np.int32], NDArray[np.float32]]] = []
        self._cutoff: float | None = None

    def add(self, batch: pa.RecordBatch) -> None:
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
        self._wrong.append((label[wrong], scores[wrong], classes[wrong], sure[wrong]))

    def suspects(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        if self._cutoff is None:
            self._cutoff, self._wrong = self._find_cutoff(), []
        wrong = number(batch, "predicted_class") != number(batch, "label_class")
        return np.asarray(wrong & (label_scores(batch) <= self._cutoff))

    def _find_cutoff(self) -> float:
        """Give the label score of the last suspect; -1 where there is none."""
        few = self._labelled < FEW_LABELS
        usual = np.where(few, np.inf, self._scores / np.maximum(self._labelled, 1))
        count = 0
        for label, _, classes, sure in self._wrong:
            above = sure >= usual[classes]
            first = classes[np.arange(len(above)), above.argmax(1)]  # the best come first
            count += int((above.any(1) & (first != label)).sum())
        scores = np.sort(np.concatenate([scores for _, scores, _, _ in self._wrong] or [np.empty(0)]))
        return float(scores[count - 1]) if count else -1.0


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
