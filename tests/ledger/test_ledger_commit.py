"""The desk: a shard is committed when its end was seen and every member has a row, never before."""

from collections.abc import Iterable

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camray.errors import CamrayError
from camray.ledger.commit import CommitDesk
from camray.ledger.plan import ShardTask
from camray.ledger.table import ShardCommit, Table
from camray.records import Accounting, Chunk, Receipt, Shard, ShardEnd
from camray.storage import Folder
from tests.ledger.ledger_world import E1, rows, shard, shard_error_row, visible, write_chunk


def desk_for(out: Folder, *shards: Shard) -> CommitDesk:
    table = Table(out)
    table.create()
    return CommitDesk(table, E1, "r1", [ShardTask(s) for s in shards])


def data(of: Shard, receipt: Receipt) -> Chunk:
    return Chunk(of.id, receipt.chunk, receipt)


def end(of: Shard, chunks: int, members: int, code: str | None = None) -> Chunk:
    return Chunk(of.id, chunks, ShardEnd(chunks, members, code, code and "why"))


def uris(commits: Iterable[ShardCommit]) -> list[str]:
    return [c.shard.uri for c in commits]


def test_chunks_may_come_in_any_order(out: Folder) -> None:
    a = shard()
    desk = desk_for(out, a)
    receipts = [write_chunk(out, a, 0), write_chunk(out, a, 1), write_chunk(out, a, 2, rows(8, 1))]
    assert desk.take([end(a, 3, 9)]) == []
    assert desk.take([data(a, receipts[2]), data(a, receipts[0])]) == []
    assert visible(out) == []
    assert desk.open_shards == 1
    assert uris(desk.take([data(a, receipts[1])])) == [a.uri]
    assert [r["index"] for r in visible(out)] == list(range(9))
    assert desk.open_shards == 0


def test_no_end_no_commit(out: Folder) -> None:
    a = shard()
    desk = desk_for(out, a)
    assert desk.take([data(a, write_chunk(out, a, i)) for i in range(3)]) == []
    assert visible(out) == []


def test_a_missing_chunk_is_waited_for_even_when_a_stray_one_makes_up_the_number(out: Folder) -> None:
    a = shard()
    desk = desk_for(out, a)
    stray = [data(a, write_chunk(out, a, i)) for i in (0, 3)]
    assert desk.take([*stray, end(a, 2, 8)]) == []
    assert desk.open_shards == 1
    assert visible(out) == []
    assert uris(desk.take([data(a, write_chunk(out, a, 1))])) == [a.uri]
    assert len(visible(out)) == 8


@pytest.mark.parametrize("members", [7, 9, 0])
def test_members_without_rows_are_an_error_and_nothing_is_seen(out: Folder, members: int) -> None:
    a = shard()
    desk = desk_for(out, a)
    with pytest.raises(CamrayError, match=rf"a\.tar: {members} members were read but 8 have rows"):
        desk.take([data(a, write_chunk(out, a, 0)), data(a, write_chunk(out, a, 1)), end(a, 2, members)])
    assert visible(out) == []


def test_a_repeated_chunk_counts_once(out: Folder) -> None:
    a = shard()
    desk = desk_for(out, a)
    first, again = write_chunk(out, a, 0, run_id="first"), write_chunk(out, a, 0, run_id="again")
    desk.take([data(a, first), data(a, again), end(a, 1, 4)])
    assert [r["run_id"] for r in visible(out)] == ["first"] * 4


def test_what_comes_after_the_commit_is_ignored(out: Folder) -> None:
    a = shard()
    desk = desk_for(out, a)
    notes = [data(a, write_chunk(out, a, 0)), end(a, 1, 4)]
    assert len(desk.take(notes)) == 1
    assert desk.take(notes) == []
    assert desk.take([data(shard("other"), write_chunk(out, shard("other"), 0))]) == []
    assert len(visible(out)) == 4


