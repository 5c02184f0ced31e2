"""What a Parquet file says of its own layout, read before Arrow reads it: row groups, columns, pages.

    footer ──row_groups──> RowGroup(rows, columns) ──pages_of──> Page(size unpacked, values) ...

The footer may claim anything; Arrow unpacks what the header before each page says. Both are Thrift structs in
compact form. Asked for a column of a footer that is damaged in the right place, Arrow ends the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyarrow import NativeFile

from camray.errors import ErrorCode, ShardError

_HEADER_BYTES = (1024, 64 * 1024, 16 * 2**20)  # read so much, then more; Arrow itself takes 16 MiB at most
_MAX_DEPTH = 16
_MAX_VALUES = 20_000_000  # of a footer: its bytes are bounded, what Python makes of them is more
_TRUE, _FALSE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 8, 9, 10, 12  # kinds of fields
_INTEGERS = (4, 5, 6)
_FIXED = {_TRUE: 1, _FALSE: 1, 3: 1, 7: 8}  # of so many bytes
_DICTIONARY = 2  # a kind of page


@dataclass(frozen=True, slots=True)
class Column:
    """Where a column of a row group lies; `path` as `image.list.element`."""

    path: str
    start: int
    length: int  # bytes


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group, as the footer tells it."""

    rows: int
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a column, as its header tells it."""

    size_bytes: int  # unpacked
    values: int
    is_dictionary: bool


def row_groups(footer: bytes) -> tuple[RowGroup, ...]:
    """Read the row groups out of a footer.

    Raises:
        ShardError: SHARD_UNREADABLE, it is none.
    """
    try:
        groups = _Compact(footer).struct()[4]
        return tuple(RowGroup(_size(g[3]), tuple(_column(c[3]) for c in g[1])) for g in groups)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise ShardError(ErrorCode.SHARD_UNREADABLE, "the footer cannot be read") from None


def _column(told: dict[int, Any]) -> Column:
    starts = [at for at in (told.get(11), told[9]) if at]  # of the dictionary's page, and of the first other
    path = b".".join(told[3]).decode("utf-8", "backslashreplace")
    return Column(path, min(map(_size, starts)), _size(told[7]))


def _size(number: Any) -> int:
    if not isinstance(number, int) or number < 0:
        raise ValueError("no size")
    return number


def pages_of(file: NativeFile, column: Column) -> Iterator[Page]:
    """Yield the pages of a column.

    Raises:
        ShardError: SHARD_CORRUPT, a header that cannot be read.
    """
    at = column.start
    while at < column.start + column.length:
        page, length_bytes = _page(file, at)
        yield page
        at += length_bytes


def _page(file: NativeFile, at: int) -> tuple[Page, int]:
    """Read the header at a byte; give the page, and how long it is with its header."""
    for size in _HEADER_BYTES:
        file.seek(at)
        head = _Compact(bytes(file.read(size)))
        try:
            told = head.struct()
            of_kind: dict[int, Any] = next((told[i] for i in (5, 7, 8) if isinstance(told.get(i), dict)), {})
            unpacked, packed, values = (_size(n) for n in (told[2], told[3], of_kind.get(1, 0)))
            return Page(unpacked, values, told[1] == _DICTIONARY), head.at + packed
        except IndexError:  # longer than what was read, or nonsense
            continue
        except (KeyError, ValueError):
            break
    raise ShardError(ErrorCode.SHARD_CORRUPT, f"the header of the page at byte {at:,} cannot be read")


class _Compact:
    """Reads Thrift's compact form; IndexError where the data ends, ValueError where it is none."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.values = data, 0, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a struct; give the values of its fields by their ids."""
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        fields: dict[int, Any] = {}
        last = 0
        while (head := self._byte()) & 0x0F:
            last = last + (head >> 4) if head >> 4 else self._number()
            if last in fields:  # readers differ on which of the two counts
                raise ValueError("a field twice")
            is_truth = head & 0x0F in (_TRUE, _FALSE)  # which is all that there is of it
            fields[last] = None if is_truth else self._value(head & 0x0F, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        self.values += 1
        if self.values > _MAX_VALUES:
            raise ValueError("too many values")
        if kind in _INTEGERS:
            return self._number()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            head = self._byte()
            size = head >> 4
            if depth > _MAX_DEPTH:
                raise ValueError("nested too deeply")
            count = self._varint() if size == 15 else size
            return [self._value(head & 0x0F, depth + 1) for _ in range(count)]
        if kind not in _FIXED and kind != _BINARY:
            raise ValueError("an unknown kind of field")
        length = _FIXED[kind] if kind in _FIXED else self._varint()  # which moves `at` as well
        self.at += length
        if self.at > len(self.data):
            raise IndexError("beyond the data")
        return self.data[self.at - length : self.at]

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("a number too long")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
