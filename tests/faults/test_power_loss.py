"""Power loss: the disk keeps what it was told to flush, the rest is gone; the same command resumes.

OUT lies on an ext4 of its own in a loop device, and `EXT4_IOC_SHUTDOWN` stops it at a random moment: what is
in memory never reaches it. Needs root and loop devices; skipped, with the reason, without.
`make faults` draws CAMRAY_POWER_LOSSES (100).
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.small_archive import Oracle
from tests.faults.small_job import Jobs, Order
from tests.faults.test_small_kills import archive, jobs, place
from tests.faults.watcher import Reader, Rows, check

__all__ = ["archive", "jobs", "place"]
LOSSES = int(os.environ.get("CAMRAY_POWER_LOSSES", "100"))
SHUTDOWN, NO_FLUSH_OF_THE_JOURNAL = 0x8004587D, 2


class Disk:
    """An ext4 in a file, mounted at `place`."""

    def __init__(self, image: Path, place: Path) -> None:
        self.image, self.place = image, place
        place.mkdir()
        with image.open("wb") as file:
            file.truncate(64 * 2**20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
        self.mount()

    def mount(self) -> None:
        # commit=1: the journal, and with it the names of files, is written each second instead of each fifth.
        command = ["mount", "-o", "loop,commit=1", str(self.image), str(self.place)]
        subprocess.run(command, check=True, capture_output=True)

    def unmount(self) -> None:
        for _ in range(50):  # a killed process lets go of its files a moment later
            if not subprocess.run(["umount", str(self.place)], check=False, capture_output=True).returncode:
                return
            time.sleep(0.1)
        subprocess.run(["umount", "-l", str(self.place)], check=True)

    def lose_power(self) -> None:
        handle = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, SHUTDOWN, struct.pack("I", NO_FLUSH_OF_THE_JOURNAL))
        finally:
            os.close(handle)


@pytest.fixture
def disk(place: Path) -> Iterator[Disk]:
    if os.geteuid() or shutil.which("mkfs.ext4") is None:
        pytest.skip("a disk that can lose its power needs root and mkfs.ext4")
    try:
        made = Disk(place / "disk.img", place / "disk")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no loop device with ext4 here: {error.stderr.decode().strip()}")
    yield made
    made.unmount()


def one_loss(jobs: Jobs, disk: Disk, order: Order, seed: int, oracle: Oracle) -> int:
    """Lose power at a random moment, perhaps twice; give how many rows were there before."""
    chance, out, before = random.Random(seed), Path(order.out), Rows()
    for _ in range(chance.randint(1, 2)):
        driver = jobs.start(order)
        time.sleep(chance.uniform(0, 1.5))
        before = Reader(out).look()
        time.sleep(0.1)  # a commit that was seen may have its flush still ahead
        disk.lose_power()
        with suppress(ProcessLookupError):
            os.killpg(driver, signal.SIGKILL)
        jobs.wait(driver)
        disk.unmount()
        disk.mount()
        now = Reader(out).look()
        for key, row in before.items():
            assert now.get(key) == row, f"{key} was committed, and is gone after the power loss"
    code = jobs.wait(jobs.start(order))
    assert code == 0, jobs.said()[-3000:]
    after = Reader(out).look()
    check(after, oracle)
    assert all(after[key] == row for key, row in before.items())
    return len(before)


def draw(jobs: Jobs, disk: Disk, archive: tuple[str, Oracle], count: int, sabotage: str = "") -> None:
    rows = 0
    for seed in range(count):
        order = Order(archive[0], str(disk.place / f"out-{seed}"), sabotage=sabotage, pause_s=0.05)
        rows += one_loss(jobs, disk, order, seed, archive[1])
        shutil.rmtree(order.out)
        if (seed + 1) % 10 == 0 or seed + 1 == count:
            print(f"{seed + 1} jobs lost their power; {rows} rows committed before, all there", flush=True)


def test_power_loss_short(jobs: Jobs, disk: Disk, archive: tuple[str, Oracle]) -> None:
    draw(jobs, disk, archive, 3)


@pytest.mark.faults
def test_power_loss(jobs: Jobs, disk: Disk, archive: tuple[str, Oracle]) -> None:
    draw(jobs, disk, archive, LOSSES)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["no flush", "no flush of the log"])
def test_sabotage_is_noticed(jobs: Jobs, disk: Disk, archive: tuple[str, Oracle], name: str) -> None:
    with pytest.raises(AssertionError):
        draw(jobs, disk, archive, 20, sabotage=name)


def test_a_table_whose_birth_lost_its_power(jobs: Jobs, archive: tuple[str, Oracle], place: Path) -> None:
    """What an earlier test of the disk found: the first entry of the log is there, and empty."""
    log = place / "out/records/_delta_log"
    log.mkdir(parents=True)
    (log / f"{0:020d}.json").touch()
    assert jobs.wait(jobs.start(Order(archive[0], str(place / "out")))) == 0, jobs.said()[-3000:]
    check(Reader(place / "out").look(), archive[1])
