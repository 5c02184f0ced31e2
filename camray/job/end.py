"""The end of a run, told to whoever watches: its run.json, a file for Prometheus, a command, a web hook.

Every end is told: a night with nothing to do, one that was refused, one that crashed. What cannot be told
is one line and never changes the exit code.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from camray.config import Config, RunConfig
from camray.errors import CamrayError, ExitCode, UsageError, printable, redacted
from camray.flow.progress import Reporter
from camray.flow.stopping import SIGNALS, Stopped
from camray.ledger.hold import last_hold
from camray.ledger.out import RUNS, run_file
from camray.ledger.runs import RunReport, first_report, new_run_id
from camray.ledger.watch import check_metrics_file, gauges, kept_from, write_gauges
from camray.records import Accounting
from camray.storage import open_folder

HOOK_S = 60.0  # that a command may take
POST_S = 10.0
_QUIET = (ExitCode.USAGE, ExitCode.LOCKED)  # these leave OUT as it was


@dataclass(slots=True)
class Ending:
    """What is known of a run when it ends; filled in while it goes on."""

    run_id: str
    code: ExitCode = ExitCode.CRASH
    said: str = ""  # why, or what the night found
    report: RunReport | None = None  # as its run.json stands
    accounting: Accounting = field(default_factory=Accounting)
    summary: dict[str, Any] = field(default_factory=dict)  # of the audit


@contextmanager
def told(config: Config, reporter: Reporter) -> Iterator[Ending]:
    """Run the body as one run, and tell how it ended.

    Raises:
        UsageError: a place that nothing could be told to.
    """
    _check(config.run)
    ending = Ending(new_run_id())
    try:
        yield ending
    except Stopped as stop:
        ending.code = stop.code
        raise
    except CamrayError as error:
        ending.code, ending.said = error.exit_code, str(error)
        raise
    except Exception as error:
        ending.said = f"{type(error).__name__}: {error}"
        raise
    finally:
        for act in (_write_report, _write_metrics, _run_command, _post):
            _try(act, config, ending, reporter)


def _try(act: Callable[[Config, Ending], None], config: Config, ending: Ending, reporter: Reporter) -> None:
    try:
        act(config, ending)
    except (OSError, ValueError, CamrayError, subprocess.SubprocessError) as error:
        what = (act.__doc__ or "").partition(".")[0].lower()
        reporter.say(f"could not {what}: {_reason(config, error)}")


def _reason(config: Config, error: Exception) -> str:
    """Say what went wrong without the words that may hold a secret: those of the command, of the address."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no end within {error.timeout:.0f} s"
    if isinstance(error, subprocess.CalledProcessError):
        return f"exit {error.returncode}"
    said = printable(str(error))
    for secret in filter(None, (config.run.notify, os.path.expandvars(config.run.notify or ""))):
        said = said.replace(secret, "…")
    return said


def _check(run: RunConfig) -> None:
    if run.metrics_file:
        check_metrics_file(run.metrics_file)
    if run.notify:
        address = os.path.expandvars(run.notify)
        if (
            "$" in address
            or urlsplit(address).scheme not in ("http", "https")
            or not urlsplit(address).netloc
        ):
            raise UsageError(
                "--notify", "is no address, or names a variable that is not set", "https://HOST/PATH or $NAME"
            )


def _write_report(config: Config, ending: Ending) -> None:
    """Write the report of the run."""
    if ending.report is None and ending.code in _QUIET:
        return
    out = open_folder(config.out, "OUT")
    if ending.report is not None:
        if ending.report.exit != ending.code:
            ending.report = ending.report.exited(ending.code)
            ending.report.write(out)
    elif out.exists(RUNS) and not out.exists(run_file(ending.run_id, "run.json")):
        report = first_report(ending.run_id, "", config, {}, [printable(ending.said)])
        report = replace(report, number=last_hold(out))
        report.ended(ending.code, Accounting(), 0.0, {}).write(out)


def _write_metrics(config: Config, ending: Ending) -> None:
    """Write the metrics file."""
    name = config.run.metrics_file
    if not name:
        return
    success_s, audit = kept_from(name)
    if ending.summary:
        out = open_folder(config.out, "OUT")
        audit = out.read(run_file(ending.run_id, "metrics.prom")).decode()
    now_s = time.time()
    success_s = now_s if ending.code == ExitCode.DONE else success_s
    write_gauges(name, gauges(config.out, ending.code, now_s, success_s, ending.accounting, audit))


def _run_command(config: Config, ending: Ending) -> None:
    """Run the command of --on-end."""
    if config.run.on_end:
        given = redacted(json.dumps(_facts(config, ending))).encode()
        command = ["/bin/sh", "-c", config.run.on_end]
        time_s = POST_S if ending.code in SIGNALS.values() else HOOK_S  # who stops a run waits for its end
        subprocess.run(command, input=given, timeout=time_s, check=True, stdout=subprocess.DEVNULL)


def _post(config: Config, ending: Ending) -> None:
    """Post to the address of --notify."""
    if not config.run.notify:
        return
    body = redacted(json.dumps({"text": _facts(config, ending)["text"]})).encode()
    address = os.path.expandvars(config.run.notify)
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    failed: list[Exception] = []

    def post() -> None:
        try:
            urllib.request.urlopen(request, timeout=POST_S).close()
        except (OSError, ValueError) as error:
            failed.append(error)

    thread = threading.Thread(target=post, name="notify", daemon=True)
    thread.start()
    thread.join(POST_S)  # its timeout is of each answer, not of all of them
    if thread.is_alive():
        raise OSError(f"no answer within {POST_S:.0f} s")
    if failed:
        raise failed[0]


def _facts(config: Config, ending: Ending) -> dict[str, Any]:
    """Say how it ended; `text` for people, as chat hooks take it."""
    said = f"camray: exit {int(ending.code)}: {ending.code.meaning}. {printable(ending.said)}".strip()
    images = ending.accounting
    return {
        "text": f"{said} ({printable(config.out)}, run {ending.run_id})",
        "run": ending.run_id, "out": config.out, "archive": config.archive.path,
        "exit": int(ending.code), "meaning": ending.code.meaning, "members": images.members,
        "ok": images.ok, "failed": images.failed, "skipped": images.skipped, "audit": ending.summary,
    }  # fmt: skip
