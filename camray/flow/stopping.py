"""SIGTERM and SIGINT become an exception that unwinds the run: what is committed stays, OUT is let go.

So does what another thread sees that the run cannot outlive (`stop_for`).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from camray.errors import ExitCode

SIGNALS = {signal.SIGTERM: ExitCode.TERMINATED, signal.SIGINT: ExitCode.INTERRUPTED}


_reasons: list[str] = []  # of this process to stop itself


class Stopped(BaseException):
    """The process was asked to stop; `code` says by which signal, or `why` for which reason of its own."""

    def __init__(self, code: ExitCode, why: str = "") -> None:
        self.code, self.why = code, why
        super().__init__(code, why)


def _stop(number: int, _frame: FrameType | None) -> None:
    if _reasons:
        raise Stopped(ExitCode.INCOMPLETE, _reasons.pop())
    raise Stopped(SIGNALS[signal.Signals(number)])


def stop_for(why: str) -> None:
    """Stop the run from any thread: incomplete, for this reason. Without a run nothing happens."""
    if signal.getsignal(signal.SIGTERM) is _stop:
        _reasons.append(why)
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` at SIGTERM and SIGINT within the body.

    Outside the main thread nothing changes: there a library's user handles signals.
    """
    with _restored() as handlers:
        for number in handlers:
            signal.signal(number, _stop)
        yield


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers back that a library replaces within the body: `ray.init` does.

    Its own for SIGTERM leave with exit codes of theirs; a signal that met them is given to the one kept.
    """
    with _restored() as handlers:
        try:
            yield
        except SystemExit:
            if callable(handler := handlers.get(signal.SIGTERM)):
                handler(signal.SIGTERM, None)
            raise


@contextmanager
def _restored() -> Iterator[dict[signal.Signals, Any]]:
    """Give the handlers of the signals and put them back; outside the main thread none can be replaced."""
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in SIGNALS} if in_main else {}
    try:
        yield handlers
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
