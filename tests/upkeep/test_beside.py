"""`verify` looks at all of OUT, not only at the records: logs, other tables, side files, runs, the report."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from deltalake import DeltaTable

from camray.audit.night import audit_night, read_nights
from camray.audit.report import write_report
from camray.config import AuditConfig, Config
from camray.errors import ExitCode, UsageError
from camray.ledger.hold import hold
from camray.ledger.out import answers_of, open_out
from camray.ledger.runs import first_report, write_explainer
from camray.ledger.side import read_side, recovered, write_side
from camray.ledger.table import ShardCommit, Table
from camray.records import Accounting, Shard, account
from camray.storage import Folder, open_folder
from camray.upkeep.beside import find_nothing_said
from camray.upkeep.prune import choose_runs
from camray.upkeep.verify import print_verify
from tests.audit.report_world import explainer, records
from tests.ledger.ledger_world import write_records

# The second night's clock was 400 days ahead; the last two began within one second.
NIGHTS = ("20261126T010000Z-c", "20280101T010000Z-b", "20261128T010000Z-z", "20261128T010000Z-a")


def night(out: Folder, run_id: str, number: int) -> None:
    """One night of forty images that no model saw."""
    what, shard = explainer(), Shard(f"/data/{number}.tar", "tar", 100, "v1")
    with hold(out, run_id) as held:
        write_explainer(out, what)
        report = first_report(run_id, what.id, Config(), {})
        report.write(out)
        table = Table(out)
        table.create()
        rows = records(40 * number + 100, 40, run_id, shard.uri)
        receipts = (write_records(out, what.id, shard.id, 0, rows, chunk_size=40),)
        table.commit(what.id, run_id, [ShardCommit(shard, receipts, account(receipts))])
        ended = report.ended(ExitCode.DONE, Accounting(), 1.0, {})
        write_side(out, f"runs/{run_id}/run.json", _tree(out, ended, held.number))
    audit_night(out.uri, what.id, run_id, AuditConfig())
    write_report(out.uri)


def _tree(out: Folder, ended: object, number: int) -> dict[str, object]:
    ended.write(out)  # type: ignore[attr-defined]
    path = f"runs/{ended.run_id}/run.json"  # type: ignore[attr-defined]
    return read_side(out, path, dict) | {"number": number}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = open_folder(str(tmp_path_factory.mktemp("sound") / "out"), "OUT")
    for number, run_id in enumerate(NIGHTS):
        night(out, run_id, number)
    return Path(out.path)


@pytest.fixture
def out(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "out"))


def said(out: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What `verify` finds, without its last line."""
    code = print_verify(str(out), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert code == (ExitCode.GATE if lines[:-1] else ExitCode.DONE)
    return lines[:-1]


def test_a_sound_out_has_no_problem(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(out, capsys) == []


def test_nights_are_in_the_order_of_the_log_whatever_the_clock_said(out: Path) -> None:
    """One night dated 400 days ahead, two within one second: the latest is the last that was written."""
    folder, table = open_out(str(out))
    nights = read_nights(folder)
    assert [n.run_id for n in nights] == list(NIGHTS)
    assert [n.previous for n in nights] == [None, *NIGHTS[:-1]]
    assert nights[-1].drift.comparisons[0].run_id == NIGHTS[-2]
    assert f">{NIGHTS[-1]}<" in (out / "report/index.html").read_text()
    assert table.runs() == list(NIGHTS)
    assert choose_runs(table.runs(), 1, None, [], 0.0) == {NIGHTS[-1]}


LAST = f"runs/{NIGHTS[-1]}"
REMOVED = [
    f"{LAST}/run.json", f"{LAST}/state.json", f"{LAST}/summary.json", f"{LAST}/metrics.prom",
    f"{LAST}/message.txt", "report/index.html", "report/data/index.js", "report/pages.json",
    f"explainers/{explainer().id}.json", "hold/000004.json", "hold/000004.beat",
    "records/_delta_log/00000000000000000004.json", "audit/_delta_log/00000000000000000004.json",
]  # fmt: skip


@pytest.mark.parametrize("name", REMOVED)
def test_a_file_that_is_gone_is_named(out: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (out / name).unlink()
    assert any(name in line for line in said(out, capsys))


def test_the_log_may_not_be_shorter_than_a_run_said(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without its last entry the table is sound by itself, and four shards are three."""
    (out / "records/_delta_log/00000000000000000004.json").unlink()
    assert DeltaTable(out / "records").version() == 3
    assert "records/_delta_log/00000000000000000004.json is missing" in said(out, capsys)


@pytest.mark.parametrize("name", ["run.json", "summary.json", "state.json", "metrics.prom", "message.txt"])
def test_files_of_two_runs_that_changed_places_are_named(
    out: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = out / f"runs/{NIGHTS[0]}/{name}", out / f"runs/{NIGHTS[1]}/{name}"
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)
    lines = said(out, capsys)
    for run_id in NIGHTS[:2]:
        assert any(f"runs/{run_id}/{name}" in line for line in lines)


@pytest.mark.parametrize("name", ["run.json", "summary.json", "state.json"])
def test_one_digit_that_changed_is_named(out: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = out / LAST / name
    text = path.read_text()
    at = text.index("40") if "40" in text else text.index("1.0")
    path.write_text(text[:at] + "9" + text[at + 1 :])
    (line,) = said(out, capsys)
    assert line == f"{LAST}/{name} is damaged: it is not as it was written: its checksum is another"


def test_a_verdict_table_that_lost_a_file_is_named(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (uri,) = DeltaTable(out / "audit").file_uris()
    Path(uri).write_bytes(Path(uri).read_bytes()[:-1])
    (line,) = said(out, capsys)
    assert "committed with" in line
    assert Path(uri).name in line


def test_a_log_of_another_table_that_is_damaged_is_named(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "audit/_delta_log/00000000000000000000.json").write_bytes(b"{")
    assert any(f"the log of {out}/audit is damaged" in line for line in said(out, capsys))


def test_an_empty_log_is_no_proof(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows are there, the log is of another, empty table: nothing is accounted for."""
    shutil.rmtree(out / "records/_delta_log")
    Table(open_folder(str(out), "OUT")).create()
    lines = said(out, capsys)
    assert any("accounts for no shard, while there are 4 record files" in line for line in lines)


def test_an_out_without_its_log_is_no_proof(out: Path) -> None:
    shutil.rmtree(out / "records/_delta_log")
    with pytest.raises(UsageError, match="records/_delta_log is missing"):
        print_verify(str(out), as_json=False)


def test_an_out_in_which_nothing_happened_is_sound(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path / "out"), "OUT")
    Table(folder).create()
    assert list(find_nothing_said(folder, 0)) == []


def test_what_a_night_set_aside_is_named_until_somebody_looks(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The night after goes on, and does not count the images of the lost summary as new."""
    path = out / LAST / "summary.json"
    path.write_bytes(b"{")
    (out / f"runs/{NIGHTS[-2]}/state.json").write_text("[]")
    folder = open_folder(str(out), "OUT")
    night(folder, "20261129T010000Z-a", 9)
    err = capsys.readouterr().err
    for name in (f"{LAST}/summary.json", f"runs/{NIGHTS[-2]}/state.json"):
        assert f"{name} is damaged" in err
        assert f"{name}.damaged" in err
        assert (out / f"{name}.damaged").exists()
    last = read_nights(folder)[-1]
    assert (last.run_id, last.images.rows, last.previous) == ("20261129T010000Z-a", 40, NIGHTS[-2])
    assert last.drift.comparisons[0].run_id == NIGHTS[-3]
    lines = said(out, capsys)
    assert any(f"{LAST}/summary.json.damaged" in line for line in lines)
    assert json.loads((out / "runs/20261129T010000Z-a/summary.json").read_text())["covers"]


ANSWERS = [
    {"explainer": "e", "answers": 3}, {"explainer": "e", "answers": [{}]}, {"explainer": "e"}, [3],
    {"explainer": "e", "answers": [{"shard": "s", "index": "first"}]}, {"explainer": "f", "answers": []},
]  # fmt: skip


@pytest.mark.parametrize("tree", ANSWERS)
def test_canary_answers_that_a_night_would_set_aside_are_named(
    out: Path, tree: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify` and the night read with one reader: without a checksum the shape alone can tell."""
    (out / "canary").mkdir(exist_ok=True)
    (out / "canary/e.json").write_text(json.dumps(tree))
    assert any("canary/e.json is damaged" in line for line in said(out, capsys))
    assert recovered(open_folder(str(out), "OUT"), "canary/e.json", partial(answers_of, "e")) is None
