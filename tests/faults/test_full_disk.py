"""No space, or no inodes, left in OUT: exit 4 in one line; with room again, the same command finishes.

The small job, and by `make faults` the whole one on Ray, with OUT on a small tmpfs. Needs root to mount it;
skipped otherwise.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import test_kill, test_small_kills
from tests.faults.small_archive import Oracle
from tests.faults.small_job import Jobs, Order
from tests.faults.test_kill import EXPECTED, committed, start
from tests.faults.watcher import check, watched

whole_archive = test_kill.archive
archive, jobs = test_small_kills.archive, test_small_kills.jobs


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs: not root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def limited(disk: Path, limit: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{limit}", str(disk)], check=True)


def small_job_on_a_full_disk(
    jobs: Jobs, archive: tuple[str, Oracle], disk: Path, limit: str, sabotage: str = ""
) -> None:
    order = Order(archive[0], str(disk / "out"), sabotage=sabotage)
    limited(disk, limit)
    with watched(disk / "out") as reader:
        assert jobs.wait(jobs.start(order)) == 4, jobs.said()[-3000:]
        assert "no space left in OUT; what is committed stays, the same command resumes" in jobs.said()
        reader.look()
        limited(disk, "size=200m,nr_inodes=100000")
        assert jobs.wait(jobs.start(order)) == 0, jobs.said()[-3000:]
        check(reader.look(), archive[1])


LIMITS = ("size=200k,nr_inodes=100000", "size=100m,nr_inodes=30")


@pytest.mark.parametrize("limit", LIMITS)
def test_full_short(limit: str, small_disk: Path, jobs: Jobs, archive: tuple[str, Oracle]) -> None:
    small_job_on_a_full_disk(jobs, archive, small_disk, limit)


def test_sabotage_is_noticed(small_disk: Path, jobs: Jobs, archive: tuple[str, Oracle]) -> None:
    with pytest.raises(AssertionError):
        small_job_on_a_full_disk(jobs, archive, small_disk, LIMITS[0], "a full disk goes unnoticed")


@pytest.mark.faults
@pytest.mark.parametrize("limit", ["size=1500k", "size=100m,nr_inodes=120"])
def test_full(limit: str, small_disk: Path, whole_archive: Path, demo: Path) -> None:
    out = small_disk / "out"
    limited(small_disk, limit)
    process = start(whole_archive, out, demo)
    _, stderr = process.communicate(timeout=300)
    said = stderr.decode()
    assert process.returncode == 4, said
    assert "no space left in OUT; what is committed stays, the same command resumes" in said
    assert "Traceback" not in said
    before = committed(out)
    limited(small_disk, "size=200m,nr_inodes=100000")
    again = start(whole_archive, out, demo)
    _, stderr = again.communicate(timeout=300)
    assert again.returncode == 0, stderr.decode()
    after = committed(out)
    assert after.keys() == EXPECTED
    assert all(after[m]["run_id"] == row["run_id"] for m, row in before.items())
    assert os.statvfs(out).f_bavail
