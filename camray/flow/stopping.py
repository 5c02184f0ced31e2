"""SIGTERM and SIGINT become an exception that unwinds the run: what is committed stays, OUT is let go."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from camray.errors import ExitCode

SIGNALS = {signal.SIGTERM: ExitCode.TERMINATED, signal.SIGINT: ExitCode.INTERRUPTED}


class Stopped(BaseException):
    """A signal asked the process to stop; `code` says which."""

    def __init__(self, code: ExitCode) -> None:
        self.code = code
        super().__init__(code)


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` at SIGTERM and SIGINT within the body.

    Outside the main thread nothing changes: there a library's user handles signals.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(SIGNALS[signal.Signals(number)])

    with _restored() as handlers:
        for number in handlers:
            signal.signal(number, stop)
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
