"""The Delta table of records: which shards are committed, and the one transaction that commits more.

A record file counts only once a commit names it. Each shard has an application transaction
``<explainer>/<shard key>`` whose version rises by one per commit, so that a repeated or racing commit of the
same shard is refused by the table and then found to be done already.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import chain as chain_of

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from camray.errors import IncompleteError, UsageError, printable
from camray.ledger import chain, log
from camray.ledger.committed import PARTITION, CommittedFiles, Part, RecordFile, is_committed, is_pack
from camray.ledger.hold import Held
from camray.ledger.out import TABLE
from camray.ledger.parts import read_parts
from camray.records import LATER, RECORD_SCHEMA, SCHEMA_VERSION, Accounting, Receipt, Shard, shard_key
from camray.storage import Folder

COMMIT_ATTEMPTS = 20

_FILES = pa.schema([("path", pa.string()), ("size_bytes", pa.int64()), ("num_records", pa.int64())])
STORE_ERRORS = (OSError, DeltaError)
"""What a full disk or a store that is away looks like, from Arrow and from Delta Lake."""


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
TABLE_SCHEMA = RECORDS.whole
_CONFIGURATION = {
    **log.KEPT,  # the accounting of each shard lives in its commit
    "delta.checkpointInterval": "100",
    # Commits say how many rows a file has and nothing of its columns; a hundred empty statistics for each of
    # a million files would take the driver over 1 GB.
    "delta.dataSkippingNumIndexedCols": "0",
}
VERSION_KEY = "camray.schemaVersion"  # in the table's metadata: the `SCHEMA_VERSION` that made it


# In a local path: deltalake panics, looks elsewhere, or finds the table without its history.
_NO_PLACE = re.compile(r"[][^|\\#?\x00-\x1f\x7f\ud800-\udfff]|%[0-9A-Fa-f]{2}")


@dataclass(frozen=True, slots=True)
class ShardCommit:
    """One finished shard, ready to become visible."""

    shard: Shard
    receipts: tuple[Receipt, ...]
    accounting: Accounting
    before: frozenset[str] | None = None  # the contents that it replaces, as planned; None: whatever is there


class Table:
    """The records, or the scores, of one OUT. Opens what is there; `create` makes it where it is not."""

    def __init__(self, out: Folder, kind: Kind = RECORDS) -> None:
        if out.is_local and (odd := _NO_PLACE.search(out.path)):
            raise UsageError(
                "OUT",
                printable(f"{out.uri}: Delta Lake keeps no table under a name with {odd[0]!r}"),
                "rename",
            )
        self._out, self._uri, self._kind = out, out.child_uri(kind.folder), kind
        self._delta: DeltaTable | None = None
        self._read: tuple[int | None, str, CommittedFiles] | None = None  # and of which version
        self._seen: CommittedFiles | None = None  # as `commit` last read it
        self._own: dict[str, list[RecordFile]] = {}  # committed here since
        self._packs: dict[str, list[Part]] = {}  # what is in a file never changes
        self.held: Held | None = None  # looked at before each commit
        if log.exists(out, kind.folder) and not log.is_stillborn(out, kind.folder):
            self._delta = log.opened(out, kind.folder)
            self._check_version()

    def create(self) -> None:
        """Make the table unless it is there already; one of an earlier camray gains the columns it lacks."""
        if self._delta is not None and (missing := set(self._kind.whole.names) - self.columns):
            fields = Schema.from_arrow(self._kind.whole).fields
            note = json.dumps(chain.link(self._out, self._kind.folder, self._delta.version()))
            new = [f for f in fields if f.name in missing]
            self._delta.alter.add_columns(new, commit_properties=CommitProperties({"camray": note}))
            self._delta = log.opened(self._out, self._kind.folder)
        if self._delta is None:
            if log.is_stillborn(self._out, self._kind.folder):
                self._out.delete(log.entry(self._kind.folder, 0))
            log.patiently(self._out, self._create)
            log.flush(self._out, self._kind.folder, 0)
            self._delta = log.opened(self._out, self._kind.folder)

    def _create(self) -> None:
        configuration = {**_CONFIGURATION, VERSION_KEY: str(SCHEMA_VERSION)}
        DeltaTable.create(
            self._uri, self._kind.whole, mode="ignore", partition_by=[self._kind.partition],
            name=f"camray {self._kind.folder}", configuration=configuration,
            raise_if_key_not_exists=False,  # a key of our own
        )  # fmt: skip

    def _check_version(self) -> None:
        """Refuse a table whose columns may mean what this camray cannot know."""
        assert self._delta is not None
        made_by = self._delta.metadata().configuration.get(VERSION_KEY, "1")
        if not made_by.isdecimal() or int(made_by) > SCHEMA_VERSION:
            raise UsageError(
                "OUT", f"its {self._kind.folder} have schema version {printable(made_by)}, this camray knows "
                f"versions up to {SCHEMA_VERSION}", "upgrade camray",
            )  # fmt: skip

    @property
    def columns(self) -> frozenset[str]:
        """The columns of the table as it was made: an earlier camray's has fewer."""
        assert self._delta is not None
        return frozenset(field.name for field in self._delta.schema().fields)

    def check_columns(self) -> None:
        """Refuse to write into a table with other columns than today's, but for later ones that it can gain.

        Raises:
            UsageError: columns are missing, or unknown.
        """
        if self._delta is None or self.columns == set(self._kind.whole.names):
            return
        missing = sorted(set(self._kind.whole.names) - self.columns - LATER)
        unknown = sorted(self.columns - set(self._kind.whole.names))
        if not missing and not unknown:
            return
        parts = (("lacks", missing), ("has besides", unknown))
        difference = " and ".join(f"{verb} {', '.join(names[:3])}" for verb, names in parts if names)
        raise UsageError(
            "OUT", f"its table {self._kind.folder} was made by another version of camray: it {difference}",
            "give a new OUT; what is in this one stays readable",
        )  # fmt: skip

    @property
    def delta(self) -> DeltaTable | None:
        """The table for readers, or None before the first run."""
        return self._delta

    @property
    def out(self) -> Folder:
        """The OUT that it is part of."""
        return self._out

    @property
    def kind(self) -> Kind:
        """Which table of OUT it is."""
        return self._kind

    @property
    def version(self) -> int | None:
        """The number of the last entry that was read; None where there is no table."""
        return None if self._delta is None else self._delta.version()

    def update(self) -> None:
        """Read what was committed since, and make it durable before anything stands on it.

        Who was killed between its entry and the flush left one that a power loss would empty.
        """
        if self._delta is not None:
            log.patiently(self._out, self._delta.update_incremental)
            log.flush(self._out, self._kind.folder, self._delta.version())

    def fence(self) -> None:
        """Put an empty entry: whoever read the log before has to read it, and look at the hold, again."""
        for attempt in range(COMMIT_ATTEMPTS):
            try:
                self._put([], {})
                break
            except CommitFailedError:  # a run that stood still woke up: its entry came first
                if attempt == COMMIT_ATTEMPTS - 1:
                    raise
                self.update()
        self.update()

    def reopened(self) -> Table:
        """Open the same table as it is now."""
        return Table(self._out, self._kind)

    def dataset(self, owner: str = "", paths: Collection[str] | None = None) -> pads.FileSystemDataset:
        """Open the committed rows, of one explainer where one is named; no row is read yet.

        `paths` names files of that explainer: they alone are opened, in this order. Reading fails where a
        page is not as it was written. Columns that an earlier camray lacked are null.
        """
        assert self._delta is not None
        scan = pads.ParquetFragmentScanOptions(pre_buffer=True, page_checksum_verification=True)
        checked = pads.ParquetFileFormat(default_fragment_scan_options=scan)
        if paths is not None:
            place = log.file_system(self._out, self._kind.folder)
            found = [(path, pads.field(self._kind.partition) == owner) for path in paths]
        else:
            plain = log.dataset(self._out, self._kind.folder, self._delta)
            place, found = plain.filesystem, [(f.path, f.partition_expression) for f in plain.get_fragments()]
        fragments = [
            checked.make_fragment(path, place, where)
            for path, where in found
            if not owner or path.startswith(f"{self._kind.partition}={owner}/")
        ]
        return pads.FileSystemDataset(fragments, self._kind.whole, checked, place)

    def shards(self, explainer: str) -> CommittedFiles:
        """Give the committed files of one explainer by shard key, from the log, without opening any.

        Raises:
            UsageError: the table holds files that camray did not write, a compaction's for example.
        """
        version = None if self._delta is None else self._delta.version()
        if self._read is None or self._read[:2] != (version, explainer):
            files = self._files(explainer)
            self._read = version, explainer, CommittedFiles(files, self.packs(files["path"].to_pylist()))
        return self._read[2]

    def files_of(self, explainer: str, uris: Collection[str]) -> list[str] | None:
        """Give the record files of these shards; None, for all, where a name is no UTF-8."""
        committed = self.shards(explainer)
        files = [committed.get(shard_key(uri)) for uri in uris]
        paths = (file.path for of_shard in files for file in of_shard or ())  # a pack is of several shards
        return list(dict.fromkeys(paths)) if all(files) else None

    def packs(self, paths: Iterable[str]) -> dict[str, list[Part]]:
        """Give what is in those of these files that hold many shards, by path.

        Raises:
            UsageError: one is damaged, or not camray's.
        """
        found = [path for path in paths if is_pack(path)]
        for path in found:
            if path not in self._packs:
                self._packs[path] = read_parts(self._out, f"{self._kind.folder}/{path}")
        return {path: self._packs[path] for path in found}

    def holds_any(self, keys: AbstractSet[str]) -> bool:
        """Tell whether there are committed files of one of these shards, by their keys, of any explainer."""
        if self._delta is None:
            return False
        paths = pa.table(self._delta.get_add_actions(flatten=True).select(["path"]))["path"].to_pylist()
        packed = (part.id for parts in self.packs(paths).values() for part in parts)
        names = (path.rpartition("/")[2] for path in paths)
        return any(name.partition("-")[0] in keys for name in chain_of(names, packed))

    def _files(self, explainer: str) -> pa.Table:
        actions = self._delta.get_add_actions(flatten=True) if self._delta is not None else None
        if actions is None or not actions.num_rows:
            return _FILES.empty_table()
        columns = [*_FILES.names, f"partition.{self._kind.partition}"]
        actions = pa.table(actions.select(columns))  # the others, a hundred of statistics, are let go here
        chosen = actions.filter(pc.field(columns[-1]) == explainer)
        return chosen.select(_FILES.names).cast(_FILES)

    def commit(self, explainer: str, run_id: str, finished: Sequence[ShardCommit]) -> list[ShardCommit]:
        """Make finished shards visible in one transaction, replacing older content of the same shards.

        Returns those that this call committed, also where the store lost its answer; a shard that another
        run committed first, with the same content, is left out.

        Raises:
            IncompleteError: other writers kept winning, or another run holds OUT; nothing became visible.
        """
        if self._delta is None:
            raise IncompleteError(f"the {self._kind.folder} table is gone")
        done: list[ShardCommit] = []
        mine: list[ShardCommit] = []
        for attempt in range(COMMIT_ATTEMPTS):
            if self._seen is None or attempt:  # a refused commit means that somebody else wrote
                done += mine if mine and self._is_there(run_id) else []
                self.update()
                self._seen, self._own = self.shards(explainer), {}
            if self.held is not None:
                self.held.confirm()  # behind the read: what a later holder puts is an entry that refuses ours
            mine = [f for f in finished if not self._has(f)]
            if not mine:
                return done
            self._check_planned(mine)
            try:
                self._write(explainer, run_id, mine)
            except STORE_ERRORS as error:
                if not isinstance(error, CommitFailedError) and not log.is_store_at_fault(error):
                    raise
                time.sleep(min(2.0, 0.02 * 2**attempt))  # then look whether it came through after all
                continue
            log.flush(self._out, self._kind.folder, self._delta.version() + 1)
            self._follow({f.shard.key: [_file_of(r) for r in f.receipts] for f in mine})
            return [*done, *mine]
        raise IncompleteError(f"{COMMIT_ATTEMPTS} commits were refused: another run writes, or OUT fails")

    def _is_there(self, run_id: str) -> bool:
        """Tell of a refused commit whether its entry was put after all: the store lost its answer."""
        assert self._delta is not None
        try:
            data = self._out.read(log.entry(self._kind.folder, self._delta.version() + 1))
        except FileNotFoundError:
            return False
        return chain.said_in(data).get("run_id") == run_id

    def _check_planned(self, mine: Sequence[ShardCommit]) -> None:
        """Replace what the plan saw, and nothing else: the other listing may be the newer one."""
        for done in mine:
            files = self._current(done.shard.key)
            is_other = done.before is not None and done.before != {f.content_key for f in files}
            if is_other or any(f.is_packed for f in files):  # a pack holds other shards, too
                raise IncompleteError(
                    f"{done.shard.uri}: another run committed other content of it since this one planned; "
                    "what is committed stays, the same command resumes"
                )

    def _follow(self, mine: dict[str, list[RecordFile]]) -> None:
        """Step over the own commit; where another run's came along with it, forget what was known."""
        assert self._delta is not None
        before = self._delta.version()
        log.patiently(self._out, self._delta.update_incremental)
        if self._delta.version() == before + 1:
            self._own |= mine
        else:
            self._seen = None

    def _has(self, done: ShardCommit) -> bool:
        return is_committed(done.shard, self._current(done.shard.key), {r.path for r in done.receipts})

    def _current(self, key: str) -> list[RecordFile]:
        """Give the files of a shard, as this table last saw them."""
        assert self._seen is not None
        return self._own.get(key) or self._seen.get(key, [])

    def _write(self, explainer: str, run_id: str, mine: Sequence[ShardCommit]) -> None:
        assert self._delta is not None
        now_ms = int(time.time() * 1000)
        partition: dict[str, str | None] = {self._kind.partition: explainer}
        actions: list[AddAction | RemoveAction] = []
        transactions = []
        for done in mine:
            transactions.append(self._claim(f"{explainer}/{done.shard.key}"))
            actions += [self._added(r, explainer, now_ms) for r in done.receipts]
            actions += [
                RemoveAction(old.path, True, now_ms, old.size_bytes, partition)
                for old in self._current(done.shard.key)
            ]
        statements = [_statement(explainer, done) for done in mine]
        self._put(actions, {"run_id": run_id, "shards": statements}, transactions)

    def _put(
        self, actions: Sequence[AddAction | RemoveAction], said: Mapping[str, object],
        claims: Sequence[Transaction] = (),
    ) -> None:  # fmt: skip
        """Put the next entry if it is absent; it carries the hash over those before it."""
        assert self._delta is not None
        note = {**said, **chain.link(self._out, self._kind.folder, self._delta.version())}
        self._delta.create_write_transaction(
            list(actions), "append", self._kind.whole, partition_by=[self._kind.partition],
            commit_properties=CommitProperties({"camray": json.dumps(note)}, 0, list(claims)),
        )  # fmt: skip

    def runs(self) -> list[str]:
        """Give the runs that committed, in the order of their first commits, whatever their clocks said."""
        return log.runs(self._delta) if self._delta is not None else []

    def statements(self, entries: int | None = None) -> Iterator[dict[str, object]]:
        """Yield what each commit said of its shards, oldest first: explainer, shard, counts.

        `entries`: of the last so many entries of the log alone.
        """
        if self._delta is None or entries == 0:
            return
        for entry in reversed(self._delta.history(entries)):
            yield from json.loads(entry.get("camray", "{}")).get("shards", [])

    def latest_owner(self) -> str:
        """Name the explainer that was committed last; "" in a table without commits."""
        for limit in (8, None):  # of a long log the end is enough, as a rule
            for entry in self._delta.history(limit) if self._delta is not None else []:
                said = json.loads(entry.get("camray", "{}"))
                if said.get("shards") and "forgot" not in said:
                    return str(said["shards"][0]["explainer"])
        return ""

    def rewrite(
        self, owner: str, run_id: str, files: Mapping[str, Receipt], said: Sequence[Mapping[str, object]]
    ) -> None:
        """Put other files in the place of committed ones, in one transaction.

        `files`: path of the old file -> the new one's receipt; `said`: what now holds of their shards.
        The caller holds OUT.
        """
        claims = [self._claim(f"{owner}/{one['key']}") for one in said]
        note = {"run_id": run_id, "shards": list(said), "forgot": True}
        self._replace(owner, files, files.values(), note, claims)

    def repack(self, owner: str, gone: Iterable[str], new: Iterable[Receipt]) -> None:
        """Put the same rows in other files, in one transaction; `gone`: paths. The caller holds OUT.

        Raises:
            IncompleteError: somebody else committed meanwhile; nothing became visible.
        """
        try:
            self._replace(owner, gone, new, {"repacked": True}, is_new=False)
        except CommitFailedError:
            raise IncompleteError("another run committed meanwhile; the same command does the rest") from None

    def _replace(
        self, owner: str, gone: Iterable[str], new: Iterable[Receipt], said: Mapping[str, object],
        claims: Sequence[Transaction] = (), is_new: bool = True,
    ) -> None:  # fmt: skip
        """Put files in the place of others, durably; `is_new`: their rows are other ones."""
        assert self._delta is not None
        now_ms, partition = int(time.time() * 1000), {self._kind.partition: owner}
        actions: list[AddAction | RemoveAction] = [self._added(r, owner, now_ms, is_new) for r in new]
        actions += [RemoveAction(path, is_new, now_ms, None, dict(partition)) for path in gone]
        self._put(actions, said, claims)
        log.flush(self._out, self._kind.folder, self._delta.version() + 1)
        log.patiently(self._out, self._delta.update_incremental)

    def _added(self, new: Receipt, owner: str, now_ms: int, is_new: bool = True) -> AddAction:
        said = json.dumps({"numRecords": new.rows})
        return AddAction(new.path, new.size_bytes, {self._kind.partition: owner}, now_ms, is_new, said)

    def _claim(self, app_id: str) -> Transaction:
        assert self._delta is not None
        return Transaction(app_id, (self._delta.transaction_version(app_id) or 0) + 1)


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
