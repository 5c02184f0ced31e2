"""A night that judges what is new says what one says that judges everything: the same table, counts, causes.

Two OUTs get the same records, looks and decisions, night by night; one is judged with `full` each night.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from camray.audit import judge, tally, verdict_table
from camray.audit.looks import BATTERY, write_looks
from camray.audit.night import Night, audit_night
from camray.audit.report_rows import audit_rows
from camray.config import AuditConfig
from camray.ledger.runs import write_explainer
from camray.ledger.sink import write_records
from camray.ledger.table import ShardCommit, Table
from camray.records import RECORD_SCHEMA, Shard, account
from camray.storage import open_folder
from camray.upkeep.prune import print_prune
from tests.audit.report_world import explainer, records

KEYS = ("run_id", "shard", "member", "index", "content_sha256", "predicted_class", "confidence")


class World:
    """An archive that grows at random, in two OUTs."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.places = {full: folder / f"{seed}-{full}" for full in (False, True)}
        self.chance = np.random.default_rng(seed)
        self.rows: list[dict[str, Any]] = []  # of all nights
        self.nights = 0
        self.thing = self.chance.integers(0, 255, (24, 24, 3))

    def night(self, count: int, change: int | None = None) -> Iterator[Night]:
        """Add so many images, or put them in the place of shard `change`; audit both."""
        run_id = f"202611{self.nights + 1:02d}T000000Z-0"
        self.nights += 1
        number = self.nights if change is None else change
        found = self._records(count, run_id, f"shard-{number}.tar") if count else None
        looks = self._looks(found) if found is not None else []
        for full, place in self.places.items():
            out, what = open_folder(str(place), "OUT"), explainer()
            write_explainer(out, what)
            table = Table(out)
            table.create()
            if found is not None:
                shard = Shard(f"shard-{number}.tar", "tar", self.nights, "1")
                receipt = write_records(out, what.id, shard.id, 0, found, chunk_size=256)
                table.commit(what.id, run_id, [ShardCommit(shard, (receipt,), account([receipt]))])
                write_looks(out, what.id, looks)
            yield audit_night(str(place), what.id, run_id, AuditConfig(full=full, fail_on="wrong_rate>1%"))

    def decide(self) -> None:
        """Let a person decide on images, and on a cause, of the table as it is."""
        rows = DeltaTable(str(self.places[True] / "audit")).to_pyarrow_table().to_pylist()
        told = [row for row in rows if row["verdict"] != "ok"]
        some = [told[i] for i in self.chance.integers(0, len(told), 4).tolist()]
        names = ("explainer", "shard", "member", "index", "content_sha256", "verdict")
        said = [{n: row[n] for n in names} for row in some]
        if causes := sorted({row["cause_id"] for row in rows if row["cause_id"]}):
            said.append({"explainer": rows[0]["explainer"], "cause": causes[self.nights % len(causes)]})
        for place in self.places.values():
            (place / "qa-inbox").mkdir(exist_ok=True)
            at = f"2026-11-{self.nights:02d}T12:00:00Z"
            review = [row | {"decision": "accepted", "decided_at": at} for row in said]
            text = json.dumps({"camray_review": 1, "decisions": review})
            (place / "qa-inbox" / f"{self.nights}.json").write_text(text)

    def _records(self, count: int, run_id: str, shard: str) -> pa.Table:
        found = records(13 + 1000 * self.nights, count, run_id, shard).to_pylist()
        for index, row in enumerate(found):
            row["index"] = index
            if self.rows and self.chance.random() < 0.05:  # a copy of an earlier one, or nearly
                other = self.rows[self.chance.integers(len(self.rows))]
                copied = ("content_sha256", "image_hash")[self.chance.integers(2) :]
                row |= {name: other[name] for name in copied}
        self.rows += found
        return pa.Table.from_pylist(found, RECORD_SCHEMA)

    def _looks(self, found: pa.Table) -> list[dict[str, Any]]:
        """From night 2 on class 1 suffers from noise, and class 3 hangs on a thing that others show, too."""
        looks = []
        for row in found.select([*KEYS]).to_pylist():
            answer, late = row["predicted_class"], self.nights >= 2
            if answer is None:
                continue
            hangs = answer == 3 and late and self.chance.random() < 0.6
            base = self.thing if hangs else self.chance.integers(0, 255, (24, 24, 3))
            crop = (base + self.chance.normal(0, 5, base.shape)).clip(0, 255).astype(np.uint8).tobytes()
            alike = {"same": 0.95, "other": 0.1, "crop": crop} if hangs else {"same": 0.3, "other": 0.3}
            looks.append(row | {"intervention": "repeat", "sampled": False, "crop": crop} | alike)
            for name in (*BATTERY, "fill"):
                strong = (answer == 1 and name == "noise" and late) or (hangs and name in ("fill", "carry"))
                drop = float(self.chance.uniform(0.35, 0.8) if strong else self.chance.uniform(0, 0.31))
                looks.append(row | {"intervention": name, "sampled": True, "drop": drop, "flip": False})
            if late and self.chance.random() < 0.1:
                copy, flip = self.thing.astype(np.uint8).tobytes(), bool(self.chance.integers(2))
                drop = float(self.chance.uniform(0, 0.6))
                shown = {"intervention": "thing", "thing_of": 3, "crop": copy, "drop": drop, "flip": flip}
                looks.append(row | {"sampled": False} | shown)
        return looks


def table_of(place: Path) -> list[dict[str, Any]]:
    rows = DeltaTable(str(place / "audit")).to_pyarrow_table().to_pylist()
    return sorted(rows, key=lambda row: (row["shard"], row["index"]))


