"""What may pass is tried again, what is of the bytes is sealed: records of members that failed."""

from pathlib import Path

import pytest

from camray.ledger.committed import RecordFile
from camray.ledger.plan import make_plan
from camray.ledger.table import Table
from camray.records import Shard
from camray.storage import Folder
from tests.ledger.ledger_world import E1, committed, finished, rows, shard, visible

PASSING = "member_read_failed"


def failing(code: str, run_id: str = "r1") -> list:
    status, codes = ["ok", "failed", "ok", "ok"], [None, code, None, None]
    return [rows(0, 4, status=status, error_code=codes), rows(4, 2)]


def due(out: Folder, of: Shard, readable: bool, tried: list[Shard] | None = None) -> bool:
    def is_readable(part: Shard) -> bool:
        if tried is not None:
            tried.append(part)
        return readable

    return bool(make_plan(out, E1, [of], Table(out).shards(E1), 4, is_readable=is_readable).tasks)


def test_a_member_that_can_be_read_again_makes_its_shard_due(out: Folder) -> None:
    committed(out, shard(), failing(PASSING))
    tried: list[Shard] = []
    assert not due(out, shard(), readable=False, tried=tried)
    assert due(out, shard(), readable=True)
    assert [part.selection for part in tried] == [(1,)]  # that member alone is looked at


@pytest.mark.parametrize("code", ["empty_file", "member_unreadable", "corrupt_image", "decode_timeout"])
def test_what_is_of_the_bytes_is_sealed(out: Folder, code: str) -> None:
    tried: list[Shard] = []
    committed(out, shard(), failing(code))
    assert not due(out, shard(), readable=True, tried=tried)
    assert tried == []


def test_a_healthy_shard_costs_no_look(out: Folder) -> None:
    tried: list[Shard] = []
    committed(out, shard())
    assert not due(out, shard(), readable=True, tried=tried)
    assert tried == []


def test_the_second_try_replaces_the_first_and_is_then_done(out: Folder) -> None:
    committed(out, shard(), failing(PASSING))
    committed(out, shard(), run_id="r2")
    assert [(r["index"], r["status"], r["run_id"]) for r in visible(out)] == [
        (i, "ok", "r2") for i in range(6)
    ]
    assert not due(out, shard(), readable=True)


def test_a_second_try_that_fails_as_well_is_committed_once(out: Folder) -> None:
    """Its commit's answer may be lost: what is there is then found to be its own."""
    committed(out, shard(), failing(PASSING))
    done = finished(out, shard(), failing(PASSING), run_id="r2")
    table = Table(out)
    assert table.commit(E1, "r2", [done]) == [done]
    assert Table(out).commit(E1, "r2", [done]) == []
    assert len(visible(out)) == 6


def test_leftovers_of_a_killed_run_with_such_members_are_not_taken_over(out: Folder) -> None:
    finished(out, shard(), failing(PASSING)[:1])
    (task,) = make_plan(out, E1, [shard()], Table(out).shards(E1), 4).tasks
    assert task.finished == {}


def test_the_name_says_it_and_keeps_its_checksum(out: Folder) -> None:
    done = committed(out, shard(), failing(PASSING))
    first, second = (RecordFile(r.path, r.size_bytes, r.rows) for r in done.receipts)
    assert first.to_try_again
    assert not second.to_try_again
    assert len(first.checksum) == len(second.checksum) == 16


def test_a_marked_file_that_is_gone_does_not_end_the_plan(out: Folder) -> None:
    done = committed(out, shard(), failing(PASSING))
    (Path(out.path) / "records" / done.receipts[0].path).unlink()
    assert not due(out, shard(), readable=True)
