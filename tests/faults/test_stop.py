"""Asked to stop, a run stops soon with the right code and resumes; a second run into one OUT is refused."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from camray.flow.stopping import Stopped, handlers_kept, stoppable
from tests.faults.test_kill import CHUNK, EXPECTED, archive, committed, start, wait_for_files

__all__ = ["archive"]
SEEDS = int(os.environ.get("CAMRAY_STOP_SEEDS", "10"))
STOPS = ((signal.SIGTERM, 143), (signal.SIGINT, 130))


def wait_for_handlers(process: subprocess.Popen[bytes]) -> None:
    """Wait until Python has started and the command has begun: before that, nobody can answer a signal."""
    caught = 0
    while process.poll() is None and not caught >> (signal.SIGTERM - 1) & 1:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        time.sleep(0.005)


def stop(process: subprocess.Popen[bytes], number: int, code: int) -> None:
    """Ask to stop; unless it had just ended, it must do so soon and say so."""
    os.kill(process.pid, number)
    asked = time.monotonic()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode in (code, 0), stderr.decode()
    assert time.monotonic() - asked < 30
    assert b"Traceback" not in stderr, stderr.decode()
    assert f"camray: exit {process.returncode}".encode() in stderr


def stop_while_it_prepares(demo: Path, out: Path, number: int, code: int, sabotage: str = "pass") -> None:
    line = f"import sys, camray.cli.main as cli; {sabotage}; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", line, "explain", str(demo / "archive"), str(out), "--model"]
    process = subprocess.Popen([*command, str(demo / "models/hans64-clean")], stderr=subprocess.PIPE)
    if sabotage == "pass":
        wait_for_handlers(process)
    time.sleep(random.Random(code).uniform(0.3, 0.8))
    stop(process, number, code)
    assert process.returncode == code
    assert not out.exists()


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_signal_while_it_prepares(number: int, code: int, demo: Path, tmp_path: Path) -> None:
    stop_while_it_prepares(demo, tmp_path / "out", number, code)


def test_sabotage_of_the_handlers_is_noticed(demo: Path, tmp_path: Path) -> None:
    without = "import contextlib; cli.stoppable = contextlib.nullcontext"
    with pytest.raises(AssertionError):
        stop_while_it_prepares(demo, tmp_path / "out", signal.SIGTERM, 143, without)


def test_sigterm_while_a_library_has_replaced_the_handler() -> None:
    """`ray.init` sets one that leaves with exit code 15, then one with 1, before ours is put back."""

    def start() -> None:
        with handlers_kept():
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped) as stopped, stoppable():
        start()
    assert stopped.value.code == 143


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(SEEDS))
def test_signal_at_a_random_moment(seed: int, archive: Path, demo: Path, tmp_path: Path) -> None:
    chance, out = random.Random(seed), tmp_path / "out"
    number, code = STOPS[seed % 2]
    process = start(archive, out, demo)
    wait_for_handlers(process)
    if chance.random() < 0.5:  # while it imports, prepares, starts Ray, loads the model
        time.sleep(chance.uniform(0, 10))
    else:
        wait_for_files(process, out, chance.randint(1, len(EXPECTED) // CHUNK - 1))
    stop(process, number, code)
    before = committed(out)
    print(f"seed {seed}: exit {process.returncode}, {len(before)} rows committed before")
    again = start(archive, out, demo)
    _, stderr = again.communicate(timeout=600)
    assert again.returncode == 0, stderr.decode()
    after = committed(out)
    assert after.keys() == EXPECTED
    assert all(after[m]["run_id"] == row["run_id"] for m, row in before.items())


@pytest.mark.faults
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
