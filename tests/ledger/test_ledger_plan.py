"""What is left to do: nothing that is committed, everything else, and no chunk that cannot be trusted."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from camray.ledger.plan import Plan, make_plan, plan_again
from camray.ledger.table import Table
from camray.records import Shard
from camray.storage import Folder
from tests.ledger.ledger_world import E1, E2, committed, rows, shard, shard_error_row, write_chunk


def planned(out: Folder, shards: Sequence[Shard], *, explainer: str = E1, chunk_size: int = 4) -> Plan:
    return make_plan(out, explainer, shards, Table(out).shards(explainer), chunk_size)


def folder(out: Folder) -> Path:
    return Path(out.path) / "records" / f"explainer={E1}"


def test_an_empty_out_has_everything_to_do(out: Folder) -> None:
    plan = planned(out, [shard("a"), shard("b")])
    assert [t.shard.uri for t in plan.tasks] == ["/data/a.tar", "/data/b.tar"]
    assert (plan.committed, plan.changed, plan.resumed, plan.gone, plan.size_bytes) == (0, 0, 0, 0, 200)


def test_committed_changed_new_and_gone(out: Folder) -> None:
    for name in ("same", "changed", "gone"):
        committed(out, shard(name))
    plan = planned(out, [shard("changed", "v2"), shard("new"), shard("same")])
    assert [t.shard for t in plan.tasks] == [shard("changed", "v2"), shard("new")]
    assert (plan.committed, plan.changed, plan.resumed, plan.gone) == (1, 1, 0, 1)


def test_another_explainer_starts_from_nothing(out: Folder) -> None:
    committed(out, shard())
    write_chunk(out, shard("b"), 0)
    plan = planned(out, [shard(), shard("b")], explainer=E2)
    assert (len(plan.tasks), plan.committed, plan.resumed) == (2, 0, 0)


def test_a_part_of_a_committed_shard_is_done(out: Folder) -> None:
    committed(out, shard())
    assert planned(out, [shard(selection=(1, 2))]).committed == 1
    committed(out, shard("b", selection=(1, 2)), [rows(0, 2)])
    plan = planned(out, [shard("b")])
    assert (len(plan.tasks), plan.changed) == (1, 1)


def test_whole_chunks_of_an_interrupted_run_are_taken_over(out: Folder) -> None:
    receipts = {i: write_chunk(out, shard(), i) for i in (0, 2)}
    plan = planned(out, [shard(), shard("b")])
    assert plan.resumed == 1
    (first, second) = plan.tasks
    assert second.finished == {}
    assert sorted(first.finished) == [0, 2]
    for index, receipt in first.finished.items():
        assert receipt == replace(receipts[index], reused=True)


def test_a_chunk_cut_short_is_done_again(out: Folder) -> None:
    """It may be the last of its shard, or end where a store failed: the file cannot tell.

    Were it taken over, a later run that reads further would have fewer rows than members.
    """
    write_chunk(out, shard(), 0)
    write_chunk(out, shard(), 1, rows(4, 3))
    write_chunk(out, shard(), 2, shard_error_row("shard_unreadable"))
    assert sorted(planned(out, [shard()]).tasks[0].finished) == [0]


def test_the_row_of_a_broken_shard_is_no_chunk_of_one_image(out: Folder) -> None:
    write_chunk(out, shard(), 0, shard_error_row("shard_unreadable"), chunk_size=1)
    assert planned(out, [shard()], chunk_size=1).tasks[0].finished == {}


def test_chunks_cut_with_another_size_are_not_taken_over(out: Folder) -> None:
    write_chunk(out, shard(), 0)
    assert planned(out, [shard()], chunk_size=8).resumed == 0
    write_chunk(out, shard(), 1, rows(8, 4), chunk_size=8)  # as long as a chunk of four, but not the second
    assert sorted(planned(out, [shard()]).tasks[0].finished) == [0]
    assert planned(out, [shard()], chunk_size=4).resumed == 1


def test_chunks_of_other_content_are_not_taken_over(out: Folder) -> None:
    write_chunk(out, shard(version="v1"), 0)
    write_chunk(out, shard(version="v2", selection=(0, 1, 2, 3)), 0)
    assert planned(out, [shard(version="v2")]).resumed == 0


def test_files_of_a_committed_shard_are_not_taken_over(out: Folder) -> None:
    """Changed, then back as it was: the old files are tombstones or committed, both no leftovers."""
    committed(out, shard(), [rows(0, 4)])
    assert planned(out, [shard(version="v2")]).resumed == 0


def test_one_of_two_attempts_is_taken(out: Folder) -> None:
    both = {write_chunk(out, shard(), 0).path for _ in range(2)}
    assert planned(out, [shard()]).tasks[0].finished[0].path in both


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_torn_file_is_ignored(out: Folder, keep: int) -> None:
    path = Path(out.path) / "records" / write_chunk(out, shard(), 0).path
    path.write_bytes(path.read_bytes()[:keep])
    assert planned(out, [shard()]).resumed == 0


def test_foreign_files_are_ignored(out: Folder) -> None:
    path = Path(out.path) / "records" / write_chunk(out, shard(), 0).path
    good = path.read_bytes()
    path.unlink()
    name = path.name.removesuffix(".parquet")
    for other in (
        f".{'0' * 32}.tmp",
        "part-0000.parquet",
        f"{name}.parquet.bak",
        f"{name}-x.parquet",
        "notes.txt",
    ):
        (folder(out) / other).write_bytes(good)
    (folder(out) / f"{name}.parquet").mkdir()
    assert planned(out, [shard()]).resumed == 0


def test_a_file_of_another_writer_under_our_name_is_ignored(out: Folder) -> None:
    path = Path(out.path) / "records" / write_chunk(out, shard(), 0).path
    pq.write_table(rows(0, 4), path)
    assert planned(out, [shard()]).resumed == 0


def test_a_file_whose_rows_are_not_those_it_promises_is_ignored(out: Folder) -> None:
    path = Path(out.path) / "records" / write_chunk(out, shard(), 0).path
    footer = pq.read_metadata(path).metadata[b"camray"]
    assert json.loads(footer)["rows"] == 4
    pq.write_table(rows(0, 3).replace_schema_metadata({b"camray": footer}), path)
    assert planned(out, [shard()]).resumed == 0


def test_planned_again_it_leaves_out_what_was_committed_and_builds_on_no_file_that_was_pruned(
    out: Folder,
) -> None:
    a, b = shard("a"), shard("b")
    kept, gone = write_chunk(out, a, 0), write_chunk(out, b, 0)
    first = make_plan(out, E1, [a, b], Table(out).shards(E1), 4)
    assert [set(t.finished) for t in first.tasks] == [{0}, {0}]
    out.delete(f"records/{gone.path}")
    committed(out, a)
    again = plan_again(first, out, E1, Table(out).shards(E1), 4)
    assert [(t.shard, dict(t.finished), t.before) for t in again.tasks] == [(b, {}, frozenset())]
    assert kept.path.startswith("explainer=")
