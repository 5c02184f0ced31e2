"""`camray prune OUT`: take away what no reader needs any more. Shows what it would do; --yes does it.

* overlays of runs that are not kept (their records stay, and say so), and overlays that no record names
* record files that no commit names, and old versions of replaced ones, once they are older than a day or
  than the oldest kept run: by then no running job holds them

Records of committed images, summaries of nights and people's decisions are never removed.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow.dataset as ds
from deltalake import DeltaTable

from camray.errors import ExitCode, UsageError, printable
from camray.ledger import log
from camray.ledger.committed import RecordFile
from camray.ledger.hold import hold
from camray.ledger.out import (
    AUDIT,
    INTAKE,
    LOOKS,
    OVERLAYS,
    PRUNED,
    QA,
    REPORT,
    TABLE,
    mask_beside,
    open_out,
    pruned_of,
)  # fmt: skip
from camray.ledger.pack import find_packable, pack
from camray.ledger.runs import new_run_id
from camray.ledger.side import DAMAGED, recovered, write_side
from camray.ledger.table import Table
from camray.storage import Entry, Folder
from camray.upkeep.status import committed_shards, open_either

GRACE_HOURS = 24


@dataclass(frozen=True, slots=True)
class Removal:
    """What prune would take away."""

    overlays: tuple[str, ...]
    overlay_bytes: int
    files: tuple[str, ...]  # of the records table, no longer or never committed
    pruned_runs: frozenset[str]


def choose_runs(
    runs: Sequence[str],
    keep_last: int | None,
    keep_within_days: float | None,
    pinned: Sequence[str],
    now: float,
) -> frozenset[str]:
    """Give the runs to keep: the last N, those of the last days, and the pinned; all where nothing is said.

    `runs` are in their order, the order of the log.

    Raises:
        UsageError: a pinned run that is not there.
    """
    for run in pinned:
        if run not in runs:
            raise UsageError("--pin", f"{printable(run)} is no run of OUT", "see `camray status OUT`")
    if keep_last is None and keep_within_days is None:
        return frozenset(runs)
    kept = set(pinned) | set(runs[-keep_last:] if keep_last else [])
    if keep_within_days is not None:
        kept |= {run for run in runs if now - started(run) <= keep_within_days * 86400}
    return frozenset(kept)


def started(run: str) -> float:
    """Read the start of a run from its name, in seconds since 1970; 0 where it has none."""
    try:
        return datetime.strptime(run.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


def find_removals(out: Folder, table: Table, kept: frozenset[str], now: float) -> Removal:
    """Find what can go. Reads the overlay paths of the records, and lists OUT."""
    named = dict(_named_overlays(table))
    named |= {mask_beside(path): run for path, run in named.items()}

    def is_gone(entry: Entry) -> bool:
        run = named.get(_path(entry))
        return run not in kept if run else _age_hours(entry, now) > GRACE_HOURS

    gone = [e for e in out.entries(OVERLAYS) if _path(e).removesuffix(DAMAGED) != PRUNED and is_gone(e)]
    files = _vacuum(table.delta, _hours_kept(kept, now), dry_run=True) if table.delta else []
    pruned = frozenset(run for run in named.values() if run not in kept)
    return Removal(tuple(_path(e) for e in gone), sum(e.size_bytes for e in gone), tuple(files), pruned)


def remove(out: Folder, table: Table, removal: Removal, kept: frozenset[str], now: float) -> None:
    """Take it away. What was pruned is written down first, so that `verify` knows it is meant."""
    before = recovered(out, PRUNED, pruned_of) or frozenset()
    write_side(out, PRUNED, {"runs": sorted(before | removal.pruned_runs)})
    for path in removal.overlays:
        out.delete(path)
    hours = _hours_kept(kept, now)
    if table.delta is not None:
        _vacuum(table.delta, hours, dry_run=False)
        table.delta.create_checkpoint()
    for folder in (AUDIT, LOOKS):
        if log.exists(out, folder):
            beside = log.opened(out, folder)
            _vacuum(beside, hours, dry_run=False)
            beside.create_checkpoint()


def find_small(table: Table) -> dict[str, list[list[RecordFile]]]:
    """Find the small files that would become packs, by explainer."""
    owners = {explainer for explainer, _key in committed_shards(table)}
    return {owner: groups for owner in sorted(owners) if (groups := find_packable(table, owner))}


def compact(out: Folder, table: Table, small: dict[str, list[list[RecordFile]]]) -> None:
    """Put small files together: those of the records, each explainer at once, and those of other tables.

    Every row stays as it is. What was there before stays readable until prune takes it away; checkpoints
    that a later one replaced go now. Verdicts and looks are put together as they are written.
    """
    for owner, groups in small.items():
        pack(table, owner, groups)
    for folder in (INTAKE, QA):
        if log.exists(out, folder):
            beside = log.opened(out, folder)
            beside.optimize.compact()
            out.flush([f"{folder}/{entry.path}" for entry in out.entries(folder)])
            beside.create_checkpoint()
    for folder in log.TABLES:
        for path in log.old_checkpoints(out, folder):
            out.delete(path)


def print_prune(
    place: str, keep_last: int | None, keep_within_days: float | None, pinned: Sequence[str], do_it: bool,
    as_json: bool, with_compact: bool = False,
) -> ExitCode:  # fmt: skip
    """Say what can go, and take it away where that was asked for."""
    out, table = open_out(place)
    now = time.time()
    choose_runs(table.runs(), keep_last, keep_within_days, pinned, now)  # a wrong pin: nothing is written
    with hold(out, new_run_id(), alone=True) if do_it else nullcontext():
        if do_it:
            table.fence()  # a run that stood still since before the hold cannot commit what is deleted now
            table = table.reopened()  # and what it committed before that is seen
        if do_it and with_compact:
            table.check_columns()
            table.create()  # of an earlier camray: with the columns that packs have
        small = find_small(table) if with_compact else {}
        runs = table.runs()
        kept = choose_runs(runs, keep_last, keep_within_days, pinned, now)
        found = find_removals(out, table, kept, now)
        if do_it:
            if with_compact:
                compact(out, table, small)
            remove(out, table, found, kept, now)
            write_pages(out)
    facts: dict[str, Any] = {
        "runs_kept": len(kept), "runs": len(runs), "overlays": len(found.overlays),
        "overlay_bytes": found.overlay_bytes, "record_files": len(found.files), "done": do_it,
    }  # fmt: skip
    if with_compact:
        facts["packed_files"] = sum(len({f.path for f in g}) for groups in small.values() for g in groups)
        facts["packs"] = sum(map(len, small.values()))
    if as_json:
        print(json.dumps(facts))
    else:
        verb = "removed" if do_it else "would remove"
        print(f"{len(kept):,} of {len(runs):,} runs keep their overlays")
        print(f"{verb} {len(found.overlays):,} overlays ({found.overlay_bytes / 1e6:,.1f} MB)")
        print(f"{verb} {len(found.files):,} record files that no commit names")
        if with_compact:
            told = "put" if do_it else "would put"
            print(f"{told} {facts['packed_files']:,} small record files into {facts['packs']:,}")
        if not do_it:
            print("nothing was touched; --yes does it")
    return ExitCode.DONE


def print_disk(place: str) -> None:
    """Print what takes how much room in OUT, and what `camray prune` would free."""
    out, table, _ = open_either(place)
    sizes = {entry.path: entry.size_bytes for entry in out.entries()}
    by_folder: Counter[str] = Counter()
    for path, size in sizes.items():
        by_folder[path.partition("/")[0]] += size
    told = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in by_folder.most_common(4))
    print(f"disk, MB: {sum(sizes.values()) / 1e6:,.1f} in {len(sizes):,} files; {told}")
    if table.delta is None:
        return
    runs, now = table.runs(), time.time()
    for option, last in (("", None), (" --keep-last 7", 7)):
        found = find_removals(out, table, choose_runs(runs, last, None, (), now), now)
        freed = found.overlay_bytes + sum(sizes.get(f"{TABLE}/{path}", 0) for path in found.files)
        print(f"prune OUT{option}: would free {freed / 1e6:,.1f} MB, {len(found.overlays):,} overlays")


def write_pages(out: Folder) -> None:
    """Write anew the pages that are there: they show what is left, and say what was pruned."""
    from camray.audit.gallery import PAGE, write_gallery
    from camray.audit.report import write_report

    if out.exists(f"{REPORT}/index.html"):
        write_report(out.uri)
    if out.exists(PAGE):
        write_gallery(out.uri)


def _named_overlays(table: Table) -> Iterator[tuple[str, str]]:
    """Yield (overlay path, run) of every record that names one."""
    columns, named = ["overlay_path", "run_id"], ds.field("overlay_path").is_valid()
    for batch in table.dataset().scanner(columns=columns, filter=named).to_batches():
        yield from zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)


def _hours_kept(kept: frozenset[str], now: float) -> float:
    """Give the age from which a file that no commit names can go: of the oldest kept run, at least a day."""
    return max([GRACE_HOURS, *((now - started(run)) / 3600 for run in kept if started(run))])


def _path(entry: Entry) -> str:
    return f"{OVERLAYS}/{entry.path}"


def _age_hours(entry: Entry, now: float) -> float:
    """Give the age of a file; `version` is its modification time in nanoseconds where the store tells it."""
    return (now - int(entry.version) / 1e9) / 3600 if entry.version.isdigit() else 0.0


def _vacuum(table: DeltaTable, hours: float, *, dry_run: bool) -> list[str]:
    return list(table.vacuum(int(hours), dry_run, enforce_retention_duration=False, full=True))
