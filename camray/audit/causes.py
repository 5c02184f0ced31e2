"""Why answers hang on the wrong thing: classes compared with classes, images given a cause.

Flows in: rows of the table `looks`. Flows out: for each image its cause, for each cause a card. Thresholds
act here, not where looks are made: they can change without a forward.

A class is *named* for an intervention where more of its sampled answers move by more than 0.3 than of the
other classes': z above 3 (carry, noise: 4) of the excess over the median class, by binomial error and the
spread of the classes (1.48 MAD), a q below 2 % after Benjamini-Hochberg over classes x interventions, and an
excess of 5 points (local ones) or 20.
Below four answers with 16 sampled images there is no class to compare with: no class is named.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, norm

from camray.audit.columns import number
from camray.audit.counts import wilson

DROP = 0.3  # of confidence
SAME, CONTRAST = 0.8, 0.12  # likeness within the answer, and how much less to others
FEWEST_CLASSES, FEWEST_IMAGES = 4, 16
EXCESS_Z, FALSE_DISCOVERIES = 3.0, 0.02
FRAGILE_Z = 4.0  # of `carry` and `noise`: objects are carried too, smooth ones suffer from noise
LOCAL, REST = 0.05, 0.2  # least excess of a rate
LOCAL_ONES = ("repeat", "carry", "border", "frame")
ALONE = (
    "frame",
    "grey",
    "cast",
    "detail",
    "noise",
)  # who falls with one of these, in a named class, hangs on it
CAUSES = {  # cause -> what it is; in this order: the first that holds is the cause
    "repeated thing": "the same pixels come again in other images of the answer",
    "place": "the hottest twentieth of the image, enough to turn other images into this class",
    "border": "the hot part of the outer eighth",
    "frame": "the outer sixteenth along all edges",
    "colour": "the cast of the whole image",
    "texture": "sharpness, resolution, grain or compression of the whole image",
}
CHANGES = {  # intervention -> the image without it
    "fill": "its hottest twentieth filled from around", "border": "the hot part of the border filled",
    "frame": "its outer sixteenth filled from inside", "grey": "in grey",
    "cast": "its mean colours set to the archive's", "noise": "with a little noise",
    "detail": "its frequencies set to the archive's",
}  # fmt: skip
_CAUSE_OF = {"frame": "frame", "grey": "colour", "cast": "colour", "detail": "texture", "noise": "texture"}

Key = tuple[str, int, str]  # shard, index, content


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
    same: float = 0.0
    other: float = 0.0
    drops: dict[str, float] = field(default_factory=dict)

    @property
    def repeats(self) -> bool:
        """Whether its hot spot is the same thing as in others of its answer alone."""
        return self.same > SAME and self.same - self.other > CONTRAST


def seen(rows: Iterable[Mapping[str, Any]]) -> dict[Key, Seen]:
    """Gather the rows of `looks` by image."""
    found: dict[Key, Seen] = {}
    for row in rows:
        key = row["shard"], row["index"], row["content_sha256"]
        image = found.setdefault(key, Seen(row["predicted_class"]))
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
            if name not in ("fill", "border") and (name in LOCAL_ONES or not explained):
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
    least = LOCAL if one.intervention in LOCAL_ONES else REST
    least_z = FRAGILE_Z if one.intervention in ("carry", "noise") else EXCESS_Z
    named = one.z > least_z and q < FALSE_DISCOVERIES and one.rate - one.median > least
    return Excess(one.class_id, one.intervention, one.images, one.moved, one.median, one.z, q, bool(named))


def named_of(found: Iterable[Excess]) -> dict[int, set[str]]:
    """Give the interventions that each class is named for."""
    named: dict[int, set[str]] = defaultdict(set)
    for one in found:
        if one.named:
            named[one.class_id].add(one.intervention)
    return dict(named)


def causes(
    images: Mapping[Key, Seen], found: Sequence[Excess], drop: float = DROP
) -> dict[Key, tuple[str, str]]:
    """Give each image that hangs on something its cause, and the intervention that shows it.

    With too few classes to compare, an image needs both: its answer falls without the place, and the place
    turns another image into its class.
    """
    named = named_of(found)
    few = len({image.answer for image in images.values()}) < FEWEST_CLASSES
    given: dict[Key, tuple[str, str]] = {}
    for key, image in images.items():
        fell = {name for name, by in image.drops.items() if by > drop}
        mine = named.get(image.answer, set())
        both = {"fill", "carry"} <= fell and (few or bool(mine & {"carry", "repeat"}))
        if (image.repeats and (both or ("fill" in fell and "repeat" in mine))) or (both and "repeat" in mine):
            given[key] = "repeated thing", "fill"
        elif both:
            given[key] = "place", "fill"
        elif alone := [name for name in ALONE if name in fell and name in mine]:
            given[key] = _CAUSE_OF[alone[0]], alone[0]
    return given


@dataclass(frozen=True, slots=True)
class Card:
    """One cause of one answer: how many images hang on it of those that were looked at, and what shows it."""

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

    @property
    def rate(self) -> float:
        """Share of the images looked at."""
        return self.images / max(self.looked, 1)


class CauseBook:
    """What looks and border falls tell of the images of an archive. `add` every batch, then ask `of` any."""

    def __init__(self, looks: Iterable[Mapping[str, Any]], drop: float) -> None:
        self._images, self._drop = seen(looks), drop
        self._excesses = excesses(self._images.values(), drop)
        self._given = causes(self._images, self._excesses, drop)
        self._border: dict[int, Counter[bool]] = defaultdict(Counter)
        self._farthest: dict[int, tuple[float, Key]] = {}  # the largest drop without the border, by class
        self._closed = False

    def add(self, batch: pa.RecordBatch) -> None:
        """Count how often each class falls without the hot border."""
        classes, drops = number(batch, "predicted_class"), number(batch, "confirm_drop")
        keys = _keys(batch)
        for i in np.flatnonzero(~np.isnan(classes)).tolist():
            known, drop = int(classes[i]), float(np.nan_to_num(drops[i]))
            self._border[known][drop > self._drop] += 1
            if drop > self._drop and drop > self._farthest.get(known, (0.0, None))[0]:
                self._farthest[known] = drop, keys[i]

    def of(self, batch: pa.RecordBatch) -> dict[str, NDArray[Any]]:
        """Tell of each row: `cause` (empty: none), `cause_drop`, `has_cause`, `border_class`, `place_drop`.

        `represents`: the image of its answer and cause that falls furthest; `others` have the same cause.
        """
        self._close()
        keys, classes = _keys(batch), number(batch, "predicted_class")
        given = [self._given.get(key, ("", "")) for key in keys]
        looked = [self._images.get(key) for key in keys]
        drops = [s.drops.get(by, np.nan) if s else np.nan for s, (_, by) in zip(looked, given, strict=True)]
        groups = [
            (int(np.nan_to_num(c, nan=-1)), cause or "border")
            for c, (cause, _) in zip(classes, given, strict=True)
        ]
        return {
            "cause": np.array([cause for cause, _ in given], object),
            "cause_drop": np.array(drops, float),
            "has_cause": np.array([cause != "" for cause, _ in given], bool),
            "border_class": np.isin(classes, sorted(self._border_named)),
            "place_drop": np.array([s.drops.get("fill", np.nan) if s else np.nan for s in looked], float),
            "represents": np.array(
                [self._first.get(g) == k for g, k in zip(groups, keys, strict=True)], bool
            ),
            "others": np.array([max(self._sizes.get(g, 1) - 1, 0) for g in groups], np.int32),
        }

    def cards(self, names: Sequence[str]) -> list[Card]:
        """Give the causes, those with the most certain rate first."""
        self._close()
        by = {(one.class_id, one.intervention): one for one in self._excesses}
        found = []
        for (answer, cause), images in self._sizes.items():
            shown = self._shown[answer, cause]
            test = by.get((answer, {"repeated thing": "repeat", "place": "carry"}.get(cause, shown)))
            mine = [s for s in self._images.values() if s.answer == answer]
            looked = sum(shown in s.drops for s in mine) if cause in _CAUSE_OF.values() else len(mine)
            looked = sum(self._border[answer].values()) if cause == "border" else looked
            low, high = wilson(images, max(looked, images))
            label = names[answer] if answer < len(names) else None
            compared_with = (test.median, test.z) if test else (None, None)
            found.append(
                Card(answer, label, cause, shown, images, max(looked, images), low, high, *compared_with)
            )
        return sorted(found, key=lambda card: (-card.low, -card.images))

    def _close(self) -> None:
        """Decide on the border, and count the groups, once all batches are known."""
        if self._closed:
            return
        self._closed = True
        self._excesses += decided(compared("border", self._border))
        self._border_named = {c for c, by in named_of(self._excesses).items() if "border" in by}
        self._sizes = Counter((self._images[k].answer, cause) for k, (cause, _) in self._given.items())
        self._shown = {(self._images[k].answer, cause): by for k, (cause, by) in self._given.items()}
        self._first: dict[tuple[int, str], Key] = {}
        for key in sorted(self._given, key=lambda k: -self._images[k].drops[self._given[k][1]]):
            self._first.setdefault((self._images[key].answer, self._given[key][0]), key)
        for answer in self._border_named:
            self._sizes[answer, "border"] = self._border[answer][True]
            self._shown[answer, "border"] = "border"
            self._first[answer, "border"] = self._farthest[answer][1]


def _keys(batch: pa.RecordBatch) -> list[Key]:
    columns = (batch.column(name).to_pylist() for name in ("shard", "index", "content_sha256"))
    return list(zip(*columns, strict=True))
