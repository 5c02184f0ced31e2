"""`camray status OUT`: what is committed, by explainer, and how the runs ended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from camray.compare.panel import SCORES, panel_of
from camray.errors import ExitCode, printable
from camray.ledger.committed import PARTITION
from camray.ledger.out import (
    PANELS,
    files_of_runs,
    ids_in,
    open_out,
    panel_file,
    read_explainer,
    run_file,
)
from camray.ledger.runs import read_reports
from camray.ledger.side import DamagedError, read_side
from camray.ledger.table import Table
from camray.ledger.watch import check_metrics_file, gauges, write_gauges
from camray.records import Accounting
from camray.storage import Folder, open_folder


def open_either(place: str) -> tuple[Folder, Table, Table]:
    """Open an OUT that holds records, scores of a comparison, or both, for reading.

    Raises:
        UsageError: there is neither.
    """
    out = open_folder(place, "OUT")
    out.reach("OUT")
    scores = Table(out, SCORES)
    return (out, Table(out), scores) if scores.delta is not None else (*open_out(place), scores)


def committed_shards(table: Table, entries: int | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    """Give the latest statement of each committed shard, by (explainer or panel, shard key).

    `entries`: of those that the last so many entries of the log committed.
    """
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for statement in table.statements(entries):
        latest[str(statement["explainer"]), str(statement["key"])] = statement
    return latest


def totals(table: Table) -> dict[str, tuple[int, Accounting]]:
    """Add up what is committed: explainer -> (shards, accounting)."""
    found: dict[str, tuple[int, Accounting]] = {}
    for (explainer, _key), said in committed_shards(table).items():
        shards, sum_ = found.get(explainer, (0, Accounting()))
        own = Accounting(said["ok"], said["skipped"], said["failed"], said["shard_errors"])
        found[explainer] = (shards + 1, sum_ + own)
    return found


def _describe(out: Folder, explainer: str) -> str:
    try:
        what = read_explainer(out, explainer)
    except (OSError, DamagedError):
        return "its description is missing: see `camray verify`"
    return printable(f"{what.model}, {what.method} at {what.target_layer}, target {what.target}")


def _methods(out: Folder, panel: str) -> str:
    try:
        what = read_side(out, panel_file(panel), panel_of)
    except (OSError, DamagedError):
        return "its description is missing: see `camray verify`"
    return printable(f"{what.explainer.model}: {', '.join(what.methods)}")


def _part(run: Mapping[str, Any]) -> str:
    """Say which part of the archive a run asked for; "" where that was all of it."""
    archive = run["config"].get("archive", {})
    asked = {name: archive.get(name) for name in ("limit", "sample", "seed", "include", "exclude")}
    if not asked["sample"]:
        del asked["seed"]
    options = [
        f" --{name} {printable(str(value))}"
        for name, given in asked.items()
        for value in (given if isinstance(given, list) else [given])
        if value is not None
    ]
    return f" of{''.join(options)}" if options else ""


def write_metrics(out: Folder, runs: Sequence[Mapping[str, Any]], name: str) -> None:
    """Write for Prometheus how the last run of an explainer ended, as OUT tells it: also from afar."""
    panels = ids_in(out, PANELS)
    ended = [r for r in runs if r["exit"] is not None and r["explainer"] not in panels]
    if not ended:
        return
    good = [run for run in ended if run["exit"] == ExitCode.DONE]
    good_s = _end_s(good[-1]) if good else None
    said = {name: ended[-1]["accounting"].get(name) for name in ("ok", "skipped", "failed")}
    images = Accounting(said["ok"] or 0, said["skipped"] or 0, said["failed"] or {})
    listed = set(files_of_runs(out, "metrics.prom"))
    audits = [path for run in runs if (path := run_file(run["run_id"], "metrics.prom")) in listed]
    audit = out.read(audits[-1]).decode() if audits else ""
    write_gauges(name, gauges(out.uri, ended[-1]["exit"], _end_s(ended[-1]), good_s, images, audit))


def _end_s(run: Mapping[str, Any]) -> float:
    """Give the time at which a run ended, in seconds since 1970."""
    return datetime.fromisoformat(run["started_at"]).timestamp() + (run["duration_s"] or 0.0)


def print_status(place: str, as_json: bool, metrics_file: str | None = None) -> ExitCode:
    """Print what OUT holds and how its runs ended.

    Raises:
        UsageError: rows are no longer as camray wrote them, or nothing can be written to `metrics_file`.
    """
    if metrics_file:
        check_metrics_file(metrics_file)
    out, table, scores = open_either(place)
    runs = read_reports(out)
    if metrics_file:
        write_metrics(out, runs, metrics_file)
    by_explainer, by_panel = totals(table), totals(scores)
    for explainer in by_explainer:
        table.shards(explainer)  # counts that no longer are those of the rows are not told
    if as_json:
        facts = {
            explainer: {"shards": shards, "members": a.members, "ok": a.ok, "failed": a.failed,
                        "skipped": a.skipped, "shard_errors": a.shard_errors}
            for explainer, (shards, a) in by_explainer.items()
        }  # fmt: skip
        panels = {panel: {"shards": shards, "members": a.members} for panel, (shards, a) in by_panel.items()}
        print(json.dumps({"explainers": facts, "panels": panels, "runs": runs}))
        return ExitCode.DONE
    good = [run for run in runs if run["exit"] == ExitCode.DONE]
    told = (
        f"{good[-1]['started_at'][:16].replace('T', ' ')} UTC, run {good[-1]['run_id']}" if good else "none"
    )
    print(f"last good night: {told}")
    for explainer, (shards, a) in by_explainer.items():
        name = _describe(out, explainer)
        print(f"{PARTITION} {explainer}  ({name})")
        print(f"  {shards:,} shards: {a.sentence()}")
        for code, count in sorted(a.failed.items(), key=lambda item: (-item[1], item[0])):
            print(f"  {count:>7,} failed  {code:<18} the same command with --retry {code}")
        for code, count in sorted(a.shard_errors.items()):
            print(f"  {count:,} shards not read to their end: {code}")
    for panel, (shards, a) in by_panel.items():
        print(f"panel {panel}  ({_methods(out, panel)})")
        print(f"  {shards:,} shards of the sample: {a.sentence()}")
    _print_runs(runs[-10:])
    return ExitCode.DONE


def _print_runs(runs: Sequence[Mapping[str, Any]]) -> None:
    """Print how runs ended, a line each, in columns."""
    ends = [run["exit_meaning"].partition(";")[0].partition(":")[0] for run in runs]
    width = max(map(len, ends), default=0)
    for run, end in zip(runs, ends, strict=True):
        members = run["accounting"].get("members")
        counted = "" if members is None else f"{members:,} members" if members else "nothing new"
        speed = f", {run['images_per_s']} images/s" if run["images_per_s"] else ""
        limit = f"; {run['bottleneck']}" if run.get("bottleneck") else ""
        print(f"run {run['run_id']}  {end:<{width}}  {counted}{_part(run)}{speed}{limit}")
