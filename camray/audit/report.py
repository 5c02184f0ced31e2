"""`camray report OUT`: a folder of static pages to work through a night with, opened from disk or a bucket.

Flows in: the audit table, the records, the summaries of the nights. Flows out: OUT/report. The pages ask
nothing of any server; pictures are the overlays that OUT already holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from camray.audit.clusters import clusters_of_classes
from camray.audit.night import Night, latest_nights, read_state
from camray.audit.plots import bars, cluster_maps, history, mean_maps
from camray.audit.report_rows import SHOWN, audit_rows, index_file, row_files, written_rows
from camray.audit.verdicts import FLAGS, VERDICTS, title
from camray.errors import ExitCode
from camray.ledger.out import open_out
from camray.ledger.runs import installed_versions

REPORT = "report"
LARGEST = 100_000  # rows of the queue that are kept
CLUSTERED = 24  # classes whose heatmaps are grouped
NIGHTS = 60  # in the history


def write_report(place: str, limit: int = LARGEST) -> str:
    """Write the report of the latest night into OUT/report and give the place of its first page.

    Raises:
        UsageError: OUT holds no records, or no audit.
    """
    out, table = open_out(place)
    nights = latest_nights(out)
    night = nights[-1]
    what = json.loads(out.read(f"explainers/{night.explainer}.json"))
    judged = audit_rows(out, night.explainer, limit)
    texts = written_rows(out, table, night.explainer, judged, what["class_names"])
    pages = dict(row_files(texts))
    pages["data/index.js"] = index_file(judged, texts)
    classes = [row.class_id for row in night.shown_classes[:CLUSTERED]]
    drawn = {
        "mean_maps": mean_maps(night, read_state(out, night.run_id)),
        "clusters": cluster_maps(*clusters_of_classes(table, night.explainer, classes)),
    }
    pages["index.html"] = _first_page(nights, what, len(judged), drawn).encode()
    for name in ("report.css", "report.js"):
        pages[name] = files("camray.audit").joinpath("pages", name).read_bytes()
    for entry in out.entries(REPORT):
        if entry.path not in pages and entry.path.startswith("data/"):
            out.delete(f"{REPORT}/{entry.path}")  # of a longer queue before
    out.write_all({f"{REPORT}/{name}": content for name, content in pages.items()})
    return out.child_uri(f"{REPORT}/index.html") if not out.is_local else out.at(f"{REPORT}/index.html")


def print_report(place: str, limit: int, as_json: bool) -> ExitCode:
    """Write the report and say where it is."""
    first = write_report(place, limit)
    print(json.dumps({"report": first}) if as_json else first)
    return ExitCode.DONE


def _first_page(nights: Sequence[Night], what: dict[str, Any], rows: int, drawn: dict[str, Any]) -> str:
    """Render the page: everything but the queue is in it, so that it shows before any script runs."""
    pages = Environment(
        loader=PackageLoader("camray.audit", "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.filters |= {"title": title, "share": lambda v: f"{v:.2%}", "thousands": lambda v: f"{v:,}"}
    night, before = nights[-1], nights[-2] if len(nights) > 1 else None
    config = {
        "run": night.run_id, "explainer": night.explainer, "verdicts": list(VERDICTS),
        "flags": list(FLAGS), "classes": what["class_names"], "out": "../",
        "titles": {v: title(v) for v in VERDICTS}, "shown": SHOWN,
    }  # fmt: skip
    return pages.get_template("index.html.j2").render(
        night=night, before=before, nights=nights[-NIGHTS:], what=what, rows=rows, verdicts=VERDICTS,
        version=installed_versions().get("camray", ""), config=_for_script(config),
        history=history(nights[-NIGHTS:]), bars=bars(night), **drawn,
    )  # fmt: skip


def _for_script(value: Any) -> str:
    """Give JSON that cannot end the script element it stands in."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
