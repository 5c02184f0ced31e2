"""OUT in an S3 store that fails: the table in the end equals that of a clean run.

An emulator (moto) stands behind a proxy that injects faults. Skipped without moto.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from tests.faults.fault_proxy import KINDS, FaultProxy
from tests.faults.small_archive import Oracle, make
from tests.faults.small_job import Jobs, Order
from tests.faults.watcher import Reader, Rows, check

pytest.importorskip("moto.server", reason="moto[server] is not installed")

SHARE = float(os.environ.get("CAMRAY_FAULT_SHARE", "0.15"))
LONG = [pytest.param(kind, marks=() if kind == "lost answer" else pytest.mark.faults) for kind in KINDS]
SECRETS = {"AWS_ACCESS_KEY_ID": "canarykey", "AWS_SECRET_ACCESS_KEY": "canarysecret"}


@pytest.fixture(scope="module")
def store() -> Iterator[int]:
    """Start an S3 emulator on a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        file_system(port).create_dir("bucket")
        yield port
    finally:
        process.terminate()
        process.wait()


def file_system(port: int) -> pafs.S3FileSystem:
    return pafs.S3FileSystem(
        endpoint_override=f"127.0.0.1:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True,
        access_key=SECRETS["AWS_ACCESS_KEY_ID"], secret_key=SECRETS["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def proxy(store: int) -> Iterator[FaultProxy]:
    with FaultProxy(store) as made:
        yield made


@pytest.fixture(scope="module")
def jobs(proxy: FaultProxy) -> Iterator[Jobs]:
    environment = {
        **SECRETS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}", "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    with Jobs(environment) as started:
        yield started


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Oracle]:
    folder = tmp_path_factory.mktemp("archive")
    return str(folder), make(folder)


def fetched(store: int, name: str, to: Path) -> Rows:
    """Copy OUT out of the store, past the proxy, and read it."""
    pafs.copy_files(f"bucket/{name}", str(to), source_filesystem=file_system(store))
    for path in to.rglob("*"):
        assert not path.is_file() or b"canary" not in path.read_bytes(), f"a credential is in {path}"
    return Reader(to).look()


@pytest.mark.parametrize("kind", LONG)
def test_the_table_is_that_of_a_clean_run(
    store: int, proxy: FaultProxy, jobs: Jobs, archive: tuple[str, Oracle], tmp_path: Path, kind: str
) -> None:
    name = f"out-{kind.replace(' ', '-')}"
    proxy.set(kind, SHARE, seed=7)
    codes: list[int] = []
    while 0 not in codes and len(codes) < 4:
        codes.append(jobs.wait(jobs.start(Order(archive[0], f"s3://bucket/{name}"))))
    print(f"{kind} {SHARE:.0%}: exits {codes}, requests {dict(proxy.injected)}")
    assert codes[-1] == 0, jobs.said()[-3000:]
    assert set(codes[:-1]) <= {4}, jobs.said()[-3000:]
    assert proxy.injected[kind], "no fault was injected"
    proxy.set("", 0)
    check(fetched(store, name, tmp_path / "copy"), archive[1])
    assert "canary" not in jobs.said()


def test_an_outage_longer_than_the_patience(
    store: int, proxy: FaultProxy, jobs: Jobs, archive: tuple[str, Oracle], tmp_path: Path
) -> None:
    proxy.set("", 0)
    order = Order(archive[0], "s3://bucket/outage", pause_s=0.1, patience_s=3.0)
    job = jobs.start(order)
    time.sleep(1.5)
    proxy.away = True
    try:
        code = jobs.wait(job)
    finally:
        proxy.away = False
    assert code == 4, jobs.said()[-3000:]
    assert "the same command resumes" in jobs.said()
    assert jobs.wait(jobs.start(order)) == 0, jobs.said()[-3000:]
    check(fetched(store, "outage", tmp_path / "copy"), archive[1])


@pytest.mark.faults
def test_an_outage_of_30_seconds_is_sat_out(
    store: int, proxy: FaultProxy, jobs: Jobs, archive: tuple[str, Oracle], tmp_path: Path
) -> None:
    proxy.set("", 0)
    job = jobs.start(Order(archive[0], "s3://bucket/pause", pause_s=0.1))
    time.sleep(1.5)
    proxy.away = True
    time.sleep(30)
    proxy.away = False
    assert jobs.wait(job) == 0, jobs.said()[-3000:]
    check(fetched(store, "pause", tmp_path / "copy"), archive[1])
