"""How many images moved, by night, look and answer: what classes are compared by, kept from night to night.

Flows in: counts of the new images, and the table that the night before left. Flows out: sums over any nights.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_KEYS, _SUMS = ("look", "answer", "night"), ("still", "fallen", "looked")
_SCHEMA = pa.schema([("look", pa.string()), *((name, pa.int64()) for name in (*_KEYS[1:], *_SUMS))])


class LookCounts:
    """Sums by look, answer and night. `add` first, then ask."""

    def __init__(self, before: pa.Table | None = None) -> None:
        self._before = _SCHEMA.empty_table() if before is None else before
        self._new: dict[tuple[str, int, int], list[int]] = defaultdict(lambda: [0, 0, 0])
        self._summed: tuple[list[tuple[str, int]], NDArray[np.int64], NDArray[np.int64]] | None = None
        self.latest = 0  # night of which there are counts
        if len(self._before):
            self.latest = int(np.max(self._before["night"].to_numpy()))

    def add(
        self, look: str, answer: int, night: int, still: int = 0, fallen: int = 0, looked: int = 0
    ) -> None:
        """Count images that stayed, moved, and had the look."""
        sums = self._new[look, answer, night]
        for place, count in enumerate((still, fallen, looked)):
            sums[place] += count
        self.latest = max(self.latest, night)

    def table(self) -> pa.Table:
        """Give all counts, for the next night."""
        rows = [(*key, *sums) for key, sums in self._new.items()]
        columns = list(zip(*rows, strict=True)) or [()] * len(_SCHEMA)
        new = pa.table(
            [pa.array(column, f.type) for column, f in zip(columns, _SCHEMA, strict=True)], _SCHEMA
        )
        both = pa.concat_tables([self._before, new]).group_by([*_KEYS])
        found = both.aggregate([(name, "sum") for name in _SUMS]).rename_columns(_SCHEMA.names)
        return found.sort_by([(name, "ascending") for name in _KEYS]).combine_chunks()

    def between(self, first: int, last: int) -> Iterator[tuple[str, int, int, int, int]]:
        """Give look, answer, and how many stayed, moved and had the look, in the nights first to last."""
        pairs, places, sums = self._sums()
        starts = np.arange(len(pairs)) * (self.latest + 1)
        bounds = (min(max(night, 0), self.latest + 1) for night in (first, last + 1))
        begin, end = (sums[np.searchsorted(places, starts + night)] for night in bounds)
        for (look, answer), (still, fallen, looked) in zip(pairs, (end - begin).tolist(), strict=True):
            if still or fallen or looked:
                yield look, answer, still, fallen, looked

    def images(self, first: int, last: int) -> Counter[int]:
        """Count the images looked at by answer."""
        return Counter({answer: n for look, answer, *_, n in self.between(first, last) if not look})

    def by_night(self, look: str, answer: int) -> Counter[int]:
        """Count the images of an answer that had a look, by night."""
        pairs, places, sums = self._sums()
        if (look, answer) not in pairs:
            return Counter()
        start = pairs.index((look, answer)) * (self.latest + 1)
        begin, end = np.searchsorted(places, (start, start + self.latest + 1)).tolist()
        return Counter(dict(zip((places[begin:end] - start).tolist(),
                                np.diff(sums[begin : end + 1, 2]).tolist(), strict=True)))  # fmt: skip

    def _sums(self) -> tuple[list[tuple[str, int]], NDArray[np.int64], NDArray[np.int64]]:
        """Give the pairs of look and answer; where each count stands, by pair and night; sums before each."""
        if self._summed is None:
            counts = self.table()
            keys = list(zip(counts["look"].to_pylist(), counts["answer"].to_pylist(), strict=True))
            pairs = list(dict.fromkeys(keys))
            numbers = {pair: i for i, pair in enumerate(pairs)}
            places = np.array([numbers[key] for key in keys], np.int64) * (self.latest + 1)
            values = np.stack([counts[name].to_numpy() for name in _SUMS], axis=1)
            sums = np.concatenate([np.zeros((1, 3), np.int64), values.cumsum(0)])
            self._summed = pairs, places + counts["night"].to_numpy(), sums
        return self._summed
