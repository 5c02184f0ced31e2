"""An OUT as it lies on a disk or in a store: alone knows where everything is, and opens it.

OUT/records/             the Delta table of records            ledger.table
OUT/overlays/<explainer>/...                                   pictures
OUT/explainers/<id>.json what an explainer id stands for
OUT/resolved/            which explainer settings mean          job.resolved
OUT/hold/                who may write                         ledger.hold
OUT/runs/<run>/          run.json, what the audit of that night found
OUT/intake/              which loose files make up which shard
OUT/audit/, qa/, qa-inbox/, report/                            verdicts, people's decisions, pages
OUT/looks/               the Delta table of second looks       audit.looks
OUT/gallery/             the page of `explain`
OUT/canary/<explainer>.json                                    the first answers of the canary images
OUT/carried/<explainer>.sums, nights.json, runs.json           what the next night begins with
OUT/scores/, panels/, costs/, comparisons/                     what `compare` measured

Every path here is relative to OUT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from camray.config import Explainer
from camray.errors import UsageError
from camray.ledger.side import DamagedError, read_side
from camray.records import RECORD_SCHEMA
from camray.storage import Folder, open_folder

if TYPE_CHECKING:
    from camray.ledger.table import Table

TABLE, INTAKE, AUDIT, QA, SCORES, LOOKS = (
    "records", "intake", "audit", "qa", "scores", "looks",
)  # fmt: skip  # Delta tables
LOG = "_delta_log"  # in each of them
EXPLAINERS, PANELS, RUNS, OVERLAYS, REPORT, GALLERY, INBOX, HOLD, RESOLVED = (
    "explainers", "panels", "runs", "overlays", "report", "gallery", "qa-inbox", "hold", "resolved",
)  # fmt: skip
CARRIED = "carried"
BRIEF_NIGHTS, BRIEF_RUNS = f"{CARRIED}/nights.json", f"{CARRIED}/runs.json"
ANSWER = ("shard", "index", "content_sha256", "predicted_class", "confidence", "heatmap")
"""The columns that are kept of a canary image."""
PRUNED = f"{OVERLAYS}/pruned.json"


def run_file(run_id: str, name: str) -> str:
    """Give the place of a file of a run: run.json, summary.json ..."""
    return f"{RUNS}/{run_id}/{name}"


def hold_file(number: int) -> str:
    """Give the place of a hold on OUT, counted from 1."""
    return f"{HOLD}/{number:06d}.json"


def beat_file(number: int) -> str:
    """Give the place of the heartbeat of a hold."""
    return f"{HOLD}/{number:06d}.beat"


def explainer_file(explainer: str) -> str:
    """Give the place of what an explainer id stands for."""
    return f"{EXPLAINERS}/{explainer}.json"


def panel_file(panel: str) -> str:
    """Give the place of what a panel id stands for."""
    return f"{PANELS}/{panel}.json"


def sample_file(sample: str) -> str:
    """Give the place of a sample that `compare` drew."""
    return f"samples/{sample}.json"


def costs_file(panel: str) -> str:
    """Give the place of what a panel costs an image."""
    return f"costs/{panel}.json"


def comparison_file(sample: str, name: str) -> str:
    """Give the place of a file of the comparison on a sample."""
    return f"comparisons/{sample}/{name}"


def canary_file(explainer: str) -> str:
    """Give the place of the first answers of the canary images."""
    return f"canary/{explainer}.json"


def carried_file(explainer: str) -> str:
    """Give the place of what an audit carries over to the next."""
    return f"{CARRIED}/{explainer}.sums"


def mask_beside(overlay: str) -> str:
    """Where the mask of an overlay's heat lies: `--heat-mask`."""
    return overlay.removesuffix(".jpg") + ".png"


def overlay_folder(explainer: str) -> str:
    """Give the folder of an explainer's pictures."""
    return f"{OVERLAYS}/{explainer}"


def pruned_runs(out: Folder) -> frozenset[str]:
    """Give the runs whose overlays were pruned; their records still name the pictures."""
    try:
        return read_side(out, PRUNED, pruned_of)
    except (FileNotFoundError, DamagedError):  # `verify` names a damaged one
        return frozenset()


def pruned_of(tree: Any) -> frozenset[str]:
    """Read the runs whose overlays were pruned; a list alone is of an earlier camray."""
    runs: list[str] = tree["runs"] if isinstance(tree, dict) else tree
    if not all(isinstance(run, str) for run in runs):
        raise TypeError("no list of runs")
    return frozenset(runs)


def log_folder(table: str) -> str:
    """Give the folder of a table's Delta log."""
    return f"{table}/{LOG}"


def files_of_runs(out: Folder, name: str) -> list[str]:
    """List the files of this name of all runs, oldest run first."""
    return [f"{RUNS}/{e.path}" for e in out.entries(RUNS) if e.path.endswith(f"/{name}")]


def read_explainer(out: Folder, explainer: str) -> Explainer:
    """Read what an explainer id stands for.

    Raises:
        DamagedError: it is damaged, or stands for another.
        FileNotFoundError: it is not there.
    """
    return read_side(out, explainer_file(explainer), explainer_of)


def explainer_of(tree: Any) -> Explainer:
    """Read an explainer from its JSON; what a later camray said besides is left out.

    Raises:
        ValueError: it is none.
    """
    from pydantic import TypeAdapter  # late: --help needs none of it

    found: Explainer = TypeAdapter(Explainer).validate_python(tree)
    return found


def answers_of(explainer: str, tree: Any) -> list[dict[str, Any]]:
    """Read the first answers of the canary images; a list alone is of an earlier camray.

    Raises:
        ValueError, LookupError, TypeError, OverflowError: they are none, or of another explainer.
    """
    if isinstance(tree, dict) and tree["explainer"] != explainer:
        raise ValueError(f"it is of another explainer, {tree['explainer']}")
    answers: list[dict[str, Any]] = tree["answers"] if isinstance(tree, dict) else tree
    pa.Table.from_pylist(answers, pa.schema([RECORD_SCHEMA.field(name) for name in ANSWER]))
    if any(answer[name] is None for answer in answers for name in ANSWER):
        raise ValueError("an answer that is none")
    return answers


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
    if table.delta is None and out.exists(TABLE) and out.exists(RUNS):
        lost = f"{out.uri}: {log_folder(TABLE)} is missing, while there are runs and record files"
        raise UsageError("OUT", lost, "restore it; without it nothing is accounted for")
    if table.delta is None:
        raise UsageError("OUT", f"{out.uri} holds no camray records", "give the OUT of an explain run")
    return out, table
