"""Three nights on a cluster of two nodes, started as docs/operations.md says, with token authentication.

The first night runs to its end, the second is stopped midway and submitted again, in the third a node is
killed. The truth is the archive itself: every member once, with the checksum of its bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tarfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import camray
from tests.acceptance.test_job_submit import BIN, ROOT, free_port
from tests.flow.test_metrics import scraped

MODEL = '''
import time
from torch import nn


class Slow(nn.Module):
    """Six classes, and 0.15 s a batch: a night must be long enough to be stopped."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6))

    def forward(self, x):
        time.sleep(0.15)
        return self.head(self.features(x))
'''
pytestmark = pytest.mark.slow


def documented(word: str) -> list[str]:
    """The one line of docs/operations.md that has this word, without environment and comment."""
    page = (ROOT / "docs" / "operations.md").read_text()
    code = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.S))
    (line,) = [text for text in code.splitlines() if word in text]
    words = shlex.split(line.partition(" #")[0])
    return words[1:] if words[0] == "RAY_AUTH_MODE=token" else words


class Cluster:
    """A head and a worker, each a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.environment = {name: v for name, v in os.environ.items() if not name.startswith("RAY_")}
        self.environment |= {
            "RAY_AUTH_MODE": "token",
            "HOME": str(folder),  # where the token is
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_metrics_report_interval_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",  # a dead node is noticed in seconds, not in half a minute
            "OMP_NUM_THREADS": "1",
        }
        self.environment.pop("RAY_AUTH_TOKEN", None)
        self.session = Path("/tmp") / f"ray-nights-{os.getpid()}"  # sockets: a short path
        self.log = (folder / "nodes.log").open("wb")
        self.port, self.dashboard, self.metrics = free_port(), free_port(), free_port()
        subprocess.run(
            documented("get-auth-token"), env=self.environment, check=True, capture_output=True
        )  # fmt: skip
        assert (folder / ".ray" / "auth_token").stat().st_size > 20
        self.head = self._node(
            "start --head", f"--temp-dir={self.session}", f"--dashboard-port={self.dashboard}"
        )
        self.worker: subprocess.Popen[bytes] | None = None

    def _node(self, word: str, *more: str) -> subprocess.Popen[bytes]:
        metrics = self.metrics if "head" in word else free_port()
        given = {
            "--port=6379": f"--port={self.port}",
            "--address=HEAD:6379": f"--address=127.0.0.1:{self.port}",
        }
        given["--metrics-export-port=8080"] = f"--metrics-export-port={metrics}"
        words = [given.get(w, w) for w in documented(word)]
        words += ["--block", "--num-cpus=1", "--object-store-memory=150000000", *more]
        words += [f"--dashboard-agent-listen-port={free_port()}"]
        return subprocess.Popen(
            words, env=self.environment, stdout=self.log, stderr=self.log, start_new_session=True
        )  # fmt: skip

    def ray(self, *words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Run one `ray` command of a client."""
        return subprocess.run(
            ["ray", *words], cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False,
            timeout=timeout,
        )  # fmt: skip

    def add_worker(self) -> None:
        """Start the second node and wait until it is up."""
        self.worker = self._node("ray start --address")
        until(lambda: Path(self.log.name).read_text().count("Ray runtime started") == 2, 120)

    def ask(self, path: str) -> dict[str, str]:
        """Ask the job server, with the token; nothing where it is not up yet."""
        token = (Path(self.environment["HOME"]) / ".ray" / "auth_token").read_text().strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.dashboard}/api/{path}", headers={"Authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                found: dict[str, str] = json.load(answer)
                return found
        except OSError:
            return {}

    def kill_worker(self) -> None:
        """Take the second node away without a word."""
        assert self.worker is not None
        os.killpg(self.worker.pid, signal.SIGKILL)
        self.worker.wait()
        self.worker = None

    def submit(self, job: str, *words: str, wait: bool) -> subprocess.CompletedProcess[str]:
        """Submit the audit under a name, as the page says."""
        address = f"--address=http://127.0.0.1:{self.dashboard}"
        line = documented("ray job submit")
        assert line[:3] == ["ray", "job", "submit"]
        options = line[3 : line.index("--")]
        given = [address if w.startswith("--address") else w for w in options]
        given += [f"--submission-id={job}", *([] if wait else ["--no-wait"])]
        entry = line[line.index("--") + 1 : line.index("--config")]
        return self.ray("job", "submit", *given, "--", *entry, *words)

    def state(self, job: str) -> str:
        """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
        return self.ask(f"jobs/{job}").get("status", "")

    def said(self, job: str) -> str:
        """The log of a job."""
        return self.ask(f"jobs/{job}/logs").get("logs", "")

    def end(self) -> None:
        """Leave nothing behind."""
        for node in (self.worker, self.head):
            if node is not None:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()
        self.log.close()
        shutil.rmtree(self.session, ignore_errors=True)


def until(true: Callable[[], bool], seconds: float) -> None:
    """Wait for something to come true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.5)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    home = tmp_path / "home"
    home.mkdir()
    made = Cluster(home)
    try:
        until(lambda: "ray_version" in made.ask("version"), 120)
        made.add_worker()
        yield made
    finally:
        made.end()


def bytes_in(archive: Path) -> dict[tuple[str, str], str]:
    """What the archive holds: (shard, image) -> checksum."""
    found = {}
    for path in sorted(archive.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                if info.name.endswith(".jpg"):
                    data = tar.extractfile(info)
                    assert data is not None
                    found[path.name, info.name] = hashlib.sha256(data.read()).hexdigest()
    return found


def rows_of(out: Path) -> list[dict[str, object]]:
    columns = ["shard", "member", "status", "content_sha256", "run_id", "predicted_class"]
    return camray.open_records(str(out)).to_table(columns=columns).to_pylist()


def is_right(archive: Path, out: Path) -> None:
    """Every image of the archive has one healthy row with its own checksum, and there is no other row."""
    rows = rows_of(out)
    found = {(Path(str(r["shard"])).name, r["member"]): r["content_sha256"] for r in rows}
    assert len(rows) == len(found)
    assert found == bytes_in(archive)
    assert {r["status"] for r in rows} == {"ok"}
    assert None not in {r["predicted_class"] for r in rows}


def exits(out: Path) -> Counter[int]:
    reports = [json.loads(p.read_text()) for p in out.glob("runs/*/run.json")]
    return Counter(report["exit"] for report in reports)


def files(out: Path) -> int:
    return len(list(out.glob("records/explainer=*/*.parquet")))


def test_three_nights(cluster: Cluster, demo: Path, tmp_path: Path) -> None:
    import torch

    archive, out = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    (tmp_path / "slow.py").write_text(MODEL)
    space: dict[str, Callable[[], torch.nn.Module]] = {}
    exec(MODEL, space)
    torch.manual_seed(0)
    torch.save(space["Slow"]().state_dict(), tmp_path / "slow.pth")
    night = [
        str(archive),
        str(out),
        "--model",
        f"{tmp_path}/slow.py:Slow",
        "--checkpoint",
        f"{tmp_path}/slow.pth",
    ]
    night += [
        "--input-size",
        "64",
        "--resize",
        "64",
        "--batch-size",
        "4",
        "--chunk-size",
        "20",
        "--confirm",
        "0",
    ]

    def arrive(*numbers: int) -> None:
        for n in numbers:
            shutil.copy(demo / "archive" / f"hans64-{n:05}.tar", archive)

    arrive(0, 1)
    done = cluster.submit("first", *night, wait=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "camray: exit 0: done" in done.stdout
    is_right(archive, out)
    assert exits(out) == {0: 1}

    arrive(2, 3)
    before = files(out)
    assert cluster.submit("second", *night, wait=False).returncode == 0
    until(lambda: files(out) > before, 120)
    until(lambda: "ray_camray_images_total" in scraped(cluster.metrics), 30)
    cluster.ray("job", "stop", f"--address=http://127.0.0.1:{cluster.dashboard}", "second")
    until(lambda: cluster.state("second") == "STOPPED", 60)
    assert exits(out) == {0: 1, 143: 1}
    assert "camray: exit 143" in cluster.said("second")
    done = cluster.submit("second-again", *night, wait=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished chunks reused" in done.stdout
    is_right(archive, out)
    assert exits(out) == {0: 2, 143: 1}

    arrive(4, 5)
    before = files(out)
    assert cluster.submit("third", *night, wait=False).returncode == 0
    until(lambda: files(out) > before, 120)
    cluster.kill_worker()
    until(lambda: cluster.state("third") in ("SUCCEEDED", "FAILED"), 240)
    assert "camray: exit 0: done" in cluster.said("third")
    is_right(archive, out)
    assert exits(out) == {0: 3, 143: 1}
    board = (ROOT / "deploy" / "grafana-dashboard.json").read_text()
    assert set(scraped(cluster.metrics)) <= set(re.findall(r"ray_camray_\w+", board))
    assert scraped(cluster.metrics)["ray_camray_stage_seconds_total"]["stage", "explain"] > 1
