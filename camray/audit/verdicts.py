"""What is to be said of each image: flags, one verdict in a fixed order, and its place in the queue.

Flows in: columns of records as NumPy arrays, and what only the whole archive tells (lift, label suspects,
duplicates). Flows out: flags, a verdict and an audit score a row. The same words stand in the `audit` table,
in the report and in the exports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camray.config import AuditConfig
from camray.records import Status

Columns = Mapping[str, NDArray[Any]]
Marks = dict[str, NDArray[np.bool_]]

TITLES = {
    "right_wrong_reason": "right for the wrong reason",
    "wrong_by_shortcut": "wrong, by a shortcut",
    "right_wrong_reason_suspected": "suspected: right for the wrong reason",
}
TITLES_WITHOUT_LABELS = {
    "right_wrong_reason": "hangs on a shortcut",
    "right_wrong_reason_suspected": "suspected: hangs on a shortcut",
}  # nobody knows what is right
VERDICTS = {  # in this order: the first that holds is the verdict
    "broken_input": "the image could not be read or explained",
    "broken_explanation": "the heatmap is dead or not finite, or there was no class to explain",
    "wrong_by_shortcut": "the prediction is not the label, and hangs on a shortcut",
    "right_wrong_reason": "the answer hangs on a shortcut: without it the confidence falls",
    "label_suspect": "the label is among those the model believes least, and no shortcut is known",
    "wrong": "the prediction is not the label",
    "right_wrong_reason_suspected": "the confidence falls without the border; so it does in other classes",
    "low_margin": "the two best classes are too close",
    "ok": "nothing to see",
}
_BASE = {  # audit score = base + severity / 10: what a person should see first
    "right_wrong_reason": 0.9, "wrong_by_shortcut": 0.9, "label_suspect": 0.8, "wrong": 0.7,
    "right_wrong_reason_suspected": 0.6, "broken_explanation": 0.5, "broken_input": 0.4,
    "low_margin": 0.2, "ok": 0.0,
}  # fmt: skip
FLAGS = (
    "failed", "dead_map", "nonfinite_map", "no_target", "label_suspect", "wrong", "border_heat",
    "shortcut_confirmed", "shortcut_suspected", "shortcut_refuted", "not_looked_at",
    "unusual_place", "off_object", "padding_heat", "low_margin",
    "dark", "bright", "flat", "blurry", "odd_shape", "exact_duplicate", "near_duplicate",
)  # fmt: skip
RING_AREA = 1 - 0.75**2  # share of the image that is border: a second look takes away no more
_ODD_SHAPE = 0.35  # of the longer side: a shorter side below it is unusual in photographs
_MOSTLY = 0.5  # of the heat: from here on it lies outside the object, or on padding


def title(verdict: str, has_labels: bool = True) -> str:
    """Give a verdict as people read it, in an archive with labels or without."""
    titles = TITLES if has_labels else TITLES_WITHOUT_LABELS
    return titles.get(verdict, verdict.replace("_", " "))


def find_flags(rows: Columns, whole: Columns, settings: AuditConfig) -> Marks:
    """Tell which flags hold for which rows.

    `whole` has what only the whole archive tells: `lift` (nats), `label_suspect`, `exact_duplicate`,
    `near_duplicate`, `has_cause` and `place_drop`, the confidence lost without the hottest place. Comparisons
    with a missing number (NaN) are false. Heat in a corner reaches further in than the border that a second
    look takes away, so only the look at the hottest place clears it.
    """
    ok = rows["status"] == Status.OK
    heat = rows["heat_status"]
    drop, screened = rows["confirm_drop"], ok & (rows["confirm_region"] == "border")
    inside = rows["heat_in_mask"]
    for other in ("heat_in_box", "heat_in_segment"):  # what the archive says of the object comes first
        inside = np.where(np.isnan(inside), rows[other], inside)
    unusual = ok & (whole["lift"] > settings.lift)
    fell = screened & (drop > settings.drop)
    confirmed = ok & whole["has_cause"]
    in_ring = rows["heat_ring_mass"] > RING_AREA
    cleared = (screened & (drop <= settings.drop)) & (in_ring | (whole["place_drop"] <= settings.drop))
    sides = np.stack([rows["width"], rows["height"]])
    return {
        "failed": rows["status"] == Status.FAILED,
        "dead_map": ok & (heat == "dead"),
        "nonfinite_map": ok & (heat == "nonfinite"),
        "no_target": ok & (heat == "no_target"),
        "label_suspect": ok & whole["label_suspect"] & ~screened & ~confirmed,
        "wrong": ok & (rows["correct"] == 0),
        "border_heat": screened,
        "shortcut_confirmed": confirmed,
        "shortcut_suspected": fell & ~confirmed,
        "shortcut_refuted": cleared & ~confirmed,
        "not_looked_at": screened & ~confirmed & ~fell & ~cleared,
        "unusual_place": unusual,
        "off_object": ok & (inside < 1 - _MOSTLY),
        "padding_heat": ok & (rows["heat_in_padding"] > _MOSTLY),
        "low_margin": ok & (rows["margin"] < settings.margin),
        "dark": ok & (rows["image_mean"] < settings.dark),
        "bright": ok & (rows["image_mean"] > settings.bright),
        "flat": ok & (rows["image_std"] < settings.flat),
        "blurry": ok & (rows["image_sharpness"] < settings.blurry) & (rows["image_std"] >= settings.flat),
        "odd_shape": ok & (sides.min(0) < _ODD_SHAPE * sides.max(0)),
        "exact_duplicate": ok & whole["exact_duplicate"],
        "near_duplicate": ok & whole["near_duplicate"] & ~whole["exact_duplicate"],
    }


def decide(flags: Marks) -> NDArray[np.str_]:
    """Give the verdict of each row: the first of `VERDICTS` that holds."""
    broken_map = flags["dead_map"] | flags["nonfinite_map"] | flags["no_target"]
    holds = {
        "broken_input": flags["failed"],
        "broken_explanation": broken_map,
        "wrong_by_shortcut": flags["shortcut_confirmed"] & flags["wrong"],
        "right_wrong_reason": flags["shortcut_confirmed"],
        "label_suspect": flags["label_suspect"],
        "wrong": flags["wrong"],
        "right_wrong_reason_suspected": flags["shortcut_suspected"],
        "low_margin": flags["low_margin"],
    }
    return np.select(list(holds.values()), list(holds), default="ok")


def audit_scores(
    verdicts: NDArray[np.str_], rows: Columns, flags: Marks, drops: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Rank the queue, 0..1: the verdict decides, severity sorts within it.

    Severity is the confidence lost in a look where a shortcut is confirmed (`drops`: by the look that shows
    the cause), how little the model believes the label of a mistake, the narrowness of a margin.
    """
    drop = np.fmax(np.nan_to_num(rows["confirm_drop"]), np.nan_to_num(drops)).clip(0, 1)
    unbelieved = 1 - rows["label_score"]
    sure = np.where(np.isnan(unbelieved), np.nan_to_num(rows["confidence"]), unbelieved).clip(0, 1)
    near = 1 - np.nan_to_num(rows["margin"], nan=1.0).clip(0, 1)
    severity = np.select(
        [flags["shortcut_confirmed"] | flags["border_heat"], flags["label_suspect"] | flags["wrong"]],
        [drop, sure],
        default=near,
    )
    base = np.select([verdicts == v for v in _BASE], list(_BASE.values()), default=0.0)
    shown: NDArray[np.float64] = base + np.where(verdicts == "ok", 0.01, 0.1) * severity
    return shown


def as_lists(flags: Marks) -> list[list[str]]:
    """Give the flags of each row as sorted words."""
    names = sorted(flags)
    rows = np.stack([flags[name] for name in names], axis=1).tolist()
    return [[name for name, holds in zip(names, row, strict=True) if holds] for row in rows]
