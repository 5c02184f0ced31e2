"""`prune --compact`: small files of many shards become large ones, and no row changes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from camray.cli.main import main
from camray.config import Config
from camray.errors import ExitCode, IncompleteError, UsageError
from camray.ledger import hold as holds
from camray.ledger import pack as packs
from camray.ledger.intake import Group, recall, remember
from camray.ledger.pack import find_packable, pack, unpack
from camray.ledger.plan import make_plan
from camray.ledger.runs import first_report
from camray.ledger.table import ShardCommit, Table
from camray.records import Accounting, LooseFile, account
from camray.storage import Folder, open_folder
from camray.upkeep.evidence import look_at_chain
from camray.upkeep.forget import print_forget
from camray.upkeep.verify import find_problems
from tests.job.test_retry import picture
from tests.ledger.ledger_world import (
    E1,
    E2,
    committed,
    described,
    finished,
    rows,
    shard,
    visible,
    write_chunk,
)

NIGHTS = 6


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six nights of two shards, one of them of two chunks; and one of another explainer."""
    out = open_folder(str(tmp_path_factory.mktemp("nights") / "out"), "OUT")
    described(out)
    for night in range(NIGHTS):
        run, uris = f"r{night}", [f"/data/{name}{night}.tar" for name in "ab"]
        committed(out, shard(f"a{night}"), [rows(0, 4, shard=[uris[0]] * 4)], run_id=run)
        two = [rows(0, 4, shard=[uris[1]] * 4), rows(4, 2, shard=[uris[1]] * 2)]
        committed(out, shard(f"b{night}"), two, run_id=run)
        first_report(run, E1, Config(), {}).ended(ExitCode.DONE, Accounting(10), 1.0, {}).write(out)
    for name in "xy":
        committed(out, shard(name), [rows(0, 3, shard=[f"/data/{name}.tar"] * 3)], explainer=E2, run_id="r6")
    first_report("r6", E2, Config(), {}).ended(ExitCode.DONE, Accounting(6), 1.0, {}).write(out)
    return Path(out.path)


@pytest.fixture
def out(nights: Path, tmp_path: Path) -> Folder:
    return open_folder(str(shutil.copytree(nights, tmp_path / "out")), "OUT")


