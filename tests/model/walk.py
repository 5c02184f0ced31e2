"""Every order of events, breadth first: the first counterexample is a shortest one."""

from __future__ import annotations

from dataclasses import dataclass

from tests.model.spec import Setting, World, broken, first, live, moves, resumed, shapes


@dataclass(frozen=True)
class Walk:
    """What a walk found."""

    states: int  # distinct ones, told apart by 64 bits
    depth: int
    broken: str = ""  # the invariant, and the steps that break it
    steps: tuple[str, ...] = ()

    def told(self) -> str:
        """Give the counterexample as text."""
        return "\n".join([f"{self.broken}, after {len(self.steps)} steps:", *(f"  {s}" for s in self.steps)])


def walk(setting: Setting, prune: bool = False, most: int = 10**9) -> Walk:
    """Visit every state that can be reached, at most about `most` of them."""
    start = first(setting, prune)
    parents: dict[int, int] = {hash(start): 0}
    frontier, depth = [start], 0
    while frontier and len(parents) < most:
        following: list[World] = []
        for world in frontier:
            rests = True
            for _name, after in moves(world, setting):
                rests = False
                key = hash(after)
                if key in parents:
                    continue
                parents[key] = hash(world)
                if why := broken(after, setting):
                    return Walk(len(parents), depth + 1, why, _steps(setting, start, parents, key))
                following.append(after)
            if rests and (why := unresumed(world, setting)):
                return Walk(len(parents), depth, why, _steps(setting, start, parents, hash(world)))
        frontier, depth = following, depth + 1
    return Walk(len(parents), depth)


def unresumed(world: World, setting: Setting) -> str:
    """Tell whether the same command, given once more, leaves a shard of the archive out."""
    if setting.ignores:
        return ""
    after = resumed(world, setting)
    if why := broken(after, setting):
        return why
    whole = after.drivers[0].at == "done" and shapes(live(after.log)) == after.archive
    return "" if whole else "the same command resumes"


def _steps(setting: Setting, start: World, parents: dict[int, int], key: int) -> tuple[str, ...]:
    """Go the way again that led to a state."""
    keys = [key]
    while parents[keys[-1]]:
        keys.append(parents[keys[-1]])
    world, names = start, []
    for wanted in reversed(keys[:-1]):
        name, world = next((n, w) for n, w in moves(world, setting) if hash(w) == wanted)
        names.append(name)
    return tuple(names)
