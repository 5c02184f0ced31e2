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
from markupsafe import Markup

from camray.audit import plots
from camray.audit.clusters import all_clusters
from camray.audit.night import read_state, read_summaries
from camray.audit.plots import small_map
from camray.audit.report_rows import SHOWN, audit_rows, index_file, row_files, written_rows
from camray.audit.verdicts import FLAGS, VERDICTS, title
from camray.errors import ExitCode, UsageError
from camray.ledger.out import open_out
from camray.ledger.runs import installed_versions
from camray.ledger.table import Table

REPORT = "report"
LARGEST = 100_000  # rows of the queue that are kept
CLUSTERED = 24  # classes whose heatmaps are grouped


def write_report(place: str, limit: int = LARGEST) -> str:
    """Write the report of the latest night into OUT/report and give the place of its first page.

    Raises:
        UsageError: OUT holds no records, or no audit.
    """
    out, table = open_out(place)
    nights = read_summaries(out)
    if not nights:
        raise UsageError("OUT", f"{out.uri} holds no audit", "camray audit ARCHIVE OUT --model NAME")
    night = nights[-1]
    same = [n for n in nights if n["explainer"] == night["explainer"]]
    what = json.loads(out.read(f"explainers/{night['explainer']}.json"))
    drawn = _drawn_clusters(table, night)
    judged = audit_rows(out, night["explainer"], limit)
    texts = written_rows(out, table, night["explainer"], judged, what["class_names"])
    pages = dict(row_files(texts))
    pages["data/index.js"] = index_file(judged, texts)
    state = read_state(out, night["run_id"])
    pages["index.html"] = _first_page(night, same, what, len(judged), state, drawn).encode()
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


def _first_page(
    night: dict[str, Any], nights: Sequence[dict[str, Any]], what: dict[str, Any], rows: int,
    state: dict[str, Any] | None, clusters: dict[int, list[Markup]],
) -> str:  # fmt: skip
    """Render the page: everything but the queue is in it, so that it shows before any script runs."""
    pages = Environment(
        loader=PackageLoader("camray.audit", "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.filters |= {"title": title, "share": lambda v: f"{v:.2%}", "thousands": lambda v: f"{v:,}"}
    before = nights[-2] if len(nights) > 1 else None
    config = {
        "run": night["run_id"], "explainer": night["explainer"], "verdicts": list(VERDICTS),
        "flags": list(FLAGS), "classes": what["class_names"], "out": "../",
        "titles": {v: title(v) for v in VERDICTS}, "shown": SHOWN,
    }  # fmt: skip
    return pages.get_template("index.html.j2").render(
        night=night, before=before, nights=nights[-60:], what=what, rows=rows, verdicts=VERDICTS,
        version=installed_versions().get("camray", ""), config=_for_script(config),
        history=plots.history(nights[-60:]), mean_maps=plots.mean_maps(night, state),
        bars=plots.bars(night["verdicts"] if night["images"]["rows"] else night["archive_verdicts"]),
        classes=_classes(night), clusters=clusters,
    )  # fmt: skip


def _classes(night: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the classes of the new images, or of the archive where nothing is new."""
    found: list[dict[str, Any]] = night["classes"] if night["images"]["rows"] else night["archive_classes"]
    return found


def _drawn_clusters(table: Table, night: dict[str, Any]) -> dict[int, list[Markup]]:
    """Draw the mean map of each group of heatmaps of the first classes."""
    first = [row["class_id"] for row in _classes(night)[:CLUSTERED]]
    found, grid = all_clusters(table, night["explainer"], first)
    return {
        c: [small_map(g.mean_map.tolist(), grid, f"{g.size} maps that look alike") for g in groups]
        for c, groups in found.items()
    }


def _for_script(value: Any) -> str:
    """Give JSON that cannot end the script element it stands in."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
