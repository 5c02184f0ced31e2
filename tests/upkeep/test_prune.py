"""Prune deletes no file that a commit names, whenever the commit came."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from camray.errors import OutputLockedError
from camray.ledger import hold as holds
from camray.ledger.hold import hold
from camray.ledger.table import ShardCommit, Table
from camray.storage import Folder, open_folder
from camray.upkeep import prune
from tests.ledger.ledger_world import E1, committed, finished, shard, visible


@pytest.fixture
def out(tmp_path: Path) -> Folder:
    made = open_folder(str(tmp_path / "out"), "OUT")
    committed(made, shard("a"))
    return made


def left_long_ago(out: Folder) -> ShardCommit:
    """Leave the files of a run that was killed two days ago; another run builds on them."""
    left = finished(out, shard("b"))
    for receipt in left.receipts:
        os.utime(out.at(f"records/{receipt.path}"), (10**9, 10**9))
    return left


def test_what_was_committed_while_prune_waited_for_the_hold_stays(
    out: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = left_long_ago(out)

    @contextmanager
    def hold_after_a_commit(*about: object, **more: object) -> Iterator[None]:
        Table(out).commit(E1, "r2", [left])
        with hold(out, "prune"):
            yield

    monkeypatch.setattr(prune, "hold", hold_after_a_commit)
    prune.print_prune(out.uri, None, None, [], True, True)
    assert len(visible(out)) == 12
    assert '"record_files": 0' in capsys.readouterr().out


def test_a_commit_that_stood_still_since_before_the_hold_is_refused_by_the_empty_entry(out: Folder) -> None:
    left, table = left_long_ago(out), Table(out)
    table._seen = table.shards(E1)
    Table(out).fence()
    with pytest.raises(Exception, match="commit"):
        table._write(E1, "r2", [left])


def test_force_does_not_push_prune_aside(out: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "HEARTBEAT_S", 0.05)
    with (
        hold(out, "prune", alone=True),
        pytest.raises(OutputLockedError, match=r"Fix: wait for its end$"),
        hold(out, "run", force=True),
    ):
        pass
