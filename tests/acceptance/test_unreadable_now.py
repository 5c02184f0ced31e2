"""A shard that cannot be read tonight is not given up: exit 4, and the next run does it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import camray
from camray.job.run import Outcome


def test_a_shard_that_is_gone_for_now_is_done_by_the_next_run(
    demo: Path,
    explain: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive, out, model = tmp_path / "archive", tmp_path / "out", demo / "models" / "hans64-clean"
    archive.mkdir()
    for name in ("hans64-00000.tar", "hans64-00001.tar"):
        shutil.copy2(demo / "archive" / name, archive / name)
    hidden = tmp_path / "hidden.tar"
    planned = camray.job.run.first_report

    def hide_then_report(*arguments: object) -> object:
        """The shard goes away between the listing and the reading."""
        (archive / "hans64-00001.tar").rename(hidden)
        return planned(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(camray.job.run, "first_report", hide_then_report)
    with pytest.raises(camray.CamrayError, match="hans64-00001") as stopped:
        explain(archive, out, model)
    assert stopped.value.exit_code == camray.ExitCode.INCOMPLETE
    monkeypatch.undo()
    assert camray.open_records(str(out)).count_rows() == 60

    hidden.rename(archive / "hans64-00001.tar")
    outcome = explain(archive, out, model)
    assert outcome.code == camray.ExitCode.DONE
    assert outcome.accounting.members == 60
    members = camray.open_records(str(out)).to_table(columns=["member"]).column("member").to_pylist()
    assert len(members) == len(set(members)) == 120
