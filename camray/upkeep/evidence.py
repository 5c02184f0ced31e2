"""`camray verify OUT --chain`: whether the log, the files and what runs said of themselves are one story.

* the hash that each entry carries is that of the entries before it, and each report's is that of its end
* no entry adds, removes or changes anything without such a hash, or for a run that had ended
* the files of the table, as a checkpoint tells them, are those that the entries name, one by one
* what a run counted is what its commits say; so is what the audit of a night says of its images

Who can write in OUT can write all of it anew, reports too: keep the last hash elsewhere, and compare it.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote

from camray.audit.night import Night, night_of
from camray.ledger import log
from camray.ledger.chain import Head, actions, carried, said_in
from camray.ledger.out import RUNS, files_of_runs, log_folder
from camray.ledger.runs import read_reports
from camray.ledger.side import DamagedError, read_side
from camray.ledger.table import RECORDS, Table
from camray.records import Accounting
from camray.storage import Folder

_COUNTED = (0, 3, 5)  # exits of runs that saw each of their commits


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found; `said` is the last hash, and what it covers."""

    said: str
    problems: tuple[str, ...]


@dataclass(slots=True)
class _Log:
    """The entries of a table's log, gone through once."""

    heads: dict[int, str] = dataclasses.field(default_factory=dict)  # by entry
    head: Head | None = None
    first: int = 0  # entry that is there
    last: int = -1
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)  # of the files that are named, by path
    runs: dict[int, str] = dataclasses.field(default_factory=dict)  # entry -> run that it names
    said: list[tuple[int, dict[str, Any]]] = dataclasses.field(default_factory=list)  # entry, words
    counts: dict[tuple[str, str], Accounting] = dataclasses.field(  # by run, and explainer or panel
        default_factory=lambda: defaultdict(Accounting)
    )


def look_at_chain(out: Folder, table: Table) -> Evidence:
    """Go through a table's log, and compare it with the table and with the reports of runs."""
    if table.version is None:
        return Evidence("", ())
    seen = _Log()
    problems = list(_entries(out, table, seen))
    if seen.head is None:
        return Evidence("no hash yet: the next run makes the first", tuple(problems))
    problems += _files(table, seen)
    problems += _reports(table.kind.folder, read_reports(out), seen)
    problems += _nights(out, seen) if table.kind is RECORDS else ()
    covers = f"entries {seen.head.first:,} to {seen.last:,}"
    older = f"; {seen.head.first:,} entries before it have none" if seen.head.first else ""
    return Evidence(f"{seen.head.hash}, {covers}{older}", tuple(problems))


def _entries(out: Folder, table: Table, seen: _Log) -> Iterator[str]:
    """Go through the entries, oldest first; each hash must be that of those before it."""
    folder = table.kind.folder
    entries: list[bytes] = []
    numbers = [int(name[:20]) for name in out.names(log_folder(folder)) if log.is_entry(name)]
    seen.first, seen.last = numbers[0], numbers[-1]
    for version in numbers:
        where, data = log.entry(folder, version), out.read(log.entry(folder, version))
        said = carried(data, version - 1)
        if said is not None and seen.head is None:
            seen.head = (
                said if said.first < seen.first else _folded(said.first, entries[said.first - seen.first :])
            )
        if said is not None and said != seen.head:
            yield f"{where}: what it says of the entries before it is not what they are"
        try:
            done = list(actions(data))
        except ValueError:
            yield f"{where} cannot be read"
            done = []
        if seen.head is not None:
            if said is None and any("commitInfo" not in action for action in done):
                yield f"{where}: no run of camray wrote it"
            seen.head = dataclasses.replace(seen.head.then(data), last=version)
            seen.heads[version] = seen.head.hash
        else:
            entries.append(data)
        _follow(seen, version, done, said_in(data))


def _folded(first: int, entries: Sequence[bytes]) -> Head:
    head = Head(first, first - 1, "")
    for data in entries:
        head = head.then(data)
    return head


