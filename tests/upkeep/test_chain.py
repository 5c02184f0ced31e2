"""`verify --chain`: whatever is changed by hand, and however consistently, the log tells of it."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import DeltaError

from camray.cli.main import main
from camray.config import Config
from camray.errors import ExitCode, UsageError
from camray.ledger import chain
from camray.ledger.runs import first_report
from camray.ledger.side import read_side, write_side
from camray.ledger.table import ShardCommit, Table
from camray.records import Accounting
from camray.storage import Folder, open_folder
from camray.upkeep.evidence import look_at_chain
from camray.upkeep.prune import print_prune
from tests.audit.report_world import make_out
from tests.ledger.ledger_world import E1, committed, described, finished, rows, shard

Entries = list[list[dict[str, Any]]]


def night(out: Folder, run: str, *names: str, version: str = "v1") -> None:
    total = Accounting()
    for name in names:
        total += committed(out, shard(name, version), [rows(0, 3), rows(3, 1)], run_id=run).accounting
    first_report(run, E1, Config(), {}).ended(ExitCode.DONE, total, 1.0, {}).write(out)


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four nights, a shard that changed, a prune with its checkpoint in the middle."""
    out = open_folder(str(tmp_path_factory.mktemp("chain") / "out"), "OUT")
    described(out)
    night(out, "r1", "a", "b")
    night(out, "r2", "c")
    print_prune(out.uri, None, None, [], True, True)
    night(out, "r3", "a", version="v2")
    night(out, "r4", "d", "e")
    return Path(out.path)


@pytest.fixture
def out(nights: Path, tmp_path: Path) -> Folder:
    return open_folder(str(shutil.copytree(nights, tmp_path / "out")), "OUT")


def problems(out: Folder) -> tuple[str, ...]:
    try:
        return look_at_chain(out, Table(out)).problems
    except (UsageError, DeltaError) as error:
        return (str(error),)


def test_what_nobody_touched_is_one_story(out: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    found = look_at_chain(out, Table(out))
    assert found.problems == ()
    assert main(["verify", out.uri, "--chain"]) == 0
    last = len(list(Path(out.path).glob("records/_delta_log/*.json"))) - 1
    assert f"records: {found.said}\n5 shards, 20 members: all accounted for" in capsys.readouterr().out
    assert found.said.endswith(f"entries 0 to {last}")


def test_the_hash_is_that_of_the_entries_and_a_report_says_it(out: Folder) -> None:
    """By hand: SHA-256 of the hash so far and of the entry's own."""
    entries = sorted(Path(out.path).glob("records/_delta_log/*.json"))
    so_far, heads = "", {}
    for number, path in enumerate(entries):
        own = hashlib.sha256(path.read_bytes()).hexdigest()
        so_far = heads[number] = hashlib.sha256((so_far + own).encode()).hexdigest()
    for run in ("r1", "r2", "r3", "r4"):
        first, last, said = json.loads(out.read(f"runs/{run}/run.json"))["chain"]["records"]
        assert (first, said) == (0, heads[last])
    assert look_at_chain(out, Table(out)).said.startswith(so_far)


# ── by hand ──────────────────────────────────────────────────────────────────────────────────────


def read(out: Path) -> Entries:
    paths = sorted(out.glob("records/_delta_log/*.json"))
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]


def info(entry: list[dict[str, Any]]) -> dict[str, Any]:
    """What camray said in an entry."""
    said: list[dict[str, Any]] = [
        json.loads(a["commitInfo"].get("camray", "{}")) for a in entry if "commitInfo" in a
    ]
    return said[0] if said else {}


def say(entry: list[dict[str, Any]], said: dict[str, Any]) -> None:
    for action in entry:
        if "commitInfo" in action:
            action["commitInfo"]["camray"] = json.dumps(said)


def write(out: Path, entries: Entries, careful: bool) -> None:
    """Write the log anew, what did not change as it was; who is careful makes later hashes anew as well."""
    paths = sorted(out.glob("records/_delta_log/*.json"))
    as_it_was = dict(zip(map(json.dumps, read(out)), [path.read_text() for path in paths], strict=True))
    for path in paths:
        path.unlink()
    so_far = ""
    for number, entry in enumerate(entries):
        said = info(entry)
        if careful and "chain" in said:
            say(entry, said | {"chain": {"first": 0, "head": so_far}})
        text = as_it_was.get(json.dumps(entry)) or "\n".join(map(json.dumps, entry))
        (out / f"records/_delta_log/{number:020}.json").write_text(text)
        so_far = hashlib.sha256((so_far + hashlib.sha256(text.encode()).hexdigest()).encode()).hexdigest()


