"""Does a property of the picture go with an answer, at equal label? No forward is spent on it.

Of the images of one label, were those answered "cat" redder, noisier, smaller than those answered otherwise?
A rank test (Mann-Whitney) asks it within each label, and van Elteren's weights 1 / (N + 1) put the labels
together: so that cats may be redder than ships, and only what the *model* makes of it counts. A property is
named where |z| is at least 4, more where more than some 800 pairs of class and property were tried, and where
the effect z / sqrt(images compared) is at least 0.11: what is natural (blue photographs are rather called
ships) becomes certain in a large archive, but no larger. In clean photographs it stayed below 0.10.

What one class gains others lose: the images answered with the class that shows most are left out before the
next is looked for.

It names a cue without a place (tint, blur, compression, noise, another device), and says nothing of a single
image: a finding is of a class, with the images that show it most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import norm

from camray.audit.columns import VIEW, Floats, number
from camray.audit.verdicts import Marks

LIMIT = 4.0  # standard deviations
FALSE_ALARMS = 0.05  # of an archive: raises the limit where many pairs are tried
EFFECT = 0.11  # z / sqrt(images compared)
FEWEST = 5.0  # images answered so, each counted by the share of its label that was answered otherwise
SHOWN = 20
CLASSES = 20  # named at most
VALUES = 20  # the most frequent of a property in words

NAMES = {
    "image_mean": "brightness", "image_std": "contrast", "image_sharpness": "sharpness",
    "image_red": "redness", "image_red_std": "variety of red", "image_blue": "blueness",
    "image_blue_std": "variety of blue", "image_saturation": "saturation",
    "image_saturation_std": "variety of saturation", "image_dark": "darkest parts",
    "image_light": "lightest parts", "image_noise": "noise", "image_blockiness": "blocks of compression",
    "file_bits": "bits a pixel", "width": "width", "height": "height", "aspect": "width by height",
}  # fmt: skip
_NUMBERS = (*VIEW, "width", "height")


@dataclass(frozen=True, slots=True)
class PropertyFinding:
    """A property that goes with an answer. `superiority`: how often an image answered so exceeds another."""

    class_id: int
    label: str | None
    property: str  # as in `NAMES`, or `format JPEG`
    z: float
    superiority: float  # 0..1, at equal label; 0.5: no difference
    answered: int
    others: int
    extreme: Sequence[tuple[str, int]]  # shard and index of the images answered so that show it most


class Properties:
    """Properties and answers of an archive, about 100 bytes an image. `add` every batch, then `findings`."""

    def __init__(self) -> None:
        self._values: list[NDArray[np.float32]] = []  # (rows, properties)
        self._answers: list[NDArray[np.int32]] = []  # (rows, label and answer)
        self._places: list[NDArray[np.int32]] = []  # (rows, number of the shard and index)
        self._words: dict[str, list[NDArray[Any]]] = {}
        self._shards: dict[str, int] = {}
        self._rows = 0

    def add(self, batch: pa.RecordBatch, flags: Marks) -> None:
        """Take a judged batch; images whose reason is known, a confirmed shortcut, are left out."""
        label, answer = number(batch, "label_class"), number(batch, "predicted_class")
        usable = ~np.isnan(label) & ~np.isnan(answer) & ~flags["shortcut_confirmed"]
        if not usable.any():
            return
        batch = batch.filter(pa.array(usable))
        columns = {name: number(batch, name) for name in _NUMBERS}
        with np.errstate(invalid="ignore"):
            columns["aspect"] = columns["width"] / columns["height"]
        self._values.append(np.stack([columns[n] for n in NAMES], axis=1).astype(np.float32))
        self._answers.append(np.stack([label[usable], answer[usable]], axis=1).astype(np.int32))
        shards = batch.column("shard").to_pylist()
        numbers = [self._shards.setdefault(shard, len(self._shards)) for shard in shards]
        index = batch.column("index").to_numpy(zero_copy_only=False)
        self._places.append(np.stack([numbers, index], axis=1).astype(np.int32))
        said = _words_of(batch)
        for name in self._words.keys() | said.keys():
            parts = self._words.setdefault(name, [np.full(self._rows, "", object)])
            parts.append(said.get(name, np.full(len(batch), "", object)))
        self._rows += len(batch)

    def findings(self, names: Sequence[str] = ()) -> list[PropertyFinding]:
        """Name the properties that go with an answer, class by class, the strongest first."""
        if not self._rows:
            return []
        answers = np.concatenate(self._answers)
        columns = dict(zip(NAMES.values(), np.concatenate(self._values).T, strict=True)) | self._indicators()
        found: list[PropertyFinding] = []
        left = np.ones(self._rows, bool)
        for _ in range(CLASSES):
            strata = Strata(answers[left, 0], answers[left, 1])
            hits = _hits({name: strata.test(values[left]) for name, values in columns.items()})
            if not hits:
                break
            strongest = hits[0].place
            c = int(strata.classes[strongest])
            own = answers[:, 1] == c
            for hit in [h for h in hits if h.place == strongest]:
                extreme = self._extreme(own, columns[hit.property] * np.sign(hit.z))
                label = names[c] if c < len(names) else None
                found.append(PropertyFinding(c, label, *hit[1:], extreme))
            left &= ~own
        return found

    def _indicators(self) -> dict[str, NDArray[np.float32]]:
        """Give 1 and 0 for each frequent value of what is told in words."""
        found = {}
        for name, parts in self._words.items():
            words = np.concatenate(parts)
            values, counts = np.unique(words.astype(str), return_counts=True)
            for i in np.argsort(-counts)[: VALUES + 1].tolist():
                if values[i] and counts[i] >= 2 * FEWEST:
                    known = np.where(words == "", np.nan, words == values[i])
                    found[f"{name} {values[i]}"] = known.astype(np.float32)
        return found

    def _extreme(self, chosen: NDArray[np.bool_], values: NDArray[np.float32]) -> list[tuple[str, int]]:
        """Give shard and index of the chosen images with the largest values."""
        rows = np.flatnonzero(chosen & ~np.isnan(values))
        best = rows[np.argsort(-values[rows], kind="stable")[:SHOWN]]
        places, shards = np.concatenate(self._places), list(self._shards)
        return [(shards[s], i) for s, i in places[best].tolist()]


class _Hit(NamedTuple):
    place: int  # of the class among those tested
    property: str
    z: float
    superiority: float
    answered: int
    others: int


def _hits(tests: Mapping[str, RankTest]) -> list[_Hit]:
    """Give what is strong enough, the strongest first; of words what an answer has, not what it lacks."""
    tried = sum(int((~np.isnan(t.z)).sum()) for t in tests.values())
    limit = max(LIMIT, float(norm.isf(FALSE_ALARMS / 2 / max(tried, 1))))
    hits = []
    for name, t in tests.items():
        size = abs(t.z) if name in NAMES.values() else t.z
        least = np.maximum(limit, EFFECT * np.sqrt(t.answered + t.others))
        for k in np.flatnonzero(size >= least).tolist():
            numbers = float(t.z[k]), float(t.superiority[k]), int(t.answered[k]), int(t.others[k])
            hits.append(_Hit(k, name, *numbers))
    return sorted(hits, key=lambda hit: -abs(hit.z))


def _words_of(batch: pa.RecordBatch) -> dict[str, NDArray[Any]]:
    """Read properties that are words: format, and the archive's own attributes; empty where unknown."""
    columns = {"format": batch.column("format")}
    maps = batch.column("attributes")
    for name in pc.unique(maps.keys).to_pylist() if maps.null_count < len(maps) else ():
        columns[name] = pc.map_lookup(maps, name, "first")
    return {
        name: np.array([word or "" for word in words.to_pylist()], object) for name, words in columns.items()
    }


