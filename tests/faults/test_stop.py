"""Asked to stop, a run stops soon with the right code and resumes; a second run into one OUT is refused."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.test_kill import EXPECTED, archive, committed, start, wait_for_files

__all__ = ["archive"]
pytestmark = pytest.mark.faults


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal(number: int, code: int, archive: Path, demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(archive, out, demo)
    wait_for_files(process, out, 6)
    os.kill(process.pid, number)
    asked = time.monotonic()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr.decode()
    assert time.monotonic() - asked < 30
    assert b"Traceback" not in stderr
    assert f"camray: exit {code}".encode() in stderr
    before = committed(out)
    again = start(archive, out, demo)
    _, stderr = again.communicate(timeout=600)
    assert again.returncode == 0, stderr.decode()
    after = committed(out)
    assert after.keys() == EXPECTED
    assert all(after[m]["run_id"] == row["run_id"] for m, row in before.items())


def test_second_run_is_refused(archive: Path, demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start(archive, out, demo)
    wait_for_files(first, out, 1)
    os.kill(first.pid, signal.SIGSTOP)  # it holds OUT and cannot end meanwhile
    try:
        second = start(archive, out, demo)
        _, stderr = second.communicate(timeout=300)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert second.returncode == 7, stderr.decode()
    assert f"process {first.pid}".encode() in stderr
    _, stderr = first.communicate(timeout=600)
    assert first.returncode == 0, stderr.decode()
    assert committed(out).keys() == EXPECTED
