"""kill -9 of driver, worker and node, hundreds of times, on the small job: nothing lost or done twice.

`make faults` draws CAMRAY_SMALL_KILLS (600) kills; the quick suite a few. The whole job is in `test_kill.py`.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from camray import storage
from tests import test_storage
from tests.faults import sabotage as taken_out
from tests.faults.small_archive import Oracle, make
from tests.faults.small_job import CHUNK, Jobs, Order
from tests.faults.watcher import Reader, Rows, check, watched

KILLS = int(os.environ.get("CAMRAY_SMALL_KILLS", "600"))
FIRST_SEED = int(os.environ.get("CAMRAY_SMALL_KILLS_SEED", "0"))
VICTIMS = ("driver", "worker", "node", "driver, frozen first")


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    with Jobs() as started:
        yield started


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Oracle]:
    folder = tmp_path_factory.mktemp("archive")
    return str(folder), make(folder)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in memory where there is one: kills do not test the disk, and its flushes take most time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def children(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def kill(victim: str, driver: int, chance: random.Random) -> bool:
    """Kill; tell whether there was something to kill."""
    try:
        if victim == "worker":
            os.kill(chance.choice(children(driver)), signal.SIGKILL)
        elif victim == "node":
            os.killpg(driver, signal.SIGKILL)
        else:
            if "frozen" in victim:  # a second run starts while it is stopped, then it dies
                os.kill(driver, signal.SIGSTOP)
                time.sleep(0.05)
            os.kill(driver, signal.SIGKILL)
    except (OSError, IndexError):
        return False
    return True


def chunk_of(path: str) -> str:
    return Path(path).name.rpartition("-")[0]


def whole_chunks(out: Path) -> set[str]:
    """Name the chunks that have a file; not the last one of a shard, which may be short."""
    found = {chunk_of(p.name) for p in out.glob("records/explainer=*/*.parquet")}
    return {name for name in found if int(name.rpartition("-")[2]) < 7 // CHUNK}


def one_seed(jobs: Jobs, order: Order, seed: int, reader: Reader) -> tuple[Counter[str], Rows]:
    """Kill one to three times at random moments, resume each time; give the kills and the table."""
    chance, killed = random.Random(seed), Counter[str]()
    before: Rows = {}
    for _ in range(chance.randint(1, 3)):
        driver = jobs.start(order)
        time.sleep(chance.uniform(0, 0.5))
        victim = chance.choice(VICTIMS)
        killed[victim] += kill(victim, driver, chance)
        code = jobs.wait(driver)
        assert code in (0, -signal.SIGKILL), jobs.said()[-3000:]
        now = Reader(Path(order.out)).look()
        for key, row in before.items():
            assert now[key]["run_id"] == row["run_id"], "a committed shard was done again"
        before = now
        if code == 0:
            break
    on_disk, resumed_at = whole_chunks(Path(order.out)), time.time()
    code = jobs.wait(jobs.start(order))
    assert code == 0, jobs.said()[-3000:]
    after = reader.look()
    for key, row in before.items():
        assert after[key]["run_id"] == row["run_id"], "a committed shard was done again"
    for path in reader._files:
        if chunk_of(path) in on_disk:
            written_at = (Path(order.out) / "records" / path).stat().st_mtime
            assert written_at <= resumed_at, "a finished chunk was done again"
    return killed, after


def draw(
    jobs: Jobs, archive: tuple[str, Oracle], place: Path, kills: int, sabotage: str = ""
) -> Counter[str]:
    killed, seed = Counter[str](), FIRST_SEED
    reads = 0
    while killed.total() < kills:
        out = place / f"out-{seed}"
        order = Order(archive[0], str(out), sabotage=sabotage, pause_s=0.003)
        with watched(out) as reader:
            found, rows = one_seed(jobs, order, seed, reader)
        check(rows, archive[1])
        killed += found
        reads += reader.reads
        seed += 1
        if seed % 20 == 0 or killed.total() >= kills:
            jobs_done = seed - FIRST_SEED
            print(f"{killed.total()} kills {dict(killed)} over {jobs_done} jobs, {reads} reads", flush=True)
    return killed


def test_kills_short(jobs: Jobs, archive: tuple[str, Oracle], place: Path) -> None:
    draw(jobs, archive, place, 12)


@pytest.mark.faults
def test_kills(jobs: Jobs, archive: tuple[str, Oracle], place: Path) -> None:
    assert set(draw(jobs, archive, place, KILLS)) == set(VICTIMS)


SABOTAGED = (
    "receipt before file",
    "rows only for what went well",
    "committed work forgotten",
    "tar by the standard library",
    "finished chunks forgotten",
)


@pytest.mark.faults
@pytest.mark.parametrize("name", SABOTAGED)
def test_sabotage_is_noticed(jobs: Jobs, archive: tuple[str, Oracle], place: Path, name: str) -> None:
    with pytest.raises(AssertionError) as caught:
        draw(jobs, archive, place, 60, sabotage=name)
    assert "TypeError" not in jobs.said()  # it is the check that fails, not the sabotage
    assert "AttributeError" not in jobs.said()
    print(f"{name}: {caught.traceback[-1].statement}")


@pytest.mark.faults
def test_sabotage_of_whole_files_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.Folder, "write_all", storage.Folder.write_all)  # put back afterwards
    taken_out.apply("written in place")
    with pytest.raises(AssertionError):
        test_storage.test_a_reader_sees_the_whole_old_or_the_whole_new_file(
            storage.open_folder(str(tmp_path), "OUT")
        )
