"""OUT in an S3 store that fails: the table in the end equals that of a clean run.

An emulator (moto) stands behind a proxy that injects faults. Skipped without moto. CAMRAY_S3_STORE=PORT puts
a real store of this machine there instead, with a user magpiekey, magpiesecret.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from tests.faults.fault_proxy import KINDS, FaultProxy
from tests.faults.small_archive import Oracle, make
from tests.faults.small_job import Jobs, Order
from tests.faults.test_one_winner import RACES, Racer, winners
from tests.faults.watcher import Reader, Rows, check

REAL_STORE = os.environ.get("CAMRAY_S3_STORE")
if not REAL_STORE:
    pytest.importorskip("moto.server", reason="moto[server] is not installed")

SHARE = float(os.environ.get("CAMRAY_FAULT_SHARE", "0.15"))
LONG = [pytest.param(kind, marks=() if kind == "lost answer" else pytest.mark.faults) for kind in KINDS]
SECRETS = {"AWS_ACCESS_KEY_ID": "magpiekey", "AWS_SECRET_ACCESS_KEY": "magpiesecret"}


@contextmanager
def running_store() -> Iterator[int]:
    """Start an S3 emulator on a free port of this machine, unless a real store is there; give the port."""
    if REAL_STORE:
        file_system(int(REAL_STORE)).create_dir("bucket")
        yield int(REAL_STORE)
        return
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


@pytest.fixture(scope="module")
def store() -> Iterator[int]:
    with running_store() as port:
        yield port


def environment(port: int) -> dict[str, str]:
    """What camray needs to find the store there."""
    return {
        **SECRETS, "AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED",  # an older Ceph answers 411 without
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip


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
    with Jobs(environment(proxy.port)) as started:
        yield started


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Oracle]:
    folder = tmp_path_factory.mktemp("archive")
    return str(folder), make(folder)


def fetched(store: int, name: str, to: Path) -> Rows:
    """Copy OUT out of the store, past the proxy, and read it."""
    pafs.copy_files(f"bucket/{name}", str(to), source_filesystem=file_system(store))
    for path in to.rglob("*"):
        assert not path.is_file() or b"magpie" not in path.read_bytes(), f"a credential is in {path}"
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
    assert "magpie" not in jobs.said()


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


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_a_permission_that_is_missing_is_named(
    store: int, proxy: FaultProxy, jobs: Jobs, archive: tuple[str, Oracle], tmp_path: Path, method: str
) -> None:
    proxy.set("", 0)
    order = Order(archive[0], f"s3://bucket/denied-{method.lower()}")
    said_before, started = len(jobs.said()), time.monotonic()
    proxy.denied = method
    try:
        code = jobs.wait(jobs.start(order))
    finally:
        proxy.denied = ""
    assert time.monotonic() - started < 30  # it does not wait for what will not come
    said = jobs.said()[said_before:]
    assert code == 4, said
    assert "ACCESS_DENIED" in said or "403" in said
    assert "the same command resumes" in said
    assert jobs.wait(jobs.start(order)) == 0, jobs.said()[-3000:]
    check(fetched(store, f"denied-{method.lower()}", tmp_path / "copy"), archive[1])


def test_a_run_needs_no_permission_to_delete(
    store: int, proxy: FaultProxy, jobs: Jobs, archive: tuple[str, Oracle], tmp_path: Path
) -> None:
    proxy.set("", 0)
    proxy.denied = "DELETE"
    try:
        assert jobs.wait(jobs.start(Order(archive[0], "s3://bucket/kept"))) == 0, jobs.said()[-3000:]
    finally:
        proxy.denied = ""
    check(fetched(store, "kept", tmp_path / "copy"), archive[1])


def through_30_seconds_away(proxy: FaultProxy, jobs: Jobs, order: Order) -> int:
    proxy.set("", 0)
    job = jobs.start(order)
    time.sleep(1.5)
    proxy.away = True
    time.sleep(30)
    proxy.away = False
    return jobs.wait(job)


@pytest.mark.faults
def test_an_outage_of_30_seconds_is_sat_out(
    store: int, proxy: FaultProxy, jobs: Jobs, archive: tuple[str, Oracle], tmp_path: Path
) -> None:
    order = Order(archive[0], "s3://bucket/pause", pause_s=0.1)
    assert through_30_seconds_away(proxy, jobs, order) == 0, jobs.said()[-3000:]
    check(fetched(store, "pause", tmp_path / "copy"), archive[1])


@pytest.mark.faults
def test_sabotage_of_the_patience_is_noticed(
    proxy: FaultProxy, jobs: Jobs, archive: tuple[str, Oracle]
) -> None:
    """With a single try of each request the same run cannot end well."""
    order = Order(archive[0], "s3://bucket/impatient", pause_s=0.1, patience_s=0.0)
    assert through_30_seconds_away(proxy, jobs, order) == 4, jobs.said()[-3000:]


OVERWRITTEN = int(os.environ.get("CAMRAY_OVERWRITING_ROUNDS", "12"))


def overwriting_rounds(
    store: int, proxy: FaultProxy, jobs: Jobs, tmp_path: Path, sabotage: str = ""
) -> tuple[int, int]:
    """Two forced runs of two archives into one OUT of a store that ignores If-None-Match.

    Give in how many rounds a run said so, and in how many the table lacked rows after two good ends.
    """
    folders = [tmp_path / "one", tmp_path / "other"]
    oracle = make(folders[0]) | make(folders[1], first=6)
    told = lost = 0
    for i in range(OVERWRITTEN):
        name = f"overwritten-{len(sabotage)}-{i}"
        orders = [
            Order(str(f), f"s3://bucket/{name}", force=True, sabotage=sabotage, commit_every_s=0)
            for f in folders
        ]
        assert jobs.wait(jobs.start(Order(str(folders[0] / "shard-0.tar"), f"s3://bucket/{name}"))) == 0
        proxy.set("strip", 1.0)
        codes = [jobs.wait(pid) for pid in [jobs.start(order) for order in orders]]
        proxy.set("", 0)
        assert set(codes) <= {0, 2, 4}, jobs.said()[-3000:]
        if codes != [0, 0]:
            told += 1
            assert "ignores If-None-Match" in jobs.said()
            assert [jobs.wait(jobs.start(order)) for order in orders] == [0, 0], jobs.said()[-3000:]
        lost += bool(oracle.keys() - fetched(store, name, tmp_path / name).keys())
    print(f"{OVERWRITTEN} rounds: {told} told, {lost} lost rows in silence")
    return told, lost


@pytest.mark.faults
@pytest.mark.skipif(bool(REAL_STORE), reason="a real store checks the signature over If-None-Match")
def test_a_store_that_lets_one_run_overwrite_another_is_told(
    store: int, proxy: FaultProxy, jobs: Jobs, tmp_path: Path
) -> None:
    told, lost = overwriting_rounds(store, proxy, jobs, tmp_path)
    assert told == OVERWRITTEN, "it is refused before anything is committed"
    assert not lost


@pytest.mark.faults
@pytest.mark.skipif(bool(REAL_STORE), reason="a real store checks the signature over If-None-Match")
def test_sabotage_of_the_second_look_is_noticed(
    store: int, proxy: FaultProxy, jobs: Jobs, tmp_path: Path
) -> None:
    told, lost = overwriting_rounds(
        store, proxy, jobs, tmp_path, "no second create, no second look at the table"
    )
    assert not told
    assert lost


@pytest.mark.faults
def test_of_runs_that_begin_at_once_in_a_store_one_holds(store: int) -> None:
    """With the conditional create of the store itself; camray makes no request of its own kind beside it."""
    settings = SECRETS | {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{store}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED",
    }  # fmt: skip
    place = f"s3://bucket/races-{time.time_ns()}"
    racers = [Racer(place, **settings) for _ in range(3)]
    try:
        assert set(winners(racers, RACES)) == {1}
    finally:
        for racer in racers:
            racer.close()
