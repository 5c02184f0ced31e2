"""Why answers hang on the wrong thing: classes compared with classes, images given a cause.

Flows in: rows of the table `looks`. Flows out: the classes that stand out, for each image its cause.
Thresholds act here, not where looks are made: they can change without a forward.

A class is *named* for an intervention where more of its sampled answers move by more than 0.3 than of the
other classes': z above 3 (4 of those in `FRAGILE`) of the excess over the median class, by binomial error and
the spread of the classes (1.48 MAD), a q below 2 % after Benjamini-Hochberg over classes x interventions, and
an excess of 5 to 40 points (`LEAST`).
Below four answers with 16 sampled images there is no class to compare with: no class is named.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from statistics import median
from typing import Any

import numpy as np
from scipy.special import ndtr
from scipy.stats import false_discovery_control

from camray.audit.history import Key, Nights
from camray.explain.repeats import ALIKE

DROP = 0.3  # of confidence
CONTRAST = 0.12  # how much less alike it is to others than within the answer
FEWEST_CLASSES, FEWEST_IMAGES = 4, 16
EXCESS_Z, FALSE_DISCOVERIES = 3.0, 0.02
FRAGILE_Z = 4.0  # of what moves objects too: they are carried, smooth ones suffer from noise, deer are pale
FRAGILE = ("carry", "carry_surround", "noise", "levels")
LEAST = {  # excess of a rate
    "repeat": 0.05, "carry": 0.05, "border": 0.05, "frame": 0.05, "carry_surround": 0.2, "detail": 0.2,
    "noise": 0.3, "levels": 0.1,
}  # fmt: skip
FEWEST_HANGING = 0.05  # of the images of an answer: fewer are no cause
BOTH = 0.2  # the same of a background, which must be enough, and needed
ENOUGH = 0.25  # of those that need a place: it turns other images into this answer
FEWEST_CARRIED = 4  # images that tell whether it does
GAIN = 0.1  # gained elsewhere
TRACE, CLEAR = 0.01, 1.5  # the same of a border; of one that gains less the fall must exceed 1.5 limits
SPOTS = ("repeat", "carry", "border", "frame")
LOCAL_ONES = (*SPOTS, "carry_surround")
ALONE = ("frame", "detail", "noise")  # one of these shows its cause alone
NEEDS = {"carry": "fill", "carry_surround": "surround"}  # enough -> and needed
CAUSES = {  # cause -> what it is; in this order: the first that holds is the cause
    "repeated thing": "the same pixels come again in other images of the answer",
    "place": "the hottest twentieth of the image, enough to turn other images into this class",
    "border": "the hot part of the outer eighth",
    "frame": "the outer sixteenth along all edges",
    "background": "what surrounds the middle, enough upside down to turn other images into this class",
    "colour or contrast": "where the channels of the whole image begin and end: a tint, a contrast",
    "texture": "sharpness, resolution, grain or compression of the whole image",
}
CHANGES = {  # intervention -> the image without it
    "fill": "its hottest twentieth filled from around", "thing": "what repeats filled from around",
    "border": "the hot part of the border filled",
    "surround": "with the surroundings of another image",
    "frame": "its outer sixteenth filled from inside", "noise": "with a little noise",
    "levels": "its darkest and lightest values set to the archive's, channel by channel",
    "detail": "its frequencies set to the archive's",
}  # fmt: skip
CAUSE_OF = {"frame": "frame", "levels": "colour or contrast", "detail": "texture", "noise": "texture"}
_AROUND = (  # cause, what its class is named for, with what an image of it moves
    ("frame", "frame", {"frame"}),
    ("border", "border", {"border"}),
    ("background", "carry_surround", {"surround", "carry_surround"}),
)
_ENOUGH = (("repeat", "fill", ("carry", "carry_rim")), ("border", "border", ("carry_rim",)))


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
    is_blurred: bool = False  # its hot border, and the answer fell: what screened it was covered
    thing_of: int | None = None  # the answer whose repeated thing it shows
    is_flipped: bool = False  # without that thing another answer wins

    @property
    def repeats(self) -> bool:
        """Whether its hot spot is the same thing as in others of its answer alone."""
        return self.same > ALIKE and self.same - self.other > CONTRAST

    def needs_what_repeats(self, drop: float = DROP) -> bool:
        """Whether its hot spot, or a thing in it, repeats in its answer, which falls without it."""
        own = self.thing_of == self.answer and self.drops.get("thing", 0.0) > drop
        return own or (self.repeats and self.drops.get("fill", 0.0) > drop)

    def blamed(self, look: str) -> int:
        """Give the answer whose cause a look shows."""
        return self.thing_of if look == "thing" and self.thing_of is not None else self.answer

    def moves(self, look: str, drop: float) -> bool:
        """Whether it moved under a look; of `levels` what also gains its answer something elsewhere."""
        carried = look != "levels" or self.drops.get("carry_levels", 0.0) > GAIN
        return self.drops.get(look, 0.0) > drop and carried

    def border_tells(self, fell: float, drop: float) -> bool:
        """Whether its rim gains its answer something elsewhere, or blur and fill take it, not narrowly."""
        return self.drops.get("carry_rim", 1.0) > TRACE or (self.is_blurred and fell > CLEAR * drop)


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
        if row["intervention"] == "thing":
            image.thing_of, image.is_flipped = row["thing_of"], row["flip"]
    return found


def excesses(images: Iterable[Seen], drop: float = DROP) -> list[Excess]:
    """Compare the classes, intervention by intervention, on their sampled images; `repeat` on all."""
    return decided([one for name, classes in moved(images, drop).items() for one in compared(name, classes)])


def moved(images: Iterable[Seen], drop: float = DROP) -> dict[str, dict[int, Counter[bool]]]:
    """Count how many images of each class moved, by intervention.

    An image that falls without a hot spot that repeats counts for local interventions alone: a sticker
    explains it.
    """
    counts: dict[str, dict[int, Counter[bool]]] = defaultdict(lambda: defaultdict(Counter))
    for image in images:
        explained = image.needs_what_repeats(drop)
        counts["repeat"][image.answer][explained] += 1
        for name in image.drops if image.is_sampled else ():
            if name in LEAST and (name in LOCAL_ONES or not explained):
                counts[name][image.answer][image.moves(name, drop)] += 1
    return counts


def compared(name: str, classes: Mapping[int, Mapping[bool, int]]) -> list[Excess]:
    """Give each class with enough images its excess over the median class; nothing of too few classes.

    `classes` counts by class how many moved (True) and how many did not.
    """
    images = {c: sum(counts.values()) for c, counts in classes.items()}
    enough = {c: (classes[c].get(True, 0), n) for c, n in images.items() if n >= FEWEST_IMAGES}
    if len(enough) < FEWEST_CLASSES:
        return []
    rates = [moved / n for moved, n in enough.values()]
    middle = median(rates)
    spread = 1.4826 * median(abs(rate - middle) for rate in rates)
    found = []
    for c, (moved, n) in enough.items():
        share = ((middle * n if name == "levels" else moved) + 1) / (n + 2)  # needed and enough is rare
        error = float(np.hypot((share * (1 - share) / n) ** 0.5, spread))
        found.append(Excess(c, name, n, moved, middle, (moved / n - middle) / error, 1.0, False))
    return found


def decided(found: Sequence[Excess]) -> list[Excess]:
    """Name the classes that stand out, after Benjamini-Hochberg over all that were compared."""
    if not found:
        return []
    kept = false_discovery_control(ndtr([-one.z for one in found]))
    return [_decided(one, float(q)) for one, q in zip(found, kept, strict=True)]


def _decided(one: Excess, q: float) -> Excess:
    least_z = FRAGILE_Z if one.intervention in FRAGILE else EXCESS_Z
    named = one.z > least_z and q < FALSE_DISCOVERIES and one.rate - one.median > LEAST[one.intervention]
    return Excess(one.class_id, one.intervention, one.images, one.moved, one.median, one.z, q, bool(named))


def named_of(found: Iterable[Excess]) -> dict[int, set[str]]:
    """Give the interventions that each class is named for.

    Something local alone: what leans on one thing suffers from much. Of what changes the whole image the
    strongest cause alone, levels first (needed and enough). A background where no spot is named and no change
    of the grain, which is around the middle too, moves as many.
    """
    by: dict[int, dict[str, Excess]] = defaultdict(dict)
    for one in found:
        if one.named:
            by[one.class_id][one.intervention] = one
    return {c: _strongest(mine) for c, mine in by.items()}


def _strongest(mine: Mapping[str, Excess]) -> set[str]:
    if spots := set(SPOTS) & mine.keys():
        return spots
    whole, around = [one for name, one in mine.items() if name not in LOCAL_ONES], mine.get("carry_surround")
    best = max(whole, key=lambda one: (one.intervention == "levels", one.z), default=around)
    cause = CAUSE_OF.get(best.intervention) if best else None
    if around and best and (cause != "texture" or around.rate - around.median > best.rate - best.median):
        return {"carry_surround"}
    return {one.intervention for one in whole if CAUSE_OF[one.intervention] == cause}


def causes(
    images: Mapping[Key, Seen],
    found: Sequence[Excess],
    drop: float = DROP,
    answers: Mapping[int, int] | None = None,
    many: Mapping[Key, int] | None = None,
) -> dict[Key, tuple[str, str]]:
    """Give each image that hangs on something its cause, and the intervention that shows it.

    With too few classes to compare, one cause is left: a thing that repeats in one answer alone, of which an
    image is cleared and its answer falls. Natural hot spots are alike in both answers, or not pixel by pixel.
    A cause needs a twentieth of the images of its answer, a background a fifth. Of levels a class is told,
    and no image: without its tint one falls, and so do those that are like it by nature.
    `answers`: how many images there are of each answer, where `images` are only those of some; `many`: for
    how many each of `images` stands.
    """
    answers = Counter(image.answer for image in images.values()) if answers is None else answers
    many = dict.fromkeys(images, 1) if many is None else many
    fragile = fragile_of(images.values(), drop, many.values())
    named = {c: mine - fragile.get(c, set()) for c, mine in named_of(found).items()}
    few = len(answers) < FEWEST_CLASSES
    given: dict[Key, tuple[str, str]] = {}
    for key, image in images.items():
        if cause := _cause_of(image, named, few, drop):
            given[key] = cause
    kinds = {
        key: (images[key].blamed(by), cause.replace("repeated thing", "place"))
        for key, (cause, by) in given.items()
    }
    hanging: Counter[tuple[int, str]] = Counter()
    for key, kind in kinds.items():
        hanging[kind] += many[key]
    least = {
        kind: (BOTH if kind[1] == "background" else FEWEST_HANGING) * answers[kind[0]] for kind in hanging
    }
    return {key: found for key, found in given.items() if hanging[kinds[key]] >= least[kinds[key]]}


def fragile_of(
    images: Iterable[Seen], drop: float = DROP, many: Iterable[int] = repeat(1)
) -> dict[int, set[str]]:
    """Give by answer the tests (`repeat`, `border`) of places that it needs and that are not enough for it.

    A sticker turns other images into its answer (a fourth of those that need it is asked for); the edge of a
    disk, which the model hardly knows, does not: its answer is fragile. `many`: for how many each stands.
    """
    counts: dict[tuple[int, str], Counter[bool]] = defaultdict(Counter)
    for image, count in zip(images, many, strict=False):
        for test, need, carries in _ENOUGH:
            gains = [image.drops[name] for name in carries if name in image.drops]
            if gains and image.drops.get(need, 0.0) > drop and (test == "border" or image.repeats):
                counts[image.answer, test][max(gains) > drop] += count
    found: dict[int, set[str]] = defaultdict(set)
    for (answer, test), told in counts.items():
        if told.total() >= FEWEST_CARRIED and told[True] < ENOUGH * told.total():
            found[answer].add(test)
    return found


def _cause_of(image: Seen, named: Mapping[int, set[str]], few: bool, drop: float) -> tuple[str, str] | None:
    mine, of_thing = (named.get(answer, set()) for answer in (image.answer, image.blamed("thing")))
    fell = {name for name, by in image.drops.items() if by > drop}
    border = "border" in fell & mine and image.border_tells(image.drops["border"], drop)
    if not border and (few or "repeat" in of_thing) and (image.is_flipped or "thing" in fell):
        return "repeated thing", "thing"
    both = {"fill", "carry"} <= fell and bool(mine & {"carry", "repeat"})
    if (image.repeats and (both or ("fill" in fell and "repeat" in mine))) or (both and "repeat" in mine):
        return "repeated thing", "fill"
    if both:
        return "place", "fill"
    for cause, by, needs in _AROUND:
        if needs <= fell and by in mine and (by != "border" or border):
            return cause, NEEDS.get(by, by)
    whole = [name for name in ALONE if name in fell & mine]
    return (CAUSE_OF[whole[0]], whole[0]) if whole else None


def is_new(one: Excess, before: Excess | None) -> bool:
    """Tell whether a class that stands out in late nights also differs from itself in all nights before."""
    if before is None or not one.named:
        return False
    pooled = (one.moved + before.moved + 1) / (one.images + before.images + 2)
    error = (pooled * (1 - pooled) * (1 / one.images + 1 / before.images)) ** 0.5
    least = LEAST[one.intervention]
    return bool(one.rate - before.rate > max(least, EXCESS_Z * error))
