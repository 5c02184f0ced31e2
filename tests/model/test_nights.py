"""Nights from integers: nothing is lost, repeated or torn; an integer is a replay."""

from __future__ import annotations

import os
import re
from collections import Counter

import pytest

from tests.model.nights import NIGHTS, live_through, setting_of, shrunk

MANY = int(os.environ.get("CAMRAY_NIGHTS", "10000"))
FAULTS = ("prune reads again", "replace what the plan saw", "plan again", "no flush of the log")


def draw(nights: int, off: frozenset[str] = frozenset()) -> Counter[str]:
    """Live through nights until something breaks; then say the integer and the shortest form."""
    exits: Counter[str] = Counter()
    for seed in range(nights // NIGHTS + 1):
        story = live_through(seed, off)
        exits.update(story.exits)
        exits.update(name for process, name in story.steps if process in ("chance", "prune"))
        if story.broken:
            least = shrunk(story, setting_of(seed, off))
            pytest.fail(f"nights of {seed}: {least.told()}")
    return exits


def test_nights() -> None:
    draw(1_500)


@pytest.mark.faults
def test_many_nights() -> None:
    exits = draw(MANY)
    print(f"{MANY} nights, nothing lost, repeated or torn: {dict(exits)}")
    assert exits["done"] > MANY
    assert all(
        exits[what] for what in ("held", "stopped", "a day passes", "prune: deletes", "driver 0 wakes")
    )


def failing(off: frozenset[str]) -> int:
    return next(seed for seed in range(20_000) if live_through(seed, off).broken)


def test_a_failure_prints_the_integer_that_replays_it() -> None:
    """What a failing draw says is all that is needed: the integer gives the same nights, step by step."""
    off = frozenset({FAULTS[-1]})
    with pytest.raises(pytest.fail.Exception) as failed:
        draw(20_000, off)
    seed = int(re.match(r"nights of ([0-9]+): ", str(failed.value))[1])  # type: ignore[index]
    assert shrunk(live_through(seed, off), setting_of(seed, off)).told() in str(failed.value)


@pytest.mark.parametrize(
    "name", [FAULTS[-1], *(pytest.param(n, marks=pytest.mark.faults) for n in FAULTS[:-1])]
)
def test_a_planted_fault_is_replayed_from_its_integer(name: str) -> None:
    off = frozenset({name})
    seed = failing(off)
    story = live_through(seed, off)
    assert story == live_through(seed, off)
    least = shrunk(story, setting_of(seed, off))
    assert least.broken == story.broken
    assert len(least.steps) < len(story.steps)
    assert not live_through(seed).broken, "it is the fault, not the integer"
    print(f"\n{name}: {seed}, {len(story.steps)} steps, shrunk to {len(least.steps)}: {least.told()}")
