"""`--limit` and `--sample` over what is there: the table grows to what is asked for, and never shrinks."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

import camray
from camray.archive.listing import list_archive
from camray.archive.members import image_indices, select
from camray.job.prepare import describe_plan, prepare
from camray.ledger.table import Table
from camray.storage import open_folder
from tests.audit.night_world import explain, settings_for
from tests.job.test_retry import picture, write

Images = set[tuple[str, int]]  # shard, index


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three shards of six."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for name in "abc":
        write(folder / f"{name}.tar", *(picture(40 + i) for i in range(6)))
    return folder


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    folder = tmp_path / "loose"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02}.png").write_bytes(picture(40 + i))
    return folder


def there(out: Path) -> Images:
    """Every image that has a row; never two rows."""
    rows = camray.open_records(str(out)).to_table(columns=["shard", "index"]).to_pylist()
    found = {(row["shard"], row["index"]) for row in rows}
    assert len(found) == len(rows), "an image has two rows"
    return found


def asked(settings: Any) -> Images:
    """What a command asks for of shards, whatever is in the table."""
    chosen = select(list_archive(settings.archive), settings.archive).shards
    parts = {
        s.uri: image_indices(s, settings.archive) if s.selection is None else s.selection for s in chosen
    }
    return {(uri, index) for uri, part in parts.items() for index in part}


def wanted(place: Path, out: Path, **settings: Any) -> Any:
    return settings_for(place, out, **{f"archive__{name}": value for name, value in settings.items()})


@pytest.mark.parametrize("kind", [pytest.param("archive", marks=pytest.mark.slow), "loose"])
def test_asked_for_less_nothing_is_done_and_nothing_goes(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place, out = request.getfixturevalue(kind), tmp_path / "out"
    assert explain(wanted(place, out, limit=10), "ten") == 10
    before = there(out)
    version = Table(open_folder(str(out), "OUT")).version
    assert explain(wanted(place, out, limit=5), "five") == 0
    assert explain(wanted(place, out, limit=10), "ten again") == 0
    assert there(out) == before
    assert len(before) == 10
    assert Table(open_folder(str(out), "OUT")).version == version
    facts = describe_plan(prepare(wanted(place, out, limit=5)))
    many = {"archive": 2, "loose": 1}[kind]  # of a all and of b four are there; of the folder ten
    assert facts["more"] == f"{many} shards keep rows that only other commands asked for"
    assert "gone" not in facts


@pytest.mark.slow
def test_a_longer_part_replaces_a_shorter_one_and_the_whole_both(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for limit in (2, 4, 9, 3, 14):
        explain(wanted(archive, out, limit=limit), f"first {limit}")
        assert there(out) >= asked(wanted(archive, out, limit=limit))
    assert there(out) == asked(wanted(archive, out, limit=14))
    assert explain(wanted(archive, out), "all") == 6  # of the last shard alone
    assert len(there(out)) == 18
    assert explain(wanted(archive, out, limit=4), "few") == 0
    assert explain(wanted(archive, out, sample=4), "some") == 0
    assert len(there(out)) == 18


@pytest.mark.slow
def test_samples_of_other_seeds_add_up(archive: Path, tmp_path: Path) -> None:
    out, so_far = tmp_path / "out", set[tuple[str, int]]()
    for seed in (1, 2, 3):
        settings = wanted(archive, out, sample=5, seed=seed)
        assert not asked(settings) <= so_far
        so_far |= asked(settings)
        explain(settings, f"seed {seed}")
        assert there(out) == so_far
        assert explain(settings, "again") == 0


@pytest.mark.parametrize("die_after", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_killed_midway_it_is_resumed(archive: Path, tmp_path: Path, die_after: int) -> None:
    out = tmp_path / "out"
    first, second = (wanted(archive, out, sample=9, seed=seed) for seed in (1, 2))
    explain(first, "first")
    explain(second, "killed", die_after=die_after)
    assert there(out) >= asked(first)
    explain(second, "resumed")
    assert there(out) == asked(first) | asked(second)


@pytest.mark.slow
def test_files_that_a_filter_leaves_out_keep_their_rows_and_one_that_is_gone_is_not_read(
    loose: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    explain(wanted(loose, out, limit=4), "four")
    explain(wanted(loose, out, exclude=["00.png"], limit=2), "without the first")
    assert {index for _, index in there(out)} == {0, 1, 2, 3}
    (loose / "03.png").unlink()
    explain(wanted(loose, out, limit=6), "one is gone")
    rows = camray.open_records(str(out)).to_table(columns=["index", "status"]).to_pylist()
    assert {row["index"]: row["status"] for row in rows} == dict.fromkeys((0, 1, 2, 4, 5, 6), "ok")
    assert explain(wanted(loose, out, limit=5), "fewer") == 0


@pytest.mark.slow
def test_of_a_shard_that_changed_the_last_command_counts(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    explain(wanted(archive, out, limit=4), "first")
    write(archive / "a.tar", *(picture(80 + i) for i in range(7)))
    explain(wanted(archive, out, limit=3), "second")
    assert there(out) == asked(wanted(archive, out, limit=3))


@pytest.mark.slow
def test_whatever_commands_come(archive: Path, tmp_path: Path) -> None:
    """Every order of four commands: all that was asked for is there, and nothing else."""
    commands = ({"limit": 5}, {"limit": 9}, {"sample": 4, "seed": 1}, {"sample": 7, "seed": 2})
    for number, order in enumerate(itertools.permutations(commands)):
        out, so_far = tmp_path / f"out{number}", set[tuple[str, int]]()
        for settings in order:
            explain(wanted(archive, out, **settings), "run")
            so_far |= asked(wanted(archive, out, **settings))
            assert there(out) == so_far
