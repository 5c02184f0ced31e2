"""Looks of a real night: a budget that holds, rows that stay, causes that follow from them."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from deltalake import DeltaTable

from camray.audit.causes import CAUSES
from camray.audit.looks import BATTERY, _Plan, allowed, choose, describe_looks, write_looks
from camray.audit.night import read_nights
from camray.audit.report import cause_cards
from camray.explain.looker import Effect
from camray.ledger.table import Table
from camray.storage import open_folder
from camray.upkeep.forget import Image, find, remove
from demo import hans64
from tests.audit.night_world import night, write_archive
from tests.ledger.ledger_world import EXPLAINERS, committed, shard

COUNT = 48


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("looks")
    write_archive(place / "archive", [hans64.render(0, "audit", i, None) for i in range(COUNT)])
    night(place / "archive", place / "out", "20261122T000000Z-0", audit__looks=0.25)
    return place


def looks(place: Path) -> list[dict[str, Any]]:
    return DeltaTable(str(place / "out" / "looks")).to_pyarrow_table().to_pylist()


def test_a_night_looks_at_a_sample_of_each_answer_within_its_budget(place: Path) -> None:
    rows = looks(place)
    forwards = [row for row in rows if row["intervention"] != "repeat"]
    assert 0 < len(forwards) <= allowed(COUNT, 0.25)
    assert {row["intervention"] for row in rows if row["sampled"]} >= set(BATTERY)
    keys = {(row["shard"], row["index"], row["intervention"]) for row in rows}
    assert len(keys) == len(rows)  # nothing twice
    assert sum(row["intervention"] == "repeat" for row in rows) == COUNT
    assert all(-1 <= row["drop"] <= 1 for row in forwards)
    drawn = [row for row in forwards if row["before"]]
    assert all(row["before"].startswith(b"\x89PNG") and row["drop"] > 0.3 for row in drawn)


def test_a_thing_is_filled_wherever_it_lies_in_images_of_any_answer() -> None:
    """A sticker under the heat of six images of answer 0; of two more the heat is elsewhere."""
    rng = np.random.default_rng(0)
    sticker = np.kron(rng.integers(0, 2, (3, 3, 1)) * 230, np.ones((2, 2, 3))).astype(np.uint8)
    answers = np.repeat([0, 1, 2, 3], 30).tolist()
    places = {i: rng.integers(8, 20, 2).tolist() for i in (0, 1, 2, 3, 4, 5, 20, 70)}
    rows, views, heats = [], [], []
    for i, answer in enumerate(answers):
        view = cv2.resize(rng.integers(60, 200, (4, 4, 3)).astype(np.uint8), (32, 32))
        heat = np.full((8, 8), 0.1, np.float32)
        y, x = places.get(i, (0, 0))
        if i in places:
            view[y : y + 6, x : x + 6] = sticker
        heat[((y + 3) // 4, (x + 3) // 4) if i < 6 else (7, 0)] = 1
        views.append(view), heats.append(heat)
        names = {"run_id": "n", "shard": "s", "member": str(i), "index": i, "content_sha256": str(i)}
        rows.append(names | {"predicted_class": answer, "confidence": 0.9, "heat_h": 8, "heat_w": 8})
        rows[-1] |= {"heatmap": heat.ravel(), "confirm_region": None, "confirm_drop": None}

    class Looked:
        forwards, marked = 0, dict[int, Any]()

        def take(self, *_: Any) -> None: ...

        def pair(self, *_: Any) -> tuple[bytes, bytes]:
            return b"", b""

        def effects(self, name: str, positions: list[int]) -> list[Effect]:
            drops = [0.8 * (name == "thing" or (name == "fill" and i < 6)) for i in positions]
            return [Effect(drop, False, 0) for drop in drops]

    looker = Looked()
    plan = _Plan(looker, rows, np.stack(views), 5000)
    plan.compare([])
    plan.carry_out()
    found = {row["index"]: row for row in plan.found if row["intervention"] == "thing"}
    assert set(found) == set(places)
    assert {row["thing_of"] for row in found.values()} == {0}
    for i, (y, x) in places.items():
        assert looker.marked[i][y : y + 6, x : x + 6].all()
        assert looker.marked[i].sum() <= 8 * 8


def test_the_card_of_a_thing_shows_its_copies_in_images_of_any_answer(tmp_path: Path) -> None:
    out = open_folder(str(tmp_path / "out"), "OUT")
    row = {"run_id": "n", "shard": "s", "index": 0, "confidence": 0.9, "sampled": False, "flip": True}
    crops = [np.full((4, 4, 3), grey, np.uint8) for grey in (10, 20, 30)]
    thing = row | {"intervention": "thing", "thing_of": 1}
    rows = [
        row | {"predicted_class": 1, "intervention": "repeat", "crop": crops[0].tobytes(), "same": 0.9},
        thing | {"predicted_class": 1, "crop": crops[1].tobytes(), "drop": 0.4},
        thing
        | {"predicted_class": 2, "crop": crops[2].tobytes(), "drop": 0.8, "before": b"with", "after": b"w"},
    ]
    write_looks(out, "e", rows)
    card = SimpleNamespace(class_id=1, cause="repeated thing", intervention="thing", nights=())
    night: Any = SimpleNamespace(causes=[card], covers=["n"], explainer="e")
    (shown,) = cause_cards(out, [night])
    pngs = [cv2.imencode(".png", crop)[1].tobytes() for crop in (crops[2], crops[1])]
    assert [base64.b64decode(uri.split(",")[1]) for uri in shown["wall"]] == pngs
    (pair,) = shown["pair"]
    assert (pair["with"], round(pair["without"], 2)) == (pytest.approx(0.9), 0.1)
    assert base64.b64decode(pair["before"].split(",")[1]) == b"with"


def test_a_border_falls_no_further_filled_than_blurred(place: Path) -> None:
    """Either way of taking it away may hurt by itself: what both take away hangs on it."""
    names = ["index", "shard", "confirm_drop"]
    records = DeltaTable(str(place / "out" / "records")).to_pyarrow_table(columns=names).to_pylist()
    blurred = {(row["shard"], row["index"]): row["confirm_drop"] for row in records}
    both = [
        (row["drop"], drop)
        for row in looks(place)
        if row["intervention"] == "border" and (drop := blurred[row["shard"], row["index"]]) is not None
    ]
    assert both
    assert all(filled <= drop for filled, drop in both)
    assert any(filled < drop for filled, drop in both)


def test_the_next_night_looks_at_new_images_alone(place: Path) -> None:
    before = looks(place)
    hans64.write_tar_shards(
        [hans64.render(1, "audit", i, None) for i in range(12)], place / "archive" / "second", 12
    )
    night(place / "archive", place / "out", "20261123T000000Z-0", audit__looks=0.25)
    new = [row for row in looks(place) if row["run_id"] == "20261123T000000Z-0"]
    assert sum(row["intervention"] == "repeat" for row in new) == 12
    assert not {row["shard"] for row in new} & {row["shard"] for row in before}
    assert all(
        card.cause in CAUSES for n in read_nights(open_folder(str(place / "out"), "OUT")) for card in n.causes
    )


def test_a_forgotten_image_has_no_looks(place: Path) -> None:
    member = looks(place)[0]["member"]
    out, image = open_folder(str(place / "out"), "OUT"), Image(member, None)
    remove(out, image, find(out, image), "20261124T000000Z-0")
    assert member not in {row["member"] for row in looks(place)}
    assert looks(place)


def test_looks_can_be_turned_off(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive", [hans64.render(0, "audit", i, None) for i in range(6)])
    summary = night(tmp_path / "archive", tmp_path / "out", "20261122T000000Z-0", audit__looks=0.0)
    assert not (tmp_path / "out" / "looks").exists()
    assert summary["causes"] == []


def test_plan_says_what_looks_may_cost() -> None:
    assert describe_looks(100_000, 0.25).startswith("at most 25,000 forwards, 25% of 100,000 of explaining")
    assert "800% of 500" in describe_looks(500, 0.25)  # a small night
    assert "25%" in describe_looks(None, 0.25)


def test_a_night_whose_every_new_image_failed_looks_at_nothing(tmp_path: Path) -> None:
    out = open_folder(str(tmp_path / "out"), "OUT")
    committed(out, shard())
    assert choose(Table(out), EXPLAINERS[0]) == ([], 0)
