"""Bad use of audit and report: one line with a fix, exit 2, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from camray.audit.reviewed import take_in
from camray.cli.main import main
from camray.errors import UsageError
from camray.storage import open_folder


@pytest.mark.parametrize("gate", ["confirmed_rate", "nothing>1%", "drift=huge", "failed_rate>300%"])
def test_a_gate_that_cannot_be_read(
    demo: Path, tmp_path: Path, gate: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(demo / "models" / "hans64-poisoned")
    assert (
        main(["audit", str(demo / "archive"), str(tmp_path / "out"), "--model", model, "--fail-on", gate])
        == 2
    )
    error = capsys.readouterr().err
    assert "--fail-on" in error
    assert "Fix:" in error
    assert not (tmp_path / "out").exists()


def test_report_without_an_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "Fix:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", '{"camray_review": 2, "decisions": []}', '{"camray_review": 1, "decisions": {}}',
        '{"camray_review": 1, "decisions": [{"decision": "drop table"}]}', "[" * 100_000,
        '{"camray_review": 1, "decisions": [{"decision": "accepted", "index": "1"}]}',
    ],
)  # fmt: skip
def test_a_file_that_is_no_review(tmp_path: Path, content: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"--reviewed.*Fix"):
        take_in(open_folder(str(tmp_path / "out"), "OUT"), [str(file)])
    assert not (tmp_path / "out").exists()


def test_the_same_decision_is_taken_in_once(tmp_path: Path) -> None:
    row = {"explainer": "e", "shard": "s", "member": "m", "index": 1, "content_sha256": "c",
           "verdict": "wrong", "decision": "accepted", "decided_at": "2026-11-22T00:00:00Z"}  # fmt: skip
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"camray_review": 1, "decisions": [row, row]}))
    out = open_folder(str(tmp_path / "out"), "OUT")
    assert [take_in(out, [str(file)]) for _ in range(2)] == [1, 0]
