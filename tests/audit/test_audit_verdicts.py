"""Flags, the one order of verdicts, label suspects and lift, against small cases worked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from camray.audit.archive_view import PRIOR, ArchiveView
from camray.audit.columns import NUMBERS, WORDS
from camray.audit.counts import ClassCounts, wilson
from camray.audit.gate import parse_gate
from camray.audit.verdicts import FLAGS, VERDICTS, as_lists, audit_scores, decide, find_flags
from camray.config import AuditConfig
from camray.errors import UsageError
from camray.records import RECORD_SCHEMA

GOOD = {
    "status": "ok", "heat_status": "ok", "confirm_region": "", "correct": 1.0, "confidence": 0.9,
    "margin": 0.8, "image_mean": 120.0, "image_std": 50.0, "image_sharpness": 500.0,
}  # fmt: skip
SCREENED = {"confirm_region": "border", "confirm_drop": 0.8, "heat_ring_mass": 0.6, "has_cause": True}
REFUTED = SCREENED | {"confirm_drop": 0.1, "has_cause": False}
UNCLEAR = REFUTED | {"heat_ring_mass": 0.2}  # the corner reaches further in


def judged(**changes: Any) -> tuple[str, set[str], float]:
    """One good row, changed."""
    row = dict.fromkeys(NUMBERS, math.nan) | GOOD | changes
    columns = {n: np.array([row[n]], object if n in WORDS else float) for n in (*WORDS, *NUMBERS)}
    whole = {
        "lift": np.array([changes.get("lift", 0.0)]),
        **{
            n: np.array([bool(changes.get(n))])
            for n in ("label_suspect", "exact_duplicate", "near_duplicate", "has_cause")
        },
        "place_drop": np.array([changes.get("place_drop", math.nan)]),
    }
    flags = find_flags(columns, whole, AuditConfig())
    verdict = decide(flags)
    scores = audit_scores(verdict, columns, flags, np.zeros(1))
    return str(verdict[0]), set(as_lists(flags)[0]), float(scores[0])


def test_a_good_row() -> None:
    assert judged()[:2] == ("ok", set())


@pytest.mark.parametrize(
    ("changes", "verdict", "flag"),
    [
        ({"status": "failed"}, "broken_input", "failed"),
        ({"heat_status": "dead"}, "broken_explanation", "dead_map"),
        ({"label_suspect": True, "correct": 0.0}, "label_suspect", "label_suspect"),
        ({"correct": 0.0}, "wrong", "wrong"),
        (SCREENED, "right_wrong_reason", "shortcut_confirmed"),
        (SCREENED | {"correct": 0.0}, "wrong_by_shortcut", "shortcut_confirmed"),
        ({"has_cause": True}, "right_wrong_reason", "shortcut_confirmed"),
        ({"has_cause": True, "correct": 0.0, "label_suspect": True}, "wrong_by_shortcut", "wrong"),
        (
            SCREENED | {"confirm_drop": math.nan, "has_cause": False},
            "ok",
            "not_looked_at",
        ),  # nobody looked: no suspicion
        (SCREENED | {"has_cause": False}, "right_wrong_reason_suspected", "shortcut_suspected"),
        (SCREENED | {"lift": -1.0}, "right_wrong_reason", "shortcut_confirmed"),  # lift is no veto
        (REFUTED, "ok", "shortcut_refuted"),
        (UNCLEAR, "ok", "not_looked_at"),
        (UNCLEAR | {"place_drop": 0.1}, "ok", "shortcut_refuted"),
        (UNCLEAR | {"place_drop": 0.9}, "ok", "not_looked_at"),
        (SCREENED | {"has_cause": False, "label_suspect": True, "correct": 0.0}, "wrong", "border_heat"),
        ({"margin": 0.01}, "low_margin", "low_margin"),
        ({"image_mean": 3.0}, "ok", "dark"),
        ({"image_std": 1.0, "image_sharpness": 0.0}, "ok", "flat"),
        ({"width": 1000.0, "height": 349.0}, "ok", "odd_shape"),
        ({"width": 349.0, "height": 1000.0}, "ok", "odd_shape"),
        ({"width": 1000.0, "height": 351.0}, "ok", None),
        ({"heat_in_box": 0.2}, "ok", "off_object"),
        ({"heat_in_box": 0.2, "heat_in_mask": 0.9}, "ok", None),  # the mask knows better
        ({"heat_in_segment": 0.2}, "ok", "off_object"),
        ({"heat_in_segment": 0.2, "heat_in_mask": 0.9}, "ok", None),  # the archive knows better
    ],
)
def test_verdicts(changes: dict[str, Any], verdict: str, flag: str | None) -> None:
    found, flags, _ = judged(**changes)
    assert found == verdict
    assert flag in flags if flag else flags == set()
    assert flags <= set(FLAGS)


def test_the_queue_shows_the_confirmed_first_and_the_larger_drop_before() -> None:
    scores = [judged(**c)[2] for c in (
        SCREENED | {"confirm_drop": 0.9}, SCREENED | {"confirm_drop": 0.4}, {"correct": 0.0},
        SCREENED | {"has_cause": False}, {"margin": 0.05}, {},
    )]  # fmt: skip
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores)
    assert set(VERDICTS) >= {judged(**SCREENED)[0]}


def batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    table = pa.Table.from_pylist([{"status": "ok"} | row for row in rows], RECORD_SCHEMA)
    return table.combine_chunks().to_batches()[0]


def test_lift_by_hand() -> None:
    """100 maps of class 0 on cell 0, 100 of class 1 spread evenly; lift by the formula, with its prior."""
    rows = [{"predicted_class": 0, "heatmap": [4.0, 0, 0, 0], "heat_h": 2, "heat_w": 2} for _ in range(100)]
    rows += [{"predicted_class": 1, "heatmap": [1.0] * 4, "heat_h": 2, "heat_w": 2} for _ in range(100)]
    view = ArchiveView(3)
    view.add(batch(rows[:150]))
    view.add(batch(rows[150:]))
    lift = view.of(batch(rows))["lift"]
    pooled = (1 + 0.25) / 2
    own = (100 + PRIOR * pooled) / (100 + PRIOR)
    assert lift[0] == pytest.approx(math.log(own / pooled))
    mean = [(100 * 0.25 + PRIOR * p) / (100 + PRIOR) for p in (pooled, 0.125, 0.125, 0.125)]
    by_hand = sum(0.25 * math.log(m / p) for m, p in zip(mean, (pooled, 0.125, 0.125, 0.125), strict=True))
    assert lift[-1] == pytest.approx(by_hand)


def test_a_swapped_label_is_suspected_and_a_hard_image_is_not() -> None:
    """Class 0 is usually believed with 0.9, class 1 with 0.6."""

    def said(label: int, first: int, score: float) -> dict[str, Any]:
        top = [{"class_id": first, "score": score}, {"class_id": 1 - first, "score": 1 - score}]
        return {"label_class": label, "topk": top, "predicted_class": first}

    rows = [said(0, 0, 0.9)] * 20 + [said(1, 1, 0.6)] * 20
    asked = batch([said(0, 1, 0.95), said(1, 0, 0.7), said(0, 0, 0.55)])
    view = ArchiveView(2)
    view.add(batch(rows))
    view.add(asked)
    assert view.of(asked)["suggested_class"].tolist() == [1, -1, -1]
    few = ArchiveView(2)
    few.add(batch(rows[:2]))
    few.add(asked)
    assert few.of(asked)["suggested_class"].tolist() == [-1, -1, -1]  # too little is known of any class


def test_duplicates() -> None:
    rows = [
        {"content_sha256": f"{c:064x}"[::-1], "image_hash": f"{h:016x}"}
        for c, h in ((1, 5), (1, 5), (2, 5), (3, 9))
    ]
    view = ArchiveView(2)
    view.add(batch(rows))
    found = view.of(batch(rows))
    assert found["exact_duplicate"].tolist() == [True, True, False, False]
    assert found["near_duplicate"].tolist() == [True, True, True, False]


def test_wilson() -> None:
    """Newcombe 1998, table I: 81 of 263 and 0 of 20."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_classes_come_by_what_is_certain_of_them_then_by_their_images() -> None:
    """15 images of class 0, 3 of 30 confirmed in class 1, none of 20 in class 2."""
    rows = batch([{"predicted_class": c} for c, n in ((0, 15), (1, 30), (2, 20)) for _ in range(n)])
    flags = {name: np.zeros(65, bool) for name in FLAGS}
    flags["shortcut_confirmed"][15:18] = True
    counts = ClassCounts(4)
    counts.add(rows, flags)
    ranked = counts.ranked(("a", "b", "c", "d"))
    assert [(r.label, r.images, r.confirmed) for r in ranked] == [("b", 30, 3), ("c", 20, 0), ("a", 15, 0)]
    assert [r.confirmed_low for r in ranked[1:]] == [0, 0]


def test_gate() -> None:
    rates = {"confirmed_rate": 0.006, "failed_rate": 0.0}
    one, two, three = parse_gate("confirmed_rate>0.5%, drift=major,failed_rate > 0.01")
    assert [c.fires(rates, "moderate") for c in (one, two, three)] == [True, False, False]
    assert two.fires(rates, "major")
    assert parse_gate("") == ()
    for bad in (
        "confirmed_rate",
        "no_such_rate>1%",
        "drift=huge",
        "confirmed_rate>200%",
        "confirmed_rate<1%",
    ):
        with pytest.raises(UsageError, match=r"--fail-on.*Fix"):
            parse_gate(bad)
