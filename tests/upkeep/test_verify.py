"""`verify` finds every way in which an OUT can be wrong, and nothing in one that is right."""

import json
import os
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camray.cli.main import main
from camray.config import ArchiveConfig, Config
from camray.errors import ExitCode, UsageError
from camray.ledger.committed import CommittedFiles
from camray.ledger.out import open_out
from camray.ledger.runs import first_report
from camray.ledger.table import ShardCommit, Table
from camray.records import Accounting, Receipt, account
from camray.storage import Folder, open_folder
from camray.upkeep.status import committed_shards, print_status, totals
from camray.upkeep.verify import find_problems, print_verify
from tests.ledger.ledger_world import E1, E2, committed, described, rows, shard, shard_error_row, write_chunk

PICTURE = "overlays/e/s/000000-0.jpg"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two explainers, three shards: a whole one with an overlay, one with failures, a broken one."""
    out = open_folder(str(tmp_path_factory.mktemp("sound") / "out"), "OUT")
    path = PICTURE.replace("/e/", f"/{E1}/")
    out.write(path, b"\xff\xd8 a picture")
    committed(out, shard("a"), [rows(0, 4, overlay_path=[path, None, None, None]), rows(4, 2)])
    mixed = rows(
        0,
        4,
        status=["ok", "failed", "skipped", "failed"],
        error_code=[None, "empty_file", None, "bad_target"],
    )
    committed(out, shard("b"), [mixed], explainer=E2)
    receipts = tuple(
        write_chunk(out, shard("c"), i, t)
        for i, t in enumerate([rows(0, 3), shard_error_row("shard_truncated")])
    )
    commit(out, "c", receipts, account(receipts) + Accounting(shard_errors={"shard_truncated": 1}))
    described(out, "r1")
    return Path(out.path)


@pytest.fixture
def out(sound: Path, tmp_path: Path) -> Folder:
    """A copy of the sound OUT, to be damaged."""
    return open_folder(str(shutil.copytree(sound, tmp_path / "out")), "OUT")


def commit(out: Folder, name: str, receipts: tuple[Receipt, ...], said: Accounting) -> None:
    table = Table(out)
    assert table.commit(E1, "r1", [ShardCommit(shard(name), receipts, said)])


def problems(out: Folder) -> list[str]:
    return list(find_problems(*open_out(out.uri)))


def record_file(out: Folder, name: str = "a", chunk: int = 0) -> Path:
    (found,) = Path(out.path).glob(f"records/explainer=*/{shard(name).id}-{chunk:06d}-*.parquet")
    return found


def test_a_sound_out_passes(out: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(out) == []
    assert print_verify(out.uri, as_json=False) == ExitCode.DONE
    assert capsys.readouterr().out == "3 shards, 13 members: all accounted for\n"
    assert print_verify(out.uri, as_json=True) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out) == {"shards": 3, "members": 13, "problems": []}


@pytest.mark.parametrize("seed", range(40))
def test_no_bit_flips_unseen(out: Folder, seed: int) -> None:
    """`tests/faults/test_bit_flips.py` draws 1,000."""
    chance, file = random.Random(seed), record_file(out)
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)
    (problem,) = problems(out)
    assert file.name in problem


def test_a_changed_shard_is_checked_in_its_new_content(out: Folder) -> None:
    committed(out, shard("a", "v2"), [rows(0, 2)], run_id="r2")
    described(out, "r2")
    assert problems(out) == []
    assert print_verify(out.uri, as_json=False) == ExitCode.DONE


def test_leftovers_of_a_killed_run_are_no_problem(out: Folder) -> None:
    write_chunk(out, shard("z"), 0)
    out.write(f"records/explainer={E1}/.{'0' * 32}.tmp", b"torn")
    assert problems(out) == []


def test_a_missing_file(out: Folder) -> None:
    record_file(out).unlink()
    (said,) = problems(out)
    assert "/data/a.tar" in said
    assert record_file(out, chunk=1).name.rpartition("-")[0][:-7] in said


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_truncated_file(out: Folder, keep: float) -> None:
    path, whole = record_file(out), record_file(out).read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    (said,) = problems(out)
    assert "/data/a.tar" in said
    assert f"committed with {len(whole)}" in said


def test_a_flipped_byte_in_any_page(out: Folder) -> None:
    path, whole = record_file(out), record_file(out).read_bytes()
    group = pq.read_metadata(path).row_group(0)
    for name in ("member", "confidence", "heatmap.list.element"):
        column = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == name)
        data = bytearray(whole)
        start = min(column.dictionary_page_offset or column.data_page_offset, column.data_page_offset)
        data[start + column.total_compressed_size - 1] ^= 0x10
        path.write_bytes(data)
        assert len(problems(out)) == 1, name
    path.write_bytes(whole)
    assert problems(out) == []


def test_damage_anywhere_is_a_finding_or_harmless_but_never_a_crash(out: Folder) -> None:
    path, whole = record_file(out), record_file(out).read_bytes()
    sound, chance = pq.ParquetFile(path).read(), random.Random(0)
    for _ in range(150):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        if not problems(out):  # then what readers see must be what was written
            assert pq.ParquetFile(path).read().equals(sound)


def test_an_overlay_that_is_gone_or_empty(out: Folder) -> None:
    path = Path(out.path) / PICTURE.replace("/e/", f"/{E1}/")
    path.write_bytes(b"")
    (said,) = problems(out)
    assert said.startswith("shard /data/a.tar: overlay of 0.jpg is missing or empty")
    path.unlink()
    assert len(problems(out)) == 1


def test_a_member_without_a_row(out: Folder) -> None:
    receipt = write_chunk(out, shard("d"), 0, rows(0, 3))
    commit(out, "d", (receipt,), Accounting(ok=4))
    assert problems(out) == ["shard /data/d.tar: 3 rows are ok, the commit says 4"]


def test_a_member_with_two_rows(out: Folder) -> None:
    twice = pa.concat_tables([rows(0, 3), rows(2, 1)])
    receipt = write_chunk(out, shard("d"), 0, twice)
    commit(out, "d", (receipt,), account([receipt]))
    assert problems(out) == ["shard /data/d.tar: 1 members have more than one row for the same class"]


def test_a_row_in_the_wrong_file_shows_in_both_counts(out: Folder) -> None:
    receipts = (write_chunk(out, shard("d"), 0, rows(0, 2)), write_chunk(out, shard("d"), 1, rows(1, 2)))
    commit(out, "d", receipts, account(receipts))
    assert problems(out) == [
        "shard /data/d.tar: 1 members have more than one row for the same class",
        "shard /data/d.tar: 3 rows are ok, the commit says 4",
    ]


def test_one_row_for_each_class_of_a_member_is_no_problem(out: Folder) -> None:
    receipt = write_chunk(out, shard("d"), 0, rows(0, 2, index=[0, 0], target_class=[1, 2]))
    commit(out, "d", (receipt,), account([receipt]))
    assert problems(out) == []


def test_failures_under_another_code(out: Folder) -> None:
    receipt = write_chunk(out, shard("d"), 0, rows(0, 1, status=["failed"], error_code=["empty_file"]))
    commit(out, "d", (receipt,), Accounting(failed={"bad_target": 1}))
    (said,) = problems(out)
    assert "empty_file" in said
    assert "bad_target" in said


def test_a_heatmap_of_the_wrong_size(out: Folder) -> None:
    receipt = write_chunk(out, shard("d"), 0, rows(0, 1, heat_h=[3]))
    commit(out, "d", (receipt,), account([receipt]))
    assert problems(out) == ["shard /data/d.tar: heatmap of 0.jpg has 4 values"]


def test_fewer_rows_than_the_commit_says(out: Folder) -> None:
    receipt = write_chunk(out, shard("d"), 0, rows(0, 3))
    commit(out, "d", (replace(receipt, rows=4),), Accounting(ok=3))
    (said,) = problems(out)
    assert "3 rows, committed with 4" in said


def test_columns_of_another_kind(out: Folder) -> None:
    path = record_file(out)
    table = pq.ParquetFile(path).read().drop_columns(["entropy"])
    pq.write_table(table, path)
    (said,) = problems(out)
    assert "/data/a.tar" in said


def test_a_shard_that_vanished_from_the_table(out: Folder) -> None:
    delta = open_out(out.uri)[1].delta
    assert delta is not None
    delta.delete(f"explainer = '{E2}'")
    assert problems(out) == ["shard /data/b.tar: its record files are not in the table"]


def test_rows_that_nobody_accounts_for(out: Folder) -> None:
    from deltalake import write_deltalake

    delta = open_out(out.uri)[1].delta
    assert delta is not None
    alien = rows(0, 1).append_column("explainer", pa.array([E1]))
    write_deltalake(delta, alien, mode="append")
    assert any("which camray did not write" in p for p in problems(out))


def test_a_table_compacted_by_another_tool_is_refused_not_doubled(out: Folder) -> None:
    """Shards are found by file names: after a compaction a run would add all rows a second time."""
    delta = open_out(out.uri)[1].delta
    assert delta is not None
    delta.optimize.compact()
    assert any("a compaction?" in p for p in problems(out))
    with pytest.raises(UsageError, match="a compaction"):
        Table(out).shards(E1)


def test_a_name_that_ends_like_one_of_ours_is_not_ours() -> None:
    """A compaction's name carries a UUID; one in 300 has digits alone where ours has the chunk."""
    alien = "explainer=e/part-00001-0f8fad5b-d9cb-469f-a165-708673289507-c000.zstd.parquet"
    columns = {"path": [alien], "size_bytes": [1], "num_records": [1]}
    with pytest.raises(UsageError, match="a compaction"):
        CommittedFiles(pa.table(columns))


