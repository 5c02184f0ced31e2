"""How a run is judged: its failures against what is allowed, and so the runs before it.

A verdict stays until the images of its run are explained anew, or a person accepts it: the same command
again, a retry for example, has nothing to do and must not end with 0 where the first ended with 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as ds

from camray.errors import ExitCode
from camray.ledger.runs import is_accepted
from camray.ledger.table import Table
from camray.records import Accounting, Status
from camray.storage import Folder


def judge(total: Accounting, max_failed: int | float) -> ExitCode:
    """Compare the failures with what is fine; a shard that was not read to its end never is."""
    allowed = max_failed if isinstance(max_failed, int) else max_failed * total.members
    return ExitCode.FAILURES_OVER_BUDGET if total.shard_errors or total.n_failed > allowed else ExitCode.DONE


def over_budget(total: Accounting, max_failed: int | float) -> str:
    """Say how many images failed, and how many might."""
    share = f"{total.n_failed / max(1, total.members):.1%}"
    allowed = f"{max_failed:,} images" if isinstance(max_failed, int) else f"{max_failed * 100:g}%"
    return f"FAILED: {total.n_failed:,} of {total.members:,} images ({share}); --max-failed allows {allowed}"


def standing_failures(
    out: Folder, table: Table, owner: str, reports: Iterable[Mapping[str, Any]], max_failed: int | float
) -> list[str]:
    """Name the runs of an explainer that failed too often and still do, counted by what is left of them."""
    now, found = table.reopened(), []
    for report in reports:
        run, failed = report["run_id"], report.get("over_budget")
        if failed is None:  # as an earlier camray wrote it
            failed = report["exit"] == ExitCode.FAILURES_OVER_BUDGET
        left = partial(left_of, now, owner, [run, *report.get("covers", ())])
        if failed and not is_accepted(out, run) and judge(left(), max_failed):
            found.append(run)
    return found


def unjudged(reports: Iterable[Mapping[str, Any]]) -> list[str]:
    """Name the runs that were killed or stopped: the next that comes to its end answers for them."""
    known = list(reports)
    covered = {run for report in known for run in report.get("covers", ())}
    ends = (ExitCode.DONE, ExitCode.FAILURES_OVER_BUDGET)
    open_ = (r["run_id"] for r in known if r.get("over_budget") is None and r["exit"] not in ends)
    return [run for run in open_ if run not in covered]


def left_of(table: Table, owner: str, runs: Sequence[str]) -> Accounting:
    """Count what the table still holds of some runs: members, not rows."""
    if table.delta is None or not runs:
        return Accounting()
    columns = ["shard", "index", "member", "status", "error_code"]
    mine = ds.field("run_id").isin(list(runs)) & (ds.field("explainer") == owner)
    rows = table.dataset().to_table(columns=columns, filter=mine)
    shard_rows = rows.filter(pc.is_null(rows["member"]))
    members = rows.filter(pc.is_valid(rows["member"])).group_by(columns[:2]).aggregate(
        [("status", "min"), ("error_code", "min")]
    )  # fmt: skip
    failed = members.filter(pc.equal(members["status_min"], str(Status.FAILED)))
    statuses = members["status_min"].to_pylist()
    codes, shard_codes = failed["error_code_min"].to_pylist(), shard_rows["error_code"].to_pylist()
    return Accounting(
        statuses.count(str(Status.OK)), statuses.count(str(Status.SKIPPED)),
        dict(Counter(codes)), dict(Counter(shard_codes)),
    )  # fmt: skip
