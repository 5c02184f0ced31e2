"""One folder per run, and its run.json: inputs, counts, timings, versions, exit."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from camray.config import Config, Explainer
from camray.errors import ExitCode, redacted
from camray.ledger import log
from camray.ledger.chain import heads
from camray.ledger.hold import last_owner
from camray.ledger.out import BRIEF_RUNS, RUNS, explainer_file, explainer_of, files_of_runs, run_file
from camray.ledger.side import DamagedError, as_object, read_side, recovered, tell, write_side
from camray.records import Accounting
from camray.storage import Folder

_NAME = re.compile(r"[\w-]+")  # of a run, as `new_run_id` gives it
_PACKAGES = ("camray", "torch", "torchvision", "timm", "ray", "pyarrow", "deltalake", "pillow", "numpy")


def new_run_id() -> str:
    """Name a run: UTC start time for people, 64 random bits against collisions."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ-") + secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class RunReport:
    """What run.json says. `exit` is None while the run lives."""

    run_id: str
    explainer: str
    config: dict[str, Any]
    started_at: str
    versions: dict[str, str]
    shards: dict[str, int]
    notes: tuple[str, ...] = ()  # what was done to load the model; a trusted pickle is named here
    accounting: dict[str, Any] = dataclasses.field(default_factory=dict)
    duration_s: float | None = None
    images_per_s: float | None = None
    stage_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    bottleneck: str = ""
    over_budget: bool | None = None  # whether its images failed too often, with those of `covers`
    covers: tuple[str, ...] = ()  # killed and stopped runs before it, whose images nobody had judged
    exit: int | None = None
    exit_meaning: str = "running"
    number: int = 0  # of the hold: runs in their order, whatever their clocks said

    def ended(
        self,
        code: ExitCode,
        accounting: Accounting,
        duration_s: float,
        stages: dict[str, float],
        bottleneck: str = "",
    ) -> RunReport:
        """Complete the report."""
        done = dataclasses.replace(
            self,
            accounting=dataclasses.asdict(accounting) | {"members": accounting.members},
            duration_s=round(duration_s, 3),
            images_per_s=round(accounting.members / duration_s, 2) if duration_s > 0 else None,
            stage_seconds={k: round(v, 3) for k, v in stages.items()},
            bottleneck=bottleneck,
        )
        return done.exited(code)

    def exited(self, code: ExitCode) -> RunReport:
        """Say how the run ended."""
        return dataclasses.replace(self, exit=int(code), exit_meaning=code.meaning)

    def write(self, out: Folder) -> None:
        """Write run.json, replacing the run's earlier one; one that ended is known in brief from then on."""
        text = json.dumps(dataclasses.asdict(self), default=str)
        ended: dict[str, Any] = {"tables": {}, "chain": {}}
        if self.exit is not None:
            ended = {"tables": log.versions(out), "chain": heads(out)}
        report = json.loads(redacted(text)) | ended
        write_side(out, run_file(self.run_id, "run.json"), report)
        if self.exit is not None:
            known = _in_brief(out) | {self.run_id: _brief(report)}
            ended = {"runs": {run: brief for run, brief in known.items() if brief["exit"] is not None}}
            write_side(out, BRIEF_RUNS, ended, indent=None)


def first_report(
    run_id: str, owner: str, config: Config, shards: dict[str, int], notes: Sequence[str] = ()
) -> RunReport:
    """Start the report of a run; `owner` is the explainer, or the panel, that its rows belong to."""
    said = dataclasses.asdict(config)
    said["run"]["notify"] = said["run"]["notify"] and "…"  # the URL is the permission to write there
    return RunReport(
        run_id=run_id,
        explainer=owner,
        config=said,
        started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        versions={"python": platform.python_version(), **installed_versions()},
        shards=shards,
        notes=tuple(notes),
    )


