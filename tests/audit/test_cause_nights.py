"""A cause over nights: named when it arrives, one thing while it lasts, gone when it is, decided once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable

from camray.audit.cause_book import Card
from camray.audit.history import NightRate, Nights, cause_names
from demo import hans64
from tests.audit.night_world import night, write_archive

CLASS = hans64.POISONED_LABEL


def run_of(number: int) -> str:
    return f"202611{number:02d}T000000Z-0"


def add_night(place: Path, number: int, count: int, tagged: bool | None, seed: int = 0) -> dict[str, Any]:
    """Add a folder of new images, tagged as the archive of the demonstration or not at all; audit."""
    samples = [hans64.render(seed + number, "audit", i, tagged) for i in range(count)]
    write_archive(place / "archive" / f"n{number:02d}", samples, count)
    return night(place / "archive", place / "out", run_of(number))


def play(place: Path, arrives: int, leaves: int, seed: int) -> list[dict[str, Any]]:
    """Thirty nights of 120 images; the barcode is there from night `arrives` until before `leaves`."""
    tags = [None if arrives <= n < leaves else False for n in range(1, 31)]
    return [add_night(place, n, 120, tag, seed) for n, tag in enumerate(tags, 1)]


@pytest.fixture(scope="module", params=[0, 100])
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The barcode, which is at the border, comes on night 12 and is gone from night 22 on."""
    return play(tmp_path_factory.mktemp("nights"), 12, 22, request.param)


def border(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [c for c in summary["causes"] if (c["class_id"], c["cause"]) == (CLASS, "border")]


@pytest.mark.parametrize(("hits", "is_gone"), [
    ([9, 8, 9], False),  # it is there
    ([9, 8, 0], True),  # none of twenty
    ([9, 8, 0, 0, 1], True),  # and one of sixty, which the rule of one image accuses now and then
    ([9, 8, 0, 1], False),  # one of forty tells nothing yet
    ([0, 0, 0, 2], False),  # it came tonight
    ([9, 1, 1, 1], False),  # a twentieth still is a cause
])  # fmt: skip
def test_a_cause_is_gone_where_of_late_fewer_than_a_twentieth_hang_on_it(
    hits: list[int], is_gone: bool
) -> None:
    nights = [NightRate(run_of(n), hit, 20) for n, hit in enumerate(hits)]
    hit = [night.run_id for night in nights if night.images]
    counts = (sum(hits), 20 * len(hits), 0.1, 0.9, 0.0, 9.0)
    card = Card(0, "a", "border", "border", *counts, "a", hit[0], hit[-1], nights=nights)
    assert card.is_gone == is_gone


@pytest.mark.slow
def test_a_cue_is_named_when_it_arrives_stays_one_cause_and_is_gone_when_it_is(
    told: list[dict[str, Any]],
) -> None:
    assert not any(border(summary) for summary in told[:11])
    seen = [border(summary) for summary in told[12:]]
    assert {card["id"] for (card,) in seen} == {f"{CLASS}-border"}  # one name, one card, every night
    found = Card(**seen[-1][0] | {"nights": [NightRate(**rate) for rate in seen[-1][0]["nights"]]})
    assert found.named in (run_of(12), run_of(13))
    assert found.first == run_of(12)
    assert found.is_gone
    hits = {rate.run_id: rate.images for rate in found.nights}
    assert sum(hits.get(run_of(n), 0) for n in range(12, 22)) >= 0.95 * found.images


@pytest.mark.slow
def test_hardly_anything_else_is_named_in_thirty_nights(told: list[dict[str, Any]]) -> None:
    """Measured: none with seed 0, and with seed 100 one, a shape that looks like its kind."""
    others = {(c["class_id"], c["cause"]) for s in told for c in s["causes"]} - {(CLASS, "border")}
    assert len(others) <= 1


def test_a_decision_on_a_cause_covers_its_copies_of_later_nights_and_nothing_else(tmp_path: Path) -> None:
    first = add_night(tmp_path, 1, 240, None)
    accepted, *_ = [c["id"] for c in first["causes"] if c["class_id"] == CLASS]
    said = {"explainer": first["explainer"], "cause": accepted, "decision": "accepted"}
    review = {"camray_review": 1, "decisions": [said | {"decided_at": "2026-11-02T00:00:00Z"}]}
    (tmp_path / "out" / "qa-inbox").mkdir()
    (tmp_path / "out" / "qa-inbox" / "a.json").write_text(json.dumps(review))
    before = open_rows(tmp_path, accepted)
    second = add_night(tmp_path, 2, 120, None)
    rows = DeltaTable(str(tmp_path / "out" / "audit")).to_pyarrow_table().to_pylist()
    copies = [row for row in rows if row["cause_id"] == accepted]
    assert {row["night"] for row in copies} == {run_of(1), run_of(2)}
    assert all(row["reviewed"] == "accepted" and row["audit_score"] == 0 for row in copies)
    assert all(row["reviewed"] is None for row in rows if row["cause_id"] != accepted)
    assert second["accepted"] == sum(row["night"] == run_of(2) for row in copies) > 0
    assert second["decisions_taken_in"] == 1
    assert [c["decision"] for c in second["causes"] if c["id"] == accepted] == ["accepted"]
    assert all(row["reviewed"] is None and row["audit_score"] >= 0.9 for row in before)


def open_rows(place: Path, cause: str) -> list[dict[str, Any]]:
    rows = DeltaTable(str(place / "out" / "audit")).to_pyarrow_table().to_pylist()
    return [row for row in rows if row["cause_id"] == cause]


def test_two_stickers_of_one_answer_are_two_causes_and_each_keeps_its_name() -> None:
    """New copies of either get its name, in whatever order they come."""
    rng = np.random.default_rng(0)
    stickers = rng.integers(0, 255, (2, 12, 12, 3))
    keys = [("s", i, f"{i:064x}") for i in range(24)]
    noisy = [(stickers[i % 2] + rng.normal(0, 10, (12, 12, 3))).clip(0, 255) for i in range(24)]
    crops = {key: crop.astype(np.uint8).tobytes() for key, crop in zip(keys, noisy, strict=True)}
    order = {key: key[1] // 12 for key in keys}

    def named(keys: list[tuple[str, int, str]], before: Nights) -> dict[tuple[str, int, str], str]:
        given = dict.fromkeys(keys, (3, "repeated thing"))
        return cause_names(given, lambda wanted: {key: crops[key] for key in wanted}, before, order)

    first = named(keys[:12], Nights())
    names = [first[key] for key in keys[:12]]
    assert len(set(names)) == 2
    assert names == [names[i % 2] for i in range(12)]
    second = named(keys[::-1], Nights(causes=first))
    assert [second[key] for key in keys] == [names[i % 2] for i in range(24)]
