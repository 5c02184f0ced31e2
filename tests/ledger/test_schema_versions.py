"""Tables of other versions: an earlier one is read with nulls and takes no new rows, a later is refused."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.transaction import AddAction, CommitProperties

import camray
from camray.audit.night import audit_night
from camray.cli.main import main
from camray.config import AuditConfig
from camray.ledger.committed import checksum, file_name
from camray.ledger.table import TABLE_SCHEMA, VERSION_KEY, Table
from camray.records import LATER, RECORD_SCHEMA, SCHEMA_VERSION
from camray.storage import Folder
from tests.ledger.ledger_world import E1, committed, described, rows, shard

MISSING = ("image_hash", "image_mean", "confirm_region", "confirm_drop", "confirm_flip", "heat_peaks")


def old_out(out: Folder, missing: Collection[str] = MISSING) -> None:
    """An OUT as a camray without some of the columns left it, made by hand with deltalake and pyarrow."""
    kept = [f for f in RECORD_SCHEMA if f.name not in missing]
    place = out.child_uri("records")
    whole = pa.schema([pa.field("explainer", pa.string()), *kept])
    DeltaTable.create(place, whole, partition_by=["explainer"], name="camray records")
    buffer = pa.BufferOutputStream()
    classes = [0, 1, 1]
    made = rows(
        0, 3, predicted_class=classes, target_class=classes, heat_status=["ok"] * 3, correct=[True] * 3
    )
    pq.write_table(made.select([f.name for f in kept]), buffer, write_page_checksum=True)
    data = buffer.getvalue()
    path = file_name(E1, shard().id, 0, checksum(data), "explainer")
    out.write(f"records/{path}", data)
    described(out, "r1")
    said = {
        "explainer": E1, "key": shard().key, "content": shard().content_key, "uri": shard().uri, "members": 3,
        "ok": 3, "failed": {}, "skipped": 0, "shard_errors": {},
    }  # fmt: skip
    note = {"camray": json.dumps({"run_id": "r1", "shards": [said]})}
    stats = json.dumps({"numRecords": 3})
    DeltaTable(place).create_write_transaction(
        [AddAction(path, data.size, {"explainer": E1}, 0, True, stats)], "append", whole,
        partition_by=["explainer"], commit_properties=CommitProperties(custom_metadata=note),
    )  # fmt: skip


def test_the_version_is_in_the_metadata_of_the_table(out: Folder) -> None:
    committed(out, shard())
    told = DeltaTable(out.child_uri("records")).metadata().configuration
    assert told[VERSION_KEY] == str(SCHEMA_VERSION) == "1"


def test_an_earlier_table_is_read_with_nulls(out: Folder) -> None:
    old_out(out)
    records = camray.open_records(out.uri)
    assert records.schema.names == TABLE_SCHEMA.names
    found = records.to_table().to_pylist()
    assert [r["member"] for r in found] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [r["confidence"] for r in found] == [0.5] * 3
    assert {r[name] for r in found for name in MISSING} == {None}


def test_status_verify_and_report_take_an_earlier_table(
    out: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    old_out(out)
    assert main(["status", out.uri]) == 0
    assert "1 shards: 3 members = 3 ok + 0 failed + 0 skipped" in capsys.readouterr().out
    assert main(["verify", out.uri]) == 0
    assert "1 shards, 3 members: all accounted for" in capsys.readouterr().out
    assert main(["report", out.uri]) == 2  # no audit was made of it
    assert capsys.readouterr().err.count("\n") == 1


def test_an_earlier_table_can_be_audited_and_reported(out: Folder) -> None:
    """Signals that were not kept then say nothing; what was kept still counts."""
    old_out(out)
    out.write("runs/r1/run.json", b"{}")
    night = audit_night(out.uri, E1, "r1", AuditConfig())
    assert night.images.archive == 3
    assert night.rates["confirmed_rate"] == 0
    assert main(["report", out.uri]) == 0
    assert out.exists("report/index.html")


def test_verify_notices_a_file_with_other_columns_than_its_table(
    out: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of the earlier form in a table of today's is no record file of it."""
    old_out(out)
    delta = DeltaTable(out.child_uri("records"))
    delta.alter.add_columns([f for f in _delta_fields() if f.name in MISSING])
    assert main(["verify", out.uri]) == 5
    assert "its columns are not those of the record schema" in capsys.readouterr().out


def _delta_fields() -> list[object]:
    from deltalake import Schema

    return list(Schema.from_arrow(RECORD_SCHEMA).fields)


def test_an_earlier_table_takes_no_new_rows(
    out: Folder, demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old_out(out)
    before = sorted(p for p in Path(out.path).rglob("*") if p.is_file())
    arguments = [str(demo / "archive"), out.uri, "--model", str(demo / "models" / "hans64-clean")]
    assert main(["explain", *arguments]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1
    for word in ("OUT", "lacks", "confirm_drop", "Fix: give a new OUT"):
        assert word in said[0]
    assert sorted(p for p in Path(out.path).rglob("*") if p.is_file()) == before


def test_a_table_of_0_1_0_gains_the_columns_that_came_later(
    out: Folder, demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new run writes into it; its older files stay as they are, null in the new columns."""
    old_out(out, LATER)
    assert Table(out).columns == set(TABLE_SCHEMA.names) - LATER
    model = str(demo / "models" / "hans64-clean")
    again = ["explain", str(demo / "archive"), out.uri, "--model", model, "--limit", "3", "--engine", "here"]
    assert main([*again, "--overlays", "none"]) == 0
    assert Table(out).columns == set(TABLE_SCHEMA.names)
    found = camray.open_records(out.uri, explainer="all").to_table().to_pylist()
    known = {r["explainer"] == E1: r["image_noise"] is None for r in found}
    assert known == {True: True, False: False}
    assert main(["verify", out.uri]) == 0
    assert main(["forget", out.uri, "--member", "1.jpg", "--yes"]) == 0
    assert main(["verify", out.uri]) == 0


@pytest.mark.parametrize("verb", ["status", "verify", "report"])
def test_a_later_table_is_refused_in_one_line(
    out: Folder, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    committed(out, shard())
    DeltaTable(out.child_uri("records")).alter.set_table_properties(
        {VERSION_KEY: "2"}, raise_if_not_exists=False
    )
    assert main([verb, out.uri]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "schema version 2, this camray knows versions up to 1. Fix: upgrade camray" in said


def test_the_table_knows_its_columns(out: Folder) -> None:
    committed(out, shard())
    table = Table(out)
    assert table.columns == set(TABLE_SCHEMA.names)
    table.check_columns()