def installed_versions() -> dict[str, str]:
    """Versions of the packages that can change a result."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def read_reports(out: Folder) -> list[dict[str, Any]]:
    """Read every run.json, in the order in which the runs held OUT; a damaged one is named and left out."""
    reports = []
    for path in files_of_runs(out, "run.json"):
        try:
            reports.append(read_side(out, path, partial(report_of, path)))
        except FileNotFoundError:
            continue
        except DamagedError as damage:
            tell(damage, "left out")
    return sorted(reports, key=_order)


def _order(report: Mapping[str, Any]) -> tuple[int, bool, str, str]:
    """Sort runs by the hold; those that held nothing come behind the last one that did, by their starts.

    Reports of an earlier camray have no number: they come first, by their names.
    """
    run_id = report["run_id"]
    if not (number := report.get("number", 0)):
        return 0, False, "", run_id
    return number, not report["shards"].get("todo"), report["started_at"], run_id


def report_of(path: str, tree: Any) -> dict[str, Any]:
    """Take the JSON of the report at `path`.

    Raises:
        ValueError, LookupError, TypeError: it is none, or of another run.
    """
    from pydantic import TypeAdapter  # late: --help needs none of it

    known: dict[str, Any] = {f.name: tree[f.name] for f in dataclasses.fields(RunReport) if f.name in tree}
    report = TypeAdapter(RunReport).validate_python(known)
    members = report.accounting["members"] if report.accounting else 0
    if not isinstance(members, int):
        raise TypeError("its members are no number")
    if run_file(report.run_id, "run.json") != path:
        raise ValueError(f"it is of another run, {report.run_id}")
    return as_object(tree)


def is_name(run_id: str) -> bool:
    """Tell whether a text may name a run: no path, nothing that leads elsewhere."""
    return _NAME.fullmatch(run_id) is not None


def crashed_last(out: Folder) -> bool:
    """Tell whether the latest run that held OUT crashed, or went without a word."""
    last = last_owner(out)
    run_id = str(last.get("run_id", "")) or max(out.names(RUNS), default="")  # of an earlier camray
    if not is_name(run_id):
        return False
    path = run_file(run_id, "run.json")
    report = recovered(out, path, partial(report_of, path))
    return report is not None and report.get("exit", 0) in (None, ExitCode.CRASH)


def working_reports(out: Folder, owner: str) -> list[dict[str, Any]]:
    """Tell in brief of each run of an explainer but the quiet ones; a damaged report is left out."""
    return [r for r in _in_brief(out).values() if r["explainer"] == owner and r["members"] != 0]


def _in_brief(out: Folder) -> dict[str, dict[str, Any]]:
    """Tell in brief of every run, by its name; of those that ended OUT/carried/runs.json does."""
    known = recovered(out, BRIEF_RUNS, lambda tree: dict(tree["runs"])) or {}
    found = {}
    for run in out.names(RUNS):
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            found[run] = known.get(run) or _brief(json.loads(out.read(run_file(run, "run.json"))))
    return found


def _brief(report: Mapping[str, Any]) -> dict[str, Any]:
    later = {"over_budget": report.get("over_budget"), "covers": report.get("covers", [])}
    said = {name: report[name] for name in ("run_id", "explainer", "exit")}
    return said | later | {"members": report["accounting"].get("members")}


def accept(out: Folder, run_id: str) -> None:
    """Write down that a person takes the verdict of a run as it is."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    out.write(run_file(run_id, "accepted.json"), json.dumps({"accepted_at": now}).encode())


def is_accepted(out: Folder, run_id: str) -> bool:
    """Tell whether a person took the verdict of a run as it is."""
    return out.exists(run_file(run_id, "accepted.json"))


def write_explainer(out: Folder, explainer: Explainer) -> None:
    """Say once, in full, what an explainer id stands for; anew where that is missing or damaged."""
    path = explainer_file(explainer.id)
    if recovered(out, path, explainer_of) != explainer:
        text = json.dumps(json.loads(explainer.to_json()), indent=1, sort_keys=True)
        out.write(path, text.encode())
