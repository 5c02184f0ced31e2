"""`camray status OUT`: what is committed, by explainer, and how the runs ended."""

from __future__ import annotations

import json
from typing import Any

from camray.compare.panel import SCORES, Panel
from camray.errors import ExitCode, printable
from camray.ledger.committed import PARTITION
from camray.ledger.out import explainer_file, open_out, panel_file
from camray.ledger.runs import read_reports
from camray.ledger.table import Table
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


def committed_shards(table: Table) -> dict[tuple[str, str], dict[str, Any]]:
    """Give the latest statement of each committed shard, by (explainer or panel, shard key)."""
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for statement in table.statements():
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
        what = json.loads(out.read(explainer_file(explainer)))
    except (OSError, ValueError):
        return "its description is missing: see `camray verify`"
    return printable(f"{what['model']}, {what['method']} at {what['target_layer']}, target {what['target']}")


def _methods(out: Folder, panel: str) -> str:
    try:
        what = Panel.from_json(out.read(panel_file(panel)).decode())
    except (OSError, ValueError):
        return "its description is missing: see `camray verify`"
    return printable(f"{what.explainer.model}: {', '.join(what.methods)}")


def print_status(place: str, as_json: bool) -> ExitCode:
    """Print what OUT holds and how its runs ended."""
    out, table, scores = open_either(place)
    runs = read_reports(out)
    by_explainer, by_panel = totals(table), totals(scores)
    if as_json:
        facts = {
            explainer: {"shards": shards, "members": a.members, "ok": a.ok, "failed": a.failed,
                        "skipped": a.skipped, "shard_errors": a.shard_errors}
            for explainer, (shards, a) in by_explainer.items()
        }  # fmt: skip
        panels = {panel: {"shards": shards, "members": a.members} for panel, (shards, a) in by_panel.items()}
        print(json.dumps({"explainers": facts, "panels": panels, "runs": runs}))
        return ExitCode.DONE
    for explainer, (shards, a) in by_explainer.items():
        name = _describe(out, explainer)
        print(f"{PARTITION} {explainer}  ({name})")
        print(f"  {shards:,} shards: {a.sentence()}")
        for code, count in sorted(a.shard_errors.items()):
            print(f"  {count:,} shards not read to their end: {code}")
    for panel, (shards, a) in by_panel.items():
        print(f"panel {panel}  ({_methods(out, panel)})")
        print(f"  {shards:,} shards of the sample: {a.sentence()}")
    for run in runs[-10:]:
        counted = f"{run['accounting']['members']:,} members" if run["accounting"] else ""
        speed = f", {run['images_per_s']} images/s" if run["images_per_s"] else ""
        limit = f"; {run['bottleneck']}" if run.get("bottleneck") else ""
        print(f"run {run['run_id']}  {run['exit_meaning']}  {counted}{speed}{limit}")
    return ExitCode.DONE
