"""Nights on end: additions, edits, deletions, a crash and a new model; the work done is what changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pytest
from deltalake import DeltaTable

from camray.audit.report import write_report
from camray.ledger.out import open_out
from camray.upkeep.verify import find_problems
from demo import hans64
from tests.audit.night_world import explain, night, settings_for
from tests.audit.report_world import make_out

SHARD = 6
MODELS = ("hans64-poisoned", "hans64-clean")


@dataclass
class World:
    """An archive that changes, and what each shard of it holds now."""

    folder: Path
    next_image: int = 0
    edits: int = 0
    shards: dict[str, int] = field(default_factory=dict)  # name -> images, of what is there

    def put(self, name: str) -> int:
        """Write a shard of new images under a name; an edit where the name is there."""
        count = SHARD + len(self.shards) % 2
        samples = [hans64.render(0, "audit", self.next_image + i) for i in range(count)]
        self.next_image += count
        (path,) = hans64.write_tar_shards(samples, self.folder / "new", count)
        path.rename(self.folder / "archive" / name)
        self.shards[name] = count
        return count

    def drop(self, name: str) -> None:
        (self.folder / "archive" / name).unlink()
        del self.shards[name]


def play(
    folder: Path, nights: int, edit: int, delete: int, crash: int, update: int
) -> tuple[World, list[dict]]:
    """Play the nights; on night `crash` the run dies after one of two shards and is started again."""
    (folder / "archive").mkdir()
    world, told = World(folder), []
    for number in range(nights):
        run_id = f"20261101T{number:06d}Z-0"
        expected = world.put(f"s{number:03d}.tar")
        if number % edit == edit - 1:
            expected += world.put("s000.tar")
        if number % delete == delete - 1:
            world.drop(f"s{number - 1:03d}.tar")
        model = MODELS[number >= update]
        if number == update:
            expected = sum(world.shards.values())
        out = folder / "out"
        if number == crash:
            expected += world.put("extra.tar")
            done = explain(
                settings_for(folder / "archive", out, model), run_id.replace("Z", "A"), die_after=1
            )
            assert 0 < done < expected
        summary = night(folder / "archive", out, run_id, model)
        assert summary["images"]["night"] == expected, number
        if number != crash:
            assert summary["done"] == expected, number
        told.append(summary)
    return world, told


def check_update(world: World, told: list[dict], update: int) -> None:
    """Held against a join in DuckDB."""
    said = told[update]["model_update"]
    assert [t["model_update"] for t in told[:update] + told[update + 1 :]] == [None] * (len(told) - 1)
    rows = DeltaTable(str(world.folder / "out" / "records"), version=told[update]["records_version"])
    records = rows.to_pyarrow_table(
        columns=["explainer", "shard", "index", "content_sha256", "predicted_class", "correct"]
    )
    query = (
        "select count(*), avg((a.predicted_class = b.predicted_class)::int), "
        "sum((b.correct and not a.correct)::int), sum((a.correct and not b.correct)::int) from records a "
        "join records b using (shard, index, content_sha256) where a.explainer = $1 and b.explainer = $2"
    )
    base = duckdb.connect()
    base.register("records", records)
    (expected,) = base.execute(query, [told[update - 1]["explainer"], told[update]["explainer"]]).fetchall()
    assert (said["images"], said["agreement"]) == (expected[0], pytest.approx(expected[1]))
    assert (said["repaired"], said["broken"]) == expected[2:]
    assert sum(f["images"] for f in said["flips"]) == round((1 - said["agreement"]) * said["images"])


def check(world: World, told: list[dict], update: int) -> None:
    """The table holds every image once; each night is in the history; nothing is unaccounted for."""
    check_update(world, told, update)
    out = world.folder / "out"
    assert list(find_problems(*open_out(str(out)))) == []
    assert night(world.folder / "archive", out, "20261130T000000Z-0", MODELS[1])["done"] == 0
    audit = DeltaTable(str(out / "audit"))
    versions = [h["version"] for h in audit.history() if h["operation"] == "WRITE"]
    assert len(versions) == len(told) + 1
    for version, summary in zip(sorted(versions), told, strict=False):  # any earlier night can be asked
        rows = DeltaTable(str(out / "audit"), version=version).to_pyarrow_table(columns=["explainer"])
        of_night = sum(e == summary["explainer"] for e in rows.column("explainer").to_pylist())
        assert of_night == summary["images"]["archive"]
    assert {t["explainer"] for t in told[:update]}.isdisjoint({t["explainer"] for t in told[update:]})
    assert [t["previous"] for t in told[1:update]] == [t["run_id"] for t in told[: update - 1]]
    page = Path(write_report(str(out))).read_text("utf-8")
    assert all(t["run_id"] in page for t in told[update:])


def test_six_nights(tmp_path: Path) -> None:
    world, told = play(tmp_path, nights=6, edit=2, delete=3, crash=3, update=4)
    check(world, told, 4)


@pytest.mark.slow
def test_thirty_nights(tmp_path: Path) -> None:
    world, told = play(tmp_path, nights=30, edit=4, delete=5, crash=12, update=20)
    check(world, told, 20)


def test_what_was_accepted_stays_quiet_until_the_image_changes(tmp_path: Path) -> None:
    """The file the report saves, through the table, into the next night."""
    samples = [hans64.render(0, "audit", i, tagged=True) for i in range(24)]
    hans64.write_tar_shards(samples, tmp_path / "archive", 24)
    out = tmp_path / "out"
    first = night(tmp_path / "archive", out, "20261101T000000Z-0")

    def rows(where: Callable[[dict], bool]) -> list[dict]:
        table = DeltaTable(str(out / "audit")).to_pyarrow_table().to_pylist()
        return sorted(filter(where, table), key=lambda r: r["index"])

    loud = rows(lambda r: r["audit_score"] > 0.5)
    assert len(loud) >= 2
    names = ("explainer", "shard", "member", "index", "content_sha256", "verdict")
    said = [
        {n: row[n] for n in names} | {"decision": decision, "decided_at": "2026-11-01T07:00:00Z"}
        for row, decision in zip(loud, ("accepted", "problem"), strict=False)
    ]
    (out / "qa-inbox").mkdir()
    (out / "qa-inbox" / "monday.json").write_text(json.dumps({"camray_review": 1, "decisions": said}))
    second = night(tmp_path / "archive", out, "20261102T000000Z-0")
    assert (first["decisions_taken_in"], second["decisions_taken_in"]) == (0, 2)
    (quiet,) = rows(lambda r: r["reviewed"] == "accepted")
    assert (quiet["index"], quiet["audit_score"]) == (loud[0]["index"], 0)
    (problem,) = rows(lambda r: r["reviewed"] == "problem")
    assert problem["audit_score"] == loud[1]["audit_score"]
    assert night(tmp_path / "archive", out, "20261103T000000Z-0")["decisions_taken_in"] == 0  # not twice
    changed = [hans64.render(1, "audit", i, tagged=True) for i in range(24)]
    hans64.write_tar_shards(changed, tmp_path / "archive", 24)
    night(tmp_path / "archive", out, "20261104T000000Z-0")
    assert rows(lambda r: r["reviewed"] is not None) == []


def test_earlier_nights_are_known_in_brief_and_a_damaged_summary_is_set_aside(tmp_path: Path) -> None:
    """Five hundred nights: each night read them all, with the classes and causes of each, twice."""
    from camray.audit import night as nights

    out = tmp_path / "out"
    runs = [f"202611{n:02d}T000000Z-0" for n in range(1, 6)]
    for number in range(3):
        make_out(out, 20, runs[number], first=number)
    folder = open_out(str(out))[0]
    brief = nights.read_nights(folder)
    carried = out / "carried" / "nights.json"
    carried.unlink()
    whole = nights.read_nights(folder)
    assert [n.run_id for n in brief] == runs[:3]
    assert brief[-1] == whole[-1]
    for known, full in zip(brief, whole, strict=True):
        kept = ("explainer", "covers", "images", "rates", "verdicts", "gate", "order", "has_labels")
        assert [getattr(known, name) for name in kept] == [getattr(full, name) for name in kept]
    assert brief[0].archive_classes == []
    assert whole[0].archive_classes
    path = out / "runs" / runs[1] / "summary.json"
    path.write_text(path.read_text().replace('"covers"', '"cover"'))
    carried.write_text("{")  # what is carried is no loss
    assert [n.run_id for n in nights.read_nights(folder)] == [runs[0], runs[2]]
    assert path.with_name("summary.json.damaged").exists()
    for last in (runs[2], runs[0]):  # the last one is read whole, and is not known from the brief alone
        path = out / "runs" / last / "summary.json"
        path.write_text("{")
        assert runs[1] not in [n.run_id for n in nights.read_nights(folder)]
        assert path.with_name("summary.json.damaged").exists()
    assert nights.read_nights(folder) == []
    make_out(out, 20, runs[3], first=3)
