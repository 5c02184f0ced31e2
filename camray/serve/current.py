"""The pages of an OUT as it is now: what a night commits is read beside them, and then takes their place.

Flows in: an OUT. Flows out: pages over its rows; decisions, of which none is lost where the rows change.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import duckdb

from camray.errors import CamrayError, printable, said_by
from camray.ledger import log
from camray.ledger.out import AUDIT, RUNS, TABLE, open_out
from camray.ledger.table import STORE_ERRORS
from camray.serve.answers import Pages, read_summaries
from camray.serve.reviews import Reviews
from camray.serve.rows import Rows
from camray.storage import Folder

LOOK_S = 5.0  # between two looks at the logs, where anybody asks
IDLE = 10  # reading takes one part of so many of the time, however often a night commits


class Current:
    """The newest pages of an OUT; `reviews` go on through all of them. Safe to share between threads."""

    def __init__(self, out: Folder, may_review: bool) -> None:
        self._out, self._may_review, self._reviews = out, may_review, Reviews(out)
        self._deciding, self._reading = threading.Lock(), threading.Lock()
        self._seen = _seen(out)
        self._pages = self._read()
        self._next = time.monotonic() + LOOK_S

    def __call__(self) -> Pages:
        """Give the pages; where it is time, look in the background for what was committed since."""
        if time.monotonic() >= self._next and self._reading.acquire(blocking=False):
            threading.Thread(target=self._look, daemon=True).start()
        return self._pages

    def decide(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Save a decision, as `Pages.decide` does."""
        with self._deciding:
            return self._pages.decide(said)

    def close(self) -> None:
        """Let go of memory and temporary files."""
        self._pages.rows.close()

    def _read(self) -> Pages:
        nights = read_summaries(self._out)
        rows = Rows(
            self._out, open_out(self._out.uri)[1], {night.explainer: night.covers for night in nights}
        )
        return Pages(self._out, rows, nights, self._reviews, self._may_review)

    def _look(self) -> None:
        started = time.monotonic()
        try:
            if (seen := _seen(self._out)) != self._seen:
                pages = self._read()
                with self._deciding:
                    pages.rows.decide(self._reviews.standing)
                    self._pages, self._seen = pages, seen
        except (CamrayError, duckdb.Error, *STORE_ERRORS) as error:
            why = printable(said_by(error), 200)
            print(f"camray serve: the rows stay as they were read: {why}", file=sys.stderr)
        finally:
            now = time.monotonic()
            self._next = now + max(LOOK_S, IDLE * (now - started))
            self._reading.release()


def _seen(out: Folder) -> object:
    """Give what changes with each commit of records and verdicts, from listings alone."""
    versions = log.versions(out)
    summaries = {e.path: e.version for e in out.entries(RUNS) if e.path.endswith("/summary.json")}
    return versions.get(TABLE), versions.get(AUDIT), summaries
