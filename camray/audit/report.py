"""`camray report OUT`: a folder of static pages to work through a night with, opened from disk or a bucket.

Flows in: the audit table, the records, the summaries of the nights. Flows out: OUT/report. The pages ask
nothing of any server; pictures are the overlays that OUT already holds, and SVG of numbers alone, in which no
text of the archive is.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.resources import files
from itertools import islice, takewhile
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from camray.audit.causes import CAUSES, CHANGES
from camray.audit.charts import RATES, cluster_maps, history, mean_maps, trend
from camray.audit.clusters import clusters_of_classes
from camray.audit.history import SHOWN_NIGHTS
from camray.audit.looks import LOOKS_SCHEMA, newest_looks
from camray.audit.night import Night, latest_nights, read_state
from camray.audit.report_rows import (
    QUEUE_FLAGS,
    SHOWN,
    Facts,
    audit_rows,
    facts_of,
    index_file,
    row_files,
    rows_before,
    written_rows,
)
from camray.audit.templates import templates
from camray.audit.verdicts import VERDICTS, title
from camray.errors import ExitCode
from camray.ledger.committed import checksum
from camray.ledger.out import REPORT, open_out, read_explainer, run_file
from camray.ledger.runs import installed_versions
from camray.ledger.side import DamagedError, as_object, read_side, write_side
from camray.storage import Folder

LARGEST = 100_000  # rows of the night that are kept
QUEUE = 1000  # of earlier nights: those with the highest audit scores
CLUSTERED = 24  # classes whose heatmaps are grouped
CARDS, WALL = 24, 12  # causes that are shown, and hot spots on the wall of each
_LOOKED = [
    "predicted_class", "intervention", "confidence", "drop", "same", "other", "thing_of", "crop", "before",
    "after",
]  # fmt: skip
_LOCAL = ("repeated thing", "place", "border")
FIRST = 6  # pictures on the first page


def write_report(place: str, limit: int | None = None) -> str:
    """Write the report of the latest night into OUT/report and give the place of its first page.

    It holds the images of the night and the first thousand of the queue, or as many in all as `limit` says.

    Raises:
        UsageError: OUT holds no records, or no audit.
    """
    out, table = open_out(place)
    nights = latest_nights(out)
    night = nights[-1]
    what = asdict(read_explainer(out, night.explainer))
    named = {(shard, index) for found in night.properties for shard, index in found.extreme}
    judged = (
        audit_rows(out, night.explainer, LARGEST, night.covers, QUEUE, named)
        if limit is None
        else audit_rows(out, night.explainer, limit, night.covers)
    )
    made_by = {"explainer": night.explainer, "camray": installed_versions().get("camray", "")}
    before = rows_before(out, made_by)
    texts = written_rows(out, table, night.explainer, judged, what["class_names"], before)
    facts = facts_of(texts)
    pages = dict(row_files(texts))
    pages["data/index.js"] = index_file(judged, facts)
    classes = [row.class_id for row in night.shown_classes[:CLUSTERED]]
    drawn = {
        "mean_maps": mean_maps(night, read_state(out, night.run_id)),
        "clusters": cluster_maps(*clusters_of_classes(table, night.explainer, classes)),
        "run": run_of(out, night.run_id),
        "rows": len(judged),
        "lost": Counter(fact.lost for fact in facts if fact.lost),
        "bare": sum(1 for fact in facts if not (fact.has_picture or fact.lost or fact.error)),
        "causes": cause_cards(out, nights),
        "queued": Counter(cause for cause in judged.column("cause_id").to_pylist() if cause),
        "first": first_pictures(night, judged, texts, facts),
        "properties": property_rows(night, judged),
    }
    pages["index.html"] = _first_page(nights, what, drawn).encode()
    for name in ("report.css", "page.js", "report.js"):
        pages[name] = files("camray.audit").joinpath("pages", name).read_bytes()
    for entry in out.entries(REPORT):
        if entry.path not in pages and entry.path.startswith("data/"):
            out.delete(f"{REPORT}/{entry.path}")  # of a longer queue before
    out.write_all({f"{REPORT}/{name}": content for name, content in pages.items()})
    write_side(
        out, f"{REPORT}/pages.json", {"pages": {n: checksum(c) for n, c in pages.items()}, "made_by": made_by}
    )
    return out.child_uri(f"{REPORT}/index.html") if not out.is_local else out.at(f"{REPORT}/index.html")


def print_report(place: str, limit: int | None, as_json: bool) -> ExitCode:
    """Write the report and say where it is."""
    first = write_report(place, limit)
    print(json.dumps({"report": first}) if as_json else first)
    return ExitCode.DONE


def _first_page(nights: Sequence[Night], what: dict[str, Any], drawn: dict[str, Any]) -> str:
    """Render the page: everything but the queue is in it, so that it shows before any script runs."""
    pages = templates()
    night = nights[-1]
    titles = {verdict: title(verdict, night.has_labels) for verdict in VERDICTS}
    pages.filters["title"] = titles.__getitem__
    before = [n for n in nights[:-1] if n.images.rows and night.images.rows][-1:]
    config = {
        "run": night.run_id, "explainer": night.explainer, "verdicts": list(VERDICTS),
        "flags": list(QUEUE_FLAGS), "classes": what["class_names"], "out": "../",
        "titles": titles | {"picture": "has a picture"},
        "shown": SHOWN,
        "causes": {c.id: f"{c.label or f'class {c.class_id}'}: {c.cause}" for c in night.causes},
        "decided": {c.id: c.decision for c in night.causes if c.decision},
    }  # fmt: skip
    return pages.get_template("index.html.j2").render(
        night=night, before=before[0] if before else None, nights=nights[-SHOWN_NIGHTS:], what=what,
        verdicts=VERDICTS, version=installed_versions().get("camray", ""), config=_for_script(config),
        history=history(nights[-SHOWN_NIGHTS:]), bars=bars(night), rates=RATES, **drawn,
    )  # fmt: skip


def _for_script(value: Any) -> str:
    """Give JSON that cannot end the script element it stands in."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def run_of(out: Folder, run_id: str) -> dict[str, Any]:
    """Say when, how long and on what a run worked, and what it left; nothing where its run.json is gone."""
    try:
        said = read_side(out, run_file(run_id, "run.json"), as_object)
        counts, archive, seconds = said["accounting"], said["config"]["archive"], said["duration_s"]
        left = {
            "members that are no images": counts["skipped"],
            "images that failed": sum(counts["failed"].values()),
            "shards that could not be read to their end": sum(counts["shard_errors"].values()),
        }
        asked = [
            f"all but {archive[name]:,} images: --{name}" for name in ("limit", "sample") if archive[name]
        ]
        return {
            "started": f"{datetime.fromisoformat(said['started_at']):%-d %B %Y, %H:%M} UTC",
            "took": f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes",
            "on": f"{archive['path']}, {counts['members']:,} members",
            "left": [f"{n:,} {what}" for what, n in left.items() if n] + asked,
        }
    except (DamagedError, FileNotFoundError, LookupError, TypeError, ValueError, AttributeError):
        return {}


