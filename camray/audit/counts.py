"""What is counted of a night: flags by predicted class, and sums small enough to keep for ever.

Flows in: judged batches. Flows out: rates, one row a class with the most suspicious first, and the state by
which two nights are compared: the rows of an earlier night are never read again. Bins are fixed, so any two
states can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import binomtest

from camray.audit.columns import Floats, heat_shares, number
from camray.audit.verdicts import FLAGS, Marks

UNIT = np.linspace(0, 1, 51)
GREY = np.linspace(0, 255, 52)
ROUGH = np.expm1(np.linspace(0, 12, 61))  # variance of the Laplacian: 0 to 160,000, finer where it is small
TINT = np.linspace(-64, 64, 129)
HISTOGRAMS = {  # column -> family of drift, edges of the bins
    "image_mean": ("pixel", GREY), "image_std": ("pixel", np.linspace(0, 128, 65)),
    "image_sharpness": ("pixel", ROUGH), "image_red": ("pixel", TINT), "image_red_std": ("pixel", GREY),
    "image_blue": ("pixel", TINT), "image_blue_std": ("pixel", GREY), "image_saturation": ("pixel", GREY),
    "image_saturation_std": ("pixel", GREY), "image_dark": ("pixel", GREY), "image_light": ("pixel", GREY),
    "image_noise": ("pixel", np.linspace(-0.5, 63.5, 65)),
    "image_blockiness": ("pixel", np.linspace(0, 4, 81)),
    "file_bits": ("pixel", np.expm1(np.linspace(0, 4, 81))),  # 0 to 54 bits a pixel
    "confidence": ("confidence", UNIT), "margin": ("confidence", UNIT),
    "heat_ring_mass": ("heat", UNIT), "heat_corner_mass": ("heat", UNIT), "heat_entropy": ("heat", UNIT),
}  # fmt: skip
RATES = {  # flag -> family of drift, of which images it is a share
    "failed": ("failures", "rows"), "wrong": ("labels", "labelled"), "label_suspect": ("labels", "labelled"),
    "shortcut_confirmed": ("heat", "ok"), "border_heat": ("heat", "ok"), "dead_map": ("failures", "ok"),
    "low_margin": ("confidence", "ok"), "dark": ("pixel", "ok"), "bright": ("pixel", "ok"),
    "flat": ("pixel", "ok"), "blurry": ("pixel", "ok"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClassRow:
    """What is counted of one predicted class. `confirmed_low` and `_high`: Wilson's 95 % interval."""

    class_id: int
    label: str | None
    images: int
    confirmed: int
    confirmed_rate: float
    confirmed_low: float
    confirmed_high: float
    suspected: int
    wrong: int
    precision: float | None  # of the images with a label
    label_suspects: int


@cache  # many classes have the same counts
def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Give Wilson's 95 % interval of a share."""
    interval = binomtest(hits, trials).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


