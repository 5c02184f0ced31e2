"""The Delta table of records: which shards are committed, and the one transaction that commits more.

A record file counts only once a commit names it. Each shard has an application transaction
``<explainer>/<shard key>`` whose version rises by one per commit, so that a repeated or racing commit of the
same shard is refused by the table and then found to be done already.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from camray.errors import IncompleteError, UsageError, printable
from camray.panels import SCORE_SCHEMA
from camray.records import RECORD_SCHEMA, Accounting, Receipt, Shard
from camray.storage import Folder

TABLE = "records"
PARTITION = "explainer"
COMMIT_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Kind:
    """A table of OUT: its folder, the column it is partitioned by, and the columns of its files."""

    folder: str
    partition: str
    schema: pa.Schema

    @property
    def whole(self) -> pa.Schema:
        """What readers see: the partition, then the columns of the files."""
        return pa.schema([pa.field(self.partition, pa.string()), *self.schema])


RECORDS = Kind(TABLE, PARTITION, RECORD_SCHEMA)
SCORES = Kind("scores", "panel", SCORE_SCHEMA)
TABLE_SCHEMA = RECORDS.whole
_CONFIGURATION = {
    # The accounting of each shard lives in its commit: keep the log as long as the records.
    "delta.logRetentionDuration": "interval 3650 days",
    "delta.checkpointInterval": "100",
}


_NO_PLACE = re.compile(r"[][^|\\]|%[0-9A-Fa-f]{2}")  # in a local path: deltalake panics, or looks elsewhere


@dataclass(frozen=True, slots=True)
class RecordFile:
    """One committed record file; the name tells the shard, its content and the chunk."""

    path: str  # relative to the table
    size_bytes: int
    rows: int

    @property
    def shard_key(self) -> str:
        """The shard's key, the first part of the name."""
        return parse_name(self.path)[0]

    @property
    def content_key(self) -> str:
        """The shard's content, the second part of the name."""
        return parse_name(self.path)[1]


@dataclass(frozen=True, slots=True)
class ShardCommit:
    """One finished shard, ready to become visible."""

    shard: Shard
    receipts: tuple[Receipt, ...]
    accounting: Accounting


def file_name(explainer: str, shard_id: str, chunk: int, attempt: str, kind: Kind = RECORDS) -> str:
    """Name a record file: ``explainer=<id>/<shard key>-<content key>-<chunk>-<attempt>.parquet``."""
    return f"{kind.partition}={explainer}/{shard_id}-{chunk:06d}-{attempt}.parquet"


def parse_name(path: str) -> tuple[str, str, int]:
    """Read (shard key, content key, chunk) back from a file's path.

    Raises:
        ValueError: the name is not one of ours.
    """
    name = path.rpartition("/")[2]
    if not name.endswith(".parquet"):
        raise ValueError(f"{name} is no record file")
    key, content, chunk, _attempt = name.removesuffix(".parquet").split("-")
    return key, content, int(chunk)


def is_committed(shard: Shard, files: Sequence[RecordFile]) -> bool:
    """Tell whether the table holds this content of the shard, or all of it where a part is asked for."""
    if not files:
        return False
    wanted = {shard.content_key}
    if shard.selection is not None:
        wanted.add(replace(shard, selection=None).content_key)
    return any(f.content_key in wanted for f in files)


