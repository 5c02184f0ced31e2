"""One folder per run: run.json (inputs, counts, timings, versions, exit) and the heartbeat that holds OUT.

A run holds OUT while its heartbeat is fresh by the *store's* clock: two heartbeats are compared with each
other, never with this machine's time. The table itself stays safe without it (commits are exclusive); the
heartbeat saves a second run from wasted work and tells its owner who is there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from camray.config import Config, Explainer
from camray.errors import ExitCode, OutputLockedError, redacted
from camray.ledger.out import RUNS, explainer_file, files_of_runs, run_file
from camray.records import Accounting
from camray.storage import Folder

HEARTBEAT_S = 15.0
STALE_S = 60.0  # four missed heartbeats
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
        """Write run.json, replacing the run's earlier one."""
        text = json.dumps(dataclasses.asdict(self), indent=1, default=str)
        out.write(run_file(self.run_id, "run.json"), redacted(text).encode())


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
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
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
    """Read every run.json, oldest first."""
    return [json.loads(out.read(path)) for path in files_of_runs(out, "run.json")]


def crashed_last(out: Folder) -> bool:
    """Tell whether the latest run crashed, or went without a word."""
    last = max(out.folders(RUNS), default="")
    try:
        report = json.loads(out.read(run_file(last, "run.json")))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(report, dict) and report.get("exit", 0) in (None, ExitCode.CRASH)


def working_reports(out: Folder, owner: str) -> list[dict[str, Any]]:
    """Read run.json of each run of an explainer but the quiet ones; a damaged one is left out."""
    found = []
    for path in files_of_runs(out, "run.json"):
        try:
            report = json.loads(out.read(path))
            if report["explainer"] == owner and report["accounting"].get("members") != 0:
                found.append(report)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def accept(out: Folder, run_id: str) -> None:
    """Write down that a person takes the verdict of a run as it is."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    out.write(run_file(run_id, "accepted.json"), json.dumps({"accepted_at": now}).encode())


def is_accepted(out: Folder, run_id: str) -> bool:
    """Tell whether a person took the verdict of a run as it is."""
    return out.exists(run_file(run_id, "accepted.json"))


def write_explainer(out: Folder, explainer: Explainer) -> None:
    """Say once, in full, what an explainer id stands for."""
    path = explainer_file(explainer.id)
    if not out.exists(path):
        text = json.dumps(json.loads(explainer.to_json()), indent=1, sort_keys=True)
        out.write(path, text.encode())


@contextmanager
def hold(out: Folder, run_id: str, force: bool = False) -> Iterator[None]:
    """Hold OUT for one run, as long as the body lasts.

    Raises:
        OutputLockedError: another run holds it.
    """
    path = run_file(run_id, "heartbeat.json")
    owner = {
        "holds": False,
        "run_id": run_id,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_space": _pid_space(),
        "process_started": process_start(os.getpid()),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }

    def beat() -> None:
        out.write(path, json.dumps(owner).encode())

    def beat_on() -> None:
        with suppress(OSError):  # a full or absent store stops the run elsewhere, with its name
            beat()

    def give_way(other: dict[str, Any] | None) -> None:
        if other is None or force:
            return
        out.delete(path)
        raise OutputLockedError(
            f"OUT: run {other['run_id']} on {other['host']} (process {other['pid']}, started "
            f"{other['started_at']}) holds {out.uri}. Fix: wait for it, or --force if it is dead"
        )

    beat()
    give_way(_live_other(out, run_id))
    owner["holds"] = True
    beat()
    # One that wrote after the first look and looked before the second write goes too: the earlier stays.
    give_way(_live_other(out, run_id, only_earlier=True))
    try:
        with repeating(beat_on, HEARTBEAT_S, "heartbeat"):
            yield
    finally:
        if out.exists(path):
            out.delete(path)


@contextmanager
def repeating(act: Callable[[], None], every_s: float, name: str) -> Iterator[None]:
    """Call `act` every few seconds within the body, from a thread of this name."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(every_s):
            act()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=every_s)  # a store that hangs must not hold the end of the run


def _live_other(out: Folder, run_id: str, only_earlier: bool = False) -> dict[str, Any] | None:
    """Find a fresh heartbeat of another run: one that holds OUT, or one that starts now and goes first."""
    beats = [e for e in out.entries(RUNS) if e.path.endswith("/heartbeat.json")]
    now_ns = max(int(e.version) for e in beats if e.path.startswith(run_id))
    for beat in beats:
        if beat.path.startswith(run_id) or now_ns - int(beat.version) > STALE_S * 1e9:
            continue
        try:
            owner: dict[str, Any] = json.loads(out.read(f"{RUNS}/{beat.path}"))
            counts = owner["run_id"] < run_id or (owner["holds"] and not only_earlier)
            if counts and not _is_dead_here(owner):
                return owner
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it ended between the listing and the reading, or is no heartbeat of ours
    return None


def _is_dead_here(owner: dict[str, Any]) -> bool:
    """Tell whether the owner ran on this machine and its process is gone (or its id was reused)."""
    if (owner["host"], owner.get("pid_space")) != (socket.gethostname(), _pid_space()):
        return False
    return bool(process_start(int(owner["pid"])) != owner["process_started"])


def _pid_space() -> str | None:
    """Name the set of process ids: containers can share a host name and still not see each other."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def process_start(pid: int) -> str | None:
    """Tell when a process of this machine started, in clock ticks since boot; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