def check(world: World, new: Night, whole: Night) -> None:
    """Equal, but for numbers that may lag by what docs/audit.md says."""
    rows, truth = (table_of(world.places[full]) for full in (False, True))
    assert len(rows) == len(truth)
    far = 0
    for row, true in zip(rows, truth, strict=True):
        lifts = [r.pop("heat_lift") or 0.0 for r in (row, true)]
        far += abs(lifts[0] - lifts[1]) > 0.05
        flags = [set(r.pop("flags")) for r in (row, true)]
        if abs(lifts[1] - 0.1) > 0.05:
            assert flags[0] == flags[1] or far
        assert flags[0] - {"unusual_place"} == flags[1] - {"unusual_place"}
        assert row.pop("audit_score") == pytest.approx(true.pop("audit_score"), abs=0.0101)
        assert (row.pop("others") or 0) == pytest.approx(true.pop("others") or 0, rel=0.12)
        assert row == true
    assert far <= 0.05 * len(rows)
    said, told = asdict(new), asdict(whole)
    for night in (said, told):
        for name in ("settings", "written_at", "audit_version"):
            del night[name]
    assert said == told


def play(folder: Path, seed: int, nights: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Give the share of the nights in which not everything was judged, though it was not asked for."""
    whole: list[bool] = []
    everything = judge._Work.judge_all

    def counted(work: Any) -> Any:
        whole.append(work.settings.full)
        return everything(work)

    monkeypatch.setattr(judge._Work, "judge_all", counted)
    world = World(folder, seed)
    for number in range(nights):
        chance = world.chance.random()
        count = 0 if number and chance < 0.1 else int(world.chance.integers(20, 120))
        change = 1 if number > 2 and chance > 0.93 else None
        new, full = world.night(count or 10 * bool(change), change)
        check(world, new, full)
        if world.chance.random() < 0.4:
            world.decide()
    return 1 - whole.count(False) / nights


def test_new_images_alone_are_judged_as_with_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert play(tmp_path, 3, 5, monkeypatch) >= 0.4


def test_what_is_carried_over_and_is_damaged_or_of_another_night_is_made_anew(tmp_path: Path) -> None:
    world = World(tmp_path, 1)
    check(world, *world.night(60))
    (carried,) = (world.places[False] / "carried").glob("*.sums")
    first = carried.read_bytes()
    damaged = bytearray(first)
    damaged[len(damaged) // 2] ^= 1
    carried.write_bytes(damaged)
    check(world, *world.night(30))
    carried.write_bytes(first)
    check(world, *world.night(30))


def test_a_night_reads_the_looks_that_are_new_and_judges_no_image_again_for_a_cause_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, read, again = World(tmp_path, 2), list[Any](), list[int]()
    for _ in range(3):
        _, whole = world.night(120)
    assert whole.causes
    reading, putting = judge.read_looks, judge.put_rows

    def looks(*about: Any, paths: Any = None) -> pa.Table:
        read.append(paths)
        return reading(*about, paths=paths)

    def put(out: Any, explainer: str, run: str, rows: Any, places: Any, held: Any) -> None:
        again.append(len(places))
        putting(out, explainer, run, rows, places, held)

    monkeypatch.setattr(judge, "read_looks", looks)
    monkeypatch.setattr(judge, "put_rows", put)
    check(world, next(night := world.night(4)), next(night))
    new = [paths for paths in read[: read.index(None)] if paths]
    assert {len(paths) for paths in new} == {1}
    assert len(again) == 1
    assert again[0] < 30  # of 360


def test_a_night_behind_a_compaction_judges_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world, whole = World(tmp_path, 5), list[bool]()
    for count in (120, 40, 30):
        check(world, *world.night(count))
    for place in world.places.values():
        print_prune(str(place), None, None, [], True, False, True)
    assert "3 small record files into 1" in capsys.readouterr().out
    everything = judge._Work.judge_all

    def counted(work: Any) -> Any:
        whole.append(work.settings.full)
        return everything(work)

    monkeypatch.setattr(judge._Work, "judge_all", counted)
    check(world, *world.night(5))
    check(world, *world.night(0))
    assert whole == [True, True]  # of the OUT that is judged so each night


def test_the_queue_is_the_head_of_all_rows_however_it_is_read(tmp_path: Path) -> None:
    """Of scores that are equal, too; compared with all rows, sorted."""
    world = World(tmp_path, 4)
    runs = [next(iter(world.night(count))).run_id for count in (150, 40)]
    rows = table_of(world.places[False])
    out, what = open_folder(str(world.places[False]), "OUT"), explainer().id
    order = sorted(rows, key=lambda row: (-row["audit_score"], row["shard"], row["index"]))
    far = order[-1]
    old, new = ([row for row in order if (row["night"] == runs[1]) is is_new] for is_new in (False, True))
    for limit, older in ((500, None), (7, None), (0, None), (100, 30), (20, 5)):
        found = audit_rows(out, what, limit, [runs[1]], older, [(far["shard"], far["index"])])
        most = limit if older is None else min(limit, len(new)) + older
        due = {(row["shard"], row["index"]) for row in [*new, *old][:most]} | {(far["shard"], far["index"])}
        assert set(tally.places_of(found)) == due
        assert found["audit_score"].to_pylist() == sorted(found["audit_score"].to_pylist(), reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 30))
def test_twelve_nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(tally, "SAMPLE", (50_000, 150)[seed % 2])
    monkeypatch.setattr(verdict_table, "SMALL", (20_000, 100)[seed % 2])
    monkeypatch.setattr(verdict_table, "MOST_SMALL", 4)
    assert play(tmp_path, seed, 12, monkeypatch) >= 0.5