@dataclass(frozen=True, slots=True)
class RankTest:
    """Of each class: z of "answered so" against otherwise, at equal label; NaN where too few were."""

    z: Floats
    superiority: Floats
    answered: NDArray[np.int64]
    others: NDArray[np.int64]


class Strata:
    """Images by label, and within it by answer: what all tests of an archive share."""

    def __init__(self, label: NDArray[np.int32], answer: NDArray[np.int32]) -> None:
        self.classes, self._answer = np.unique(answer, return_inverse=True)
        _, self._label = np.unique(label, return_inverse=True)

    def test(self, values: NDArray[np.float32]) -> RankTest:
        """Compare the values of those answered so and otherwise: Mann-Whitney by label, van Elteren's z."""
        known = np.flatnonzero(~np.isnan(values))
        label, answer = self._label[known], self._answer[known]
        ranks, ties = _ranks_within(label, values[known])
        cells, cell = np.unique(label.astype(np.int64) * len(self.classes) + answer, return_inverse=True)
        of_label, of_class = np.divmod(cells, len(self.classes))
        n1 = np.bincount(cell, minlength=len(cells)).astype(float)
        whole = np.bincount(label, minlength=1).astype(float)[of_label]
        n2 = whole - n1
        rank_sum = np.bincount(cell, ranks, len(cells))
        tied = ties[of_label] / np.maximum(whole * (whole - 1), 1)
        variance = n1 * n2 / 12 * (whole + 1 - tied)

        def summed(parts: Floats) -> Floats:
            return np.bincount(of_class, parts, len(self.classes)).astype(float)

        over = summed((rank_sum - n1 * (whole + 1) / 2) / (whole + 1))
        spread = np.sqrt(summed(variance / (whole + 1) ** 2))
        pairs = summed(n1 * n2 / (whole + 1))
        enough = (pairs >= FEWEST) & (spread > 0)
        z = np.where(enough, over / np.where(enough, spread, 1), np.nan)
        superiority = np.where(enough, 0.5 + over / np.where(enough, pairs, 1), np.nan)
        compared = n2 > 0
        return RankTest(z, superiority, summed(n1 * compared).astype(int), summed(n2).astype(int))


def _ranks_within(label: NDArray[np.int64], values: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Rank the values of each label from 1, ties sharing their mean; give also sum(t^3 - t) by label."""
    order = np.lexsort((values, label))
    own, sorted_values = label[order], values[order]
    starts = np.flatnonzero(np.r_[True, (np.diff(own) != 0) | (np.diff(sorted_values) != 0)][: len(order)])
    sizes = np.diff(np.r_[starts, len(order)]).astype(float)
    first = np.searchsorted(own, own[starts])  # where the label begins
    ranks = np.empty(len(order))
    ranks[order] = np.repeat(starts - first + (sizes + 1) / 2, sizes.astype(int))
    ties = np.bincount(own[starts], sizes**3 - sizes, int(label.max(initial=-1)) + 1)
    return ranks, ties.astype(float)
