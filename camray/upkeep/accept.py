"""`camray accept OUT RUN`: a person takes the verdict of a run as it is."""

from __future__ import annotations

import json

from camray.errors import ExitCode, UsageError, printable
from camray.ledger.out import open_out, run_file
from camray.ledger.runs import accept


def print_accept(place: str, run_id: str, as_json: bool) -> ExitCode:
    """Write the acceptance down and say so.

    Raises:
        UsageError: OUT has no such run.
    """
    out, _ = open_out(place)
    if "/" in run_id or not run_id.strip(".") or not out.exists(run_file(run_id, "run.json")):
        raise UsageError("RUN", f"{printable(run_id)} is no run of OUT", "see `camray status OUT`")
    accept(out, run_id)
    print(json.dumps({"accepted": run_id}) if as_json else f"accepted: {run_id}")
    return ExitCode.DONE
