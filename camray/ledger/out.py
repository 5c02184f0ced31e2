"""An OUT as it lies on a disk or in a store: alone knows where everything is, and opens it.

OUT/records/             the Delta table of records            ledger.table
OUT/overlays/<explainer>/...                                   pictures
OUT/explainers/<id>.json what an explainer id stands for
OUT/runs/<run>/          run.json, heartbeat, what the audit of that night found
OUT/intake/              which loose files make up which shard
OUT/audit/, qa/, qa-inbox/, report/                            verdicts, people's decisions, pages
OUT/canary/<explainer>.json                                    the first answers of the canary images
OUT/scores/, panels/, comparisons/                             what `compare` measured
"""

from __future__ import annotations

from camray.errors import UsageError
from camray.ledger.table import Table
from camray.storage import Folder, open_folder


def open_out(place: str) -> tuple[Folder, Table]:
    """Open an OUT for reading.

    Raises:
        UsageError: there is no camray table.
    """
    out = open_folder(place, "OUT")
    out.reach("OUT")
    table = Table(out)
    if table.delta is None:
        raise UsageError("OUT", f"{out.uri} holds no camray records", "give the OUT of an explain run")
    return out, table
