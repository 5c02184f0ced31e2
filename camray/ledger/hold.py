"""Who may write into OUT: one run at a time, by numbered files of which each is made by one run alone.

OUT/hold/000007.json   who holds OUT, or held it last; written once, lower numbers are of the past
OUT/hold/000007.beat   changes every 5 s while its owner lives, and says when it has ended

The only thing asked of a disk or a store is that of all who make a file that is not there, one succeeds. Who
makes the next number holds OUT. A number is next where the one before says that it has ended, or its owner
is gone, or it did not change for 60 s by the watcher's own monotonic clock: no clock of a writer, of a
machine or of a store is compared with another. The highest number is never removed, so that who was
overtaken while it stood still finds a higher one before its next commit, and stops.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any

from camray.errors import IncompleteError, OutputLockedError, UsageError, printable
from camray.ledger.out import HOLD, beat_file, hold_file
from camray.ledger.side import as_side
from camray.storage import Folder

HEARTBEAT_S = 5.0
STALE_S = 60.0  # twelve missed heartbeats
LOOK_S = 0.25
_NUMBER = re.compile(r"([0-9]{6,})[.]json")
_TOLD = ("run_id", "host", "pid", "started_at")
_HERE = ("boot", "pid_space")  # where a process id means the same process


@dataclass(frozen=True, slots=True)
class Held:
    """OUT as one run holds it; `number` counts the holds of this OUT, whatever clocks say."""

    out: Folder
    number: int
    run_id: str

    def confirm(self) -> None:
        """Look before a commit whether this run still holds OUT.

        Raises:
            IncompleteError: another run took it over.
        """
        last = last_hold(self.out)
        owner = _tree(_read(self.out, hold_file(last)))
        if last != self.number or owner.get("run_id") != self.run_id:
            who = printable(str(owner.get("run_id", "another run")))
            raise IncompleteError(
                f"run {who} took {self.out.uri} over, while this one stood still or by --force; "
                "what is committed stays, the same command resumes"
            )


@contextmanager
def hold(out: Folder, run_id: str, force: bool = False, alone: bool = False) -> Iterator[Held]:
    """Hold OUT for one run, as long as the body lasts; `force` does not wait for a run that is there.

    `alone`: it deletes, so that nobody takes OUT from it while it lives, not even by force.

    Raises:
        OutputLockedError: another run holds it.
        UsageError: no permission to write there, or a store without conditional writes.
    """
    owner: dict[str, Any] = {
        "run_id": run_id, "host": socket.gethostname(), "pid": os.getpid(), **_here(),
        "process_started": process_start(os.getpid()), "alone": alone,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    held, beats = Held(out, _take(out, owner, force), run_id), count(1)

    def beat(ended: bool = False) -> None:
        with suppress(OSError):  # a full or absent store stops the run elsewhere, with its name
            out.write(beat_file(held.number), as_side({"beats": next(beats), "ended": ended}))

    beat()
    try:
        with repeating(beat, HEARTBEAT_S, "heartbeat"):
            yield held
    finally:
        beat(ended=True)


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


def last_hold(out: Folder) -> int:
    """Give the number of the hold that is there, or was last; 0 where there was none."""
    found = map(_NUMBER.fullmatch, out.names(HOLD))
    return max((int(match[1]) for match in found if match), default=0)


def last_owner(out: Folder) -> dict[str, Any]:
    """Tell who holds OUT, or held it last: run_id, host, pid ... and ended; empty where nobody did."""
    number = last_hold(out)
    return _tree(_read(out, hold_file(number))) | {"ended": _has_ended(_read(out, beat_file(number)))}


def _take(out: Folder, owner: dict[str, Any], force: bool) -> int:
    """Make the next number and give it."""
    while True:
        last = last_hold(out)
        if last and not (force and not _tree(_read(out, hold_file(last))).get("alone")):
            _wait_for_end(out, last)
        try:
            made = out.create(hold_file(last + 1), as_side(owner))
        except PermissionError as error:
            if last_hold(out) != last:
                continue  # somebody else made the folder meanwhile, and holds
            fix = "one user for one OUT, or a folder that both may write in"
            raise UsageError("OUT", f"{error.filename or out.uri}: {error.strerror}", fix) from None
        if not made:  # of a store that lost its answer, it may be our own after all
            made = _tree(_read(out, hold_file(last + 1))).get("run_id") == owner["run_id"]
        if made and last_hold(out) == last + 1:
            _check_conditional(out, last + 1, owner)
            _forget(out, last)
            return last + 1


def _check_conditional(out: Folder, number: int, owner: dict[str, Any]) -> None:
    """Ask for the own file once more: a store that makes it lets runs write over each other's commits."""
    if out.create(hold_file(number), as_side(owner)):
        problem = f"{out.uri}: this store makes an object that is there already (it ignores If-None-Match)"
        raise UsageError("OUT", problem, "choose a store that knows conditional writes, or a disk")