def test_a_broken_shard_is_committed_with_its_own_row_beside_the_members(out: Folder) -> None:
    a = shard()
    desk = desk_for(out, a)
    good, own = write_chunk(out, a, 0, rows(0, 3)), write_chunk(out, a, 1, shard_error_row("shard_truncated"))
    assert desk.take([data(a, good), end(a, 1, 3, "shard_truncated")]) == []  # its own row is still to come
    (done,) = desk.take([data(a, own)])
    assert done.accounting == Accounting(ok=3, shard_errors={"shard_truncated": 1})
    assert done.accounting.members == 3
    assert [r["member"] for r in visible(out)] == ["0.jpg", "1.jpg", "2.jpg", None]


def test_a_shard_without_any_member_is_one_row(out: Folder) -> None:
    a = shard()
    desk = desk_for(out, a)
    (done,) = desk.take(
        [data(a, write_chunk(out, a, 0, shard_error_row("shard_empty"))), end(a, 0, 0, "shard_empty")]
    )
    assert (done.accounting.members, len(visible(out))) == (0, 1)


def test_shards_that_end_together_share_one_transaction(out: Folder) -> None:
    shards = [shard(n) for n in "abc"]
    desk = desk_for(out, *shards)
    notes = [note for s in shards for note in (data(s, write_chunk(out, s, 0)), end(s, 1, 4))]
    assert sorted(uris(desk.take(notes))) == sorted(s.uri for s in shards)
    delta = Table(out).delta
    assert delta is not None
    assert delta.version() == 1  # 0 made the table


class Remembering:
    """Takes commits down instead of writing them."""

    def __init__(self) -> None:
        self.taken: list[ShardCommit] = []

    def commit(self, _explainer: str, _run: str, finished: list[ShardCommit]) -> list[ShardCommit]:
        self.taken += finished
        return finished


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_order_repeat_and_batching_commits_each_shard_once(choice: st.DataObject) -> None:
    """Whatever the engine does with rows: as long as each comes at least once, each shard is done once."""
    shards = [shard(n) for n in "abc"]
    notes: list[Chunk] = []
    for s in shards:
        chunks = choice.draw(st.integers(0, 4))
        for i in range(chunks):
            notes.append(data(s, Receipt(s.id, i, f"{s.id}-{i}", 1, 2, 2, 0, {})))
        notes.append(end(s, chunks, 2 * chunks))
    extra = choice.draw(st.lists(st.sampled_from(notes), max_size=6))
    order = choice.draw(st.permutations(notes + extra))
    table = Remembering()
    desk = CommitDesk(table, E1, "r", [ShardTask(s) for s in shards])  # type: ignore[arg-type]
    while order:
        cut = choice.draw(st.integers(1, len(order)))
        desk.take(order[:cut])
        order = order[cut:]
    desk.flush()
    assert sorted(uris(table.taken)) == [s.uri for s in shards]
    assert desk.open_shards == 0
    for done in table.taken:
        assert [r.chunk for r in done.receipts] == list(range(len(done.receipts)))


def test_finished_shards_wait_for_a_common_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first at once; then at most one commit every five seconds, and the rest at the end."""
    now = [100.0]
    monkeypatch.setattr("camray.ledger.commit.time.monotonic", lambda: now[0])
    shards, table = [shard(n) for n in "abcd"], Remembering()
    desk = CommitDesk(table, E1, "r", [ShardTask(s) for s in shards])  # type: ignore[arg-type]

    def names(*places: int) -> list[str]:
        return [shards[i].uri for i in places]

    assert uris(desk.take([end(shards[0], 0, 0)])) == names(0)
    now[0] += 1
    assert desk.take([end(shards[1], 0, 0)]) == []
    now[0] += 4
    assert uris(desk.take([end(shards[2], 0, 0)])) == names(1, 2)
    assert desk.take([end(shards[3], 0, 0), end(shards[1], 0, 0)]) == []  # a repeat is no second commit
    assert uris(desk.flush()) == names(3)
    assert desk.flush() == []
    assert uris(table.taken) == names(0, 1, 2, 3)


def test_record_rows_are_counted_not_believed(out: Folder) -> None:
    """The receipt is computed from the rows; the desk compares it with what the reader counted."""
    a = shard()
    desk = desk_for(out, a)
    lost = rows(0, 4).slice(0, 3)
    assert isinstance(lost, pa.Table)
    with pytest.raises(CamrayError, match="4 members were read but 3 have rows"):
        desk.take([data(a, write_chunk(out, a, 0, lost)), end(a, 1, 4)])
