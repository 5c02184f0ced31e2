"""`ray job submit -- python jobs/explain.py` on a running cluster, with token authentication."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import camray

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node of its own: address of the job server, and the environment that may talk to it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "test-token-of-this-run",
        "PATH": f"{BIN}:{os.environ['PATH']}",  # jobs run with the head's PATH
    }
    dashboard, port = free_port(), free_port()
    session = Path("/tmp") / f"ray-job-{os.getpid()}"  # sockets: a path must stay under 107 characters
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--temp-dir={session}"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]  # the default is taken by this session's Ray
    command += ["--object-store-memory=200000000", "--disable-usage-stats", "--include-dashboard=true"]
    log = (tmp_path / "head.log").open("wb")
    head = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        log.close()
        shutil.rmtree(session, ignore_errors=True)


def submit(address: str, environment: dict[str, str], *entrypoint: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", "."]
    for _ in range(30):
        done = subprocess.run(
            [*command, "--", *entrypoint],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if not any(text in done.stderr for text in ("Failed to connect", "try again later")):
            return done
        time.sleep(2)  # the head is still starting
    return done


def test_the_submitted_job_fills_the_table(
    cluster: tuple[str, dict[str, str]], demo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    model, archive = str(demo / "models" / "hans64-clean"), str(demo / "archive")
    job = ("python", "jobs/explain.py", archive, str(out), "--model", model)
    done = submit(*cluster, *job)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "360 members = 360 ok" in done.stdout
    assert "camray: exit 0: done" in done.stdout
    rows = camray.open_records(str(out)).to_table(columns=["member", "status"]).to_pylist()
    assert len(rows) == len({r["member"] for r in rows}) == 360

    refused = submit(*cluster, *job[:4], "--model", "resnet51")
    assert refused.returncode == 1  # all that `ray job submit` can say
    assert "camray: exit 2" in refused.stdout