def compact(out: Folder, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert main(["prune", out.uri, "--compact", "--json", *more]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def files(out: Folder) -> set[str]:
    return {Path(path).name for path in DeltaTable(out.child_uri("records")).file_uris()}


def problems(out: Folder) -> list[str]:
    return [*find_problems(out, Table(out)), *look_at_chain(out, Table(out)).problems]


def test_many_files_become_few_and_every_row_stays(out: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    before, names = visible(out), files(out)
    assert len(names) == 3 * NIGHTS + 2
    told = compact(out, capsys)
    assert (told["packed_files"], told["packs"], told["done"]) == (3 * NIGHTS + 2, 2, False)
    assert files(out) == names
    compact(out, capsys, "--yes")
    assert visible(out) == before
    assert len(files(out)) == 2
    assert problems(out) == []
    for owner, many in ((E1, 2 * NIGHTS), (E2, 2)):
        there = Table(out).shards(owner)
        assert len(there) == many
        assert all(there.holds(shard(f"{x}{n}")) for x in "ab" for n in range(NIGHTS) if owner == E1)
    assert compact(out, capsys)["packed_files"] == 0
    assert main(["verify", out.uri, "--chain"]) == 0
    assert main(["status", out.uri]) == 0
    assert "12 shards: 60 members = 60 ok" in capsys.readouterr().out


def test_what_was_there_is_readable_within_the_kept_window(
    out: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    before, version = visible(out), Table(out).version
    for path in Path(out.path).glob("records/explainer=*/*.parquet"):
        os.utime(path, (10**9, 10**9))
    compact(out, capsys, "--yes")
    compact(out, capsys, "--yes")
    then = DeltaTable(out.child_uri("records"), version=version).to_pyarrow_table().to_pylist()
    assert sorted(map(str, then)) == sorted(map(str, before))


def test_a_shard_of_a_pack_is_replaced_and_its_neighbours_stay(
    out: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    compact(out, capsys, "--yes")
    before = {row["shard"]: row for row in visible(out)}
    table = Table(out)
    new = shard("a1", "v2")
    plan = make_plan(out, E1, [new], table.shards(E1), 4)
    done = finished(out, new, [rows(0, 1, shard=[new.uri])], run_id="r9")
    (task,) = plan.tasks
    commit = ShardCommit(new, done.receipts, account(done.receipts), task.before)
    with pytest.raises(IncompleteError, match="another run committed"):
        table.commit(E1, "r9", [commit])  # a pack is never taken away for one shard
    unpack(table, E1, [new.key])
    assert problems(out) == []
    assert Table(out).commit(E1, "r9", [commit]) == [commit]
    now = visible(out)
    assert [row["run_id"] for row in now if row["shard"] == new.uri] == ["r9"]
    assert {r["shard"] for r in now} == set(before)
    assert len(now) == 60 + 6 - 4 + 1
    assert problems(out) == []


@pytest.mark.slow
def test_after_unpacking_the_files_are_what_they_were(
    out: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    before, names = visible(out), files(out)
    compact(out, capsys, "--yes")
    table = Table(out)
    unpack(table, E1, list(table.shards(E1)))
    table = table.reopened()
    unpack(table, E2, list(table.shards(E2)))
    assert files(out) == names
    assert visible(out) == before


@pytest.mark.slow
def test_new_nights_are_packed_with_a_pack_that_is_not_full(
    out: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    compact(out, capsys, "--yes")
    for name in ("c", "d"):
        committed(out, shard(name), [rows(0, 4, shard=[f"/data/{name}.tar"] * 4)], run_id="r7")
    before = visible(out)
    assert compact(out, capsys, "--yes")["packed_files"] == 3
    assert visible(out) == before
    assert len(files(out)) == 2
    assert problems(out) == []


def test_what_is_to_be_tried_again_and_what_is_large_stays(
    out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = rows(0, 2, status=["ok", "failed"], error_code=[None, "member_read_failed"])
    committed(out, shard("again"), [bad])
    table = Table(out)
    (group,) = find_packable(table, E1)
    assert len(group) == 3 * NIGHTS
    monkeypatch.setattr(packs, "SMALL_BYTES", 1)
    assert find_packable(table, E1) == []
    monkeypatch.setattr(packs, "SMALL_BYTES", 10**9)
    monkeypatch.setattr(packs, "PACK_PARTS", 7)
    groups = find_packable(table, E1)
    assert sum(map(len, groups)) == 3 * NIGHTS
    assert all(len(g) <= 7 for g in groups)
    shards = [{f.path.split("-")[0] for f in g} for g in groups]
    assert not any(one & other for one, other in itertools.combinations(shards, 2)), "shards are not cut"


@pytest.mark.parametrize("chance", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_damage_is_not_packed_and_in_a_pack_it_is_found(
    out: Folder, capsys: pytest.CaptureFixture[str], chance: int
) -> None:
    path = sorted(Path(out.path).glob(f"records/explainer={E1}/*.parquet"))[chance]
    sound = path.read_bytes()
    path.write_bytes(sound[:50] + bytes([sound[50] ^ 1]) + sound[51:])
    names = files(out)
    assert main(["prune", out.uri, "--compact", "--yes"]) == ExitCode.USAGE
    assert path.name in capsys.readouterr().err
    assert files(out) == names
    path.write_bytes(sound)
    compact(out, capsys, "--yes")
    (packed,) = Path(out.path).glob(f"records/explainer={E1}/pack-*.parquet")
    data = bytearray(packed.read_bytes())
    data[200 + chance] ^= 1
    packed.write_bytes(data)
    found = list(find_problems(out, Table(out)))
    assert len(found) == 2 * NIGHTS
    assert all(packed.name in problem for problem in found)


@pytest.mark.slow
def test_an_image_of_a_pack_is_forgotten(out: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    compact(out, capsys, "--yes")
    assert print_forget(out.uri, "1.jpg", "/data/b2.tar", True, True) == 0
    capsys.readouterr()
    assert len(visible(out)) == 65
    assert not list(Path(out.path).glob(f"records/explainer={E1}/pack-*"))
    assert problems(out) == []


@pytest.mark.slow
def test_groups_of_loose_files_are_remembered(out: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(5):
        remember(out, "/photos", [Group(number, 0, (LooseFile(f"{number}.jpg", 9, "1"),))])
    before = recall(out, "/photos")
    compact(out, capsys, "--yes")
    assert recall(out, "/photos") == before
    assert len(DeltaTable(out.child_uri("intake")).file_uris()) == 1
    remember(out, "/photos", [Group(5, 0, (LooseFile("5.jpg", 9, "1"),))])
    assert main(["verify", out.uri]) == 0


# ── killed ───────────────────────────────────────────────────────────────────────────────────────


class KilledError(BaseException):
    """The process ends here."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the process die before its n-th write of a file, or of an entry."""
    left = [10**9]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*about: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            return real(*about, **more)

        return act

    monkeypatch.setattr(Folder, "write", counted(Folder.write))
    monkeypatch.setattr(Folder, "delete", counted(Folder.delete))
    monkeypatch.setattr(Table, "_put", counted(Table._put))
    return lambda n: left.__setitem__(0, n)


@pytest.mark.slow
def test_killed_at_every_write_no_row_is_lost_and_the_same_command_ends_it(
    out: Folder, capsys: pytest.CaptureFixture[str], kill_at: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(holds, "STALE_S", 0.0)  # this process lives on, and its heartbeat is there
    before = visible(out)
    for moment in range(100):
        kill_at(moment)
        try:
            compact(out, capsys, "--yes")
            break
        except KilledError:
            kill_at(10**9)
        assert visible(out) == before
        assert problems(out) == []
    assert moment > 4
    kill_at(10**9)
    compact(out, capsys, "--yes")
    assert visible(out) == before
    assert len(files(out)) == 2


@pytest.mark.slow
def test_unpacking_killed_at_every_write(
    out: Folder, capsys: pytest.CaptureFixture[str], kill_at: Callable[[int], None]
) -> None:
    compact(out, capsys, "--yes")
    before = visible(out)
    for moment in range(100):
        kill_at(moment)
        try:
            unpack(Table(out), E1, [shard("a1").key])
            break
        except KilledError:
            assert visible(out) == before
    assert moment == 3 * NIGHTS + 1
    assert visible(out) == before
    assert problems(out) == []


def test_what_a_killed_compaction_left_is_no_finished_chunk(out: Folder) -> None:
    table = Table(out)
    write_chunk(out, shard("new"), 0)
    packs._written(table, E1, find_packable(table, E1)[0])
    plan = make_plan(out, E1, [shard("new")], table.shards(E1), 4)
    assert plan.resumed == 1
    assert pack(table, E1, []) == 0


def test_a_pack_whose_footer_is_gone_is_named(out: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    compact(out, capsys, "--yes")
    (path,) = Path(out.path).glob(f"records/explainer={E1}/pack-*.parquet")
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(UsageError, match=r"pack-.* is damaged"):
        Table(out).shards(E1)
    assert main(["verify", out.uri]) == ExitCode.GATE


# ── a whole job ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_nights_after_it_do_only_what_is_new(
    tmp_path: Path, demo: Path, explain: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Loose images of three nights, packed; one changes, one is new: these two groups are done, no other."""
    archive, out = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()

    def night(*names: str) -> Any:
        for number, name in enumerate(names):
            (archive / name).write_bytes(picture(50 + number))
        return explain(archive, out, demo / "models" / "hans64-clean", overlay__policy="all").accounting

    def read() -> dict[tuple[str, str], dict[str, Any]]:
        found = DeltaTable(str(out / "records")).to_pyarrow_table().to_pylist()
        assert len({(row["shard"], row["member"]) for row in found}) == len(found)
        return {(row["shard"], row["member"]): row for row in found}

    assert [night(*(f"{n}{i}.png" for i in range(3))).members for n in range(3)] == [3, 3, 3]
    before = read()
    compact(open_folder(str(out), "OUT"), capsys, "--yes")
    assert len(list(out.glob("records/explainer=*/pack-*"))) == 1
    assert night().members == 0
    (archive / "11.png").write_bytes(picture(99))
    assert night("new.png").members == 4
    after = read()
    assert len(after) == 10
    same = {key: row for key, row in before.items() if not key[1].startswith("1")}
    assert {key: after[key] for key in same} == same
    (then, now) = ([r["content_sha256"] for k, r in s.items() if k[1] == "11.png"] for s in (before, after))
    assert then != now
    assert main(["verify", str(out), "--chain"]) == 0
