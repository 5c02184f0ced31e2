"""How many images moved, by night, look and answer: what classes are compared by, kept from night to night.

Flows in: counts of the new images, and the tables that the night before left. Flows out: sums over any
nights. A night adds its own rows; nothing of before is sorted or read one by one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_SUMS = ("still", "fallen", "looked")
_COUNTS = pa.schema([(name, pa.int32()) for name in ("pair", "night", *_SUMS)])
_PAIRS = pa.schema([("look", pa.string()), ("answer", pa.int32())])


class LookCounts:
    """Sums by look, answer and night. `add` first, then ask."""

    def __init__(self, counts: pa.Table | None = None, pairs: pa.Table | None = None) -> None:
        counts, pairs = counts or _COUNTS.empty_table(), pairs or _PAIRS.empty_table()
        names = zip(*(column.to_pylist() for column in pairs.columns), strict=True)
        self._pairs = {pair: number for number, pair in enumerate(names)}
        self._before = np.stack([column.to_numpy() for column in counts.columns])
        self._new: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0, 0])
        self._sorted: NDArray[np.int32] | None = None
        self.latest = int(self._before[1].max(initial=0))  # night of which there are counts

    def add(
        self, look: str, answer: int, night: int, still: int = 0, fallen: int = 0, looked: int = 0
    ) -> None:
        """Count images that stayed, moved, and had the look."""
        sums = self._new[self._pairs.setdefault((look, answer), len(self._pairs)), night]
        for place, count in enumerate((still, fallen, looked)):
            sums[place] += count
        self.latest = max(self.latest, night)

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """Give the counts, and the pairs of look and answer that they are of, for the next night."""
        pairs = list(zip(*self._pairs, strict=True)) or [()] * len(_PAIRS)
        named = [pa.array(column, f.type) for column, f in zip(pairs, _PAIRS, strict=True)]
        return pa.table([*self._rows()], _COUNTS), pa.table(named, _PAIRS)

    def between(self, first: int, last: int) -> Iterator[tuple[str, int, int, int, int]]:
        """Give look, answer, and how many stayed, moved and had the look, in the nights first to last."""
        rows = self._rows()
        begin, end = np.searchsorted(rows[1], (first, last + 1))
        pair, _, *counts = rows[:, begin:end]
        sums = np.stack([np.bincount(pair, count, len(self._pairs)) for count in counts], axis=1)
        found = sums.astype(np.int64).tolist()
        for (look, answer), number in self._in_order:
            still, fallen, looked = found[number]
            if still or fallen or looked:
                yield look, answer, still, fallen, looked

    def images(self, first: int, last: int) -> Counter[int]:
        """Count the images looked at by answer."""
        return Counter({answer: n for look, answer, *_, n in self.between(first, last) if not look})

    def by_night(self, look: str, answer: int) -> Counter[int]:
        """Count the images of an answer that had a look, by night."""
        rows = self._rows()
        night, looked = rows[:, rows[0] == self._pairs.get((look, answer), -1)][[1, 4]]
        return Counter({int(n): int(looked[night == n].sum()) for n in np.unique(night)})

    def _rows(self) -> NDArray[np.int32]:
        """Give pair, night, and the sums, in the order of the nights."""
        if self._sorted is None:
            new = np.array([(*key, *sums) for key, sums in self._new.items()], np.int32).reshape(-1, 5).T
            both = np.concatenate([self._before, new], axis=1)
            self._sorted = both[:, np.argsort(both[1], kind="stable")]
            self._in_order = sorted(self._pairs.items())  # so that it does not matter which came first
        return self._sorted
