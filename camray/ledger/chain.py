"""Evidence: each commit carries a hash over every log entry before it, and a run's report the last one.

    head(n) = SHA-256 of head(n-1) and the SHA-256 of entry n        entry n+1 says head(n)

A record file's name holds the checksum of its bytes, an entry the names: so the head stands for every row
ever committed. Entries of an earlier camray are in the first hash that is made, as they are then. Entries
that Delta Lake writes for itself (of a vacuum) carry none and are in the next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from camray.ledger import log
from camray.ledger.out import SCORES, TABLE
from camray.storage import Folder

CHAINED = (TABLE, SCORES)
MOST = 1000  # entries without a hash that are read for one: those of an earlier camray


@dataclass(frozen=True, slots=True)
class Head:
    """The hash over the entries from `first` to `last`."""

    first: int
    last: int
    hash: str

    def then(self, data: bytes) -> Head:
        """Give the head with one more entry."""
        both = self.hash + hashlib.sha256(data).hexdigest()
        return Head(self.first, self.last + 1, hashlib.sha256(both.encode()).hexdigest())


def head(out: Folder, folder: str, version: int) -> Head | None:
    """Give the head of a table's log at this entry; None where it is not there."""
    entries: list[bytes] = []
    known: Head | None = None
    while known is None and len(entries) < MOST and len(entries) <= version:
        try:
            data = out.read(log.entry(folder, version - len(entries)))
        except FileNotFoundError:  # the log was cleaned up to here
            break
        entries.append(data)
        known = carried(data, version - len(entries))
    start = version - len(entries) + 1
    found = known or Head(start, start - 1, "")
    for data in reversed(entries):
        found = found.then(data)
    return found if entries else None


def heads(out: Folder) -> dict[str, list[int | str]]:
    """Give the heads of the logs as they are now, as a report says them: table -> first, last, hash."""
    found = {f: head(out, f, v) for f, v in log.versions(out).items() if f in CHAINED}
    return {folder: [h.first, h.last, h.hash] for folder, h in found.items() if h is not None}


def link(out: Folder, folder: str, version: int) -> dict[str, Any]:
    """Give what the entry behind `version` says of those before it."""
    before = head(out, folder, version)
    return {} if before is None else {"chain": {"first": before.first, "head": before.hash}}


def carried(data: bytes, last: int) -> Head | None:
    """Read from an entry the head of those up to `last`, right before it; None where it says none."""
    said = said_in(data).get("chain")
    if not isinstance(said, dict) or not isinstance(said.get("first"), int):
        return None
    return Head(said["first"], last, str(said.get("head")))


def said_in(data: bytes) -> dict[str, Any]:
    """Read what camray said in an entry; empty where it said nothing, or the entry cannot be read."""
    try:
        infos = [line["commitInfo"] for line in actions(data) if "commitInfo" in line]
        said = json.loads(infos[0].get("camray", "{}")) if infos else {}
    except (ValueError, AttributeError, TypeError):
        return {}
    return said if isinstance(said, dict) else {}


def actions(data: bytes) -> Iterable[dict[str, Any]]:
    """Read the lines of an entry.

    Raises:
        ValueError: it cannot be read.
    """
    return [json.loads(line) for line in data.splitlines() if line.strip()]