def _forget(out: Folder, last: int) -> None:
    """Remove the numbers up to `last`."""
    for name in out.names(HOLD):
        number = name.partition(".")[0]
        if number.isdecimal() and int(number) <= last:
            with suppress(OSError):  # another user's: it may stay
                out.delete(f"{HOLD}/{name}")


def _wait_for_end(out: Folder, number: int) -> None:
    """Come back when nobody holds this number any more: it ended, its process is gone, or it stood still.

    Raises:
        OutputLockedError: it changed meanwhile: its owner lives.
    """

    def look() -> tuple[bytes | None, bytes | None]:
        return _read(out, hold_file(number)), _read(out, beat_file(number))

    (said, beat), since = look(), time.monotonic()
    first, owner = (said, beat), _tree(said)
    while said is not None and time.monotonic() - since < STALE_S:
        if _has_ended(beat) or _is_gone(owner):
            return
        if (said, beat) != first:
            who, host, pid, when = (printable(str(owner.get(name, "?")), 80) for name in _TOLD)
            raise OutputLockedError(
                f"OUT: run {who} on {host} (process {pid}, started {when}) holds {out.uri}. "
                f"Fix: wait for its end{'' if owner.get('alone') else ', or --force'}"
            )
        time.sleep(min(LOOK_S, HEARTBEAT_S))
        said, beat = look()
        owner = _tree(said)


def _read(out: Folder, path: str) -> bytes | None:
    try:
        return out.read(path)
    except FileNotFoundError:
        return None


def _tree(said: bytes | None) -> dict[str, Any]:
    """Read a file of the hold; empty where it cannot be read: it may be half written, or damaged."""
    try:
        tree = json.loads(said or b"{}")
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _has_ended(beat: bytes | None) -> bool:
    return _tree(beat).get("ended") is True


def _is_gone(owner: dict[str, Any]) -> bool:
    """Tell whether the owner's process id means a process of this place, and that process is no more.

    Where it cannot be known (another boot, another set of process ids, a hidden process), the answer is no.
    """
    here, pid = _here(), owner.get("pid")
    if any(here[name] is None or owner.get(name) != here[name] for name in _HERE):
        return False
    if not isinstance(pid, int) or not 0 < pid < 2**31:
        return False
    started = process_start(pid)
    if started is not None:
        return started != owner.get("process_started")
    try:
        os.kill(pid, 0)  # asks, and does nothing; also of processes that /proc does not show
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _is_zombie(pid)


def _here() -> dict[str, str | None]:
    """Name this start of the machine, and the set of process ids: containers share the one, not the other."""
    boot = pids = None
    with suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            boot = file.read().strip()
        pids = os.readlink("/proc/self/ns/pid")
    return dict(zip(_HERE, (boot, pids), strict=True))


def _status(pid: int) -> list[str]:
    """Give what /proc says of a process from its state on; empty where it says nothing."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def _is_zombie(pid: int) -> bool:
    return _status(pid)[:1] == ["Z"]


def process_start(pid: int) -> str | None:
    """Tell when a process started, in clock ticks since boot; None where it is gone, dead or hidden."""
    fields = _status(pid)
    return None if not fields or fields[0] == "Z" else fields[19]
