"""Counts by predicted class: how often its answers hang on the border, with intervals.

Flows in: judged batches. Flows out: one row a class, the most suspicious first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from camray.audit.columns import number
from camray.audit.verdicts import FLAGS, Marks

Z95 = 1.959964


def wilson(hits: float, trials: float) -> tuple[float, float]:
    """Give Wilson's 95 % interval of a share; (0, 1) without trials."""
    if trials <= 0:
        return 0.0, 1.0
    share, z2 = hits / trials, Z95**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return max(0.0, middle - half), min(1.0, middle + half)


class ClassCounts:
    """Flags counted by predicted class. Counts of several batches, nights or machines add up."""

    def __init__(self, num_classes: int) -> None:
        self.images = np.zeros(num_classes, np.int64)  # by predicted class
        self.labelled = np.zeros(num_classes, np.int64)  # of these: with a label
        self.flips = np.zeros(num_classes, np.int64)
        self.flags = {name: np.zeros(num_classes, np.int64) for name in FLAGS}
        self.rows = 0
        self.failed = 0

    def add(self, batch: pa.RecordBatch, flags: Marks) -> None:
        """Count one batch."""
        self.rows += len(batch)
        self.failed += int(flags["failed"].sum())
        predicted = number(batch, "predicted_class")
        known = ~np.isnan(predicted)
        classes = predicted[known].astype(np.int64)
        np.add.at(self.images, classes, 1)
        np.add.at(self.labelled, classes, (~np.isnan(number(batch, "correct")[known])).astype(np.int64))
        for name, mark in flags.items():
            np.add.at(self.flags[name], classes, mark[known].astype(np.int64))

    @property
    def ok(self) -> int:
        """Images that were explained."""
        return int(self.images.sum())

    def rates(self) -> dict[str, float]:
        """Give the shares that a gate can ask for, 0..1: of explained images, `failed_rate` of all."""
        of = max(self.ok, 1)
        suspected = (
            self.flags["border_heat"] - self.flags["shortcut_refuted"] - self.flags["shortcut_confirmed"]
        )
        counts = {
            "confirmed": self.flags["shortcut_confirmed"], "suspected": suspected,
            "label_suspect": self.flags["label_suspect"], "low_margin": self.flags["low_margin"],
            "blurry": self.flags["blurry"], "dark": self.flags["dark"],
        }  # fmt: skip
        found = {f"{name}_rate": float(count.sum()) / of for name, count in counts.items()}
        labelled = max(int(self.labelled.sum()), 1)
        found["wrong_rate"] = float(self.flags["wrong"].sum()) / labelled
        return found | {"failed_rate": self.failed / max(self.rows, 1)}

    def ranked(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """One row a class that was predicted; first where even the low end of the interval is high."""
        rows = []
        for c in np.flatnonzero(self.images).tolist():
            images, confirmed = int(self.images[c]), int(self.flags["shortcut_confirmed"][c])
            low, high = wilson(confirmed, images)
            labelled = int(self.labelled[c])
            rows.append(
                {
                    "class_id": c,
                    "label": names[c] if c < len(names) else None,
                    "images": images,
                    "confirmed": confirmed,
                    "confirmed_rate": confirmed / images,
                    "confirmed_low": low,
                    "confirmed_high": high,
                    "suspected": int(self.flags["border_heat"][c] - self.flags["shortcut_refuted"][c])
                    - confirmed,
                    "wrong": int(self.flags["wrong"][c]),
                    "precision": (labelled - int(self.flags["wrong"][c])) / labelled if labelled else None,
                    "label_suspects": int(self.flags["label_suspect"][c]),
                }
            )
        return sorted(rows, key=lambda r: (-r["confirmed_low"], -r["confirmed"], -r["images"]))
