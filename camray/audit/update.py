"""What a new model changed: the same images under the explainer before and under this one.

Flows in: the records of two explainers. Flows out: how many answers agree, which classes they went to, how
confidence moved, how alike the heatmaps are, and the largest disagreements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from camray.audit.columns import Floats, class_name, heat_shares, number
from camray.ledger.committed import PARTITION
from camray.ledger.table import Table

LARGEST = 100_000  # images compared; the first that come
SHOWN = 30
_IMAGE = ["shard", "index", "content_sha256"]
_ANSWER = ["member", "predicted_class", "confidence", "correct", "heatmap", "heat_h", "heat_w"]


@dataclass(frozen=True, slots=True)
class ModelUpdate:
    """How the answers of two explainers differ on the same images."""

    before: str  # the other explainer
    images: int
    agreement: float  # share of the images with the same answer
    repaired: int  # right now, wrong before
    broken: int
    confidence_shift: float  # on average
    heat_cosine: float | None  # median; None where no pair of maps can be compared
    flips: Sequence[dict[str, Any]]  # was, now, images: the most frequent first
    largest: Sequence[dict[str, Any]]  # member, was, now, shift, heat_cosine: other answers first


def compare_models(table: Table, before: str, now: str, names: Sequence[str]) -> ModelUpdate | None:
    """Compare two explainers on the images both have, of the same content; None where there are none."""
    rows = {"old": _rows(table, before), "new": _rows(table, now)}
    old, new = (t.select(_IMAGE).append_column(n, pa.array(np.arange(len(t)))) for n, t in rows.items())
    both = old.join(new, _IMAGE, join_type="inner").sort_by("new")
    if not len(both):
        return None
    one, two = (t.take(both.column(n)).combine_chunks().to_batches()[0] for n, t in rows.items())
    was, is_ = (number(b, "predicted_class").astype(int) for b in (one, two))
    shift = number(two, "confidence") - number(one, "confidence")
    alike = _cosines(one, two)
    flips = Counter(zip(was[was != is_].tolist(), is_[was != is_].tolist(), strict=True))
    order = np.lexsort((-np.abs(shift), was == is_))[:SHOWN]
    members = two.column("member").to_pylist()
    usable = alike[~np.isnan(alike)]
    return ModelUpdate(
        before=before,
        images=len(both),
        agreement=float((was == is_).mean()),
        repaired=int(((number(one, "correct") == 0) & (number(two, "correct") == 1)).sum()),
        broken=int(((number(one, "correct") == 1) & (number(two, "correct") == 0)).sum()),
        confidence_shift=float(shift.mean()),
        heat_cosine=float(np.median(usable)) if len(usable) else None,
        flips=[
            {"was": class_name(a, names), "now": class_name(b, names), "images": n}
            for (a, b), n in flips.most_common(SHOWN)
        ],
        largest=[
            {"member": members[i], "was": class_name(was[i], names), "now": class_name(is_[i], names),
             "shift": float(shift[i]), "heat_cosine": None if np.isnan(alike[i]) else float(alike[i])}
            for i in order.tolist() if was[i] != is_[i] or abs(shift[i]) > 0.05
        ],
    )  # fmt: skip


def _rows(table: Table, explainer: str) -> pa.Table:
    """Read explained images, one row each: of several targets the predicted one."""
    asked = (ds.field(PARTITION) == explainer) & (ds.field("status") == "ok")
    asked &= ds.field("target_class") == ds.field("predicted_class")
    return table.dataset().scanner(columns=[*_IMAGE, *_ANSWER], filter=asked).head(LARGEST)


def _cosines(one: pa.RecordBatch, two: pa.RecordBatch) -> Floats:
    """Cosine of each pair of maps, NaN where one is dead or the grids differ."""
    a, grid = heat_shares(one, (0, 0))
    b, other = heat_shares(two, grid)
    if grid != other:
        return np.full(len(one), np.nan)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(1) / np.where(lengths > 0, lengths, np.nan))
