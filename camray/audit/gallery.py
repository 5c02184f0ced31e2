"""OUT/gallery: one page of what `camray explain` made: pictures, predictions, confidences, failures.

Flows in: the newest files of records. Flows out: OUT/gallery/index.html. No script, no server; the pictures
are the overlays that OUT already holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as ds

from camray.audit.clusters import newest_files
from camray.audit.columns import class_name
from camray.audit.templates import templates
from camray.errors import printable, said_by
from camray.flow.progress import Reporter
from camray.job.run import COMPLETE, Outcome
from camray.ledger import log
from camray.ledger.out import GALLERY, open_out, pruned_runs, read_explainer
from camray.ledger.runs import installed_versions
from camray.ledger.table import STORE_ERRORS, Table
from camray.records import Status
from camray.storage import open_folder

LARGEST = 1000  # rows on the page, the newest; their files alone are read
PAGE = f"{GALLERY}/index.html"
_READ = [
    "run_id", "member", "shard", "status", "error_code", "error_message", "predicted_class",
    "predicted_label", "confidence", "topk", "label", "label_class", "correct", "target_label",
    "overlay_path",
]  # fmt: skip


def show_gallery(outcome: Outcome, reporter: Reporter) -> None:
    """Write the gallery of a run that did something, or of an OUT that has none, and say where it is.

    The records are committed by then: where a page cannot be written, that is said, and the night is good.
    """
    if outcome.code not in COMPLETE:
        return
    try:
        if outcome.accounting.members or not open_folder(outcome.out, "OUT").exists(PAGE):
            reporter.say(f"gallery: {write_gallery(outcome.out)}")
    except (*STORE_ERRORS, ValueError, KeyError, TypeError) as error:
        reporter.say(f"gallery: not written, the records are whole: {printable(said_by(error))}")


def write_gallery(place: str) -> str:
    """Write the gallery of the newest records into OUT/gallery and give the place of its page.

    Raises:
        UsageError: OUT holds no records.
    """
    out, table = open_out(place)
    explainer, total, rows = _newest(table)
    what = asdict(read_explainer(out, explainer))
    pruned = pruned_runs(out)
    shown = [_as_shown(row, what["class_names"]) for row in rows if row["status"] != Status.SKIPPED]
    good = [row for row in shown if row["error"] is None]
    for row in good:
        row["lost"] = row["picture"] is not None and row["run"] in pruned
    page = templates().get_template("gallery.html.j2").render(
        what=what, total=total, rows=len(rows), good=good, failed=[row for row in shown if row["error"]],
        pictures=[row for row in good if row["picture"] and not row["lost"]],
        bare=[row for row in good if not row["picture"] or row["lost"]],
        version=installed_versions().get("camray", ""),
    )  # fmt: skip
    style = files("camray.audit").joinpath("pages", "report.css").read_bytes()
    out.write_all({PAGE: page.encode("utf-8", "replace"), f"{GALLERY}/report.css": style})
    return out.at(PAGE) if out.is_local else out.child_uri(PAGE)


def _newest(table: Table) -> tuple[str, int, list[dict[str, Any]]]:
    """Give the explainer that was at work last, how many rows it has, and its newest ones."""
    assert table.delta is not None
    explainer = table.latest_owner()
    rows = table.dataset(explainer, newest_files(table, explainer, LARGEST))
    found = rows.scanner(columns=_READ, filter=ds.field("member").is_valid()).head(LARGEST)
    total = pc.sum(log.newest(table.delta, explainer)["num_records"]).as_py()
    return explainer, total, found.to_pylist()


def _as_shown(record: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Give what the page shows of one row; every text of it is escaped by the page."""
    top = [(t["label"] or f"class {t['class_id']}", t["score"]) for t in record["topk"] or []]
    return {
        "member": record["member"], "name": record["member"].rpartition("/")[2], "run": record["run_id"],
        "picture": record["overlay_path"], "error": record["error_code"],
        "message": record["error_message"] or "", "top": top[:3], "target": record["target_label"],
        "predicted": record["predicted_label"] or class_name(record["predicted_class"], names),
        "label": record["label"] or class_name(record["label_class"], names), "correct": record["correct"],
    }  # fmt: skip
