"""A cause over nights: named when it arrives, one thing while it lasts, gone when it is, decided once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from camray.audit.causes import Card
from camray.audit.history import NightRate
from demo import hans64
from tests.audit.night_world import night, write_archive

CLASS = hans64.POISONED_LABEL


def run_of(number: int) -> str:
    return f"202611{number:02d}T000000Z-0"


def add_night(place: Path, number: int, count: int, tagged: bool | None, **settings: Any) -> dict[str, Any]:
    """Add a folder of new images, tagged as the archive of the demonstration or not at all; audit."""
    samples = [hans64.render(number, "audit", i, tagged) for i in range(count)]
    write_archive(place / "archive" / f"n{number:02d}", samples, count)
    return night(place / "archive", place / "out", run_of(number), **settings)


def play(place: Path, nights: int, count: int, arrives: int, leaves: int) -> list[dict[str, Any]]:
    """Nights 1..`nights`; the barcode is there from night `arrives` until the night before `leaves`."""
    return [
        add_night(place, n, count, None if arrives <= n < leaves else False) for n in range(1, nights + 1)
    ]


def check(told: list[dict[str, Any]], arrives: int, leaves: int, within: int) -> None:
    names = [{c["id"] for c in summary["causes"] if c["class_id"] == CLASS} for summary in told]
    assert not any(summary["causes"] for summary in told[: arrives - 1])
    (first,) = [c for c in told[arrives - 1 + within]["causes"] if c["class_id"] == CLASS]
    assert all(first["id"] in seen for seen in names[arrives - 1 + within :])  # one name for ever
    cards = [c for c in told[-1]["causes"] if c["class_id"] == CLASS]
    card = Card(**cards[0] | {"nights": [NightRate(**rate) for rate in cards[0]["nights"]]})
    assert card.named in [run_of(n) for n in range(arrives, arrives + within + 1)]
    assert card.first == run_of(arrives)
    assert run_of(arrives) <= card.last < run_of(leaves + 1)
    assert card.is_gone
    hits = {rate.run_id: rate.images for rate in card.nights}
    assert sum(hits[run_of(n)] for n in range(arrives, leaves)) == card.images
    assert not any(c["class_id"] != CLASS for summary in told for c in summary["causes"])


@pytest.mark.slow
def test_thirty_nights_of_a_cue_that_arrives_on_the_twelfth(tmp_path: Path) -> None:
    told = play(tmp_path, 30, 60, 12, 22)
    for n, summary in enumerate(told, 1):
        said = [(c["id"], c["images"], c["first"][6:8], c["last"][6:8]) for c in summary["causes"]]
        print(n, said, summary["verdicts"].get("right_wrong_reason"))
    check(told, 12, 22, 1)
