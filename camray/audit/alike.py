"""What was seen of many images, put together where it says the same: one image then stands for all of them.

Flows in: a table of images, one row each. Flows out: for a span of nights few images with how many each
stands for, and the rows behind each. What a cause is given by are only yeses and noes: which looks there
were, which took the answer away, whether the hot spot repeats.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camray.audit.causes import CLEAR, CONTRAST, GAIN, TRACE, Seen
from camray.audit.history import Key, Span
from camray.explain.repeats import ALIKE

KEY = pa.schema([("shard", pa.string()), ("index", pa.int32()), ("content_sha256", pa.string())])
_SEEN = pa.schema([
    *KEY, ("answer", pa.int32()), ("night", pa.int32()), ("is_sampled", pa.bool_()), ("same", pa.float32()),
    ("other", pa.float32()), ("thing_of", pa.int32()), ("is_flipped", pa.bool_()),
])  # fmt: skip


class Alike:
    """Images of a table, put together; `blurred` names those whose answer fell without the hot border."""

    def __init__(self, table: pa.Table, blurred: Collection[Key], drop: float) -> None:
        self._table = table
        self._blurred = has_key(table, blurred)
        self._night = table["night"].to_numpy()
        self._drops = {n: table[n].to_numpy().astype(float) for n in table.column_names[len(_SEEN) :]}
        self._is_given = np.zeros(len(table), bool)
        codes = self._codes(drop)
        binary, buffers = pa.binary(codes.shape[1]), [None, pa.py_buffer(codes)]
        told = pa.Array.from_buffers(binary, len(codes), buffers).dictionary_encode()
        self._group = told.indices.to_numpy()
        first = np.unique(self._group, return_index=True)[1]
        self._ones = images_in(table.take(first))
        self._places = {key: place for place, key in enumerate(self._ones)}
        for place, one in zip(first.tolist(), self._ones.values(), strict=True):
            one.is_blurred = bool(self._blurred[place])

    def _codes(self, drop: float) -> NDArray[np.uint8]:
        """Give the answer and the yeses and noes of each image as bytes, (images, bytes)."""
        none = np.full(len(self._table), np.nan)
        same, other = (self._table[name].to_numpy().astype(float) for name in ("same", "other"))
        told = [~np.isnan(drops) for drops in self._drops.values()]
        told += [drops > drop for drops in self._drops.values()]
        told += [self._drops.get("carry_levels", none) > GAIN, self._drops.get("carry_rim", none) > TRACE]
        told += [self._blurred, self._drops.get("border", none) > CLEAR * drop]
        told += [(same > ALIKE) & (same - other > CONTRAST), self._table["is_flipped"].to_numpy()]
        bits = np.packbits(np.stack(told, axis=1), axis=1)
        classes = [self._table["answer"].to_numpy(), self._table["thing_of"].fill_null(-1).to_numpy()]
        numbers = np.ascontiguousarray(np.stack(classes, axis=1).astype("<i4"))
        return np.concatenate([numbers.view(np.uint8), bits], axis=1)

    def within(self, span: Span) -> tuple[dict[Key, Seen], dict[Key, int]]:
        """Give the images that stand for those of a span of nights, and for how many each."""
        inside = (span.first <= self._night) & (self._night <= span.last)
        counts = np.bincount(self._group[inside], minlength=len(self._ones)).tolist()
        many = {key: count for key, count in zip(self._ones, counts, strict=True) if count}
        return {key: self._ones[key] for key in many}, many

    def behind(self, one: Key, span: Span, since: int, look: str, take: bool) -> list[tuple[Key, float, int]]:
        """Give the images that one stands for in a span, from a night on: key, fall under a look, night.

        Those that were taken are not given again.
        """
        mine = (self._group == self._places[one]) & ~self._is_given
        mine &= (max(span.first, since) <= self._night) & (self._night <= span.last)
        rows = np.flatnonzero(mine)
        self._is_given[rows] = take
        keys = rows_of(self._table.select(KEY.names).take(rows))
        return list(zip(keys, self._drops[look][rows].tolist(), self._night[rows].tolist(), strict=True))

    @property
    def blurred(self) -> dict[Key, Seen]:
        """Give what was seen of the images whose answer fell without the hot border."""
        found = images_in(self._table.filter(pa.array(self._blurred)))
        for one in found.values():
            one.is_blurred = True
        return found


def has_key(table: pa.Table, keys: Collection[Key]) -> NDArray[np.bool_]:
    """Mark the rows of these images."""
    contents = pa.array({content for *_, content in keys}, pa.string())
    found = pc.is_in(table["content_sha256"], value_set=contents).to_numpy().copy()
    rows = np.flatnonzero(found)
    found[rows] = [key in keys for key in rows_of(table.select(KEY.names).take(rows))]
    return np.asarray(found, bool)


def table_of_images(images: Mapping[Key, Seen]) -> pa.Table:
    """Give a table of what was seen of images: one row each, a column for each intervention."""
    rows = [
        (*key, i.answer, i.night, i.is_sampled, i.same, i.other, i.thing_of, i.is_flipped)
        for key, i in images.items()
    ]
    found = table_of(rows, _SEEN)
    for name in sorted({name for image in images.values() for name in image.drops}):
        drops = pa.array([image.drops.get(name) for image in images.values()], pa.float32())
        found = found.append_column(name, drops)
    return found


def images_in(table: pa.Table) -> dict[Key, Seen]:
    """Give what such a table says of images."""
    names, found = table.column_names[len(_SEEN) :], dict[Key, Seen]()
    for row in rows_of(table):
        answer, night, is_sampled, same, other, of, is_flipped = row[3 : len(_SEEN)]
        known = {name: drop for name, drop in zip(names, row[len(_SEEN) :], strict=True) if drop is not None}
        found[row[:3]] = Seen(answer, is_sampled, night, same, other, known, False, of, is_flipped)
    return found


def rows_of(table: pa.Table) -> list[tuple[Any, ...]]:
    """Give the rows of a table as plain values."""
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def table_of(rows: Iterable[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Give a table of such rows."""
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema)
