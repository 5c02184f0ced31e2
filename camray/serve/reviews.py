"""What people decide, kept as they decide it: durable in OUT/qa-inbox before anybody is told so.

Flows in: decisions on images and on causes. Flows out: files that the next audit takes in, and what
stands: by image or cause the last word of each reviewer. Nobody's word replaces that of another.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from camray.audit.reviewed import DECISIONS, decisions_in, known_decisions, standing, what_of
from camray.errors import UsageError, printable
from camray.ledger.out import INBOX
from camray.ledger.side import write_side
from camray.storage import Folder

Said = Mapping[str, Mapping[str, Any]]  # by reviewer, the latest at the end
FILE_ROWS = 100  # decisions of one file, which is written anew with each of them
LONGEST_NAME = 100


class Reviews:
    """The decisions on an OUT. Safe to share between threads; several servers may write beside each other."""

    def __init__(self, out: Folder) -> None:
        self._out, self._lock = out, threading.Lock()
        self._session, self._number = secrets.token_hex(6), 0
        self._own: list[Mapping[str, Any]] = []  # of the file that is open
        self._others: frozenset[tuple[str, str]] = frozenset()
        self._rows: list[Mapping[str, Any]] = []
        self._standing: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
        self.refresh()

    @property
    def standing(self) -> Mapping[tuple[Any, ...], Said]:
        """What stands, by what it is on: `audit.reviewed.what_of`."""
        return self._standing

    def of(self, row: Mapping[str, Any]) -> Said:
        """Give what stands on an image, or on its cause (a mapping with `cause`)."""
        return self._standing.get(what_of(row), {})

    def refresh(self) -> bool:
        """Read what others saved beside this server, and tell whether there was anything."""
        files = frozenset((e.path, e.version) for e in self._out.entries(INBOX) if not self._is_own(e.path))
        with self._lock:
            if files == self._others and self._rows:
                return False
            self._rows = [*known_decisions(self._out)]
            self._others, self._standing = files, standing(self._rows)
            return True

    def _is_own(self, path: str) -> bool:
        return path.startswith(f"serve-{self._session}-")

    def decide(self, row: Mapping[str, Any], decision: str, reviewer: str) -> Mapping[str, Any]:
        """Save a decision on an image (its keys and verdict) or a cause, and give it; it is durable then.

        Raises:
            UsageError: no such decision, or no name.
        """
        reviewer = printable(reviewer.strip(), LONGEST_NAME)
        if decision not in DECISIONS or not reviewer:
            raise UsageError(
                "decision", f"{decision!r} by {reviewer!r}", f"a name, and {', '.join(DECISIONS)}"
            )
        names = ("explainer", "cause") if row.get("cause") else _IMAGE
        said = {name: row[name] for name in names} | {"decision": decision, "reviewer": reviewer}
        with self._lock:
            said["decided_at"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            (kept,) = decisions_in({"camray_review": 1, "decisions": [said]})
            if len(self._own) >= FILE_ROWS:
                self._own, self._number = [], self._number + 1
            name = f"{INBOX}/serve-{self._session}-{self._number:06d}.json"
            write_side(self._out, name, {"camray_review": 1, "decisions": [*self._own, kept]})
            self._own = [*self._own, kept]
            self._rows.append(kept)
            what = what_of(kept)
            mine = standing([*self._standing.get(what, {}).values(), kept]).get(what, {})
            self._standing = {**self._standing, what: mine} if mine else _without(self._standing, what)
        return kept


_IMAGE = ("explainer", "shard", "member", "index", "content_sha256", "verdict")


def _without(said: Mapping[tuple[Any, ...], Any], what: tuple[Any, ...]) -> dict[tuple[Any, ...], Any]:
    return {key: value for key, value in said.items() if key != what}


def is_conflict(said: Said) -> bool:
    """Tell whether reviewers say different things."""
    return len({row["decision"] for row in said.values()}) > 1


def in_words(said: Said) -> Sequence[str]:
    """Give who said what, the latest last."""
    return [f"{row.get('reviewer') or 'someone'}: {row['decision']}" for row in said.values()]
