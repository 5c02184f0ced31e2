"""Two runs into one OUT: refused; forced, or frozen and woken later, each shard still has one winner."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.small_archive import Oracle
from tests.faults.small_job import Jobs, Order
from tests.faults.test_small_kills import archive, jobs, place
from tests.faults.watcher import check, watched

__all__ = ["archive", "jobs", "place"]
ROUNDS = int(os.environ.get("CAMRAY_DOUBLE_RUNS", "40"))


def commits_of(out: Path) -> Counter[str]:
    """Count, from the log itself, in how many commits each shard was added."""
    found: Counter[str] = Counter()
    for version in sorted((out / "records/_delta_log").glob("*.json")):
        actions = [json.loads(line) for line in version.read_text().splitlines()]
        paths = {a["add"]["path"] for a in actions if "add" in a}
        found.update({Path(path).name.split("-")[0] for path in paths})
    return found


def race(jobs: Jobs, order: Order, oracle: Oracle, seed: int) -> int:
    """Run two at once; give the number of shards that both could have committed."""
    out = Path(order.out)
    with watched(out) as reader:
        first = jobs.start(order)
        time.sleep(random.Random(seed).uniform(0, 0.1))
        second = jobs.start(order)
        codes = {jobs.wait(first), jobs.wait(second)}
        assert codes == {0}, (codes, jobs.said()[-3000:])
        check(reader.look(), oracle)
    winners = commits_of(out)
    assert set(winners.values()) == {1}, winners
    return len(winners)


def draw(jobs: Jobs, archive: tuple[str, Oracle], place: Path, rounds: int, sabotage: str = "") -> int:
    raced = 0
    for seed in range(rounds):
        order = Order(archive[0], str(place / f"out-{seed}"), force=True, sabotage=sabotage, commit_every_s=0)
        raced += race(jobs, order, archive[1], seed)
        if (seed + 1) % 20 == 0 or seed + 1 == rounds:
            print(f"{seed + 1} double runs, {raced} shards raced for, one winner each", flush=True)
    return raced


def test_double_runs_short(jobs: Jobs, archive: tuple[str, Oracle], place: Path) -> None:
    draw(jobs, archive, place, 3)


@pytest.mark.faults
def test_double_runs(jobs: Jobs, archive: tuple[str, Oracle], place: Path) -> None:
    assert draw(jobs, archive, place, ROUNDS) >= 6 * ROUNDS


@pytest.mark.faults
def test_sabotage_of_the_commit_is_noticed(jobs: Jobs, archive: tuple[str, Oracle], place: Path) -> None:
    with pytest.raises(AssertionError):
        draw(jobs, archive, place, 10, sabotage="commit without looking")
    assert "TypeError" not in jobs.said()  # it is the check that fails, not the sabotage


@pytest.mark.parametrize("skew", ["", "clock a day ahead", "clock a day behind"])
def test_a_second_run_is_refused(jobs: Jobs, archive: tuple[str, Oracle], place: Path, skew: str) -> None:
    order = Order(archive[0], str(place / "out"), pause_s=0.05)
    first = jobs.start(order)
    while not list((place / "out").glob("records/explainer=*/*.parquet")):
        time.sleep(0.01)
    second = jobs.start(Order(archive[0], order.out, sabotage=skew))
    assert jobs.wait(second) == 7
    assert f"process {first}" in jobs.said()
    assert jobs.wait(first) == 0


@pytest.mark.parametrize("name", ["no hold", "hold by this machine's clock"])
def test_sabotage_of_the_hold_is_noticed(
    jobs: Jobs, archive: tuple[str, Oracle], place: Path, name: str
) -> None:
    with pytest.raises(AssertionError):
        test_a_second_run_is_refused(jobs, archive, place, name)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.faults)])
def test_a_run_frozen_and_woken_after_another_changes_nothing(
    jobs: Jobs, archive: tuple[str, Oracle], place: Path, seed: int
) -> None:
    out = place / "out"
    with watched(out) as reader:
        zombie = jobs.start(Order(archive[0], str(out), pause_s=0.02))
        time.sleep(random.Random(seed).uniform(0.2, 0.5))
        os.killpg(zombie, signal.SIGSTOP)
        assert jobs.wait(jobs.start(Order(archive[0], str(out), force=True))) == 0
        before = reader.look()
        os.killpg(zombie, signal.SIGCONT)
        assert jobs.wait(zombie) in (0, 4)
        after = reader.look()
    check(after, archive[1])
    assert after == before
    assert set(commits_of(out).values()) == {1}