class ClassCounts:
    """Flags counted by predicted class."""

    def __init__(self, num_classes: int) -> None:
        self.images = np.zeros(num_classes, np.int64)  # by predicted class
        self.labelled = np.zeros(num_classes, np.int64)  # of these: with a label
        self.flags = {name: np.zeros(num_classes, np.int64) for name in FLAGS}
        self.rows = 0
        self.failed = 0

    def add(self, batch: pa.RecordBatch, flags: Marks, sign: int = 1) -> None:
        """Count one batch; -1: it is no more."""
        self.rows += sign * len(batch)
        self.failed += sign * int(flags["failed"].sum())
        predicted, labelled = number(batch, "predicted_class"), ~np.isnan(number(batch, "correct"))

        def of_class(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
            classes = predicted[chosen & ~np.isnan(predicted)].astype(np.int64)
            return sign * np.bincount(classes, minlength=len(self.images))

        self.images += of_class(np.ones(len(batch), bool))
        self.labelled += of_class(labelled)
        for name, mark in flags.items():
            self.flags[name] += of_class(mark)

    def to_json(self) -> dict[str, Any]:
        """Give plain lists and numbers."""
        arrays = {"images": self.images, "labelled": self.labelled, **self.flags}
        return {"rows": self.rows, "failed_rows": self.failed, **{n: a.tolist() for n, a in arrays.items()}}

    @staticmethod
    def from_json(said: Any) -> ClassCounts:
        """Read what `to_json` gave.

        Raises:
            LookupError: it is of other flags.
        """
        counts = ClassCounts(len(said["images"]))
        counts.rows, counts.failed = said["rows"], said["failed_rows"]
        counts.images, counts.labelled = (np.array(said[name], np.int64) for name in ("images", "labelled"))
        counts.flags = {name: np.array(said[name], np.int64) for name in FLAGS}
        return counts

    @property
    def ok(self) -> int:
        """Images that were explained."""
        return int(self.images.sum())

    @property
    def _suspected(self) -> NDArray[np.int64]:
        return self.flags["shortcut_suspected"]

    @property
    def known_labels(self) -> int:
        """Explained images whose label is known."""
        return int(self.labelled.sum())

    def rates(self) -> dict[str, float]:
        """Give the shares that a gate can ask for, 0..1: of explained images, `failed_rate` of all."""
        counts = {"confirmed": self.flags["shortcut_confirmed"], "suspected": self._suspected}
        counts |= {name: self.flags[name] for name in ("label_suspect", "low_margin", "blurry", "dark")}
        found = {f"{name}_rate": int(count.sum()) / max(self.ok, 1) for name, count in counts.items()}
        found["wrong_rate"] = int(self.flags["wrong"].sum()) / max(self.known_labels, 1)
        return found | {"failed_rate": self.failed / max(self.rows, 1)}

    def ranked(self, names: Sequence[str]) -> list[ClassRow]:
        """One row a class that was predicted; first where even the low end of the interval is high."""
        rows = [self._row(c, names) for c in np.flatnonzero(self.images).tolist()]
        return sorted(rows, key=lambda r: (-r.confirmed_low, -r.confirmed, -r.images))

    def _row(self, c: int, names: Sequence[str]) -> ClassRow:
        images, labelled = int(self.images[c]), int(self.labelled[c])
        confirmed, wrong = int(self.flags["shortcut_confirmed"][c]), int(self.flags["wrong"][c])
        low, high = wilson(confirmed, images)
        return ClassRow(
            c, names[c] if c < len(names) else None, images, confirmed, confirmed / images, low, high,
            int(self._suspected[c]), wrong, (labelled - wrong) / labelled if labelled else None,
            int(self.flags["label_suspect"][c]),
        )  # fmt: skip


@dataclass
class NightState:
    """Sums over the images of a night. `counts` has rows, ok, labelled and the flags of `RATES`."""

    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("rows", "ok", "labelled", *RATES), 0)
    )
    histograms: dict[str, Floats] = field(
        default_factory=lambda: {n: np.zeros(len(e) - 1) for n, (_, e) in HISTOGRAMS.items()}
    )
    classes: dict[int, int] = field(default_factory=dict)
    map_sums: dict[int, Floats] = field(default_factory=dict)  # by predicted class, shares of heat
    map_counts: dict[int, int] = field(default_factory=dict)
    grid: tuple[int, int] = (0, 0)

    def add(self, batch: pa.RecordBatch, flags: Marks) -> None:
        """Take a judged batch into account."""
        predicted = number(batch, "predicted_class")
        known = ~np.isnan(predicted)
        self.counts["rows"] += len(batch)
        self.counts["ok"] += int(known.sum())
        self.counts["labelled"] += int((~np.isnan(number(batch, "correct"))).sum())
        for name in RATES:
            self.counts[name] += int(flags[name].sum())
        for name, (_, edges) in HISTOGRAMS.items():
            values = number(batch, name)
            values = values[~np.isnan(values)].clip(edges[0], edges[-1])
            self.histograms[name] += np.histogram(values, edges)[0]
        for class_id, count in zip(*np.unique(predicted[known], return_counts=True), strict=True):
            self.classes[int(class_id)] = self.classes.get(int(class_id), 0) + int(count)
        shares, self.grid = heat_shares(batch, self.grid)
        usable = known & ~np.isnan(shares[:, 0])
        for class_id in np.unique(predicted[usable]).astype(int).tolist():
            own = shares[usable & (predicted == class_id)]
            self.map_sums[class_id] = self.map_sums.get(class_id, np.zeros(own.shape[1])) + own.sum(0)
            self.map_counts[class_id] = self.map_counts.get(class_id, 0) + len(own)

    def to_json(self) -> dict[str, Any]:
        """Give plain lists and numbers; maps as means."""
        means = {c: total / self.map_counts[c] for c, total in sorted(self.map_sums.items())}
        return {
            "counts": self.counts,
            "histograms": {name: h.astype(int).tolist() for name, h in self.histograms.items()},
            "classes": {str(c): n for c, n in sorted(self.classes.items())},
            "grid": list(self.grid),
            "mean_maps": {str(c): np.round(mean, 6).tolist() for c, mean in means.items()},
            "map_counts": {str(c): n for c, n in sorted(self.map_counts.items())},
        }

    @staticmethod
    def from_json(said: Any) -> NightState:
        """Read what `to_json` gave.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: it is none, or of other bins.
        """
        counts = {int(c): int(n) for c, n in said["map_counts"].items()}
        height, width = (int(side) for side in said["grid"])
        state = NightState(
            counts={name: int(said["counts"][name]) for name in NightState().counts},
            histograms={
                n: _sums(said["histograms"].get(n, np.zeros(len(e) - 1)), len(e) - 1)  # of an earlier camray
                for n, (_, e) in HISTOGRAMS.items()
            },
            classes={int(c): int(n) for c, n in said["classes"].items()},
            map_sums={
                int(c): _sums(m, height * width) * counts[int(c)] for c, m in said["mean_maps"].items()
            },
            map_counts=counts,
            grid=(height, width),
        )
        if min([*state.counts.values(), *state.classes.values(), *counts.values()]) < 0:
            raise ValueError("a count below zero")
        return state


def _sums(values: Any, size: int) -> Floats:
    sums = np.array(values, float)
    if sums.shape != (size,) or not (np.isfinite(sums) & (sums >= 0)).all():
        raise ValueError(f"not {size} sums")
    return sums