def first_pictures(
    night: Night, judged: pa.Table, texts: Sequence[str], facts: Sequence[Facts]
) -> list[dict[str, Any]]:
    """Give the first rows of the queue that have a picture and a verdict to look at, with their `place`."""
    verdicts, new = judged.column("verdict").to_pylist(), judged.column("new").to_pylist()
    shown = (
        place
        for place, fact in enumerate(facts)
        if fact.has_picture and verdicts[place] != "ok" and (new[place] or not night.images.rows)
    )
    return [json.loads(texts[place]) | {"place": place} for place in islice(shown, FIRST)]


def property_rows(night: Night, judged: pa.Table) -> list[dict[str, Any]]:
    """Give the findings of properties, each with the places of its images in the queue."""
    if not night.properties:
        return []
    keys = zip(judged.column("shard").to_pylist(), judged.column("index").to_pylist(), strict=True)
    places = {key: place for place, key in enumerate(keys)}
    return [
        {"finding": found, "places": [places[key] for key in map(tuple, found.extreme) if key in places]}
        for found in night.properties
    ]


def cause_cards(out: Folder, nights: Sequence[Night]) -> list[dict[str, Any]]:
    """Give each cause with what shows it: a wall of hot spots, the image that falls most with and without.

    They are of the last sixty nights, and of the files that hold the last looks.
    """
    night, runs = nights[-1], sorted({run for night in nights[-SHOWN_NIGHTS:] for run in night.covers})
    if not night.causes:
        return []
    told = [card.class_id for card in night.causes[:CARDS]]
    answers = ds.field("predicted_class").isin(told) | ds.field("thing_of").isin(told)
    late = ds.field("run_id").isin(pa.array(runs, pa.string()))
    files = takewhile(len, newest_looks(out, night.explainer, _LOOKED, late))
    none = LOOKS_SCHEMA.empty_table().select(_LOOKED)
    looks = pa.concat_tables([none, *(part.filter(answers) for part in files)])
    looks = looks.append_column("alike", pc.subtract(looks.column("same"), looks.column("other")))
    found = []
    for card in night.causes[:CARDS]:
        whose, order = ("thing_of", "drop") if card.intervention == "thing" else ("predicted_class", "alike")
        mine = looks.filter(pc.equal(looks.column(whose), card.class_id))
        wall = mine.filter(pc.is_valid(mine.column("crop"))).sort_by([(order, "descending")])
        wall = wall.slice(0, WALL if card.cause in _LOCAL else 0)
        pairs = mine.filter(pc.equal(mine.column("intervention"), card.intervention))
        pairs = pairs.filter(pc.is_valid(pairs.column("before"))).sort_by([("drop", "descending")])
        found.append(
            {"card": card, "wall": [_crop_uri(crop) for crop in wall.column("crop").to_pylist()],
             "pair": [_shown_pair(row) for row in pairs.slice(0, 1).to_pylist()],
             "what": CAUSES.get(card.cause, ""), "change": CHANGES.get(card.intervention, ""),
             "trend": trend(card.nights)}
        )  # fmt: skip
    return found


def _shown_pair(row: Mapping[str, Any]) -> dict[str, Any]:
    confidence = row["confidence"]
    return {
        "before": _data_uri(row["before"]), "after": _data_uri(row["after"]), "with": confidence,
        "without": max(confidence - row["drop"], 0.0),
    }  # fmt: skip


def _crop_uri(crop: bytes) -> str:
    side = round((len(crop) / 3) ** 0.5)
    pixels = np.frombuffer(crop, np.uint8).reshape(side, side, 3)
    return _data_uri(bytes(cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]))


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def bars(night: Night) -> list[dict[str, Any]]:
    """Give each verdict's count and its width in percent of the largest but `ok`."""
    counts = night.verdicts if night.images.rows else night.archive_verdicts
    largest = max([n for verdict, n in counts.items() if verdict != "ok"] or [1])
    return [
        {"verdict": verdict, "count": counts.get(verdict, 0),
         "width": min(100.0, 100 * counts.get(verdict, 0) / largest)}
        for verdict in VERDICTS
    ]  # fmt: skip
