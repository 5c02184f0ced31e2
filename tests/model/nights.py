"""A cluster of some nights from one integer, in virtual time: the steps of the specification, by the clock.

The integer draws how fast each process is, which comes late, which is slow for a while, when the store is
away and for how long, who is killed or frozen, when the archive changes, and whether prune comes. Two
schedulers start the same command each night. The same integer gives the same steps.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from tests.model.spec import ENDS, RUNS, Driver, Prune, Setting, World, broken, chance, drive, first, prune
from tests.model.walk import unresumed

NIGHTS = 3  # in one OUT
PATIENCE_S = 120.0
Step = tuple[str, str]  # the process, and the name of its step


@dataclass(frozen=True)
class Story:
    """What happened in the nights of one integer."""

    steps: tuple[Step, ...]
    broken: str
    exits: tuple[str, ...]  # of the drivers, night by night

    def told(self) -> str:
        """Give it as text."""
        return "\n".join([f"{self.broken or 'all is well'}:", *(f"  {name}" for _, name in self.steps)])


def setting_of(seed: int, off: frozenset[str] = frozenset()) -> Setting:
    """Draw what may happen."""
    draw = random.Random(seed)
    force = (draw.random() < 0.3, draw.random() < 0.3)
    few = [draw.choice((0, 1, 2, 3)), draw.choice((0, 1)), draw.choice((0, 0, 1)), draw.choice((0, 0, 1))]
    return Setting(force, *few, full=draw.choice((0, 0, 1)), changes=draw.choice((0, 1)), days=2, off=off)


def live_through(seed: int, off: frozenset[str] = frozenset()) -> Story:
    """Let the nights of one integer pass."""
    setting, draw = setting_of(seed, off), random.Random(f"nights {seed}")
    world, steps, exits = first(setting), list[Step](), list[str]()
    for night in range(NIGHTS):
        world, wrong = _one_night(world, setting, draw, steps)
        exits += [d.at for d in world.drivers]
        wrong = wrong or unresumed(world, setting)
        if wrong:
            return Story(tuple(steps), wrong, tuple(exits))
        if night + 1 < NIGHTS:
            world = _next_night(world)
            steps.append(("", "the next night"))
    return Story(tuple(steps), "", tuple(exits))


def _next_night(world: World) -> World:
    fresh = tuple(Driver(d.run + 2) if d.run + 2 < RUNS - 1 else d for d in world.drivers)
    return world._replace(drivers=fresh)


def _one_night(world: World, setting: Setting, draw: random.Random, steps: list[Step]) -> tuple[World, str]:
    """Take steps in the order of their virtual times until everybody is at rest."""
    periods = {name: draw.uniform(1, 20) for name in ("0", "1", "prune", "chance")}
    due = {name: draw.choice((0.0, 0.0, draw.uniform(0, 400))) for name in periods}  # some come late
    slow, slow_until = draw.choice("01"), draw.uniform(0, 300)
    away = draw.uniform(0, 600)
    back = away + draw.choice((0, draw.uniform(5, 100), draw.uniform(100, 400)))
    if draw.random() < 0.4:
        world = world._replace(prune=Prune("open"))
    while due:
        name = min(due, key=lambda n: (due[n], n))
        now = due[name]
        due[name] = now + draw.expovariate(1 / periods[name]) * (
            10 if name == slow and now < slow_until else 1
        )
        if name in "01" and away <= now < back:
            if back - now > PATIENCE_S and world.drivers[int(name)].number > 0:
                world = _stopped(world, int(name))
                steps.append((name, f"driver {name}: stops: the store is away"))
            due[name] = max(due[name], back)
            continue
        found = moves_of(world, setting, name)
        if not found:
            if name == "chance" or _rests(world, name):
                del due[name]
            continue
        what, world = draw.choice(found)
        steps.append((name, what))
        if why := broken(world, setting):
            return world, why
        if name == "chance" and draw.random() < 0.3:
            due.setdefault("0", now)
            due.setdefault("1", now)
    return _woken(world), ""


def moves_of(world: World, setting: Setting, name: str) -> list[tuple[str, World]]:
    """Give the next steps of a process, as the specification knows them."""
    if name == "chance":
        return [m for m in chance(world, setting) if all(d.run < RUNS - 1 for d in m[1].drivers)]
    if name == "prune":
        return list(prune(world, setting)) if world.prune.at != "end" else []
    d = world.drivers[int(name)]
    return [] if d.frozen or d.at in ENDS else list(drive(world, int(name), setting))


def _rests(world: World, name: str) -> bool:
    return name == "prune" or not world.drivers[int(name)].frozen


def _stopped(world: World, i: int) -> World:
    drivers = list(world.drivers)
    drivers[i] = Driver(drivers[i].run, "stopped", want=drivers[i].want)
    return world._replace(drivers=tuple(drivers))


def _woken(world: World) -> World:
    """Who is frozen or at work when the last event was drawn is killed: the night is over."""
    drivers = tuple(d if d.at in ENDS else Driver(d.run, "stopped", want=d.want) for d in world.drivers)
    return world._replace(drivers=drivers, prune=Prune("end"))


def replayed(steps: tuple[Step, ...], setting: Setting) -> Story:
    """Take these steps, those of them that can be taken."""
    world, taken = first(setting), list[Step]()
    for name, what in steps:
        if what == "the next night":
            world = _next_night(_woken(world))
        elif what.endswith("the store is away"):
            world = _stopped(world, int(name))
        else:
            if name == "prune" and what == "prune: reads the log" and world.prune.at == "end":
                world = world._replace(prune=Prune("open"))
            found = [w for n, w in moves_of(world, setting, name) if _plain(n) == _plain(what)]
            if not found:
                continue
            world = found[0]
        taken.append((name, what))
        if why := broken(world, setting):
            return Story(tuple(taken), why, ())
    return Story(tuple(taken), "", ())


def _plain(name: str) -> str:
    """Leave out the numbers of holds and entries: they are others where steps were left out."""
    return re.sub(r"(hold|entry) [0-9]+", r"\1", name)


def shrunk(story: Story, setting: Setting) -> Story:
    """Leave out every step without which the same invariant still breaks."""
    best, size = story, max(1, len(story.steps) // 2)
    while size:
        start = 0
        while start < len(best.steps):
            shorter = replayed(best.steps[:start] + best.steps[start + size :], setting)
            if shorter.broken == story.broken and len(shorter.steps) < len(best.steps):
                best = shorter
            else:
                start += size
        size //= 2
    return best
