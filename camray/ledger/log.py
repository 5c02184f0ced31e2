"""The Delta log as it lies on a disk or in a store: made durable, opened with patience, its damage told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from camray.errors import UsageError, printable, said_by
from camray.ledger.out import AUDIT, INTAKE, LOOKS, QA, SCORES, TABLE, log_folder
from camray.storage import Folder

_T = TypeVar("_T")
KEPT: dict[str, str | None] = {"delta.logRetentionDuration": "interval 3650 days"}
"""What tells Delta Lake to keep a log as long as its table: its versions are the order of the nights."""
BESIDE = KEPT | {"delta.dataSkippingNumIndexedCols": "0"}
"""Of a table beside the records: its log names no member, as statistics (first and last values) would."""
TABLES = (TABLE, INTAKE, AUDIT, QA, LOOKS, SCORES)
# How Delta Lake begins what a store did, or the way to it. A full disk, an error of the local file system,
# does not pass by itself.
_ENTRY = re.compile(r"[0-9]{20}[.]json")
_AT_FAULT = re.compile(r"Generic (?!LocalFileSystem)\w+ error")


def entry(folder: str, version: int) -> str:
    """Give the place of a log entry below OUT; `folder` is the table's."""
    return f"{log_folder(folder)}/{version:020d}.json"


def is_entry(name: str) -> bool:
    """Tell whether a file of a log folder is an entry."""
    return _ENTRY.fullmatch(name) is not None


def is_stillborn(out: Folder, folder: str) -> bool:
    """Tell whether a power loss came right at the table's birth: its first entry is there, and empty."""
    first, second = entry(folder, 0), entry(folder, 1)
    return out.is_local and out.exists(first) and not out.exists(second) and not out.read(first)


def flush(out: Folder, folder: str, version: int) -> None:
    """Make a log entry durable, and the checkpoint beside it: Delta Lake leaves that to chance."""
    checkpoint = (f"{version:020d}.checkpoint.parquet", "_last_checkpoint")
    out.flush([entry(folder, version), *(f"{log_folder(folder)}/{name}" for name in checkpoint)])


def is_store_at_fault(error: OSError | DeltaError) -> bool:
    """Tell a store that fails from a log that is damaged, or a disk that is full: Delta Lake mixes them."""
    return _AT_FAULT.search(str(error)) is not None


def patiently(out: Folder, read: Callable[[], _T]) -> _T:
    """Read again while the store fails: of an answer that ends halfway Delta Lake asks no second one.

    Raises:
        OSError: the store failed for as long as a `Folder` has patience.
        DeltaError: the store is not at fault.
    """

    def once() -> _T:
        try:
            return read()
        except DeltaError as error:
            if is_store_at_fault(error):
                raise OSError(said_by(error)) from error
            raise

    return out.patiently(once)


def exists(out: Folder, folder: str) -> bool:
    """Tell whether there is a table."""
    place = entry(folder, 0)
    return out.exists(place) or any(is_entry(n) or "checkpoint" in n for n in out.names(log_folder(folder)))


def opened(out: Folder, folder: str) -> DeltaTable:
    """Open a table that is there.

    Raises:
        UsageError: its log is damaged. In a store, which may only be away, the error stays as it is.
    """
    uri = out.child_uri(folder)
    try:
        return patiently(out, lambda: DeltaTable(uri))
    except DeltaError as error:
        if not out.is_local:
            raise
        why = printable(said_by(error), 160)
        fix = "restore its _delta_log; the record files beside it are whole, or done again"
        raise UsageError("OUT", f"the log of {uri} is damaged: {why}", fix) from None


def dataset(out: Folder, folder: str, table: DeltaTable) -> pads.FileSystemDataset:
    """Give the files of a table, to be read through Arrow's own file systems.

    Delta Lake's calls back into Python from Arrow's threads, also while Python ends, and then the process
    aborts.
    """
    files: pads.FileSystemDataset = table.to_pyarrow_dataset(filesystem=file_system(out, folder))
    return files


def file_system(out: Folder, folder: str) -> pafs.SubTreeFileSystem:
    """Give the file system in which a table's paths stand."""
    return pafs.SubTreeFileSystem(out.at(folder), out.fs)


def versions(out: Folder) -> dict[str, int]:
    """Give the version of each table that is there, from the names of its log's entries."""
    found: dict[str, int] = {}
    for folder in TABLES:
        last = next(filter(is_entry, reversed(out.names(log_folder(folder)))), None)
        found |= {} if last is None else {folder: int(last[:20])}
    return found


class Changes(NamedTuple):
    """Files that a table gained and lost between two versions, in the order of the log."""

    added: list[str]
    removed: list[str]


def changes(out: Folder, folder: str, since: int, last: int) -> Changes | None:
    """Read what the entries behind `since` up to `last` changed; None where one of them is gone.

    Files that only lie otherwise now (`dataChange` false, a compaction) are no change.
    """
    added: dict[str, None] = {}
    removed: list[str] = []
    for version in range(since + 1, last + 1):
        try:
            lines = out.read(entry(folder, version)).splitlines()
        except FileNotFoundError:
            return None
        for action in map(json.loads, lines):
            for kind, file in action.items():
                if kind in ("add", "remove") and file.get("dataChange", True):
                    path = unquote(file["path"])
                    if kind == "add":
                        added[path] = None
                    elif path in added:
                        del added[path]
                    else:
                        removed.append(path)
    return Changes(list(added), removed)


def files_behind(out: Folder, folder: str, table: DeltaTable, runs: Collection[str]) -> list[str] | None:
    """Give the files that came behind the last entry of one of these runs; None where the log cannot tell."""
    entries: list[dict[str, Any]] = []
    limit = 16
    while True:
        read, entries = len(entries), table.history(limit)
        for said in entries[read:]:
            if json.loads(said.get("camray", "{}")).get("run_id") in runs:
                found = changes(out, folder, said["version"], table.version())
                return found.added if found and sizes(table).keys() >= set(found.added) else None
        if len(entries) < limit:
            return None
        limit *= 4


def old_checkpoints(out: Folder, folder: str) -> list[str]:
    """List the checkpoints that a later one replaced. Every entry stays: nothing is lost with them."""
    place = log_folder(folder)
    return [f"{place}/{name}" for name in out.names(place) if name.endswith(".checkpoint.parquet")][:-1]


def runs(table: DeltaTable) -> list[str]:
    """Give the runs that committed to a table, in the order of their first commits; `forget` is no run."""
    said = (json.loads(entry.get("camray", "{}")) for entry in reversed(table.history()))
    return list(
        dict.fromkeys(str(about["run_id"]) for about in said if "run_id" in about and not about.get("forgot"))
    )


def newest(table: DeltaTable, owner: str) -> pa.Table:
    """Give path and `num_records` of the committed files of an explainer, the newest first."""
    files = pa.table(table.get_add_actions(flatten=True))
    if not len(files):
        return pa.table({"path": pa.array([], pa.string()), "num_records": pa.array([], pa.int64())})
    files = files.filter(pc.field("partition.explainer") == owner)
    order = [("modification_time", "descending"), ("path", "descending")]
    return files.sort_by(order).select(["path", "num_records"])


def sizes(table: DeltaTable) -> dict[str, int]:
    """Give the committed files of a table by path, and their bytes."""
    actions = pa.table(table.get_add_actions(flatten=True).select(["path", "size_bytes"]))
    return dict(zip(*(column.to_pylist() for column in actions.columns), strict=True))
