"""Night after night: only what is new is computed, what changed is replaced, bad files are accounted for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import camray
from tests.acceptance.test_forms import images_of_demo


def rows_of(out: Path) -> list[dict[str, object]]:
    return camray.open_records(str(out)).to_table().to_pylist()


def test_second_night_computes_only_the_new_images(
    demo: Path, explain: Callable[..., camray.job.run.Outcome], tmp_path: Path
) -> None:
    archive, out, model = tmp_path / "archive", tmp_path / "out", demo / "models" / "hans64-clean"
    archive.mkdir()
    images = sorted(images_of_demo(demo).items())
    for name, data in images[:40]:
        (archive / name).write_bytes(data)
    first = explain(archive, out, model)
    assert first.accounting.members == 40

    for name, data in images[40:42]:  # two names that sort after, one that sorts before all others
        (archive / name).write_bytes(data)
    (archive / "0-first.jpg").write_bytes(images[42][1])
    second = explain(archive, out, model)
    assert second.accounting.members == 3
    rows = rows_of(out)
    assert Counter(r["run_id"] for r in rows) == {first.run_id: 40, second.run_id: 3}
    assert len({r["member"] for r in rows}) == 43

    third = explain(archive, out, model)
    assert third.accounting.members == 0
    assert third.code == camray.ExitCode.DONE

    changed = archive / images[40][0]  # of the second night's group
    changed.write_bytes(images[43][1])
    os.utime(changed, ns=(1, 1))
    fourth = explain(archive, out, model)
    assert fourth.accounting.members == 3  # its group: nothing of the first night moves
    rows = rows_of(out)
    assert Counter(r["run_id"] for r in rows) == {first.run_id: 40, fourth.run_id: 3}
    assert len({r["member"] for r in rows}) == 43


def test_a_limited_run_is_completed_by_a_full_one(
    demo: Path, explain: Callable[..., camray.job.run.Outcome], tmp_path: Path
) -> None:
    out, model = tmp_path / "out", demo / "models" / "hans64-clean"
    shard = demo / "archive" / "hans64-00000.tar"
    assert explain(shard, out, model, archive__limit=7).accounting.members == 7
    assert explain(shard, out, model).accounting.members == 60
    members = [r["member"] for r in rows_of(out)]
    assert len(members) == len(set(members)) == 60
    assert explain(shard, out, model, archive__limit=7).accounting.members == 0


def test_difficult_files_are_all_accounted_for(
    shared: Path, demo: Path, explain: Callable[..., camray.job.run.Outcome], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    outcome = explain(
        shared / "nasty", out, demo / "models" / "hans64-clean", overlay__policy="all", overlay__on="original"
    )
    assert outcome.code == camray.ExitCode.FAILURES_OVER_BUDGET
    rows = {r["member"]: r for r in rows_of(out)}
    names = {p.name for p in (shared / "nasty").iterdir()}
    assert len(names) == 59
    assert rows.keys() == names
    for name, row in rows.items():
        if row["status"] == "ok":
            assert row["heat_status"] == "ok", name
            assert (out / str(row["overlay_path"])).stat().st_size > 0
        else:
            assert row["error_code"], name
            assert row["error_stage"], name
            assert row["error_message"], name
            assert row["confidence"] is None, name
    # Twins by content must agree, next to whichever bad file they lie.
    for column in ("predicted_class", "confidence", "content_sha256", "heatmap"):
        assert rows["dup_a.jpg"][column] == rows["dup_b.jpg"][column]
    # The same image with and without bad neighbours.
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "dup_a.jpg").write_bytes((shared / "nasty" / "dup_a.jpg").read_bytes())
    explain(alone, tmp_path / "out-alone", demo / "models" / "hans64-clean")
    (single,) = rows_of(tmp_path / "out-alone")
    assert single["heatmap"] == pytest.approx(rows["dup_a.jpg"]["heatmap"], abs=1e-5)


def test_a_truncated_shard_keeps_its_rows_under_an_error(
    demo: Path, explain: Callable[..., camray.job.run.Outcome], tmp_path: Path
) -> None:
    whole = (demo / "archive" / "hans64-00000.tar").read_bytes()
    archive, out = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    (archive / "cut.tar").write_bytes(whole[: len(whole) // 2])
    (archive / "whole.tar").write_bytes(whole)
    outcome = explain(archive, out, demo / "models" / "hans64-clean")
    assert outcome.code == camray.ExitCode.FAILURES_OVER_BUDGET
    assert outcome.accounting.shard_errors == {"shard_truncated": 1}
    rows = [r for r in rows_of(out) if r["shard"].endswith("cut.tar")]
    errors = [r for r in rows if r["member"] is None]
    assert [r["error_code"] for r in errors] == ["shard_truncated"]
    assert 0 < len(rows) - 1 < 60
    assert sum(r["shard"].endswith("whole.tar") for r in rows_of(out)) == 60
    assert explain(archive, out, demo / "models" / "hans64-clean").accounting.members == 0


def test_names_that_are_no_utf8(
    demo: Path, explain: Callable[..., camray.job.run.Outcome], tmp_path: Path
) -> None:
    archive, out, model = tmp_path / "archive", tmp_path / "out", demo / "models" / "hans64-clean"
    folder = os.fsencode(archive) + b"/gr\xfc"  # Latin-1, as old cameras and archives have it
    os.makedirs(folder)
    for name, data in zip((b"a\xff.jpg", b"b.jpg"), images_of_demo(demo).values(), strict=False):
        with open(folder + b"/" + name, "wb") as file:
            file.write(data)
    assert explain(archive, out, model).accounting.ok == 2
    assert {r["member"] for r in rows_of(out)} == {"gr\\udcfc/a\\udcff.jpg", "gr\\udcfc/b.jpg"}
    assert explain(archive, out, model).accounting.members == 0
