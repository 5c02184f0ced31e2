"""Why answers hang on the wrong thing: classes compared with classes, images given a cause.

Flows in: rows of the table `looks`. Flows out: for each image its cause, for each cause a card. Thresholds
act here, not where looks are made: they can change without a forward.

A class is *named* for an intervention where more of its sampled answers move by more than 0.3 than of the
other classes': z above 3 (4 of those in `FRAGILE`) of the excess over the median class, by binomial error and
the spread of the classes (1.48 MAD), a q below 2 % after Benjamini-Hochberg over classes x interventions, and
an excess of 5 to 40 points (`LEAST`).
Below four answers with 16 sampled images there is no class to compare with: no class is named.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, norm

from camray.audit.columns import number
from camray.audit.counts import wilson
from camray.audit.history import Key, NightRate, Nights, Span, cause_names

DROP = 0.3  # of confidence
SAME, CONTRAST = 0.8, 0.12  # likeness within the answer, and how much less to others
FEWEST_CLASSES, FEWEST_IMAGES = 4, 16
EXCESS_Z, FALSE_DISCOVERIES = 3.0, 0.02
FRAGILE_Z = 4.0  # of what moves objects too: they are carried, smooth ones suffer from noise, frogs are green
FRAGILE = ("carry", "carry_rim", "carry_surround", "noise", "cast", "grey")
LEAST = {  # excess of a rate
    "repeat": 0.05, "carry": 0.05, "border": 0.05, "frame": 0.05, "carry_rim": 0.4, "carry_surround": 0.2,
    "detail": 0.2, "cast": 0.3, "noise": 0.3, "grey": 0.4,
}  # fmt: skip
BOTH = 0.2  # of the images of a class: the background is enough, and needed
LOCAL_ONES = ("repeat", "carry", "carry_rim", "carry_surround", "border", "frame")
ALONE = ("frame", "grey", "cast", "detail", "noise")  # one of these shows its cause alone
NEEDS = {"carry": "fill", "carry_rim": "rim", "carry_surround": "surround"}  # enough -> and needed
CAUSES = {  # cause -> what it is; in this order: the first that holds is the cause
    "repeated thing": "the same pixels come again in other images of the answer",
    "place": "the hottest twentieth of the image, enough to turn other images into this class",
    "border": "the hot part of the outer eighth or quarter",
    "frame": "the outer sixteenth along all edges",
    "background": "what surrounds the middle, enough upside down to turn other images into this class",
    "colour": "the cast of the whole image",
    "texture": "sharpness, resolution, grain or compression of the whole image",
}
CHANGES = {  # intervention -> the image without it
    "fill": "its hottest twentieth filled from around", "border": "the hot part of the border filled",
    "rim": "the hot part of the outer quarter filled", "surround": "with the surroundings of another image",
    "frame": "its outer sixteenth filled from inside", "grey": "in grey",
    "cast": "its mean colours set to the archive's", "noise": "with a little noise",
    "detail": "its frequencies set to the archive's",
}  # fmt: skip
_CAUSE_OF = {"frame": "frame", "grey": "colour", "cast": "colour", "detail": "texture", "noise": "texture"}
_TEST_OF = {"repeated thing": "repeat", "place": "carry", "background": "carry_surround"}
_AROUND = (  # cause, what its class is named for, with what an image of it moves
    ("frame", "frame", {"frame"}),
    ("border", "border", {"border"}),
    ("border", "carry_rim", {"rim", "carry_rim"}),
    ("background", "carry_surround", {"surround", "carry_surround"}),
)


@dataclass(frozen=True, slots=True)
class Excess:
    """How often one intervention moved one class, against the median class."""

    class_id: int
    intervention: str
    images: int
    moved: int
    median: float
    z: float
    q: float  # after Benjamini-Hochberg
    named: bool

    @property
    def rate(self) -> float:
        """Share of the sampled answers that moved."""
        return self.moved / max(self.images, 1)


@dataclass(slots=True)
class Seen:
    """What is known of one image: its answer, how alike its hot spot is, effects by intervention."""

    answer: int
    is_sampled: bool = False
    night: int = 0
    same: float = 0.0
    other: float = 0.0
    drops: dict[str, float] = field(default_factory=dict)

    @property
    def repeats(self) -> bool:
        """Whether its hot spot is the same thing as in others of its answer alone."""
        return self.same > SAME and self.same - self.other > CONTRAST


def seen(rows: Iterable[Mapping[str, Any]], nights: Nights = Nights()) -> dict[Key, Seen]:  # noqa: B008
    """Gather the rows of `looks` by image."""
    found: dict[Key, Seen] = {}
    for row in rows:
        key = row["shard"], row["index"], row["content_sha256"]
        if (image := found.get(key)) is None:
            image = found[key] = Seen(row["predicted_class"], night=nights.of(row.get("run_id")))
        image.is_sampled |= bool(row["sampled"])
        if row["same"] is not None:
            image.same, image.other = row["same"], row["other"]
        if row["drop"] is not None:
            image.drops[row["intervention"]] = row["drop"]
    return found


def excesses(images: Iterable[Seen], drop: float = DROP) -> list[Excess]:
    """Compare the classes, intervention by intervention, on their sampled images; `repeat` on all.

    An image that falls without a hot spot that repeats counts for local interventions alone: a sticker
    explains it.
    """
    counts: dict[str, dict[int, Counter[bool]]] = defaultdict(lambda: defaultdict(Counter))
    for image in images:
        explained = image.repeats and image.drops.get("fill", 0.0) > drop
        counts["repeat"][image.answer][explained] += 1
        for name, fell in image.drops.items() if image.is_sampled else ():
            if name in LEAST and (name in LOCAL_ONES or not explained):
                counts[name][image.answer][fell > drop] += 1
    return decided([one for name, classes in counts.items() for one in compared(name, classes)])


def compared(name: str, classes: Mapping[int, Mapping[bool, int]]) -> list[Excess]:
    """Give each class with enough images its excess over the median class; nothing of too few classes.

    `classes` counts by class how many moved (True) and how many did not.
    """
    images = {c: sum(counts.values()) for c, counts in classes.items()}
    enough = {c: (classes[c].get(True, 0), n) for c, n in images.items() if n >= FEWEST_IMAGES}
    if len(enough) < FEWEST_CLASSES:
        return []
    rates = np.array([moved / n for moved, n in enough.values()])
    median, spread = float(np.median(rates)), 1.4826 * float(np.median(np.abs(rates - np.median(rates))))
    found = []
    for c, (moved, n) in enough.items():
        share = (moved + 1) / (n + 2)
        error = float(np.hypot((share * (1 - share) / n) ** 0.5, spread))
        found.append(Excess(c, name, n, moved, median, (moved / n - median) / error, 1.0, False))
    return found


def decided(found: Sequence[Excess]) -> list[Excess]:
    """Name the classes that stand out, after Benjamini-Hochberg over all that were compared."""
    if not found:
        return []
    kept = false_discovery_control([norm.sf(one.z) for one in found])
    return [_decided(one, float(q)) for one, q in zip(found, kept, strict=True)]


def _decided(one: Excess, q: float) -> Excess:
    least_z = FRAGILE_Z if one.intervention in FRAGILE else EXCESS_Z
    named = one.z > least_z and q < FALSE_DISCOVERIES and one.rate - one.median > LEAST[one.intervention]
    return Excess(one.class_id, one.intervention, one.images, one.moved, one.median, one.z, q, bool(named))


def named_of(found: Iterable[Excess]) -> dict[int, set[str]]:
    """Give the interventions that each class is named for.

    Of those that change the whole image the strongest cause alone, and none where something local is named:
    what leans on one thing suffers from much. Of rim and surroundings what carries more often, and neither
    where answers fall more often yet with a change of the grain.
    """
    by: dict[int, dict[str, Excess]] = defaultdict(dict)
    for one in found:
        if one.named:
            by[one.class_id][one.intervention] = one
    return {c: _strongest(mine) for c, mine in by.items()}


def _strongest(mine: Mapping[str, Excess]) -> set[str]:
    whole = [one for name, one in mine.items() if name not in LOCAL_ONES]
    around = [mine[name] for name in ("carry_rim", "carry_surround") if name in mine]
    best = max(whole, key=lambda one: one.z, default=None)
    cause = _CAUSE_OF[best.intervention] if best else ""
    if {"frame", "carry", "repeat", "border"} & mine.keys():  # they tell more of where it is
        around = [one for one in around if one.intervention == "carry_rim"]
    elif best and cause == "texture":  # grain is around the middle too
        around = [one for one in around if one.rate - one.median > best.rate - best.median]
    around = [max(around, key=lambda one: one.rate)] if around else []
    names = {one.intervention for one in around} | set(mine) & {"frame", "carry", "repeat", "border"}
    return names or {one.intervention for one in whole if _CAUSE_OF[one.intervention] == cause}


def causes(
    images: Mapping[Key, Seen], found: Sequence[Excess], drop: float = DROP
) -> dict[Key, tuple[str, str]]:
    """Give each image that hangs on something its cause, and the intervention that shows it.

    With too few classes to compare, an image needs all: its answer falls without the place, the place turns
    another image into its class, and is the same thing as in others; an object does the first two.
    A background must be needed and enough for a fifth of the class. Of colours a class is told, and no image:
    without its tint one falls, and so do those that are like it by nature.
    """
    named = named_of(found)
    few = len({image.answer for image in images.values()}) < FEWEST_CLASSES
    given: dict[Key, tuple[str, str]] = {}
    for key, image in images.items():
        mine = named.get(image.answer, set())
        if cause := _cause_of(image, mine, few, drop):
            given[key] = cause
    around = Counter(images[key].answer for key, (cause, _) in given.items() if cause == "background")
    answers = Counter(image.answer for image in images.values())
    rare = {answer for answer, count in around.items() if count < BOTH * answers[answer]}
    return {k: c for k, c in given.items() if c[0] != "background" or images[k].answer not in rare}


def _cause_of(image: Seen, mine: set[str], few: bool, drop: float) -> tuple[str, str] | None:
    fell = {name for name, by in image.drops.items() if by > drop}
    both = {"fill", "carry"} <= fell and ((few and image.repeats) or bool(mine & {"carry", "repeat"}))
    if (image.repeats and (both or ("fill" in fell and "repeat" in mine))) or (both and "repeat" in mine):
        return "repeated thing", "fill"
    if both:
        return "place", "fill"
    for cause, by, needs in _AROUND:
        if needs <= fell and by in mine:
            return cause, NEEDS.get(by, by)
    whole = [name for name in ALONE if name in fell & mine and _CAUSE_OF[name] != "colour"]
    return (_CAUSE_OF[whole[0]], whole[0]) if whole else None


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
        look = given.intervention if given.cause in (*_CAUSE_OF.values(), "border", "background") else ""
        all_looked = looked[given.answer, look]
        rates = [NightRate(run, hits[i], max(all_looked[i], hits[i])) for i, run in enumerate(before)]
        by = "carry_rim" if given.intervention == "rim" else _TEST_OF.get(given.cause, given.intervention)
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
        self._images = {key: image for key, image in self._images.items() if key in self._there}
        self._tests: dict[tuple[int, str], Excess] = {}  # the most surprising
        latest = max([i.night for i in self._images.values()] + [*self._border, 0])
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
            found = [replace(o, named=o.q < FALSE_DISCOVERIES / many and _is_new(o, b)) for o, b in pairs]
        for one in found:
            best = self._tests.get((one.class_id, one.intervention))
            if best is None or (one.named, one.z) > (best.named, best.z):
                self._tests[one.class_id, one.intervention] = one
        return found

    def _excesses(self, span: Span) -> list[Excess]:
        images = [image for image in self._images.values() if span.holds(image.night)]
        border: dict[int, Counter[bool]] = defaultdict(Counter)
        for night in filter(span.holds, self._border):
            for answer, counts in self._border[night].items():
                border[answer] += counts
        return excesses(images, self._drop) + decided(compared("border", border))

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
        named = {one.class_id for one in found if one.intervention == "border"}
        for key, fell in self._fell.items() if named else ():
            begins = self._begins.get((fell.answer, "border"), 0)
            if fell.answer in named and span.holds(fell.night) and fell.night >= begins:
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


def _is_new(one: Excess, before: Excess | None) -> bool:
    """Tell whether a class that stands out in late nights also differs from itself in all nights before."""
    if before is None or not one.named:
        return False
    pooled = (one.moved + before.moved + 1) / (one.images + before.images + 2)
    error = (pooled * (1 - pooled) * (1 / one.images + 1 / before.images)) ** 0.5
    least = LEAST[one.intervention]
    return bool(one.rate - before.rate > max(least, EXCESS_Z * error))


def _keys(batch: pa.RecordBatch) -> list[Key]:
    columns = (batch.column(name).to_pylist() for name in ("shard", "index", "content_sha256"))
    return list(zip(*columns, strict=True))
