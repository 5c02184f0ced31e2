"""The causes of an archive: images given theirs over the nights, and one card for each.

Flows in: rows of `looks`, batches of records. Flows out: for each image its cause, for each cause a card with
its history. The rules are in `audit.causes`, the nights that are compared in `audit.history`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camray.audit.causes import (
    CAUSE_OF,
    FALSE_DISCOVERIES,
    Excess,
    Seen,
    causes,
    compared,
    decided,
    fragile_of,
    is_new,
    moved,
    named_of,
    seen,
)
from camray.audit.columns import number
from camray.audit.counts import wilson
from camray.audit.history import Key, NightRate, Nights, Span, cause_names

_FALLEN = "without the hot border"  # of the second look, which images got by their heat
TEST_OF = {"repeated thing": "repeat", "place": "carry", "background": "carry_surround"}


class Given(NamedTuple):
    """Why one image's answer hangs on the wrong thing."""

    answer: int
    cause: str
    intervention: str
    drop: float
    night: int


@dataclass(frozen=True, slots=True)
class Card:
    """One cause of one answer: how many images hang on it of those that were looked at, and what shows it.

    `id` stays from night to night. `first` and `last`: the nights of the first and last images that hang on
    it; `named`: the night that named it first.
    """

    class_id: int
    label: str | None
    cause: str
    intervention: str
    images: int  # that hang on it
    looked: int  # images of the answer that had the look
    low: float  # Wilson's 95 % interval of the rate
    high: float
    median: float | None  # rate of the median class; None: too few classes to compare
    z: float | None
    id: str = ""  # "": of an earlier camray, as are no nights
    first: str = ""
    last: str = ""
    named: str = ""
    nights: Sequence[NightRate] = ()
    decision: str | None = None  # of a person, on the whole cause

    @property
    def rate(self) -> float:
        """Share of the images looked at."""
        return self.images / max(self.looked, 1)

    @property
    def looked_since(self) -> int:
        """Images of the answer looked at since the last that hangs on it."""
        runs = [night.run_id for night in self.nights]
        return sum(n.looked for n in self.nights[runs.index(self.last) + 1 :]) if self.last in runs else 0

    @property
    def is_gone(self) -> bool:
        """Whether images of its answer were looked at since, and none hangs on it."""
        return self.looked_since > 0 or not self.images


