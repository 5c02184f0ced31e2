"""The state of a night: sums and histograms of its new images, small enough to keep for ever.

Two nights are compared by their states; the rows of an earlier night are never read again. Bins are fixed,
so any two states can be compared or added.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camray.audit.columns import heat_shares, number
from camray.audit.verdicts import Marks

Floats = NDArray[np.float64]

UNIT = np.linspace(0, 1, 51)
GREY = np.linspace(0, 255, 52)
ROUGH = np.expm1(np.linspace(0, 12, 61))  # variance of the Laplacian: 0 to 160,000, finer where it is small
EDGES = {
    "image_mean": GREY, "image_std": np.linspace(0, 128, 65), "image_sharpness": ROUGH,
    "confidence": UNIT, "margin": UNIT,
    "heat_ring_mass": UNIT, "heat_corner_mass": UNIT, "heat_entropy": UNIT,
}  # fmt: skip
RATES = {  # flag -> of which images it is a share
    "failed": "rows", "wrong": "labelled", "label_suspect": "labelled", "shortcut_confirmed": "ok",
    "border_heat": "ok", "dead_map": "ok", "low_margin": "ok", "dark": "ok", "bright": "ok", "flat": "ok",
    "blurry": "ok",
}  # fmt: skip


@dataclass
class NightState:
    """Sums over the images of a night. `counts` has rows, ok, labelled and the flags of `RATES`."""

    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("rows", "ok", "labelled", *RATES), 0)
    )
    histograms: dict[str, Floats] = field(
        default_factory=lambda: {n: np.zeros(len(e) - 1) for n, e in EDGES.items()}
    )
    classes: dict[int, int] = field(default_factory=dict)
    map_sums: dict[int, Floats] = field(default_factory=dict)  # by predicted class, shares of heat
    map_counts: dict[int, int] = field(default_factory=dict)
    grid: tuple[int, int] = (0, 0)

    def add(self, batch: pa.RecordBatch, flags: Marks) -> None:
        """Take a judged batch into account."""
        predicted = number(batch, "predicted_class")
        self.counts["rows"] += len(batch)
        self.counts["ok"] += int((~np.isnan(predicted)).sum())
        self.counts["labelled"] += int((~np.isnan(number(batch, "correct"))).sum())
        for name in RATES:
            self.counts[name] += int(flags[name].sum())
        for name, edges in EDGES.items():
            values = number(batch, name)
            values = values[~np.isnan(values)].clip(edges[0], edges[-1])
            self.histograms[name] += np.histogram(values, edges)[0]
        for class_id, count in zip(
            *np.unique(predicted[~np.isnan(predicted)], return_counts=True), strict=True
        ):
            self.classes[int(class_id)] = self.classes.get(int(class_id), 0) + int(count)
        shares, self.grid = heat_shares(batch, self.grid)
        usable = ~np.isnan(shares[:, 0]) & ~np.isnan(predicted)
        for class_id in np.unique(predicted[usable]).astype(int).tolist():
            own = shares[usable & (predicted == class_id)]
            self.map_sums[class_id] = self.map_sums.get(class_id, np.zeros(own.shape[1])) + own.sum(0)
            self.map_counts[class_id] = self.map_counts.get(class_id, 0) + len(own)

    def to_json(self) -> dict[str, Any]:
        """Give plain lists and numbers; maps as means."""
        return {
            "counts": self.counts,
            "histograms": {name: h.astype(int).tolist() for name, h in self.histograms.items()},
            "classes": {str(c): n for c, n in sorted(self.classes.items())},
            "grid": list(self.grid),
            "mean_maps": {
                str(c): np.round(total / self.map_counts[c], 6).tolist()
                for c, total in sorted(self.map_sums.items())
            },
            "map_counts": {str(c): n for c, n in sorted(self.map_counts.items())},
        }

    @staticmethod
    def from_json(said: dict[str, Any]) -> NightState:
        """Read what `to_json` gave."""
        counts = {int(c): n for c, n in said["map_counts"].items()}
        return NightState(
            counts=dict(said["counts"]),
            histograms={name: np.array(h, float) for name, h in said["histograms"].items()},
            classes={int(c): n for c, n in said["classes"].items()},
            map_sums={int(c): np.array(m) * counts[int(c)] for c, m in said["mean_maps"].items()},
            map_counts=counts,
            grid=(said["grid"][0], said["grid"][1]),
        )

    def __add__(self, other: NightState) -> NightState:
        def both(one: dict[Any, Any], two: dict[Any, Any]) -> dict[Any, Any]:
            return {key: one[key] + two[key] if key in one and key in two else one.get(key, two.get(key))
                    for key in one.keys() | two.keys()}  # fmt: skip

        return NightState(
            both(self.counts, other.counts), both(self.histograms, other.histograms),
            both(self.classes, other.classes), both(self.map_sums, other.map_sums),
            both(self.map_counts, other.map_counts), self.grid if self.grid != (0, 0) else other.grid,
        )  # fmt: skip
