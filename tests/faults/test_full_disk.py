"""No space, or no inodes, left in OUT: exit 4 in one line; with room again, the same command finishes.

The whole job on Ray, OUT on a small tmpfs. Needs root to mount it; skipped otherwise.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.test_kill import EXPECTED, archive, committed, start

__all__ = ["archive"]
pytestmark = pytest.mark.faults


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


@pytest.mark.parametrize("limit", ["size=1500k", "size=100m,nr_inodes=120"])
def test_full(limit: str, small_disk: Path, archive: Path, demo: Path) -> None:
    out = small_disk / "out"
    subprocess.run(["mount", "-o", f"remount,{limit}", str(small_disk)], check=True)
    process = start(archive, out, demo)
    _, stderr = process.communicate(timeout=300)
    said = stderr.decode()
    assert process.returncode == 4, said
    assert "no space left in OUT; what is committed stays, the same command resumes" in said
    assert "Traceback" not in said
    before = committed(out)
    subprocess.run(["mount", "-o", "remount,size=200m,nr_inodes=100000", str(small_disk)], check=True)
    again = start(archive, out, demo)
    _, stderr = again.communicate(timeout=300)
    assert again.returncode == 0, stderr.decode()
    after = committed(out)
    assert after.keys() == EXPECTED
    assert all(after[m]["run_id"] == row["run_id"] for m, row in before.items())
    assert os.statvfs(out).f_bavail