def committing(entries: Entries) -> list[int]:
    return [n for n, entry in enumerate(entries) if info(entry).get("shards")]


def rows_of_a_file(out: Path, entries: Entries, chance: random.Random) -> None:
    """A confidence, the file's name, its size, and every entry that names it."""
    path = chance.choice(sorted(out.glob("records/explainer=*/*.parquet")))
    table = pq.read_table(pa.BufferReader(path.read_bytes()))
    values = table["confidence"].to_pylist()
    values[chance.randrange(len(values))] = chance.random()
    column = table.schema.get_field_index("confidence")
    changed = table.set_column(column, table.schema.field(column), pa.array(values, pa.float32()))
    buffer = pa.BufferOutputStream()
    pq.write_table(changed, buffer, compression="zstd", write_page_checksum=True)
    data = buffer.getvalue().to_pybytes()
    start = path.name.rpartition("-")[0]
    new = path.with_name(f"{start}-{hashlib.sha256(data).hexdigest()[:16]}.parquet")
    path.unlink()
    new.write_bytes(data)
    for entry in entries:
        for action in entry:
            of = action.get("add") or action.get("remove")
            if of and of["path"].endswith(path.name):
                of |= {"path": of["path"].replace(path.name, new.name), "size": len(data)}


def a_count(out: Path, entries: Entries, chance: random.Random) -> None:
    entry = entries[chance.choice(committing(entries))]
    said = info(entry)
    one = chance.choice(said["shards"])
    one["ok"] += chance.choice((-1, 1, 5))
    one["members"] = one["ok"]
    say(entry, said)


def a_run(out: Path, entries: Entries, chance: random.Random) -> None:
    entry = entries[chance.choice(committing(entries))]
    say(entry, info(entry) | {"run_id": chance.choice(("r1", "r2", "r3", "r4", "r9"))})
    entry[0]["moved"] = chance.random()  # also where the run is the same


def a_shard_goes(out: Path, entries: Entries, chance: random.Random) -> None:
    entry = entries[chance.choice(committing(entries))]
    for action in [action for action in entry if "add" in action]:
        (out / "records" / action["add"]["path"]).unlink(missing_ok=True)
        entry.remove(action)
    say(entry, info(entry) | {"shards": []})


def an_entry_goes(out: Path, entries: Entries, chance: random.Random) -> None:
    del entries[chance.choice(committing(entries))]


def entries_change_places(out: Path, entries: Entries, chance: random.Random) -> None:
    one, other = sorted(chance.sample(committing(entries), 2))
    entries[one], entries[other] = entries[other], entries[one]


def an_entry_more(out: Path, entries: Entries, chance: random.Random) -> None:
    """The rows of a shard that had changed are there again."""
    old = next(dict(a["remove"]) for e in entries for a in e if "remove" in a)
    add = {"path": old["path"], "partitionValues": {"explainer": E1}, "size": old.get("size", 1)}
    add |= {"modificationTime": 1, "dataChange": True, "stats": '{"numRecords":3}'}
    said: dict[str, Any] = {"run_id": chance.choice(("r3", "r4")), "shards": [], "chain": {}}
    made = [{"commitInfo": {"timestamp": 1, "operation": "WRITE", "camray": json.dumps(said)}}, {"add": add}]
    entries.insert(chance.randrange(len(entries) - 3, len(entries) + 1), made)


def a_time(out: Path, entries: Entries, chance: random.Random) -> None:
    entry = chance.choice(entries)
    for action in entry:
        if "commitInfo" in action:
            action["commitInfo"]["timestamp"] = chance.randrange(10**12)


DEEDS: tuple[Callable[[Path, Entries, random.Random], None], ...] = (
    rows_of_a_file, a_count, a_run, a_shard_goes, an_entry_goes, entries_change_places, an_entry_more, a_time,
)  # fmt: skip


