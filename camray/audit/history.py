"""A cause over the nights: which nights are compared, what it is called, how often it came each night.

Flows in: the runs of the nights, the cards of the last one, what each image was given then. Flows out: spans
of nights in which classes are compared, a name for each cause that stays, one rate a night.

A cue that arrives tonight is thin among all the nights before it, and one that left thins out again. So
classes are compared over all nights, over the last 1, 2, 4, ... (the limit of false discoveries divided by
the number of these spans; there a class must also differ from itself in all nights before), and those named
before over the nights they were seen in.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.sparse.csgraph import connected_components

from camray.explain.repeats import correlations

LINK = 0.7  # likeness of two hot spots that show the same thing
FEWEST_ALIKE = 4  # hot spots that make a thing of its own; fewer are the rest of their answer
KNOWN = 64  # hot spots of a cause that new ones are compared with
SHOWN_NIGHTS = 60  # of a cause, and in the report
SPANS = 16  # of causes known before, the latest

Key = tuple[str, int, str]  # shard, index, content
ThingKey = tuple[int, str]  # answer, cause


@dataclass(frozen=True, slots=True)
class NightRate:
    """One night of a cause: images that hang on it, of those looked at."""

    run_id: str
    images: int
    looked: int


@dataclass(frozen=True, slots=True)
class Span:
    """Nights first to last. `known`: the only (class, intervention) that it may name; None: all."""

    first: int
    last: int
    known: frozenset[tuple[int, str]] | None = None

    def holds(self, night: int) -> bool:
        """Tell whether a night is in it."""
        return self.first <= night <= self.last


@dataclass(frozen=True, slots=True)
class Nights:
    """The nights so far, tonight last, with their runs; the cards of the last, its causes by image."""

    names: Sequence[str] = ("",)
    runs: Mapping[str, int] = field(default_factory=dict)  # run -> night; others are of tonight
    cards: Sequence[Any] = ()
    causes: Mapping[Key, str] = field(default_factory=dict)

    def of(self, run_id: str | None) -> int:
        """Give the night of a run."""
        return self.runs.get(run_id or "", len(self.names) - 1)

    @property
    def begins(self) -> dict[ThingKey, int]:
        """Give the night in which each known cause of an answer began: it began no earlier ever after."""
        place = {name: i for i, name in enumerate(self.names)}
        found: dict[ThingKey, int] = {}
        for card in self.cards:
            if card.first in place:
                thing = card.class_id, card.cause
                found[thing] = min(place[card.first], found.get(thing, place[card.first]))
        return found

    def spans(self, latest: int) -> list[Span]:
        """Give the spans up to the latest night with images, all nights first."""
        lengths = [1 << i for i in range(latest.bit_length()) if 1 << i <= latest]
        found = [Span(0, latest), *(Span(latest - n + 1, latest) for n in lengths)]
        place = {name: i for i, name in enumerate(self.names)}
        known: dict[tuple[int, int], set[tuple[int, str]]] = defaultdict(set)
        for card in self.cards:
            if card.first in place and card.last in place:
                tests = (card.intervention, *_TESTS.get(card.cause, ()))
                known[place[card.first], place[card.last]] |= {(card.class_id, name) for name in tests}
        latest_first = sorted(known.items(), key=lambda item: -item[0][1])[:SPANS]
        return found + [Span(first, last, frozenset(tests)) for (first, last), tests in latest_first]


_TESTS = {
    "repeated thing": ("repeat", "carry"),
    "place": ("carry", "repeat"),
}  # beside the look that shows it


def cause_names(
    given: Mapping[Key, ThingKey],
    crops: Callable[[Collection[Key]], Mapping[Key, bytes]],
    nights: Nights,
    order: Mapping[Key, int],
) -> dict[Key, str]:
    """Give each image the name of its cause: that of last night, or of what it looks like.

    A class has one cause of a kind, but as many repeated things as there are kinds of hot spots. `crops`
    reads hot spots, `order` has the night of each image.
    """
    found: dict[Key, str] = {}
    known: dict[ThingKey, list[Key]] = defaultdict(list)
    new: dict[ThingKey, list[Key]] = defaultdict(list)
    members: Counter[str] = Counter()
    for key, thing in sorted(given.items(), key=lambda item: (order[item[0]], item[0])):
        name = _name(*thing)
        if thing[1] != "repeated thing":
            found[key] = name
        elif not (before := nights.causes.get(key, "")).startswith(f"{name}-"):
            new[thing].append(key)
        else:
            found[key] = before
            members[before] += 1
            if members[before] <= KNOWN:
                known[thing].append(key)
    pixels = crops([key for thing in new for key in (*known[thing], *new[thing])]) if new else {}
    for thing, keys in new.items():
        there = [key for key in known[thing] if key in pixels]
        found |= _named_things(thing, there, [key for key in keys if key in pixels], pixels, found)
        found |= {key: _name(*thing) for key in keys if key not in pixels}
    return found


def _name(answer: int, cause: str) -> str:
    return "-".join((str(answer), *cause.split()))


def _named_things(
    thing: ThingKey, known: list[Key], new: list[Key], crops: Mapping[Key, bytes], names: Mapping[Key, str]
) -> dict[Key, str]:
    """Name new hot spots: those that hang together are one thing, that of the known ones most are like."""
    if not new:
        return {}
    side = round((len(crops[new[0]]) / 3) ** 0.5)
    pixels = [np.frombuffer(crops[key], np.uint8).reshape(side, side, 3) for key in (*new, *known)]
    alike = correlations(np.stack(pixels[: len(new)]), np.stack(pixels)) > LINK
    groups = connected_components(alike[:, : len(new)], directed=False)[1]
    named: dict[Key, str] = {}
    for group in np.unique(groups).tolist():
        mine = np.flatnonzero(groups == group).tolist()
        votes = Counter(names[known[k]] for i in mine for k in np.flatnonzero(alike[i, len(new) :]).tolist())
        fresh = hashlib.sha256("\n".join(map(str, new[mine[0]])).encode()).hexdigest()[:6]
        rest = _name(*thing) if len(mine) < FEWEST_ALIKE else f"{_name(*thing)}-{fresh}"
        name = votes.most_common(1)[0][0] if votes else rest
        named |= {new[i]: name for i in mine}
    return named
