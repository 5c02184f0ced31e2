"""kill -9 in the middle of a comparison, then the same command: the same table, nothing measured twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]
COUNT = 16


def start(demo: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "camray.cli",
        "compare",
        str(demo / "archive"),
        str(out),
        "--actors",
        "1",
    ]
    command += [
        "--model",
        str(demo / "models" / "hans64-clean"),
        "--methods",
        "gradcam",
        "--sample",
        str(COUNT),
    ]
    return subprocess.Popen(
        command, stderr=subprocess.DEVNULL, cwd=ROOT, env={**os.environ}, start_new_session=True
    )


def values(out: Path) -> dict[tuple[object, ...], object]:
    rows = DeltaTable(str(out / "scores")).to_pyarrow_table().to_pylist()
    found = {(r["shard"], r["index"], r["method"], r["metric"]): r["value"] for r in rows}
    assert len(found) == len(rows)
    return found


def test_a_killed_comparison_resumes_to_the_same_table(demo: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(demo, whole).wait(timeout=600) == 0
    process = start(demo, killed)
    deadline = time.monotonic() + 600
    while not (before := list((killed / "scores").glob("panel=*/*.parquet"))) and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert before
    written = {p: p.stat().st_mtime_ns for p in before}
    assert start(demo, killed).wait(timeout=600) == 0
    one, other = values(whole), values(killed)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert other[key] == (value if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)), key
    committed = {
        str(killed / "scores" / f)
        for f in DeltaTable(str(killed / "scores")).get_add_actions()["path"].to_pylist()
    }
    finished = {
        p for p in written if pq.read_metadata(p).num_rows == 4 * 4 * 22
    }  # whole chunks are taken over
    assert {str(p) for p in finished} <= committed
    assert all(p.stat().st_mtime_ns == time_ns for p, time_ns in written.items())
