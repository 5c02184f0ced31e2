"""A Ray of the run's own is closed to others and quiet; a refusal is told as Ray tells it; lost is exit 4."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from camray.errors import ExitCode, IncompleteError, UsageError
from camray.flow import cluster
from camray.flow.stopping import Stopped, stop_for, stoppable
from camray.job.run import one_line_errors
from tests.faults.small_archive import make
from tests.faults.test_nodes import prepare
from tests.faults.watcher import check, watched

ROOT = Path(__file__).resolve().parents[2]
START = """
import os, sys
from camray.flow.cluster import connect, open_to_others
connect()
warning = open_to_others()
import ray
on_worker = ray.get(ray.remote(num_cpus=0)(lambda: "RAY_AUTH_TOKEN" in os.environ).remote())
print("warning:", warning)
print("ready", on_worker, "RAY_AUTH_TOKEN" in os.environ, flush=True)
sys.stdin.read()
"""


def descendants(pid: int) -> set[int]:
    found, todo = {pid}, [pid]
    while todo:
        for task in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            new = {int(child) for child in task.read_text().split()} - found
            found |= new
            todo += new
    return found


def listening(pids: set[int]) -> set[str]:
    """Give the addresses at which these processes accept TCP, as the kernel writes them."""
    sockets = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(fd))
            except OSError:
                continue
    rows = [
        line.split() for t in ("tcp", "tcp6") for line in Path(f"/proc/net/{t}").read_text().splitlines()[1:]
    ]
    return {r[1].partition(":")[0] for r in rows if r[3] == "0A" and f"socket:[{r[9]}]" in sockets}


@pytest.mark.faults
@pytest.mark.parametrize("mode", [None, "disabled"])
def test_a_ray_of_its_own_is_closed_to_others(mode: str | None, tmp_path: Path) -> None:
    """No socket but on loopback, no token in a file; disabled authentication is said."""
    given = {n: v for n, v in os.environ.items() if not n.startswith("RAY_")}
    given |= {"HOME": str(tmp_path)} | ({"RAY_AUTH_MODE": mode} if mode else {})
    job = subprocess.Popen(
        [sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=given, text=True, cwd=ROOT,
    )  # fmt: skip
    assert job.stdout is not None
    try:
        warning, ready = job.stdout.readline(), job.stdout.readline()
        assert ready == "ready True False\n"
        loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
        assert listening(descendants(job.pid)) | loopback == loopback
        assert len(listening(descendants(job.pid))) == 2  # both tables were read
        assert not (tmp_path / ".ray").exists()
        assert ("every user of this machine" in warning) == (mode == "disabled")
    finally:
        _, errors = job.communicate("")
    assert errors == ""


NOISY = """
import time
from camray.flow.cluster import connect
connect()
import ray

@ray.remote(num_cpus=0)
class Noisy:
    def fail(self):
        raise ValueError("a traceback of an actor nobody waits for")

noisy = Noisy.remote()
for _ in range(5):
    noisy.fail.remote()
ray.get(noisy.__ray_ready__.remote())
ray._private.utils.push_error_to_driver(ray._private.worker.global_worker, "noise", "what a raylet says")
time.sleep(2)
"""


@pytest.mark.faults
def test_what_ray_says_is_not_shown() -> None:
    """Failures that nobody asks about, and what raylets tell every driver: in the logs of Ray, not here."""
    given = {n: v for n, v in os.environ.items() if not n.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", NOISY], env=given, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Exception]]:
    """Let Ray raise what stands in the list."""
    raised: list[Exception] = []

    def refuse(**_: object) -> None:
        raise raised[0]

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster.ray, "init", refuse)
    monkeypatch.setattr(cluster.time, "sleep", lambda _: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return raised


def test_a_token_that_is_refused_is_told_as_ray_tells_it(
    refused: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    said = "Token authentication is enabled but no authentication token was found"
    refused.append(cluster.ray.exceptions.AuthenticationError(said))
    with pytest.raises(UsageError) as caught:
        cluster.connect()
    assert said in str(caught.value)
    assert "same versions" not in str(caught.value)
    assert "Fix: export RAY_AUTH_MODE=token" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "/tmp/ray/session"),
        OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: '/a/b'"),
        OSError(30, "Read-only file system", "/tmp/ray"),
    ],
    ids=str,
)
def test_no_place_for_rays_files_is_no_busy_machine(refused: list[Exception], error: OSError) -> None:
    refused.append(error)
    with pytest.raises(UsageError, match=r"TMPDIR: no place for Ray's files: .*RAY_TMPDIR="):
        cluster.connect()


def test_a_full_disk_under_ray_passes(refused: list[Exception]) -> None:
    refused.append(OSError(28, "No space left on device"))
    with pytest.raises(IncompleteError, match="No space left"):
        cluster.connect()


def test_what_another_thread_sees_stops_the_run_in_one_line() -> None:
    def work() -> None:
        threading.Thread(target=stop_for, args=["Ray's head has ended"]).start()
        time.sleep(30)

    with (
        pytest.raises(IncompleteError, match=r"^Ray's head has ended; .*resumes$"),
        one_line_errors(),
        stoppable(),
    ):
        work()
    stop_for("without a run nothing happens")
    with pytest.raises(Stopped) as stopped, stoppable():  # and nothing of it is left for the next signal
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == ExitCode.TERMINATED


@pytest.mark.faults
@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_a_ray_that_loses_its_head_or_raylet(victim: str, tmp_path: Path) -> None:
    """Exit 4 and one line, where the driver's process ended without a word; the same command resumes."""
    oracle = make(tmp_path / "archive", shards=6, members=20)
    options, out = prepare(tmp_path)[:-2], tmp_path / "out"
    command = [sys.executable, "-m", "camray.cli", "explain", str(tmp_path / "archive"), str(out), *options]
    command += ["--actors", "1", "--engine", "ray"]
    with watched(out) as reader:
        job = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        while job.poll() is None and len(list(out.glob("records/explainer=*/*.parquet"))) < 2:
            time.sleep(0.05)
        names = {}
        for process in descendants(job.pid):
            with suppress(OSError):  # it has ended meanwhile
                names[process] = Path(f"/proc/{process}/comm").read_text().strip()
        (pid,) = [p for p, name in names.items() if name == victim]
        os.kill(pid, signal.SIGKILL)
        shown, said = job.communicate(timeout=180)
        assert (job.returncode, shown) == (4, ""), said
        errors = [line for line in said.splitlines() if "error" in line]
        assert len(errors) == 1, said
        assert errors[0].endswith("; what is committed stays, the same command resumes")
        assert said.splitlines()[-1].startswith("camray: exit 4")
        (logs,) = re.findall(r"^Ray's own words are in (.+)$", said, re.M)
        assert (Path(logs) / "raylet.out").is_file()
        assert subprocess.run([*command[:-4], "--engine", "here"], check=False, cwd=ROOT).returncode == 3
        check(reader.look(), oracle)
