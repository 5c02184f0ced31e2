"""What is left to do: the archive as listed, minus what the table holds, minus chunks already on disk.

The plan is frozen before anything runs: a read task that is replayed must yield the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from camray.errors import PASSING_ERRORS
from camray.ledger.committed import AGAIN, CommittedFiles, parse_name
from camray.ledger.parts import FOOTER_KEY
from camray.ledger.table import RECORDS, Kind
from camray.records import Receipt, Shard, account
from camray.storage import Folder

IsReadable = Callable[[Shard], bool]


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard to read, with the chunks that an interrupted run left finished."""

    shard: Shard
    finished: Mapping[int, Receipt] = field(default_factory=dict)
    before: frozenset[str] | None = None  # its committed contents as planned: what a commit may replace


@dataclass(frozen=True, slots=True)
class Plan:
    """Which shards run, and why the others do not."""

    tasks: tuple[ShardTask, ...]
    committed: int  # shards whose content is in the table: skipped
    changed: int  # of `tasks`: shards whose older content is in the table
    resumed: int  # of `tasks`: shards with finished chunks on disk
    gone: int  # shards in the table that the archive no longer lists: their rows stay
    more: int = 0  # shards in the table with rows that this command does not ask for: they stay

    @property
    def size_bytes(self) -> int:
        """Bytes to read."""
        return sum(t.shard.size_bytes for t in self.tasks)


def make_plan(
    out: Folder,
    explainer: str,
    shards: Sequence[Shard],
    committed: CommittedFiles,
    chunk_size: int,
    kind: Kind = RECORDS,
    is_readable: IsReadable | None = None,
) -> Plan:
    """Compare the archive with the table and with the files of interrupted runs.

    `is_readable` tries the selected members of a shard, which could not be read before: where one can be
    read now, the shard is done again.
    """
    left: list[Shard] = []
    known: dict[str, frozenset[str]] = {}  # committed contents of what is left, by shard
    old: set[str] = set()  # and their files
    done = changed = 0
    for shard in shards:
        if committed.holds(shard) and not _has_passed(out, shard, committed, kind, is_readable):
            done += 1
        else:
            files = committed.get(shard.key, [])
            left.append(shard)
            known[shard.id] = frozenset(f.content_key for f in files)
            old |= {f.path for f in files}
            changed += bool(files)
    ids = {s.id for s in left}
    finished = _finished_chunks(out, explainer, ids, old, chunk_size, kind) if left else {}
    return Plan(
        tasks=tuple(ShardTask(s, finished.get(s.id, {}), known[s.id]) for s in left),
        committed=done,
        changed=changed,
        resumed=sum(s.id in finished for s in left),
        gone=len(committed) - done - changed,
    )


def plan_again(
    plan: Plan, out: Folder, explainer: str, committed: CommittedFiles, chunk_size: int, kind: Kind = RECORDS
) -> Plan:
    """Plan anew, under the hold, what was planned before it: others may have committed or pruned since.

    What a commit may replace stays what the first plan saw, which is older than its listing.
    """
    before = {t.shard.id: t.before for t in plan.tasks}
    shards = [t.shard for t in plan.tasks]
    now = make_plan(out, explainer, shards, committed, chunk_size, kind, lambda _: True)
    tasks = tuple(replace(t, before=before.get(t.shard.id, frozenset())) for t in now.tasks)
    return replace(plan, tasks=tasks, resumed=now.resumed)


def _has_passed(
    out: Folder, shard: Shard, committed: CommittedFiles, kind: Kind, is_readable: IsReadable | None
) -> bool:
    """Tell whether a member that failed for a cause that may pass can be read now."""
    files = committed.to_try_again(shard) if is_readable is not None else []
    failed: set[int] = set()
    for file in files:
        try:
            with out.open(f"{kind.folder}/{file.path}") as source:
                rows = pq.ParquetFile(source).read(["index", "error_code"], use_threads=False)
        except (pa.ArrowInvalid, OSError):
            return False  # `verify` names it
        passing = pc.is_in(rows["error_code"], pa.array(sorted(PASSING_ERRORS)))
        failed |= set(rows["index"].filter(passing).to_pylist())
    if shard.selection is not None:
        failed &= set(shard.selection)
    return bool(failed and is_readable and is_readable(replace(shard, selection=tuple(sorted(failed)))))


def _finished_chunks(
    out: Folder, explainer: str, shard_ids: set[str], known: Set[str], chunk_size: int, kind: Kind
) -> dict[str, dict[int, Receipt]]:
    """Find uncommitted record files of these shards that hold a whole chunk of the same size.

    A shorter chunk is done again: it may be the last of its shard, or end where a store failed.
    """
    finished: dict[str, dict[int, Receipt]] = {}
    folder = f"{kind.partition}={explainer}"
    for entry in out.entries(f"{kind.folder}/{folder}"):
        path = f"{folder}/{entry.path}"
        try:
            key, content, chunk = parse_name(path)
        except ValueError:
            continue  # not ours: a temporary file of a killed run
        shard_id = f"{key}-{content}"
        if path in known or shard_id not in shard_ids or chunk in finished.get(shard_id, {}):
            continue
        if path.endswith(f"{AGAIN}.parquet"):  # what failed in it may have passed
            continue
        receipt = _receipt_in(out, path, entry.size_bytes, chunk_size, kind)
        if receipt is not None:
            finished.setdefault(shard_id, {})[chunk] = receipt
    return finished


def _receipt_in(out: Folder, path: str, size_bytes: int, chunk_size: int, kind: Kind) -> Receipt | None:
    """Read a file's own receipt from its footer; None where it is torn, short or cut differently."""
    try:
        with out.open(f"{kind.folder}/{path}") as file:
            metadata = pq.read_metadata(file)
    except (pa.ArrowInvalid, OSError):
        return None  # a torn file: it is done again, `prune` removes it
    note: dict[str, Any] = json.loads((metadata.metadata or {}).get(FOOTER_KEY, b"{}"))
    if note.get("chunk_size") != chunk_size or metadata.num_rows != note.get("rows"):
        return None
    counts = {k: note[k] for k in ("shard_id", "chunk", "rows", "ok", "skipped", "failed", "overlays")}
    changed = note.get("changed_answers", 0)  # files of before have none
    receipt = Receipt(path=path, size_bytes=size_bytes, reused=True, changed_answers=changed, **counts)
    return receipt if account([receipt]).members == chunk_size else None
