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
import pyarrow.compute as pc
from numpy.typing import NDArray

from camray.audit.alike import KEY, Alike, has_key, images_in, rows_of, table_of, table_of_images
from camray.audit.causes import (
    CAUSE_OF,
    FALSE_DISCOVERIES,
    FEWEST_CLASSES,
    FEWEST_HANGING,
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
from camray.audit.history import KNOWN, SHOWN_NIGHTS, Key, NightRate, Nights, Span, cause_names
from camray.audit.look_counts import LookCounts

_LATELY = 60  # images of an answer that tell whether a cause is gone, but for single ones
_FALLEN = "without the hot border"  # of the second look, which images got by their heat
_FELL = pa.schema([*KEY, ("answer", pa.int32()), ("drop", pa.float64()), ("night", pa.int32())])
_CROPS = KEY.append(pa.field("crop", pa.binary()))
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
    nights: Sequence[NightRate] = ()  # the last sixty
    decision: str | None = None  # of a person, on the whole cause

    @property
    def rate(self) -> float:
        """Share of the images looked at."""
        return self.images / max(self.looked, 1)

    @property
    def looked_since(self) -> int:
        """Images of the answer looked at since the last that hangs on it."""
        runs = [night.run_id for night in self.nights]
        since = runs.index(self.last) + 1 if self.last in runs else 0  # it is older than the nights
        return sum(night.looked for night in self.nights[since:])

    @property
    def lately(self) -> tuple[int, int]:
        """How many hang on it of the images looked at last, 60 or more, in nights behind its first."""
        runs, hang, looked = [night.run_id for night in self.nights], 0, 0
        behind = self.nights[runs.index(self.first) + 1 if self.first in runs else 0 :]
        for night in reversed(behind):
            hang, looked = hang + night.images, looked + night.looked
            if looked >= _LATELY:
                return hang, looked
        return 0, 0

    @property
    def is_gone(self) -> bool:
        """Whether images of its answer were looked at since, and none hangs on it, or of late too few."""
        hang, looked = self.lately
        return self.looked_since > 0 or not self.images or hang < FEWEST_HANGING * looked


class CauseBook:
    """What looks and border falls tell of the images of an archive. `add` every batch, then ask `of` any.

    `looks`: of all images; after `recall` of those that are new. `crops` reads the hot spots of images.
    """

    def __init__(
        self,
        looks: Iterable[Mapping[str, Any]],
        drop: float,
        nights: Nights = Nights(),  # noqa: B008
        crops: Callable[[Collection[Key]], Mapping[Key, bytes]] = lambda _: {},
    ) -> None:
        self._images, self._drop, self._nights = seen(looks, nights), drop, nights
        self._read_crops = crops
        self.looked = frozenset(self._images)  # images that `looks` are of
        self._contents = pa.array({content for _, _, content in self._images}, pa.string())
        self._there: set[Key] = set()  # of the images looked at: those that are in the archive
        self._older: pa.Table | None = None  # images of earlier nights; None: looks are of all
        self._counts = LookCounts()
        self._fell: dict[Key, Given] = {}  # without the hot border
        self._fell_before = _FELL.empty_table()
        self._fills: dict[Key, float] = {}  # without the hottest place
        self._pixels: dict[Key, bytes] = {}  # hot spots that were read
        self._given: dict[Key, Given] = {}
        self._told: dict[Key, Given] = {}  # of a class alone: its colours
        self._names: dict[Key, str] | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        """Count how often each class falls without the hot border."""
        classes, drops = number(batch, "predicted_class"), np.nan_to_num(number(batch, "confirm_drop"))
        runs = batch.column("run_id").dictionary_encode()
        nights = np.array([self._nights.of(run) for run in runs.dictionary.to_pylist()], np.int64)
        night = nights[pc.fill_null(runs.indices, 0).to_numpy()] if len(nights) else np.zeros(len(batch), int)
        known, fell = ~np.isnan(classes), drops > self._drop
        most = int(np.nanmax(classes, initial=0)) + 1
        cells = (night[known] * most + classes[known].astype(np.int64)) * 2 + fell[known]
        for cell, count in zip(
            *(part.tolist() for part in np.unique(cells, return_counts=True)), strict=True
        ):
            (of_night, answer), is_fallen = divmod(cell // 2, most), cell % 2
            self._counts.add(_FALLEN, answer, of_night, count * (1 - is_fallen), count * is_fallen, count)
        rows = np.flatnonzero(known & fell)
        for i, key in zip(rows.tolist(), _keys(batch.take(pa.array(rows))), strict=True):
            self._fell[key] = Given(int(classes[i]), "border", "border", float(drops[i]), int(night[i]))
        mine = batch.filter(pc.is_in(batch.column("content_sha256"), value_set=self._contents))
        self._there.update(key for key in _keys(mine) if key in self._images)

    def recall(self, before: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> bool:
        """Begin with what `carried` gave the night before; False where its nights are not those of now."""
        if list(self._nights.names[: len(before["nights"])]) != before["nights"]:
            return False
        self._older = older = tables["images"]
        if (again := has_key(older, self.looked)).any():  # they are as they are now
            self._older = older.filter(pa.array(~again))
        self._counts, self._fell_before = LookCounts(tables["counts"], tables["pairs"]), tables["fell"]
        self._pixels = {(*key,): crop for *key, crop in rows_of(tables["crops"])}
        return True

    def recollect(self, contents: Collection[str]) -> None:
        """Recall the looks at the hottest place of earlier images, which are to be judged again."""
        if self._older is not None and contents:
            mine = pc.is_in(self._older["content_sha256"], value_set=pa.array(contents, pa.string()))
            self._note_fills(images_in(self._older.filter(mine)))

    def _note_fills(self, images: Mapping[Key, Seen]) -> None:
        self._fills |= {key: image.drops["fill"] for key, image in images.items() if "fill" in image.drops}

    def carried(self) -> tuple[dict[str, Any], dict[str, pa.Table]]:
        """Give what batches and looks told, for the next night: plain values, and tables."""
        names = self.close()
        fell = [(*key, given.answer, given.drop, given.night) for key, given in self._fell.items()]
        crops, kept = [], Counter[str]()
        every = self._told | self._given
        for key in sorted(self._pixels.keys() & names.keys(), key=lambda k: (every[k].night, k)):
            kept[names[key]] += 1
            if kept[names[key]] <= KNOWN:
                crops.append((*key, self._pixels[key]))
        tonight = {
            key: image
            for key in self.looked
            if (image := self._images.get(key)) and self._may_tell(key, image)
        }
        images = [table for table in (self._older, table_of_images(tonight)) if table is not None]
        facts = {"nights": list(self._nights.names)}
        counts, pairs = self._counts.tables()
        tables = {
            "counts": counts, "pairs": pairs, "crops": table_of(crops, _CROPS),
            "images": pa.concat_tables(images, promote_options="default"),
            "fell": pa.concat_tables([self._fell_before, table_of(fell, _FELL)]),
        }  # fmt: skip
        return facts, tables

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
        fills = [self._fills.get(key, np.nan) for key in keys]
        sizes = [self._sizes.get(names.get(key, ""), 1) for key in keys]
        return {
            "cause": np.array([g.cause if g else "" for g in given], object),
            "cause_id": np.array([names.get(key, "") for key in keys], object),
            "cause_drop": np.array([g.drop if g else np.nan for g in given], float),
            "has_cause": np.array([g is not None for g in given], bool),
            "place_drop": np.array(fills, float),
            "rank": np.array([self._ranks.get(key, 0) for key in keys], np.int64),
            "others": np.array([size - 1 for size in sizes], np.int32),
        }

    def cards(self, names: Sequence[str], decisions: Mapping[str, str] | None = None) -> list[Card]:
        """Give the causes, those with the most certain rate first; then those that are gone."""
        self.close()
        found = [self._card(cause, names) for cause in self._sizes]
        there = {card.id for card in found}
        left = [replace(c, images=0) for c in self._nights.cards if c.id and c.id not in there]
        found = [replace(c, decision=(decisions or {}).get(c.id)) for c in (*found, *left)]
        return sorted(found, key=lambda card: (card.is_gone, -card.low, -card.images))

    def _card(self, cause: str, names: Sequence[str]) -> Card:
        given, hits, before = self._firsts[cause], self._by_night[cause], self._nights.names
        look = given.intervention if given.cause in (*CAUSE_OF.values(), "border", "background") else ""
        all_looked = self._counts.by_night(_FALLEN if look == "border" else look, given.answer)
        rates = [NightRate(run, hits[i], max(all_looked[i], hits[i])) for i, run in enumerate(before)]
        test = self._tests.get((given.answer, TEST_OF.get(given.cause, given.intervention)))
        images, whole = self._sizes[cause], sum(rate.looked for rate in rates)
        known = [card.named for card in self._nights.cards if card.id == cause]
        label = names[given.answer] if given.answer < len(names) else None
        low, high = wilson(images, whole)
        median, z = (test.median, test.z) if test else (None, None)
        return Card(
            given.answer, label, given.cause, given.intervention, images, whole, low, high, median, z,
            id=cause, first=before[min(hits)], last=before[max(hits)],
            named=known[0] if known else before[-1],
            nights=[rate for rate in rates if rate.looked][-SHOWN_NIGHTS:],
        )  # fmt: skip

    def close(self) -> dict[Key, str]:
        """Decide, and count the groups, once all batches are known; give the cause of each image."""
        if self._names is not None:
            return self._names
        if self._older is None:
            self._images = {key: image for key, image in self._images.items() if key in self._there}
        self._count_looks()
        self._tests: dict[tuple[int, str], Excess] = {}  # the most surprising
        latest = self._counts.latest
        spans = self._nights.spans(latest)
        self._begins = self._nights.begins
        named = self._named_in(spans)
        self._take({one.class_id for found in named for one in found}, self._counts.images(0, latest))
        for span, found in zip(spans, named, strict=True):
            self._give(span, found)
        for span, found in zip(spans, named, strict=True):
            self._give_border(span, found)
        self._told = {key: told for key, told in self._told.items() if key not in self._given}
        every = self._told | self._given
        given = {key: (g.answer, g.cause) for key, g in every.items()}
        order = {key: g.night for key, g in every.items()}
        self._names = cause_names(given, self._hot_spots, self._nights, order)
        self._count(self._names)
        return self._names

    def _count_looks(self) -> None:
        """Count the looks at the images, by night."""
        by_night: dict[int, list[Seen]] = defaultdict(list)
        for image in self._images.values():
            by_night[image.night].append(image)
        for night, images in by_night.items():
            for name, answers in moved(images, self._drop).items():
                for answer, of in answers.items():
                    self._counts.add(name, answer, night, of[False], of[True])
            looked = Counter((look, image.answer) for image in images for look in ("", *image.drops))
            for (look, answer), count in looked.items():
                self._counts.add(look, answer, night, looked=count)

    def _may_tell(self, key: Key, image: Seen) -> bool:
        """Whether an image can be given a cause, or cleared of one, in any night: no cause without a fall."""
        fell = image.is_flipped or max(image.drops.values(), default=0) > self._drop
        return fell or "fill" in image.drops or key in self._fell

    def _take(self, named: set[int], all_images: Mapping[int, int]) -> None:
        """Put the images of the answers that stand out together; of all answers where these are too few."""
        answers = named | (all_images.keys() if len(all_images) < FEWEST_CLASSES else set())
        mine = pc.is_in(self._fell_before["answer"], value_set=pa.array(named, pa.int32()))
        self._all_fell = dict(self._fell)
        for *key, answer, drop, night in rows_of(self._fell_before.filter(mine)):
            self._all_fell[*key,] = Given(answer, "border", "border", drop, night)
        self._note_fills(self._images)
        own = {k: i for k, i in self._images.items() if {i.answer, i.blamed("thing")} & answers}
        tables = [table_of_images(own)]
        if self._older is not None:
            wanted = pa.array(answers, pa.int32())
            mine, shown = (pc.is_in(self._older[name], value_set=wanted) for name in ("answer", "thing_of"))
            tables.append(self._older.filter(pc.or_(mine, shown)))
        table = pa.concat_tables(tables, promote_options="default").combine_chunks()
        self._alike = Alike(table, self._all_fell.keys(), self._drop)

    def _hot_spots(self, keys: Collection[Key]) -> Mapping[Key, bytes]:
        """Give the hot spots of images: those that are known, and what has to be read."""
        self._pixels |= self._read_crops([key for key in keys if key not in self._pixels])
        return {key: self._pixels[key] for key in keys if key in self._pixels}

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
        for look, answer, still, fallen, _ in self._counts.between(span.first, span.last):
            if still or fallen:
                found[look][answer] = {True: fallen, False: still}
        border = found.pop(_FALLEN, {})
        looks = [one for name, classes in found.items() for one in compared(name, classes)]
        return decided(looks) + decided(compared("border", border))

    def _give(self, span: Span, found: Sequence[Excess]) -> None:
        """Give images of a span their causes; none before the night in which a known cause began."""
        answers = self._counts.images(span.first, span.last)
        if not found and (span.first > 0 or span.known is not None or len(answers) >= FEWEST_CLASSES):
            return
        images, many = self._alike.within(span)
        for one, (cause, by) in causes(images, found, self._drop, answers, many).items():
            answer = images[one].blamed(by)
            since = self._begins.get((answer, cause), 0)
            for key, drop, night in self._alike.behind(one, span, since, by, take=True):
                self._given[key] = Given(answer, cause, by, drop, night)
        levels = {answer for answer, mine in named_of(found).items() if "levels" in mine}
        for one, image in images.items() if levels else ():  # the class is told, no image is
            if image.answer in levels and image.moves("levels", self._drop):
                cause = CAUSE_OF["levels"]
                since = self._begins.get((image.answer, cause), 0)
                for key, drop, night in self._alike.behind(one, span, since, "levels", take=False):
                    self._told.setdefault(key, Given(image.answer, cause, "levels", drop, night))

    def _give_border(self, span: Span, found: Sequence[Excess]) -> None:
        """Give the border as a cause to images that have no other."""
        if not (named := {one.class_id for one in found if one.intervention == "border"}):
            return
        images, many = self._alike.within(span)
        fragile = fragile_of(images.values(), self._drop, many.values())
        named -= {answer for answer, tests in fragile.items() if "border" in tests}
        looked = self._alike.blurred
        for key, fell in self._all_fell.items():
            begins = self._begins.get((fell.answer, "border"), 0)
            tells = key not in looked or looked[key].border_tells(fell.drop, self._drop)
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
    columns = (batch.column(name).to_pylist() for name in KEY.names)
    return list(zip(*columns, strict=True))
