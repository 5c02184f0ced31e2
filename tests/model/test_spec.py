"""The ledger's algorithm holds in every order of events; what is taken out has a shortest way to harm.

The invariants, by name: nothing lost, nothing repeated, nothing torn, accounting is exact, committed work is
not done again, a reader sees whole shards, what prune deletes no commit names, one run holds OUT, the same
command resumes.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.faults.sabotage import SMALL_JOB
from tests.model.spec import Setting
from tests.model.walk import walk

MOST = int(os.environ.get("CAMRAY_MODEL_STATES", "700000"))  # of each of the worlds
ONE, TWO, FORCED = (False,), (False, False), (True, True)
WORLDS = {
    "one run, two kills, a lost answer, a full disk": (Setting(ONE, 2, 1, full=1, changes=1), False),
    "one run, two kills, a power loss": (Setting(ONE, 2, losses=1, changes=1), False),
    "two runs, two kills": (Setting(TWO, 2, changes=1), False),
    "two runs, one is frozen and wakes": (Setting(TWO, 1, freezes=1, changes=1), False),
    "two forced runs": (Setting(FORCED, changes=1), False),
    "two forced runs, two kills, a lost answer": (Setting(FORCED, 2, 1, changes=1), False),
    "two forced runs, a power loss": (Setting(FORCED, 1, losses=1, changes=1), False),
    "one of two forced, one is frozen and wakes": (Setting((False, True), 1, freezes=1, changes=1), False),
    "a run beside prune": (Setting(ONE, 2, days=1, changes=1), True),
    "a forced run beside prune": (Setting((True,), 1, days=1, changes=1), True),
    "a run beside prune is frozen and wakes": (Setting(ONE, 1, freezes=1, days=1, changes=1), True),
    "two runs beside prune": (Setting((False, True), 1, freezes=1, days=1), True),
    "a run beside a prune that packs": (Setting(ONE, 2, days=1, changes=1, packs=True), True),
    "a forced run beside a prune that packs": (Setting((True,), 1, days=1, changes=1, packs=True), True),
    "a run beside a prune that packs, a power loss": (
        Setting(ONE, losses=1, days=1, changes=1, packs=True),
        True,
    ),
    "a run beside a prune that packs is frozen and wakes": (
        Setting(ONE, freezes=1, days=1, changes=1, packs=True),
        True,
    ),
    "a store that ignores put-if-absent": (Setting(FORCED, 1, changes=1, ignores=True), False),
}
TAKEN_OUT = {
    "receipt before file": (Setting(ONE), False),
    "rows only for what went well": (Setting(ONE), False),
    "committed work forgotten": (Setting(TWO), False),
    "finished chunks forgotten": (Setting(ONE, 1), False),
    "commit without looking": (Setting(FORCED), False),
    "no hold": (Setting(TWO), False),
    "hold by this machine's clock": (Setting(TWO), False),
    "no flush": (Setting(ONE, losses=1), False),
    "no flush of the log": (Setting(ONE, losses=1), False),
    "a full disk goes unnoticed": (Setting(ONE, full=1), False),
    "no second create": (Setting(FORCED, ignores=True), False),
    "no second create, no second look at the table": (Setting(FORCED, ignores=True), False),
    "log read before the listing": (Setting(TWO, changes=1), False),
    "replace what the plan saw": (Setting(TWO, changes=1), False),
    "hold seen after the log": (Setting(ONE, freezes=1, days=1), True),
    "plan again": (Setting(ONE, 1, days=1), True),
    "prune reads again": (Setting(ONE, 1, days=1), True),
    "unpack first": (Setting(ONE, changes=1, packs=True), True),
    "prune puts an entry first": (Setting(ONE, freezes=1, days=1), True),
    "prune is not forced aside": (Setting((True,), 1, days=1), True),
    "what is read is flushed": (Setting(ONE, 1, losses=1), False),
}
ELSEWHERE = {  # not steps of the ledger: a reader of archives, a file that is replaced
    "written in place", "tar by the standard library", "clock a day ahead", "clock a day behind",
}  # fmt: skip


def visit(name: str, most: int) -> tuple[str, int, int, float, str]:
    setting, prune = WORLDS[name]
    started = time.monotonic()
    found = walk(setting, prune, most)
    told = found.told() if found.broken else ""
    return name, found.states, found.depth, time.monotonic() - started, told


def visit_all(most: int) -> int:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        found = list(pool.map(visit, WORLDS, [most] * len(WORLDS)))
    for name, states, depth, seconds, told in found:
        whole = "all of it" if states < most else f"all within {depth} steps"
        print(f"{states:>9,} states, {whole}, {seconds:5.1f} s: {name}")
        assert not told, told
    return sum(states for _, states, *_ in found)


@pytest.mark.parametrize("name", WORLDS)
def test_every_order_of_a_small_world(name: str) -> None:
    *_, told = visit(name, 8_000)
    assert not told, told


@pytest.mark.faults
def test_every_order() -> None:
    started = time.monotonic()
    states = visit_all(MOST)
    seconds = time.monotonic() - started
    print(f"{states:,} distinct states in {seconds:.0f} s: every invariant holds")
    assert states >= 1_000_000


@pytest.mark.faults
@pytest.mark.parametrize("name", TAKEN_OUT)
def test_what_is_taken_out_has_a_counterexample(name: str) -> None:
    setting, prune = TAKEN_OUT[name]
    found = walk(setting._replace(off=frozenset(name.split(", "))), prune, 2_000_000)
    assert found.broken, f"{name}: {found.states} states, and nothing breaks"
    print(f"\n{name}: {found.told()}")
    assert not walk(setting, prune, found.states).broken, "it is what was taken out"


def test_every_sabotage_of_the_ledger_is_a_switch() -> None:
    switches = {name for names in TAKEN_OUT for name in names.split(", ")}
    assert {n for names in SMALL_JOB.keys() - ELSEWHERE for n in names.split(", ")} <= switches
