"""An OUT as it lies on a disk or in a store: alone knows where everything is, and opens it.

OUT/records/             the Delta table of records            ledger.table
OUT/overlays/<explainer>/...                                   pictures
OUT/explainers/<id>.json what an explainer id stands for
OUT/runs/<run>/          run.json, heartbeat, what the audit of that night found
OUT/intake/              which loose files make up which shard
OUT/audit/, qa/, qa-inbox/, report/                            verdicts, people's decisions, pages
OUT/gallery/             the page of `explain`
OUT/canary/<explainer>.json                                    the first answers of the canary images
OUT/scores/, panels/, costs/, comparisons/                     what `compare` measured

Every path here is relative to OUT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from camray.config import Explainer, InputSpec
from camray.errors import UsageError
from camray.storage import Folder, open_folder

if TYPE_CHECKING:
    from camray.ledger.table import Table

TABLE, INTAKE, AUDIT, QA, SCORES = "records", "intake", "audit", "qa", "scores"  # Delta tables
LOG = "_delta_log"  # in each of them
EXPLAINERS, PANELS, RUNS, OVERLAYS, REPORT, GALLERY, INBOX = (
    "explainers", "panels", "runs", "overlays", "report", "gallery", "qa-inbox",
)  # fmt: skip
PRUNED = f"{OVERLAYS}/pruned.json"


def run_file(run_id: str, name: str) -> str:
    """Give the place of a file of a run: run.json, heartbeat.json, summary.json ..."""
    return f"{RUNS}/{run_id}/{name}"


def explainer_file(explainer: str) -> str:
    """Give the place of what an explainer id stands for."""
    return f"{EXPLAINERS}/{explainer}.json"


def panel_file(panel: str) -> str:
    """Give the place of what a panel id stands for."""
    return f"{PANELS}/{panel}.json"


def costs_file(panel: str) -> str:
    """Give the place of what a panel costs an image."""
    return f"costs/{panel}.json"


def comparison_file(sample: str, name: str) -> str:
    """Give the place of a file of the comparison on a sample."""
    return f"comparisons/{sample}/{name}"


def canary_file(explainer: str) -> str:
    """Give the place of the first answers of the canary images."""
    return f"canary/{explainer}.json"


def overlay_folder(explainer: str) -> str:
    """Give the folder of an explainer's pictures."""
    return f"{OVERLAYS}/{explainer}"


def pruned_runs(out: Folder) -> frozenset[str]:
    """Give the runs whose overlays were pruned; their records still name the pictures."""
    return frozenset(json.loads(out.read(PRUNED))) if out.exists(PRUNED) else frozenset()


def log_folder(table: str) -> str:
    """Give the folder of a table's Delta log."""
    return f"{table}/{LOG}"


def files_of_runs(out: Folder, name: str) -> list[str]:
    """List the files of this name of all runs, oldest run first."""
    return [f"{RUNS}/{e.path}" for e in out.entries(RUNS) if e.path.endswith(f"/{name}")]


def read_explainer(out: Folder, explainer: str) -> Explainer:
    """Read what an explainer id stands for.

    Raises:
        OSError, ValueError: it is not there, or damaged.
    """
    tree = json.loads(out.read(explainer_file(explainer)))
    try:
        return explainer_of(tree)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{explainer_file(explainer)} is no explainer: {error}") from None


def explainer_of(tree: Mapping[str, Any]) -> Explainer:
    """Read an explainer from its JSON; what a later camray said besides is left out."""
    known = {f.name: tree[f.name] for f in fields(Explainer) if f.name in tree}
    spec: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in tree["input"].items()}
    return Explainer(**known | {"input": InputSpec(**spec), "class_names": tuple(tree["class_names"])})


def ids_in(out: Folder, folder: str) -> list[str]:
    """List what a folder of JSON files describes: the ids of explainers, or of panels."""
    return [e.path.removesuffix(".json") for e in out.entries(folder) if e.path.endswith(".json")]


def open_out(place: str) -> tuple[Folder, Table]:
    """Open an OUT for reading.

    Raises:
        UsageError: there is no camray table.
    """
    from camray.ledger.table import Table  # which stands on the paths above

    out = open_folder(place, "OUT")
    out.reach("OUT")
    table = Table(out)
    if table.delta is None:
        raise UsageError("OUT", f"{out.uri} holds no camray records", "give the OUT of an explain run")
    return out, table
