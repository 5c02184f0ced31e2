"""The Delta table: one transaction replaces a shard, a race leaves exactly one set of rows."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from deltalake import DeltaTable

from camray.errors import IncompleteError, UsageError
from camray.ledger import log
from camray.ledger import table as table_module
from camray.ledger.committed import file_name, is_committed, parse_name
from camray.ledger.table import ShardCommit, Table
from camray.records import Accounting
from camray.storage import Folder, open_folder
from camray.upkeep.prune import print_prune
from tests.ledger.ledger_world import E1, E2, committed, finished, rows, shard, visible, write_chunk


def opened(out: Folder) -> Table:
    table = Table(out)
    table.create()
    return table


def runs_seen(out: Folder) -> list[tuple[int, str]]:
    return [(r["index"], r["run_id"]) for r in visible(out)]


def test_nothing_is_there_before_the_first_run(out: Folder) -> None:
    table = Table(out)
    assert table.delta is None
    assert (table.shards(E1), len(table.shards(E1)), list(table.statements())) == ({}, 0, [])
    with pytest.raises(IncompleteError):
        table.commit(E1, "r1", [finished(out, shard())])
    table.create()
    table.create()
    assert (table.shards(E1), list(table.statements())) == ({}, [])


def test_rows_are_seen_after_the_commit_and_not_before(out: Folder) -> None:
    table, done = opened(out), finished(out, shard())
    assert visible(out) == []
    assert table.commit(E1, "r1", [done]) == [done]
    assert [r["index"] for r in visible(out)] == [0, 1, 2, 3, 4, 5]
    assert {r["explainer"] for r in visible(out)} == {E1}
    shards = Table(out).shards(E1)
    assert [(f.path, f.size_bytes, f.rows) for f in shards[shard().key]] == [
        (r.path, r.size_bytes, r.rows) for r in done.receipts
    ]
    assert (list(shards), len(shards)) == ([shard().key], 1)
    assert shard("elsewhere").key not in shards
    assert Table(out).shards(E2) == {}


def test_newer_content_replaces_the_older_in_one_step(out: Folder) -> None:
    committed(out, shard(version="v1"))
    before = DeltaTable(out.child_uri("records")).version()
    committed(out, shard(version="v2"), [rows(0, 3)], run_id="r2")
    assert runs_seen(out) == [(0, "r2"), (1, "r2"), (2, "r2")]
    delta = DeltaTable(out.child_uri("records"))
    assert delta.version() == before + 1  # no version between, where rows are absent or double
    delta.load_as_version(before)
    assert delta.to_pyarrow_table().num_rows == 6


def test_other_shards_and_other_explainers_stay(out: Folder) -> None:
    for of, explainer in ((shard("a"), E1), (shard("b"), E1), (shard("a"), E2)):
        committed(out, of, explainer=explainer)
    committed(out, shard("a", "v2"), [rows(0, 1)], run_id="r2")
    seen = [(r["explainer"], r["run_id"]) for r in visible(out)]
    assert {pair: seen.count(pair) for pair in seen} == {(E1, "r2"): 1, (E1, "r1"): 6, (E2, "r1"): 6}


def test_a_repeated_commit_is_harmless(out: Folder) -> None:
    table, done = opened(out), finished(out, shard())
    table.commit(E1, "r1", [done])
    version = DeltaTable(out.child_uri("records")).version()
    assert table.commit(E1, "r1", [done]) == []
    assert Table(out).commit(E1, "r2", [finished(out, shard(), run_id="r2")]) == []
    assert DeltaTable(out.child_uri("records")).version() == version
    assert runs_seen(out) == [(i, "r1") for i in range(6)]


def test_each_commit_of_a_shard_is_numbered(out: Folder) -> None:
    """Whoever else writes with this number is refused by Delta itself."""
    for version in ("v1", "v2"):
        committed(out, shard(version=version), run_id=version)
    assert DeltaTable(out.child_uri("records")).transaction_version(f"{E1}/{shard().key}") == 2


def test_a_stale_table_object_does_not_double_a_shard(out: Folder) -> None:
    """Both looked at the table before either wrote: the second must find out at its commit."""
    first, second = opened(out), opened(out)
    for table in (first, second):
        table.commit(E1, "warm", [finished(out, shard(f"warm-{id(table)}"), run_id="warm")])
    assert len(first.commit(E1, "r1", [finished(out, shard(), run_id="r1")])) == 1
    assert second.commit(E1, "r2", [finished(out, shard(), run_id="r2")]) == []
    assert [run for _, run in runs_seen(out)].count("r1") == 6
    assert "r2" not in {run for _, run in runs_seen(out)}


@pytest.mark.parametrize("exists", [False, True])
def test_what_was_read_while_planning_is_not_believed_at_the_first_commit(out: Folder, exists: bool) -> None:
    """Another run may have come and gone in between, also where there was no table yet."""
    if exists:
        opened(out)
    planning = Table(out)
    assert planning.shards(E1) == {}
    committed(out, shard(), run_id="r1")
    planning.create()
    assert planning.commit(E1, "r2", [finished(out, shard())]) == []
    assert {run for _, run in runs_seen(out)} == {"r1"}
    assert len(runs_seen(out)) == 6


def test_one_explainers_rows_are_not_taken_for_anothers(out: Folder) -> None:
    committed(out, shard(), run_id="r1")
    table = Table(out)
    assert table.shards(E2) == {}
    assert table.commit(E1, "r2", [finished(out, shard())]) == []
    assert len(runs_seen(out)) == 6


def test_the_last_of_two_contents_stays_alone(out: Folder) -> None:
    first, second = opened(out), opened(out)
    first.commit(E1, "r1", [finished(out, shard(version="v1"))])
    second.commit(E1, "r2", [finished(out, shard(version="v2"), [rows(0, 2)], run_id="r2")])
    assert runs_seen(out) == [(0, "r2"), (1, "r2")]


def test_a_part_never_takes_the_place_of_the_whole(out: Folder) -> None:
    """A forced `--limit` run that ends after a full one: the full rows stay."""
    table = opened(out)
    committed(out, shard())
    part = shard(selection=(0, 1))
    assert table.commit(E1, "r2", [finished(out, part, [rows(0, 2)], run_id="r2")]) == []
    assert len(visible(out)) == 6


def test_the_whole_takes_the_place_of_a_part(out: Folder) -> None:
    committed(out, shard(selection=(0, 1)), [rows(0, 2)])
    committed(out, shard(), run_id="r2")
    assert runs_seen(out) == [(i, "r2") for i in range(6)]


def test_what_counts_as_committed(out: Folder) -> None:
    committed(out, shard())
    files = Table(out).shards(E1)[shard().key]
    assert is_committed(shard(), files)
    assert is_committed(shard(selection=(3,)), files)
    assert not is_committed(shard(version="v2"), files)
    assert not is_committed(shard(), [])
    committed(out, shard("b", selection=(0, 1)), [rows(0, 2)])
    files = Table(out).shards(E1)[shard("b").key]
    assert is_committed(shard("b", selection=(0, 1)), files)
    assert not is_committed(shard("b", selection=(0,)), files)
    assert not is_committed(shard("b"), files)


def test_a_race_of_many_threads_leaves_one_set_of_rows(out: Folder) -> None:
    opened(out)
    own = {run: finished(out, shard("own-" + run), run_id=run) for run in ("r0", "r1", "r2")}
    both = {run: finished(out, shard(), run_id=run) for run in own}
    tables = {run: opened(out) for run in own}
    gate, won = threading.Barrier(len(own)), {}

    def go(run: str) -> None:
        gate.wait()
        won[run] = [d.shard.uri for d in tables[run].commit(E1, run, [own[run], both[run]])]

    threads = [threading.Thread(target=go, args=(run,)) for run in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(u for uris in won.values() for u in uris) == [
        "/data/a.tar", "/data/own-r0.tar", "/data/own-r1.tar", "/data/own-r2.tar",
    ]  # fmt: skip
    assert len(visible(out)) == 4 * 6
    said = [s["uri"] for s in Table(out).statements()]
    assert sorted(said) == sorted(u for uris in won.values() for u in uris)


def test_when_others_keep_winning_the_run_stops_and_nothing_is_seen(
    out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltalake.exceptions import CommitFailedError

    table, done = opened(out), finished(out, shard())
    monkeypatch.setattr(table_module, "COMMIT_ATTEMPTS", 2)
    monkeypatch.setattr(table_module.time, "sleep", lambda _: None)

    def refused(*_: object) -> None:
        raise CommitFailedError("somebody else")

    monkeypatch.setattr(table, "_write", refused)
    with pytest.raises(IncompleteError, match="2 commits were refused"):
        table.commit(E1, "r1", [done])
    assert visible(out) == []


def test_statements_account_for_each_shard_oldest_first(out: Folder) -> None:
    table = opened(out)
    a = replace(
        finished(out, shard("a")), accounting=Accounting(5, 0, {"empty_file": 1}, {"shard_truncated": 1})
    )
    table.commit(E1, "r1", [a, finished(out, shard("b"))])
    table.commit(E1, "r1", [finished(out, shard("a", "v2"), [rows(0, 1)])])
    said = list(Table(out).statements())
    assert [(s["uri"], s["members"], s["ok"]) for s in said] == [
        ("/data/a.tar", 6, 5), ("/data/b.tar", 6, 6), ("/data/a.tar", 1, 1),
    ]  # fmt: skip
    assert said[0] == {
        "explainer": E1, "key": shard("a").key, "content": shard("a").content_key, "uri": "/data/a.tar",
        "members": 6, "ok": 5, "failed": {"empty_file": 1}, "skipped": 0,
        "shard_errors": {"shard_truncated": 1},
    }  # fmt: skip


def test_statements_survive_many_commits_and_a_checkpoint(out: Folder) -> None:
    table = opened(out)
    receipt = write_chunk(out, shard("0"), 0)
    for i in range(12):
        table.commit(E1, "r1", [ShardCommit(shard(str(i)), (replace(receipt, path=receipt.path.replace(
            shard("0").id, shard(str(i)).id)),), Accounting(4))])  # fmt: skip
    delta = DeltaTable(out.child_uri("records"))
    delta.create_checkpoint()
    assert len(list(Table(out).statements())) == 12
    assert len(Table(out).shards(E1)) == 12


def test_names_are_read_back() -> None:
    name = file_name(E1, shard().id, 7, "abc")
    assert name == f"explainer={E1}/{shard().id}-000007-abc.parquet"
    assert parse_name(name) == (shard().key, shard().content_key, 7)


@pytest.mark.parametrize(
    "name", [".0123.tmp", "x.parquet", "a-b-c-d.parquet", "a-b-1-c.parquet.bak", "a-b-1-c-d.parquet", ""]
)
def test_other_names_are_not_ours(name: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_name(f"explainer={E1}/{name}")


@pytest.mark.parametrize("name", ["with space", "ünï", "50%", "a+b", "'q'", '"q"', "$x", "*", "~x"])
def test_the_table_may_lie_in_an_oddly_named_folder(tmp_path: Path, name: str) -> None:
    out = open_folder(str(tmp_path / name), "OUT")
    committed(out, shard())
    assert (tmp_path / name / "records/_delta_log").is_dir()
    assert len(visible(out)) == 6


@pytest.mark.parametrize(
    "name",
    [
        "per%20cent",
        "a[1]",
        "a^b",
        "a|b",
        "back\\slash",
        "hash#1",
        "quest?ion",
        "new\nline",
        "tab\t",
        "\udcff",
    ],
)
def test_a_folder_that_delta_lake_cannot_use_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """Under some Delta Lake finds the rows and not the history, so that nothing could be verified."""
    with pytest.raises(UsageError, match="OUT: ") as caught:
        Table(open_folder(str(tmp_path / name), "OUT"))
    assert str(caught.value).isprintable()
    assert not (tmp_path / name).exists()


def test_an_older_listing_replaces_no_newer_rows(out: Folder) -> None:
    """Two runs planned on an empty table; the one whose listing is newer was first."""
    committed(out, shard(version="v2"))
    stale = replace(finished(out, shard(version="v1")), before=frozenset())
    with pytest.raises(IncompleteError, match="another run committed other content"):
        Table(out).commit(E1, "r9", [stale])
    assert set(Table(out).shards(E1)[shard().key][0].path.split("-")[1:2]) == {
        shard(version="v2").content_key
    }


def test_the_hold_is_seen_after_the_log(out: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stood still between the two would stand on an entry of who took over."""
    table, order = Table(out), list[str]()
    table.create()
    update = Table.update
    monkeypatch.setattr(Table, "update", lambda self: (order.append("log"), update(self))[1])

    class Watching:
        def confirm(self) -> None:
            order.append("hold")

    table.held = Watching()  # type: ignore[assignment]
    table.commit(E1, "r1", [finished(out, shard())])
    assert order == ["log", "hold"]


def test_what_is_read_is_durable_before_anything_stands_on_it(
    out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed(out, shard())
    table, flushed = Table(out), list[int]()
    monkeypatch.setattr(
        "camray.ledger.table.log.flush", lambda _out, _folder, version: flushed.append(version)
    )
    table.update()
    assert flushed == [1]


def test_what_came_behind_a_run_is_told_by_the_end_of_the_log(out: Folder) -> None:
    """Also of a run that was killed since; of a file that lies otherwise now, nobody can tell."""
    committed(out, shard("a"), run_id="r1")
    paths = [r.path for n in "bc" for r in committed(out, shard(n), run_id=f"killed-{n}").receipts]
    delta = log.opened(out, "records")
    assert log.files_behind(out, "records", delta, {"r1"}) == paths
    assert log.files_behind(out, "records", delta, {"another"}) is None
    print_prune(out.uri, None, None, [], True, True, True)
    assert log.files_behind(out, "records", log.opened(out, "records"), {"r1"}) is None
