"""What is new in OUT since a run: the files that its tables gained, and the runs that wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote

from camray.errors import UsageError, printable
from camray.ledger import log
from camray.ledger.out import RUNS, run_file
from camray.ledger.runs import is_name, report_of
from camray.ledger.side import DamagedError, read_side
from camray.storage import Folder


@dataclass(frozen=True, slots=True)
class Since:
    """The versions of the tables before a run began, and that run and those after it."""

    out: Folder
    versions: Mapping[str, int]  # by the folder of the table
    runs: tuple[str, ...]

    def added(self, folder: str) -> frozenset[str]:
        """Give the files that the log of a table names since: paths relative to the table."""
        first, last = self.versions.get(folder, -1) + 1, log.versions(self.out).get(folder, -1)
        found: set[str] = set()
        for version in range(first, last + 1):
            try:
                lines = self.out.read(log.entry(folder, version)).splitlines()
                actions = [json.loads(line).get("add") for line in lines]
            except (FileNotFoundError, ValueError):
                continue  # the look at the log names it
            found |= {unquote(action["path"]) for action in actions if action}
        return frozenset(found)


def since(out: Folder, run_id: str) -> Since:
    """Say what was there before a run: what the run before it said of the tables when it ended.

    A run that was killed said nothing: then it is the one before that, and more is looked at.

    Raises:
        UsageError: OUT has no such run.
    """
    names = out.names(RUNS)
    if not is_name(run_id) or run_id not in names:
        raise UsageError("--since", f"{printable(run_id)} is no run of OUT", "see `camray status OUT`")
    own = _read(out, run_id).get("number") or 0
    for name in reversed(names[: names.index(run_id)]):
        said = _read(out, name)
        if said.get("tables") and said.get("number", 0) < max(own, 1):
            return Since(out, said["tables"], tuple(names[names.index(name) + 1 :]))
    return Since(out, {}, tuple(names))


def _read(out: Folder, run_id: str) -> Mapping[str, Any]:
    path = run_file(run_id, "run.json")
    try:
        return read_side(out, path, partial(report_of, path))
    except (FileNotFoundError, DamagedError):
        return {}  # named by the look at the runs