def forge(out: Path, seed: int) -> str:
    """Change something by hand; say what."""
    chance = random.Random(seed)
    deed, careful, entries = DEEDS[seed % len(DEEDS)], chance.random() < 0.5, read(out)
    deed(out, entries, chance)
    write(out, entries, careful)
    return f"{deed.__name__}{', hashes made anew' * careful}"


def missed(nights: Path, place: Path, seeds: range) -> list[tuple[int, str]]:
    found = []
    for seed in seeds:
        copy = shutil.copytree(nights, place / "forged")
        write(copy, read(copy), careful=True)
        assert not problems(open_folder(str(copy), "OUT")), "nothing is changed yet"
        what = forge(copy, seed)
        if not problems(open_folder(str(copy), "OUT")):
            found.append((seed, what))
        shutil.rmtree(copy)
    return found


def test_what_is_changed_by_hand_is_found(nights: Path, tmp_path: Path) -> None:
    assert missed(nights, tmp_path, range(8)) == []  # each kind once


@pytest.mark.slow
def test_a_thousand_edits_by_hand_are_found(nights: Path, tmp_path: Path) -> None:
    assert missed(nights, tmp_path, range(1000)) == []


def test_a_checkpoint_that_tells_another_story_is_found(out: Folder) -> None:
    (path,) = Path(out.path).glob("records/_delta_log/*.checkpoint.parquet")
    told = pq.read_table(path)
    adds = [n for n, add in enumerate(told["add"].to_pylist()) if add and add["path"]]
    pq.write_table(told.take([n for n in range(len(told)) if n != adds[0]]), path)
    assert any("is named, and not in the table" in problem for problem in problems(out))


def test_an_entry_of_another_tool_is_found(out: Folder) -> None:
    DeltaTable(out.child_uri("records")).create_write_transaction(
        [], "append", Table(out).kind.whole, partition_by=["explainer"],
        commit_properties=CommitProperties({"by": "hand"}),
    )  # fmt: skip
    assert problems(out) == ()  # it changes nothing
    DeltaTable(out.child_uri("records")).alter.set_table_properties({"delta.appendOnly": "false"})
    (problem,) = problems(out)
    assert problem.endswith("no run of camray wrote it")


@pytest.mark.parametrize("part", ["rows", "failed", "errors", "verdicts"])
def test_a_summary_of_a_night_that_was_changed_by_hand_is_found(tmp_path: Path, part: str) -> None:
    """Its checksum is made anew; the commits of the night have other counts."""
    runs = ["20261101T000000Z-0", "20261102T000000Z-0"]
    for number, run in enumerate(runs):
        make_out(tmp_path, 120, run, first=number)
    out = open_folder(str(tmp_path), "OUT")
    assert problems(out) == ()
    path = f"runs/{runs[0]}/summary.json"
    summary = read_side(out, path, dict)
    of = summary["images"] if part in summary["images"] else summary[part]
    name = part if part in summary["images"] else next(iter(of))
    of[name] += 1
    write_side(out, path, summary)
    assert any(path in problem for problem in problems(out))


# ── what there was before ────────────────────────────────────────────────────────────────────────


def test_an_out_without_hashes_is_said_and_the_next_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = open_folder(str(tmp_path / "out"), "OUT")
    with monkeypatch.context() as earlier:
        earlier.setattr(chain, "link", lambda *_: {})
        committed(out, shard("a"))
        committed(out, shard("b"))
    assert look_at_chain(out, Table(out)).said == "no hash yet: the next run makes the first"
    committed(out, shard("c"))
    found = look_at_chain(out, Table(out))
    assert found.problems == ()
    assert found.said.endswith("entries 0 to 3")
    entries = read(Path(out.path))
    entries[1][0]["commitInfo"]["timestamp"] = 5
    write(Path(out.path), entries, careful=False)
    assert problems(out), "what was before the first hash is in it"


def test_a_commit_whose_answer_was_lost_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = open_folder(str(tmp_path / "out"), "OUT")
    table, real = Table(out), Table._write

    def lost(table: Table, *about: Any) -> None:
        real(table, *about)
        raise OSError("Generic S3 error: the answer is lost")

    table.create()
    done: ShardCommit = finished(out, shard())
    monkeypatch.setattr(Table, "_write", lost)
    assert table.commit(E1, "r1", [done]) == [done]
    assert table.commit(E1, "r2", [done]) == []
