"""What is counted while rows are judged: of the archive, of new rows, of earlier nights that are open.

Flows in: judged batches, and rows that are judged otherwise than before. Flows out: counts, errors, the state
of the night, and of at most 50,000 images, chosen by checksum, properties and slices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import compress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camray.audit.cause_book import Card
from camray.audit.columns import VIEW
from camray.audit.counts import ClassCounts, NightState
from camray.audit.properties import Properties
from camray.audit.slices import Slices
from camray.audit.verdicts import FLAGS, Marks

SAMPLE = 50_000  # images of the archive whose properties and slices are compared
_KEPT = (
    "shard", "index", "label_class", "predicted_class", "correct", "format", "attributes", "width", "height",
    *VIEW,
)  # fmt: skip
_IN_ORDER = [("order", "ascending"), ("shard", "ascending"), ("index", "ascending")]

Place = tuple[str, int]  # shard and index


@dataclass(frozen=True, slots=True)
class Judged:
    """One batch of records, its flags, and its rows of the audit table."""

    batch: pa.RecordBatch
    flags: Marks
    rows: pa.RecordBatch


class Tally:
    """Counts of an audit. `add` every judged batch; `swap` what was judged otherwise the night before."""

    def __init__(self, num_classes: int, open_nights: Mapping[str, frozenset[str]]) -> None:
        self.open_nights = {night: ClassCounts(num_classes) for night in open_nights}
        self._runs_of = open_nights
        self.archive, self.night = ClassCounts(num_classes), ClassCounts(num_classes)
        self.asked = ClassCounts(num_classes)  # of the gate: the night without what a person accepted
        self.accepted = 0  # new images whose cause a person accepted
        self.archive_verdicts: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.state = NightState()
        self.sample = Sample()
        self.night_slices = Slices()
        self.causes: list[Card] = []
        self.covered: set[str] = set()  # the runs that have a new row

    def add(self, judged: Judged, covered: frozenset[str]) -> None:
        """Count a batch; the rows of the runs in `covered` are not new."""
        self._count(judged, 1)
        self.sample.add(judged)
        verdict, runs = (judged.rows.column(name).to_pylist() for name in ("verdict", "night"))
        new = np.array([run not in covered for run in runs], bool)
        if new.any():
            self.covered |= set(runs) - covered
            _add_open(self.asked, judged, new, 1)
            said = judged.rows.column("reviewed").to_pylist()
            self.accepted += sum(
                s == "accepted" for s, is_new in zip(said, new.tolist(), strict=True) if is_new
            )
            rows = judged.batch.filter(pa.array(new))
            flags = {name: mark[new] for name, mark in judged.flags.items()}
            self.night.add(rows, flags)
            self.state.add(rows, flags)
            self.night_slices.add(rows, flags)
            self.verdicts.update(compress(verdict, new))
            self.errors.update(code for code in rows.column("error_code").to_pylist() if code)

    def swap(self, before: Judged, now: Judged) -> None:
        """Count rows of earlier nights as they are judged now; `before` has the same records."""
        self._count(before, -1)
        self._count(now, 1)
        self.sample.drop(set(places_of(now.batch)))
        self.sample.add(now)

    def _count(self, judged: Judged, sign: int) -> None:
        verdict, runs = (judged.rows.column(name).to_pylist() for name in ("verdict", "night"))
        self.archive.add(judged.batch, judged.flags, sign)
        for name, count in Counter(verdict).items():
            self.archive_verdicts[name] += sign * count
        self.archive_verdicts = +self.archive_verdicts
        for night, counts in self.open_nights.items():
            mine = np.array([run in self._runs_of[night] for run in runs], bool)
            _add_open(counts, judged, mine, sign)

    def carried(self, run_id: str) -> dict[str, Any]:
        """Give what the next night needs as plain values, but for the sample."""
        nights = self.open_nights | ({run_id: self.asked} if self.night.rows else {})
        return {
            "archive": self.archive.to_json(), "archive_verdicts": dict(self.archive_verdicts),
            "nights": {night: counts.to_json() for night, counts in nights.items()},
        }  # fmt: skip

    def recall(self, before: Mapping[str, Any], sample: pa.Table) -> bool:
        """Begin with what `carried` gave; False where it knows nothing of a night that is open."""
        if not self.open_nights.keys() <= before["nights"].keys():
            return False
        self.archive = ClassCounts.from_json(before["archive"])
        self.archive_verdicts = Counter(before["archive_verdicts"])
        self.open_nights = {
            night: ClassCounts.from_json(before["nights"][night]) for night in self.open_nights
        }
        self.sample = Sample(sample)
        return True


def _add_open(counts: ClassCounts, judged: Judged, mine: NDArray[np.bool_], sign: int) -> None:
    """Count the images of an earlier night; of what a person accepted nothing is held against it."""
    if mine.any():
        accepted = np.array([said == "accepted" for said in judged.rows.column("reviewed").to_pylist()])
        flags = {name: (mark & ~accepted)[mine] for name, mark in judged.flags.items()}
        counts.add(judged.batch.filter(pa.array(mine)), flags, sign)


class Sample:
    """Images of an archive with their flags: those with the lowest checksums, whichever night they came."""

    def __init__(self, rows: pa.Table | None = None) -> None:
        self._parts = [] if rows is None else [rows]
        self._lowest = self._limit_of(rows) if rows is not None else None

    def add(self, judged: Judged) -> None:
        """Take a judged batch into account."""
        order = _orders(judged.batch)
        bits = np.zeros(len(order), np.uint32)
        for place, name in enumerate(FLAGS):
            bits |= judged.flags[name].astype(np.uint32) << place
        rows = pa.Table.from_batches([judged.batch.select([*_KEPT])])
        rows = rows.append_column("bits", pa.array(bits)).append_column("order", pa.array(order))
        if self._lowest is not None:
            rows = rows.filter(pa.array(order <= self._lowest))
        self._parts.append(rows)
        if sum(map(len, self._parts)) > 2 * SAMPLE:
            self._parts = [self.rows()]
            self._lowest = self._limit_of(self._parts[0])

    def drop(self, places: Collection[Place]) -> None:
        """Forget images."""
        self._parts = [part.filter(pc.invert(among(part, places))) for part in self._parts]

    def rows(self) -> pa.Table:
        """Give them in order, at most so many."""
        whole = pa.concat_tables(self._parts) if self._parts else pa.table({})
        return whole.sort_by(_IN_ORDER).slice(0, SAMPLE).combine_chunks() if len(whole) else whole

    def described(self) -> tuple[Properties, Slices]:
        """Give their properties and slices."""
        properties, slices = Properties(), Slices()
        for batch in self.rows().to_batches(max_chunksize=16384):
            bits = batch.column("bits").to_numpy()
            flags = {name: (bits >> place & 1).astype(bool) for place, name in enumerate(FLAGS)}
            properties.add(batch, flags)
            slices.add(batch, flags)
        return properties, slices

    @staticmethod
    def _limit_of(rows: pa.Table) -> int | None:
        return pc.max(rows["order"]).as_py() if len(rows) >= SAMPLE else None


def places_of(rows: pa.RecordBatch | pa.Table) -> list[Place]:
    """Give shard and index of each row."""
    return list(zip(rows.column("shard").to_pylist(), rows.column("index").to_pylist(), strict=True))


def among(rows: pa.Table | pa.RecordBatch, places: Collection[Place]) -> pa.Array:
    """Mark the rows of these images."""
    indices = pa.array(sorted({index for _, index in places}), pa.int32())
    chosen = pc.is_in(rows.column("index"), value_set=indices).to_numpy(zero_copy_only=False).copy()
    at = np.flatnonzero(chosen)
    shards, numbers = (rows.column(name).take(pa.array(at)).to_pylist() for name in ("shard", "index"))
    chosen[at] = [place in places for place in zip(shards, numbers, strict=True)]
    return pa.array(chosen, pa.bool_())


def _orders(batch: pa.RecordBatch) -> NDArray[np.uint64]:
    """Give the first 64 bits of the contents' checksums; of images without one, of their places."""
    contents = batch.column("content_sha256").to_pylist()
    digests = [
        content or blake2b(f"{shard}#{index}".encode(), digest_size=8).hexdigest()
        for content, (shard, index) in zip(contents, places_of(batch), strict=True)
    ]
    return np.array([int(digest[:16], 16) for digest in digests], np.uint64)
