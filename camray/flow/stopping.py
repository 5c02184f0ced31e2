"""SIGTERM and SIGINT become an exception that unwinds the run: what is committed stays, OUT is let go."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

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

    def stopper(code: ExitCode) -> Callable[[int, FrameType | None], None]:
        def stop(_number: int, _frame: FrameType | None) -> None:
            raise Stopped(code)

        return stop

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stopper(code)) for number, code in SIGNALS.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers back that a library replaces within the body: `ray.init` does.

    Its own for SIGTERM leave with exit codes of theirs; a signal that met them is given to the one kept.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # nothing can be replaced here
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    except SystemExit:
        if callable(kept := before[signal.SIGTERM]):
            kept(signal.SIGTERM, None)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