def test_an_explainer_that_nobody_described(out: Folder) -> None:
    (Path(out.path) / f"explainers/{E2}.json").unlink()
    assert problems(out) == [f"explainers/{E2}.json is missing"]


def test_each_problem_is_one_printable_line(out: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    bad = replace(shard("d"), uri="/data/\x1b[31m\nevil.tar")
    receipt = write_chunk(out, bad, 0, rows(0, 1))
    Table(out).commit(E1, "r1", [ShardCommit(bad, (receipt,), Accounting(ok=2))])
    assert print_verify(out.uri, as_json=False) != ExitCode.DONE
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert lines[1].endswith("1 problems")


def test_a_folder_that_is_no_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"OUT: .* holds no camray records"):
        open_out(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


# ── status ───────────────────────────────────────────────────────────────────────────────────────


def test_status_adds_up_what_is_committed_now(out: Folder) -> None:
    committed(out, shard("a", "v2"), [rows(0, 2)], run_id="r2")
    found = totals(Table(out))
    assert found[E1] == (2, Accounting(ok=5, shard_errors={"shard_truncated": 1}))
    assert found[E2] == (1, Accounting(ok=1, skipped=1, failed={"empty_file": 1, "bad_target": 1}))
    assert {key for _, key in committed_shards(Table(out))} == {shard(n).key for n in "abc"}


def test_status_for_people_and_machines(out: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_status(out.uri, as_json=False) == ExitCode.DONE
    text = capsys.readouterr().out
    assert f"explainer {E1}  (m, gradcam at layer1, target predicted)" in text
    assert "2 shards: 9 members = 9 ok + 0 failed + 0 skipped" in text
    assert "1 shards not read to their end: shard_truncated" in text
    assert re.search("1 failed  bad_target +the same command with --retry bad_target", text)
    print_status(out.uri, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["explainers"][E2]["failed"] == {"empty_file": 1, "bad_target": 1}
    assert [run["run_id"] for run in facts["runs"]] == ["r1"]


def test_status_says_what_fills_the_disk_and_what_prune_would_free(
    out: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    nobodys = Path(out.path) / "overlays" / "nobodys.jpg"
    nobodys.parent.mkdir(exist_ok=True)
    nobodys.write_bytes(bytes(2_500_000))
    os.utime(nobodys, (1e9, 1e9))
    assert main(["status", out.uri]) == ExitCode.DONE
    text = capsys.readouterr().out
    assert "overlays 2.5" in text
    assert "prune OUT: would free 2.5 MB, 1 overlays" in text
    told = [line for line in text.splitlines() if not line.startswith(("explainer", "run"))]
    assert [line for line in told if len(line) > 80] == []
    assert main(["prune", out.uri, "--yes"]) == ExitCode.DONE
    assert not nobodys.exists()


def test_status_names_the_part_that_a_run_asked_for(out: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    archive = ArchiveConfig(sample=5, seed=3, exclude=("b*",))
    report = first_report("r2", E1, Config(archive=archive), {})
    report.ended(ExitCode.DONE, Accounting(), 1.0, {}).write(out)
    print_status(out.uri, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert "  done  nothing new of --sample 5 --seed 3 --exclude b*" in lines[-1]
    assert " of " not in lines[-2]