class CauseBook:
    """What looks and border falls tell of the images of an archive. `add` every batch, then ask `of` any.

    `crops` reads the hot spots of images.
    """

    def __init__(
        self,
        looks: Iterable[Mapping[str, Any]],
        drop: float,
        nights: Nights = Nights(),  # noqa: B008
        crops: Callable[[Collection[Key]], Mapping[Key, bytes]] = lambda _: {},
    ) -> None:
        self._images, self._drop, self._nights, self._crops = seen(looks, nights), drop, nights, crops
        self._there: set[Key] = set()  # of the images looked at: those that are in the archive
        self._border: dict[int, dict[int, Counter[bool]]] = defaultdict(lambda: defaultdict(Counter))
        self._fell: dict[Key, Given] = {}  # without the hot border
        self._given: dict[Key, Given] = {}
        self._told: dict[Key, Given] = {}  # of a class alone: its colour
        self._names: dict[Key, str] | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        """Count how often each class falls without the hot border."""
        classes, drops = number(batch, "predicted_class"), number(batch, "confirm_drop")
        keys, runs = _keys(batch), batch.column("run_id").to_pylist()
        self._there.update(key for key in keys if key in self._images)
        for i in np.flatnonzero(~np.isnan(classes)).tolist():
            known, drop, night = int(classes[i]), float(np.nan_to_num(drops[i])), self._nights.of(runs[i])
            self._border[night][known][drop > self._drop] += 1
            if drop > self._drop:
                self._fell[keys[i]] = Given(known, "border", "border", drop, night)

    def recall(self, before: Mapping[str, Any]) -> bool:
        """Begin with what `carried` gave the night before; False where its nights are not those of now."""
        if list(self._nights.names[: len(before["nights"])]) != before["nights"]:
            return False
        self._there = set(self._images) - {(shard, i, content) for shard, i, content in before["gone"]}
        for night, answer, fallen, still in before["border"]:
            self._border[night][answer].update({True: fallen, False: still})
        for shard, i, content, answer, drop, night in before["fell"]:
            self._fell[shard, i, content] = Given(answer, "border", "border", drop, night)
        return True

    def carried(self) -> dict[str, Any]:
        """Give what batches told, for the next night, as plain values."""
        self.close()
        border = [
            [night, answer, counts[True], counts[False]]
            for night, classes in self._border.items()
            for answer, counts in classes.items()
        ]
        fell = [[*key, given.answer, given.drop, given.night] for key, given in self._fell.items()]
        gone = sorted(self._gone, key=str)
        return {"nights": list(self._nights.names), "border": border, "fell": fell, "gone": gone}

    def placed(self) -> dict[Key, tuple[str, int, int]]:
        """Give of each image with a cause: the cause's name, how many more have it, its place among them."""
        names = self.close()
        return {key: (names[key], self._sizes[names[key]] - 1, self._ranks[key]) for key in self._given}

    def of(self, batch: pa.RecordBatch) -> dict[str, NDArray[Any]]:
        """Tell of each row: `cause` (empty: none), `cause_id`, `cause_drop`, `has_cause`, `place_drop`.

        `rank`: its place among all with the same cause, the image that falls furthest first; `others`: how
        many more have it.
        """
        names = self.close()
        keys = _keys(batch)
        given = [self._given.get(key) for key in keys]
        looked = [self._images.get(key) for key in keys]
        sizes = [self._sizes.get(names.get(key, ""), 1) for key in keys]
        return {
            "cause": np.array([g.cause if g else "" for g in given], object),
            "cause_id": np.array([names.get(key, "") for key in keys], object),
            "cause_drop": np.array([g.drop if g else np.nan for g in given], float),
            "has_cause": np.array([g is not None for g in given], bool),
            "place_drop": np.array([s.drops.get("fill", np.nan) if s else np.nan for s in looked], float),
            "rank": np.array([self._ranks.get(key, 0) for key in keys], np.int64),
            "others": np.array([size - 1 for size in sizes], np.int32),
        }

    def cards(self, names: Sequence[str], decisions: Mapping[str, str] | None = None) -> list[Card]:
        """Give the causes, those with the most certain rate first; then those that are gone."""
        self.close()
        looked: dict[tuple[int, str], Counter[int]] = defaultdict(Counter)
        for image in self._images.values():
            for look in ("", *image.drops):
                looked[image.answer, look][image.night] += 1
        for night, classes in self._border.items():
            for answer, counts in classes.items():
                looked[answer, "border"][night] = sum(counts.values())
        found = [self._card(cause, looked, names) for cause in self._sizes]
        there = {card.id for card in found}
        left = [replace(c, images=0) for c in self._nights.cards if c.id and c.id not in there]
        found = [replace(c, decision=(decisions or {}).get(c.id)) for c in (*found, *left)]
        return sorted(found, key=lambda card: (card.is_gone, -card.low, -card.images))

    def _card(self, cause: str, looked: Mapping[tuple[int, str], Counter[int]], names: Sequence[str]) -> Card:
        given, hits, before = self._firsts[cause], self._by_night[cause], self._nights.names
        look = given.intervention if given.cause in (*CAUSE_OF.values(), "border", "background") else ""
        all_looked = looked[given.answer, look]
        rates = [NightRate(run, hits[i], max(all_looked[i], hits[i])) for i, run in enumerate(before)]
        by = "carry_rim" if given.intervention == "rim" else TEST_OF.get(given.cause, given.intervention)
        test = self._tests.get((given.answer, by))
        images, whole = self._sizes[cause], sum(rate.looked for rate in rates)
        known = [card.named for card in self._nights.cards if card.id == cause]
        label = names[given.answer] if given.answer < len(names) else None
        low, high = wilson(images, whole)
        median, z = (test.median, test.z) if test else (None, None)
        return Card(
            given.answer, label, given.cause, given.intervention, images, whole, low, high, median, z,
            id=cause, first=before[min(hits)], last=before[max(hits)],
            named=known[0] if known else before[-1], nights=[rate for rate in rates if rate.looked],
        )  # fmt: skip

    def close(self) -> dict[Key, str]:
        """Decide, and count the groups, once all batches are known; give the cause of each image."""
        if self._names is not None:
            return self._names
        self._gone = self._images.keys() - self._there
        self._images = {key: image for key, image in self._images.items() if key in self._there}
        self._tests: dict[tuple[int, str], Excess] = {}  # the most surprising
        latest = max([i.night for i in self._images.values()] + [*self._border, 0])
        self._summed = self._sum_up(latest + 1)
        spans = self._nights.spans(latest)
        self._begins = self._nights.begins
        named = self._named_in(spans)
        for span, found in zip(spans, named, strict=True):
            self._give(span, found)
        for span, found in zip(spans, named, strict=True):
            self._give_border(span, found)
        self._told = {key: told for key, told in self._told.items() if key not in self._given}
        every = self._told | self._given
        given = {key: (g.answer, g.cause) for key, g in every.items()}
        order = {key: g.night for key, g in every.items()}
        self._names = cause_names(given, self._crops, self._nights, order)
        self._count(self._names)
        return self._names

    def _named_in(self, spans: Sequence[Span]) -> list[list[Excess]]:
        """Give what each span names: what it shows best, or what was known of it."""
        many = sum(span.known is None for span in spans)
        whole = [[one for one in self._compared(span, many) if one.named] for span in spans]
        best: dict[tuple[int, str], tuple[float, int]] = {}
        for place, (span, found) in enumerate(zip(spans, whole, strict=True)):
            for one in found if span.known is None else ():
                key = one.class_id, one.intervention
                best[key] = max(best.get(key, (0.0, 0)), (one.z, place))
        return [
            [o for o in found if span.known or best[o.class_id, o.intervention][1] == place]
            for place, (span, found) in enumerate(zip(spans, whole, strict=True))
        ]

    def _compared(self, span: Span, many: int) -> list[Excess]:
        """Compare the classes over the nights of a span."""
        found = self._excesses(span)
        if span.known is not None:
            found = [one for one in found if (one.class_id, one.intervention) in span.known]
        elif span.first > 0:
            before = {(o.class_id, o.intervention): o for o in self._excesses(Span(0, span.first - 1))}
            pairs = [(one, before.get((one.class_id, one.intervention))) for one in found]
            found = [replace(o, named=o.q < FALSE_DISCOVERIES / many and is_new(o, b)) for o, b in pairs]
        for one in found:
            best = self._tests.get((one.class_id, one.intervention))
            if best is None or (one.named, one.z) > (best.named, best.z):
                self._tests[one.class_id, one.intervention] = one
        return found

    def _excesses(self, span: Span) -> list[Excess]:
        """Compare the classes over the nights of a span, of which the counts up to each night are known."""
        found: dict[str, dict[int, dict[bool, int]]] = defaultdict(dict)
        for (name, answer), summed in self._summed.items():
            end = min(span.last + 1, len(summed) - 1)
            still, fallen = (summed[end] - summed[min(span.first, end)]).tolist()
            if still or fallen:
                found[name][answer] = {True: fallen, False: still}
        border = found.pop(_FALLEN, {})
        looks = [one for name, classes in found.items() for one in compared(name, classes)]
        return decided(looks) + decided(compared("border", border))

    def _sum_up(self, nights: int) -> dict[tuple[str, int], NDArray[np.int64]]:
        """Count by look and answer how many stayed and moved before each night, (nights + 1, 2)."""
        by_night: dict[int, list[Seen]] = defaultdict(list)
        for image in self._images.values():
            by_night[image.night].append(image)
        counts = {night: moved(images, self._drop) for night, images in by_night.items()}
        for night, classes in self._border.items():
            counts.setdefault(night, {})[_FALLEN] = classes
        found: dict[tuple[str, int], NDArray[np.int64]] = {}
        for night, looks in counts.items():
            for name, answers in looks.items():
                for answer, of in answers.items():
                    whole = found.setdefault((name, answer), np.zeros((nights + 1, 2), np.int64))
                    whole[night + 1] = of[False], of[True]
        return {key: whole.cumsum(0) for key, whole in found.items()}

    def _give(self, span: Span, found: Sequence[Excess]) -> None:
        """Give images of a span their causes; none before the night in which a known cause began."""
        if not found and (span.first > 0 or span.known is not None):
            return
        images = {key: image for key, image in self._images.items() if span.holds(image.night)}
        for key, (cause, by) in causes(images, found, self._drop).items():
            image = images[key]
            if image.night >= self._begins.get((image.answer, cause), 0):
                self._given.setdefault(key, Given(image.answer, cause, by, image.drops[by], image.night))

        self._tell_colours(images, found)

    def _tell_colours(self, images: Mapping[Key, Seen], found: Sequence[Excess]) -> None:
        """Count the images of a class that is named for colour: the class is told, no image is."""
        by = {c: name for c, mine in named_of(found).items() for name in ("cast", "grey") if name in mine}
        for key, image in images.items():
            name = by.get(image.answer, "")
            is_since = image.night >= self._begins.get((image.answer, "colour"), 0)
            if (fell := image.drops.get(name, 0.0)) > self._drop and is_since and key not in self._given:
                self._told.setdefault(key, Given(image.answer, "colour", name, fell, image.night))

    def _give_border(self, span: Span, found: Sequence[Excess]) -> None:
        """Give the border as a cause to images that have no other."""
        fragile = fragile_of((i for i in self._images.values() if span.holds(i.night)), self._drop)
        named = {one.class_id for one in found if one.intervention == "border"}
        named -= {answer for answer, tests in fragile.items() if "border" in tests}
        for key, fell in self._fell.items() if named else ():
            begins = self._begins.get((fell.answer, "border"), 0)
            looked = self._images.get(key)
            tells = looked is None or looked.border_tells(fell.drop, self._drop)
            if tells and fell.answer in named and span.holds(fell.night) and fell.night >= begins:
                self._given.setdefault(key, fell)

    def _count(self, names: Mapping[Key, str]) -> None:
        """Count each cause, over all and by night, and rank its images."""
        self._sizes = Counter(names.values())
        self._by_night: dict[str, Counter[int]] = defaultdict(Counter)
        self._firsts: dict[str, Given] = {}
        self._ranks: dict[Key, int] = {}
        ranked: Counter[str] = Counter()
        every = self._told | self._given
        for key in sorted(names, key=lambda k: (-every[k].drop, k)):
            cause, given = names[key], every[key]
            self._ranks[key] = ranked[cause]
            ranked[cause] += 1
            self._firsts.setdefault(cause, given)
            self._by_night[cause][given.night] += 1


def _keys(batch: pa.RecordBatch) -> list[Key]:
    columns = (batch.column(name).to_pylist() for name in ("shard", "index", "content_sha256"))
    return list(zip(*columns, strict=True))
