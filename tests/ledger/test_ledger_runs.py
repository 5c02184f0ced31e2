"""Every run leaves its report; runs are told in the order in which they held OUT."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from camray.config import Config, Explainer, InputSpec
from camray.errors import ExitCode
from camray.ledger.hold import hold
from camray.ledger.out import explainer_file, read_explainer
from camray.ledger.runs import crashed_last, first_report, new_run_id, read_reports, write_explainer
from camray.ledger.side import DamagedError
from camray.records import Accounting
from camray.storage import Folder

SPEC = InputSpec(8, 8, (8, 8), "center", "bicubic", (0.5,) * 3, (0.5,) * 3)
EXPLAINER = Explainer("m", {}, "ab", ("é",), 2, SPEC, "gradcam", "predicted", "l", {}, 1, 1, 1)


def test_run_ids_sort_by_time_and_never_repeat() -> None:
    ids = {new_run_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(len(i) == len("20260101T000000Z-") + 16 for i in ids)


def test_a_report_says_how_the_run_went(out: Folder) -> None:
    report = first_report("r1", EXPLAINER.id, Config(), {"todo": 1})
    report.write(out)
    (alive,) = read_reports(out)
    assert (alive["exit"], alive["exit_meaning"], alive["explainer"]) == (None, "running", EXPLAINER.id)
    assert alive["versions"]["python"] == sys.version.split()[0]
    assert {"torch", "ray", "deltalake", "pyarrow"} <= set(alive["versions"])
    report.ended(ExitCode.DONE, Accounting(8, 1, {"empty_file": 1}), 4.0, {"read": 1.23456}).write(out)
    (ended,) = read_reports(out)
    assert (ended["exit"], ended["exit_meaning"], ended["images_per_s"]) == (0, "done", 2.5)
    assert ended["accounting"] == {
        "ok": 8, "skipped": 1, "failed": {"empty_file": 1}, "shard_errors": {}, "members": 10,
    }  # fmt: skip
    assert ended["stage_seconds"] == {"read": 1.235}


def test_reports_of_an_earlier_camray_come_in_the_order_of_their_names(out: Folder) -> None:
    for run_id in ("20260102T000000Z-a", "20260101T000000Z-b", "20251231T000000Z-c"):
        first_report(run_id, EXPLAINER.id, Config(), {}).write(out)
    assert [r["run_id"][:8] for r in read_reports(out)] == ["20251231", "20260101", "20260102"]


def test_reports_come_in_the_order_of_the_holds_whatever_the_clock_said(out: Folder) -> None:
    """One run's clock was 400 days ahead, one's had no battery; two began within one second."""
    names = ["20260101T000000Z-b", "20270205T000000Z-a", "19700101T000000Z-c", "20260103T000000Z-f"]
    names.append("20260103T000000Z-d")
    for run_id in names:
        with hold(out, run_id) as held:
            report = first_report(run_id, EXPLAINER.id, Config(), {})
            dataclasses.replace(report, number=held.number).write(out)
    assert [r["run_id"] for r in read_reports(out)] == names


def test_the_last_run_is_the_one_that_held_last(out: Folder) -> None:
    for run_id, code in (("20270205T000000Z-a", ExitCode.DONE), ("20260101T000000Z-b", ExitCode.CRASH)):
        with hold(out, run_id):
            report = first_report(run_id, EXPLAINER.id, Config(), {})
            report.ended(code, Accounting(), 1.0, {}).write(out)
    assert crashed_last(out)


DAMAGE = [
    b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'{"run_id": 3}', b"[" * 100_000, b"1" * 5000,
    b'{"run_id": "\\ud800"}', b'"x"', b"1e999", b'{"run_id": {}}',
]  # fmt: skip


@pytest.mark.parametrize("data", DAMAGE)
def test_a_damaged_report_is_named_and_left_out(
    out: Folder, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    first_report("r1", EXPLAINER.id, Config(), {}).write(out)
    out.write("runs/r2/run.json", data)
    assert [r["run_id"] for r in read_reports(out)] == ["r1"]
    (said,) = capsys.readouterr().err.splitlines()
    assert "runs/r2/run.json is damaged" in said
    assert said.isprintable()


def test_a_report_in_which_one_digit_changed_is_damaged(
    out: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    first_report("r1", EXPLAINER.id, Config(), {"todo": 17}).write(out)
    path = Path(out.path) / "runs/r1/run.json"
    path.write_text(path.read_text().replace('"todo": 17', '"todo": 18'))
    assert read_reports(out) == []
    assert "not as it was written" in capsys.readouterr().err


def test_an_explainer_is_written_in_full_and_mended(out: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    write_explainer(out, EXPLAINER)
    path = Path(out.path) / f"explainers/{EXPLAINER.id}.json"
    whole = path.read_bytes()
    assert json.loads(whole) == json.loads(EXPLAINER.to_json())
    path.write_bytes(b"damage")
    write_explainer(out, EXPLAINER)
    assert path.read_bytes() == whole
    assert path.with_name(path.name + ".damaged").read_bytes() == b"damage"
    assert f"explainers/{EXPLAINER.id}.json is damaged" in capsys.readouterr().err


def test_what_an_explainer_stands_for_is_read_as_it_was_written(out: Folder) -> None:
    write_explainer(out, EXPLAINER)
    assert read_explainer(out, EXPLAINER.id) == EXPLAINER
    told = json.loads(out.read(explainer_file(EXPLAINER.id)))
    del told["activation"]  # of a table from before there was a choice
    out.write(explainer_file("older"), json.dumps(told | {"of a later camray": 1}).encode())
    assert read_explainer(out, "older") == EXPLAINER


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"input": {}}', '{"input": 3}'])
def test_a_damaged_description_is_named(out: Folder, text: str) -> None:
    out.write(explainer_file("e"), text.encode())
    with pytest.raises(DamagedError, match=r"explainers/e.json is damaged"):
        read_explainer(out, "e")