class Table:
    """The records, or the scores, of one OUT. Opens what is there; `create` makes it where it is not."""

    def __init__(self, out: Folder, kind: Kind = RECORDS) -> None:
        if out.is_local and (odd := _NO_PLACE.search(out.path)):
            raise UsageError(
                "OUT", f"{out.uri}: Delta Lake keeps no table under a name with {odd[0]}", "rename"
            )
        self._out, self._uri, self._kind = out, out.child_uri(kind.folder), kind
        self._delta: DeltaTable | None = None
        self._current: dict[str, list[RecordFile]] | None = None  # committed files, as `commit` last saw them
        if DeltaTable.is_deltatable(self._uri):
            self._delta = DeltaTable(self._uri)

    def create(self) -> None:
        """Make the table unless it is there already."""
        if self._delta is None:
            DeltaTable.create(
                self._uri,
                self._kind.whole,
                mode="ignore",
                partition_by=[self._kind.partition],
                name=f"camray {self._kind.folder}",
                configuration=_CONFIGURATION,
            )
            self._delta = DeltaTable(self._uri)

    @property
    def delta(self) -> DeltaTable | None:
        """The table for readers, or None before the first run."""
        return self._delta

    def dataset(self) -> Any:
        """Open the committed rows as a `pyarrow.dataset.Dataset`; no row is read yet.

        Through Arrow's own file systems: deltalake's calls back into Python from Arrow's threads, also while
        Python ends, and then aborts the process.
        """
        assert self._delta is not None
        place = pafs.SubTreeFileSystem(self._out.at(self._kind.folder), self._out.fs)
        return self._delta.to_pyarrow_dataset(filesystem=place)

    def files(self, explainer: str) -> Iterator[RecordFile]:
        """List the committed files of one explainer, from the log, without opening any."""
        if self._delta is None:
            return
        actions = pa.table(self._delta.get_add_actions(flatten=True))
        if actions.num_rows == 0:
            return
        actions = actions.filter(pc.field(f"partition.{self._kind.partition}") == explainer)
        for batch in actions.select(["path", "size_bytes", "num_records"]).to_batches(max_chunksize=65536):
            yield from map(RecordFile, *(column.to_pylist() for column in batch.columns))

    def shards(self, explainer: str) -> dict[str, list[RecordFile]]:
        """Group the committed files of one explainer by shard key.

        Raises:
            UsageError: the table holds files that camray did not write, a compaction's for example.
        """
        found: dict[str, list[RecordFile]] = defaultdict(list)
        for file in self.files(explainer):
            try:
                found[file.shard_key].append(file)
            except ValueError:
                problem = (
                    f"its table holds {printable(file.path)}, which camray did not write (a compaction?)"
                )
                raise UsageError("OUT", problem, "restore the table's version before that") from None
        return dict(found)

    def commit(self, explainer: str, run_id: str, finished: Sequence[ShardCommit]) -> list[ShardCommit]:
        """Make finished shards visible in one transaction, replacing older content of the same shards.

        Returns those that this call committed; a shard that another run committed first, with the same
        content, is left out.

        Raises:
            IncompleteError: other writers kept winning; nothing of `finished` became visible.
        """
        if self._delta is None:
            raise IncompleteError(f"the {self._kind.folder} table is gone")
        for attempt in range(COMMIT_ATTEMPTS):
            if self._current is None or attempt:  # a refused commit means that somebody else wrote
                self._delta.update_incremental()
                self._current = self.shards(explainer)
            mine = [f for f in finished if not is_committed(f.shard, self._current.get(f.shard.key, []))]
            if not mine:
                return []
            try:
                self._write(explainer, run_id, mine, self._current)
            except CommitFailedError:
                time.sleep(min(2.0, 0.02 * 2**attempt))
                continue
            self._current |= {f.shard.key: [_file_of(r) for r in f.receipts] for f in mine}
            return mine
        raise IncompleteError(f"{COMMIT_ATTEMPTS} commits were refused: another run keeps writing here")

    def _write(
        self,
        explainer: str,
        run_id: str,
        mine: Sequence[ShardCommit],
        current: dict[str, list[RecordFile]],
    ) -> None:
        assert self._delta is not None
        now_ms = int(time.time() * 1000)
        partition: dict[str, str | None] = {self._kind.partition: explainer}
        actions: list[AddAction | RemoveAction] = []
        transactions = []
        for done in mine:
            app_id = f"{explainer}/{done.shard.key}"
            transactions.append(Transaction(app_id, (self._delta.transaction_version(app_id) or 0) + 1))
            actions += [
                AddAction(r.path, r.size_bytes, partition, now_ms, True, json.dumps({"numRecords": r.rows}))
                for r in done.receipts
            ]
            actions += [
                RemoveAction(old.path, True, now_ms, old.size_bytes, partition)
                for old in current.get(done.shard.key, [])
            ]
        metadata = {
            "camray": json.dumps({"run_id": run_id, "shards": [_statement(explainer, d) for d in mine]})
        }
        self._delta.create_write_transaction(
            actions,
            "append",
            self._kind.whole,
            partition_by=[self._kind.partition],
            commit_properties=CommitProperties(
                custom_metadata=metadata, max_commit_retries=0, app_transactions=transactions
            ),
        )

    def statements(self) -> Iterator[dict[str, object]]:
        """Yield what each commit said of its shards, oldest first: explainer, shard, counts."""
        if self._delta is None:
            return
        for entry in reversed(self._delta.history()):
            yield from json.loads(entry.get("camray", "{}")).get("shards", [])


def _file_of(receipt: Receipt) -> RecordFile:
    return RecordFile(receipt.path, receipt.size_bytes, receipt.rows)


def _statement(explainer: str, done: ShardCommit) -> dict[str, object]:
    a = done.accounting
    return {
        "explainer": explainer,
        "key": done.shard.key,
        "content": done.shard.content_key,
        "uri": done.shard.uri,
        "members": a.members,
        "ok": a.ok,
        "failed": a.failed,
        "skipped": a.skipped,
        "shard_errors": a.shard_errors,
    }