def _follow(seen: _Log, version: int, done: Sequence[Mapping[str, Any]], said: Mapping[str, Any]) -> None:
    """Do what an entry says to the files, and add up what it says of a run."""
    for action in done:
        if "remove" in action:
            seen.sizes.pop(unquote(action["remove"]["path"]), None)
        if "add" in action:
            seen.sizes[unquote(action["add"]["path"])] = action["add"]["size"]
    seen.said += [(version, dict(said))] * ("shards" in said)
    if "run_id" in said and not said.get("forgot"):
        run_id = seen.runs[version] = str(said["run_id"])
        for one in said.get("shards", []):
            own = Accounting(one["ok"], one["skipped"], one["failed"], one["shard_errors"])
            seen.counts[run_id, str(one["explainer"])] += own


def _files(table: Table, seen: _Log) -> Iterator[str]:
    """Compare the files of the table with those that the entries name, where all entries are there."""
    assert table.delta is not None
    if seen.first:
        return
    there = log.sizes(table.delta)
    for path in sorted(there.keys() ^ seen.sizes.keys()):
        what = "is in the table, and no entry names it" if path in there else "is named, and not in the table"
        yield f"{table.kind.folder}/{path} {what}"
    for path in sorted(there.keys() & seen.sizes.keys()):
        if there[path] != seen.sizes[path]:
            yield f"{table.kind.folder}/{path} has other sizes in the table and in its entry"


def _reports(folder: str, reports: Sequence[Mapping[str, Any]], seen: _Log) -> Iterator[str]:
    """Compare what runs said when they ended with the log."""
    for report in reports:
        run_id, said = report["run_id"], report.get("chain", {}).get(folder)
        if not said:
            continue  # of an earlier camray, or killed
        _, last, head = said
        if seen.heads.get(last, head) != head:
            yield f"{folder}: the log up to entry {last:,} is not what run {run_id} left"
        later = [version for version, run in seen.runs.items() if run == run_id and version > last]
        if later:
            yield f"{folder}: entry {later[0]:,} is of run {run_id}, which had ended at {last:,}"
        if report["exit"] in _COUNTED and (own := seen.counts.get((run_id, report["explainer"]))):
            yield from _counts(folder, report, own)


def _counts(folder: str, report: Mapping[str, Any], own: Accounting) -> Iterator[str]:
    """Build a run's summary anew from its commits."""
    told = report["accounting"]
    for name, count in dataclasses.asdict(own).items():
        if told.get(name) != count:
            run = report["run_id"]
            yield f"{folder}: run {run} says {name} {told.get(name)}, its commits say {count}"


def _nights(out: Folder, seen: _Log) -> Iterator[str]:
    """Count the images of each night anew: those of the shards committed since the night before."""
    nights: dict[str, Night] = {}
    for path in files_of_runs(out, "summary.json"):
        with suppress(DamagedError):  # the look at the runs names it
            night = read_side(out, path, partial(night_of, path))
            nights[night.run_id] = night
    for night in nights.values():
        before = nights[night.previous].records_version if night.previous in nights else -1
        if (
            night.records_version is None
            or before is None
            or seen.first
            or night.previous not in {None, *nights}
        ):
            continue
        own = _counted(seen, night.explainer, before, night.records_version)
        told = {"rows": night.images.rows, "failed": night.images.failed, "errors": dict(night.errors)}
        found = {"rows": own.ok + own.n_failed, "failed": own.n_failed, "errors": dict(own.failed)}
        for name, count in found.items():
            if told[name] != count:
                yield f"{RUNS}/{night.run_id}/summary.json says {name} {told[name]}, the commits say {count}"
        if (verdicts := sum(night.verdicts.values())) != night.images.rows:
            said = f"has {verdicts:,} verdicts of {night.images.rows:,} rows"
            yield f"{RUNS}/{night.run_id}/summary.json {said}"


def _counted(seen: _Log, explainer: str, before: int, last: int) -> Accounting:
    """Add up the shards of an explainer that entries behind `before` committed, as they were at `last`."""
    latest: dict[str, Mapping[str, Any]] = {}
    for version, said in seen.said:
        for one in said["shards"] if before < version <= last else ():
            if one["explainer"] == explainer and (not said.get("forgot") or one["key"] in latest):
                latest[one["key"]] = one
    found = Accounting()
    for one in latest.values():
        found += Accounting(one["ok"], one["skipped"], one["failed"])
    return found
