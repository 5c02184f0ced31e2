"""README's `ray job submit`, as typed, on a running cluster with token authentication."""

from __future__ import annotations

import os
import shlex
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
README = ROOT / "README.md"
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head node of its own: the environment of a person whose HOME has its token."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "HOME": str(tmp_path),
        "PATH": f"{BIN}:{os.environ['PATH']}",  # jobs run with the head's
    }
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("test-token-of-this-run")
    dashboard, port = free_port(), free_port()
    session = Path("/tmp") / f"ray-job-{os.getpid()}"  # sockets: a path must stay under 107 characters
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--temp-dir={session}"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]  # the default is taken by this session's Ray
    command += ["--object-store-memory=200000000", "--disable-usage-stats", "--include-dashboard=true"]
    head_s = environment | {"RAY_AUTH_MODE": "token"}
    log = (tmp_path / "head.log").open("wb")
    head = subprocess.Popen(command, stdout=log, stderr=log, env=head_s, start_new_session=True)
    try:
        yield environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        log.close()
        shutil.rmtree(session, ignore_errors=True)


def submit(environment: dict[str, str], *job: str) -> subprocess.CompletedProcess[str]:
    """Type what README says, its job replaced."""
    (typed,) = [block for block in README.read_text().split("```") if "ray job submit" in block]
    assert " -- python jobs/explain.py ARCHIVE OUT" in typed
    script = f"{typed.removeprefix('sh').partition(' -- ')[0]} -- {shlex.join(job)}"
    for _ in range(30):
        done = subprocess.run(
            ["sh", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if not any(text in done.stderr for text in ("Failed to connect", "try again later")):
            return done
        time.sleep(2)  # the head is still starting
    return done


def test_the_submitted_job_fills_the_table(cluster: dict[str, str], demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model, archive = str(demo / "models" / "hans64-clean"), str(demo / "archive" / "hans64-00001.tar")
    job = ("python", "jobs/explain.py", archive, str(out), "--model", model)
    done = submit(cluster, *job)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "60 members = 60 ok" in done.stdout
    assert "camray: exit 0: done" in done.stdout
    rows = camray.open_records(str(out)).to_table(columns=["member", "status"]).to_pylist()
    assert len(rows) == len({r["member"] for r in rows}) == 60

    refused = submit(cluster, *job[:4], "--model", "resnet51")
    assert refused.returncode == 1  # all that `ray job submit` can say
    assert "camray: exit 2" in refused.stdout
