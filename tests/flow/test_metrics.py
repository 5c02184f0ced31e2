"""The metrics of a run: what they count, and that a real Ray shows them under the names of the dashboard."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from pathlib import Path

import pytest

from camray.flow.metrics import COUNTERS, GAUGES, counted
from camray.flow.progress import Reporter, RunProgress
from camray.records import Chunk, Receipt

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = re.compile(r"^(ray_camray_\w+)\{(.*)\} (\S+)$", re.M)
RUN = """
import sys, time, ray
from camray.cli.main import main
ray.init(address="local", num_cpus=2, _metrics_export_port=int(sys.argv[1]), object_store_memory=200_000_000,
         include_dashboard=False, log_to_driver=False)
code = main(["audit", sys.argv[2], sys.argv[3], "--model", sys.argv[4], "--actors", "1"])
print("ended", code, flush=True)
time.sleep(float(sys.argv[5]))
"""


def test_what_is_counted_follows_from_receipts() -> None:
    following = RunProgress(Reporter(), shards=3, members=None)
    first = Receipt("s", 0, "a", 1, 10, 7, 1, {"empty_file": 2}, changed_answers=3, seconds={"explain": 2.5})
    second = Receipt("s", 1, "b", 1, 5, 4, 0, {"bad_target": 1}, seconds={"explain": 0.5, "read": 0.25})
    following.take([Chunk("s", r.chunk, r) for r in (first, second)], committed=1)
    told = {(name, label): value for name, label, value in counted(following)}
    assert told == {
        ("camray_images", "ok"): 11, ("camray_images", "skipped"): 1, ("camray_images", "failed"): 3,
        ("camray_failures", "empty_file"): 2, ("camray_failures", "bad_target"): 1,
        ("camray_stage_seconds", "explain"): 3.0, ("camray_stage_seconds", "read"): 0.25,
        ("camray_changed_answers", "border"): 3,
    }  # fmt: skip
    assert following.shards_left == 2


def scraped(port: int) -> dict[str, dict[tuple[str, str], float]]:
    """What the endpoint shows of camray: name -> (label, its value) -> number; nothing before it is up."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        text = ""
    found: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for name, labels, value in SAMPLE.findall(text):
        for label in re.findall(r'(\w+)="([^"]*)"', labels):
            found[name][label] = float(value)
    return found


@pytest.mark.slow
def test_a_real_endpoint_shows_them(demo: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "a.tar").symlink_to(demo / "archive" / "hans64-00000.tar")
    (archive / "broken.jpg").write_bytes(b"")
    model = demo / "models" / "hans64-poisoned"
    given = [str(port), str(archive), str(tmp_path / "out"), str(model), "30"]
    environment = os.environ | {"RAY_metrics_report_interval_ms": "5000"}
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, *given], stdout=subprocess.PIPE, text=True, env=environment
    )
    found: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    try:  # a gauge goes soon after the run that set it: look while it works
        for _ in range(200):
            for name, values in scraped(port).items():
                found[name] |= values
            done = found["ray_camray_images_total"].get(("status", "ok"), 0)
            if done == 60 and len(found) == len(COUNTERS | GAUGES):
                break
            time.sleep(0.5)
        assert run.stdout is not None
        assert run.stdout.readline().split() == ["ended", "3"]  # one image of 61 is over the budget of 1 %
    finally:
        run.kill()
        run.communicate()
    assert found.keys() == {f"ray_{n}_total" for n in COUNTERS} | {f"ray_{n}" for n in GAUGES}
    images = found["ray_camray_images_total"]
    assert (images["status", "ok"], images["status", "failed"]) == (60, 1)
    assert found["ray_camray_failures_total"]["code", "empty_file"] == 1
    assert {label for label in found["ray_camray_stage_seconds_total"] if label[0] == "stage"} == {
        ("stage", name) for name in ("read", "decode", "explain", "sink")
    }
    assert found["ray_camray_changed_answers_total"]["region", "border"] > 0
    shares = [v for (k, _), v in found["ray_camray_bottleneck_share"].items() if k == "limit"]
    assert shares
    assert all(0 <= share <= 1 for share in shares)
