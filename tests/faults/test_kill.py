"""kill -9 at random moments, then the same command: every member exactly once, nothing done twice.

`make faults` runs CAMRAY_KILL_SEEDS rounds (20). Even seeds kill the driver, odd seeds a worker process.
The oracle is the list of members that this test packed itself.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import camray
from camray.ledger.out import open_out
from camray.upkeep.status import committed_shards

pytestmark = pytest.mark.faults

FIRST_SEED = int(os.environ.get("CAMRAY_KILL_FIRST_SEED", "0"))
SEEDS = int(os.environ.get("CAMRAY_KILL_SEEDS", "20"))
SHARDS, MEMBERS, CHUNK = 6, 40, 8


@pytest.fixture(scope="module")
def archive(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 tars of 40 images each, from the bundled ones."""
    folder = tmp_path_factory.mktemp("archive")
    with tarfile.open(demo / "archive" / "hans64-00000.tar") as tar:
        images = [tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")]  # type: ignore[union-attr]
    for s in range(SHARDS):
        with tarfile.open(folder / f"shard-{s}.tar", "w") as tar:
            for i in range(MEMBERS):
                info = tarfile.TarInfo(f"image-{s}-{i:03d}.jpg")
                info.size = len(images[i])
                tar.addfile(info, io.BytesIO(images[i]))
    return folder


EXPECTED = {f"image-{s}-{i:03d}.jpg" for s in range(SHARDS) for i in range(MEMBERS)}


def start(archive: Path, out: Path, demo: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "camray.cli", "explain", str(archive), str(out)]
    command += ["--model", str(demo / "models" / "hans64-clean"), "--chunk-size", str(CHUNK)]
    tagged = {**os.environ, "CAMRAY_KILL_TEST": str(out)}  # every process of this run inherits it
    return subprocess.Popen(
        [*command, "--overlays", "all", "--engine", "ray", *more],
        stderr=subprocess.PIPE,
        env=tagged,
        start_new_session=True,
    )


def workers_of(out: Path) -> list[int]:
    """Process ids of this run's Ray workers that do a stage's work."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            name = (entry / "cmdline").read_bytes()
            mine = f"CAMRAY_KILL_TEST={out}".encode() in (entry / "environ").read_bytes()
        except OSError:
            continue
        if mine and name.startswith(b"ray::") and b"Agent" not in name:  # with an agent, Ray's node dies
            found.append(int(entry.name))
    return found


def committed(out: Path) -> dict[str, dict[str, object]]:
    """Rows that readers see now, by member; each exactly once."""
    try:
        rows = camray.open_records(str(out)).to_table(columns=["member", "run_id", "status"]).to_pylist()
    except camray.UsageError:
        return {}
    found = {r["member"]: r for r in rows}
    assert len(found) == len(rows), "a member has two rows"
    return found


def whole_files(out: Path) -> set[str]:
    """Names of complete record files on disk."""
    found = set()
    for path in out.glob("records/explainer=*/*.parquet"):
        pq.read_metadata(path)  # a torn file under its final name would raise here
        found.add(path.name)
    return found


@pytest.mark.parametrize("seed", range(FIRST_SEED, SEEDS))
def test_kill_then_resume(seed: int, archive: Path, demo: Path, tmp_path: Path) -> None:
    chance, out = random.Random(seed), tmp_path / "out"
    process = start(archive, out, demo)
    wait_for_files(process, out, chance.randrange(SHARDS * MEMBERS // CHUNK))
    time.sleep(chance.uniform(0, 0.5))
    killed = kill_driver(process) if seed % 2 == 0 else kill_worker(process, out, chance)
    before, on_disk = committed(out), whole_files(out)

    again = start(archive, out, demo) if seed % 2 == 0 else process
    _, stderr = again.communicate(timeout=600)
    assert again.returncode == 0, stderr.decode()

    after = committed(out)
    assert after.keys() == EXPECTED
    assert {r["status"] for r in after.values()} == {"ok"}
    for member, row in before.items():
        assert after[member]["run_id"] == row["run_id"], "a committed shard was done again"
    if seed % 2 == 0:
        in_table = {Path(uri).name for uri in open_out(str(out))[1].delta.file_uris()}  # type: ignore[union-attr]
        assert on_disk <= in_table, "a finished chunk was not reused"
    assert sum(int(s["members"]) for s in committed_shards(open_out(str(out))[1]).values()) == len(EXPECTED)
    verify = subprocess.run(
        [sys.executable, "-m", "camray.cli", "verify", str(out), "--json"], check=True, capture_output=True
    )
    assert json.loads(verify.stdout)["problems"] == []
    print(f"seed {seed}: {killed}, {len(before)} rows committed and {len(on_disk)} chunk files at the kill")


def what_was_computed(out: Path) -> pa.Table:
    """The records in order, without who wrote them and where."""
    rows = camray.open_records(str(out)).to_table()
    kept = [n for n in rows.column_names if n not in ("run_id", "overlay_path", "overlay_size")]
    return rows.select(kept).sort_by([("shard", "ascending"), ("index", "ascending")]).combine_chunks()


@pytest.fixture(scope="module")
def first(archive: Path, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The records as they are by default."""
    out = tmp_path_factory.mktemp("first") / "out"
    assert start(archive, out, demo).wait() == 0
    return what_was_computed(out)


@pytest.mark.parametrize("batch", [1, 2, 7, 32])
@pytest.mark.parametrize("actors", [1, 2])
def test_actors_and_batches_change_no_bit(
    actors: int, batch: int, first: pa.Table, archive: Path, demo: Path, tmp_path: Path
) -> None:
    run = start(archive, tmp_path / "out", demo, "--actors", str(actors), "--batch-size", str(batch))
    assert run.wait() == 0
    assert what_was_computed(tmp_path / "out").equals(first)


@pytest.mark.parametrize("seed", range(5))
def test_kills_change_no_bit(seed: int, first: pa.Table, archive: Path, demo: Path, tmp_path: Path) -> None:
    chance, out = random.Random(seed), tmp_path / "out"
    process = start(archive, out, demo, "--batch-size", "7")
    wait_for_files(process, out, chance.randrange(SHARDS * MEMBERS // CHUNK))
    if seed % 2 == 0:
        kill_driver(process)
        process = start(archive, out, demo, "--batch-size", "2")
    else:
        kill_worker(process, out, chance)
    assert process.wait() == 0
    assert what_was_computed(out).equals(first)


def wait_for_files(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    """Wait until the run has written this many record files."""
    while process.poll() is None and len(list(out.glob("records/explainer=*/*.parquet"))) < count:
        time.sleep(0.01)


def kill_driver(process: subprocess.Popen[bytes]) -> str:
    if process.poll() is not None:
        return "driver had finished"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return "driver killed"


def kill_worker(process: subprocess.Popen[bytes], out: Path, chance: random.Random) -> str:
    workers = workers_of(out)
    if process.poll() is not None or not workers:
        return "no worker was there"
    os.kill(chance.choice(workers), signal.SIGKILL)
    return "worker killed"
