"""Receipts in, commits out: a shard is committed once its end was seen and rows account for every member."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from camray.errors import PASSING_ERRORS, CamrayError, IncompleteError
from camray.ledger.plan import ShardTask
from camray.ledger.table import ShardCommit, Table
from camray.records import Accounting, Chunk, Receipt, Shard, ShardEnd, account

# A million small shards must not become a million commits: readers of the log pay for each.
COMMIT_EVERY_S = 5.0


@dataclass(slots=True)
class _Open:
    """A shard under way."""

    shard: Shard
    before: frozenset[str] | None = None
    receipts: dict[int, Receipt] = field(default_factory=dict)
    end: ShardEnd | None = None

    def finished(self) -> ShardCommit | None:
        """Give the commit once everything is here; the identity members = rows must hold."""
        if self.end is None or self.end.error_code in PASSING_ERRORS:
            return None
        files = self.end.chunks + (self.end.error_code is not None)
        if not all(i in self.receipts for i in range(files)):
            return None
        receipts = tuple(self.receipts[i] for i in range(files))
        total = account(receipts)
        if total.members != self.end.members:
            raise CamrayError(
                f"{self.shard.uri}: {self.end.members} members were read but {total.members} have rows"
            )
        if self.end.error_code is not None:
            total += Accounting(shard_errors={self.end.error_code: 1})
        return ShardCommit(self.shard, receipts, total, self.before)


class CommitDesk:
    """Holds the shards under way and commits the finished ones. Memory grows with shards in flight."""

    def __init__(self, table: Table, explainer: str, run_id: str, tasks: Iterable[ShardTask]) -> None:
        self._table, self._explainer, self._run_id = table, explainer, run_id
        self._open = {t.shard.id: _Open(t.shard, t.before) for t in tasks}
        self._shards = tuple(entry.shard for entry in self._open.values())
        self._ready: dict[str, ShardCommit] = {}
        self._last_commit_s = -COMMIT_EVERY_S  # the first finished shard is committed at once

    def unread(self) -> list[str]:
        """Say which shards stay open because they could not be read now, and why."""
        return [
            f"{entry.shard.uri}: {entry.end.error_message}"
            for entry in self._open.values()
            if entry.end is not None and entry.end.error_code in PASSING_ERRORS
        ]

    @property
    def open_shards(self) -> int:
        """Shards that are not committed yet."""
        return len(self._open)

    def take(self, chunks: Iterable[Chunk]) -> list[ShardCommit]:
        """Take receipts and ends as they arrive; commit what they finish, one transaction every 5 s."""
        for chunk in chunks:
            entry = self._open.get(chunk.shard_id)
            if entry is None:
                continue  # a repeated receipt of a shard that is committed
            if isinstance(chunk.note, ShardEnd):
                entry.end = chunk.note
            elif isinstance(chunk.note, Receipt):
                entry.receipts.setdefault(chunk.note.chunk, chunk.note)
            if (done := entry.finished()) is not None:
                self._ready[chunk.shard_id] = done
        return self.flush() if time.monotonic() - self._last_commit_s >= COMMIT_EVERY_S else []

    def flush(self) -> list[ShardCommit]:
        """Commit every finished shard now."""
        done = list(self._ready.values())
        if done:
            self._table.commit(self._explainer, self._run_id, done)
            self._last_commit_s = time.monotonic()
        for shard_id in self._ready:
            del self._open[shard_id]
        self._ready = {}
        return done

    def confirm(self) -> None:
        """Read the table anew and look for every shard that was committed here.

        A store that ignores `If-None-Match` lets one run write over the commit of another, unseen by both.

        Raises:
            IncompleteError: some are gone; the same command does them again, from their files.
        """
        now = self._table.reopened().shards(self._explainer)
        gone = sum(shard.id not in self._open and not now.holds(shard) for shard in self._shards)
        if gone:
            raise IncompleteError(
                f"{gone} shards were committed and are no longer in the table: this store lets one run write "
                "over the commit of another (it ignores If-None-Match). Fix: one run at a time into this OUT"
            )
