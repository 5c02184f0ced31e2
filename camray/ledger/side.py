"""The small JSON files beside the tables, with one rule for all of them.

They are written with a checksum of their own. One that cannot be read, or is not as it was written, is
damaged: it is named, a run sets it aside as `<name>.damaged` and goes on without it, and `verify` names it.
A file without a checksum, of an earlier camray, is taken as it is if it has the right shape.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from camray.errors import UsageError, printable
from camray.storage import Folder

_T = TypeVar("_T")
CHECKSUM = "checksum"
DAMAGED = ".damaged"
LARGEST_BYTES = 256 * 2**20
_BAD_SHAPE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


class DamagedError(UsageError):
    """A side file of OUT that cannot be read, or is not as it was written; `path` is relative to OUT."""

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        super().__init__("OUT", printable(f"{path} is damaged: {why}"), "restore it, or remove it")


def write_side(out: Folder, path: str, tree: Mapping[str, Any], indent: int | None = 1) -> None:
    """Write a tree of plain values, and its checksum within it."""
    out.write(path, as_side(tree, indent))


def as_side(tree: Mapping[str, Any], indent: int | None = 1) -> bytes:
    """Give the bytes of a side file; None: on one line, ten times as fast."""
    plain = json.loads(json.dumps(tree, default=str))
    return json.dumps(plain | {CHECKSUM: _checksum(plain)}, indent=indent).encode()


def read_side(out: Folder, path: str, read: Callable[[Any], _T]) -> _T:
    """Read a side file; `read` takes its tree, and raises where the shape is not the right one.

    Raises:
        DamagedError: it is damaged.
        FileNotFoundError: it is not there.
    """
    data = out.read(path)
    try:
        return read(_tree_of(data))
    except _BAD_SHAPE as error:
        what = f"{type(error).__name__}: " if isinstance(error, LookupError | ArithmeticError) else ""
        raise DamagedError(path, (what + str(error)).partition("\n")[0]) from None


def recovered(out: Folder, path: str, read: Callable[[Any], _T]) -> _T | None:
    """Read a side file of which a run can do without; None where it is missing, or damaged and set aside."""
    try:
        return read_side(out, path, read)
    except FileNotFoundError:
        return None
    except DamagedError as damage:
        set_aside(out, damage)
        return None


def set_aside(out: Folder, damage: DamagedError) -> None:
    """Name a damaged file and rename it, so that the next run does not stumble over it."""
    with suppress(OSError):  # where OUT cannot be written, it is named and stays
        out.write(damage.path + DAMAGED, out.read(damage.path))
        out.delete(damage.path)
    tell(damage, f"it is set aside as {damage.path}{DAMAGED}")


def tell(damage: DamagedError, what: str) -> None:
    """Name a damaged file on standard error."""
    print(f"camray: {damage.problem}; {printable(what)}", file=sys.stderr)


def as_object(tree: Any) -> dict[str, Any]:
    """Take any JSON object."""
    if not isinstance(tree, dict):
        raise TypeError("no JSON object")
    return tree


def _tree_of(data: bytes) -> Any:
    """Parse JSON that is all text, and compare it with its checksum where it has one."""
    if len(data) > LARGEST_BYTES:
        raise ValueError(f"{len(data):,} bytes")
    tree = json.loads(data.decode("utf-8"))
    json.dumps(tree, ensure_ascii=False).encode("utf-8")  # half a character, which nothing could print
    if isinstance(tree, dict) and CHECKSUM in tree and tree.pop(CHECKSUM) != _checksum(tree):
        raise ValueError("it is not as it was written: its checksum is another")
    return tree


def _checksum(tree: Any) -> str:
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
