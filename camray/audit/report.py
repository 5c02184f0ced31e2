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
from itertools import islice
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from camray.audit.causes import CAUSES, CHANGES
from camray.audit.clusters import Cluster, clusters_of_classes
from camray.audit.counts import NightState
from camray.audit.looks import SEEN, read_looks
from camray.audit.night import Night, latest_nights, read_state
from camray.audit.report_rows import (
    QUEUE_FLAGS,
    SHOWN,
    Facts,
    audit_rows,
    facts_of,
    index_file,
    row_files,
    written_rows,
)
from camray.audit.verdicts import VERDICTS, title
from camray.errors import ExitCode
from camray.ledger.committed import checksum
from camray.ledger.out import REPORT, open_out, read_explainer
from camray.ledger.runs import installed_versions
from camray.ledger.side import write_side
from camray.storage import Folder

LARGEST = 100_000  # rows of the night that are kept
QUEUE = 1000  # of earlier nights: those with the highest audit scores
CLUSTERED = 24  # classes whose heatmaps are grouped
NIGHTS = 60  # in the history
CARDS, WALL = 24, 12  # causes that are shown, and hot spots on the wall of each
_LOCAL = ("repeated thing", "place", "border")
FIRST = 6  # pictures on the first page
_RATES = ("confirmed_rate", "suspected_rate", "wrong_rate", "failed_rate")  # drawn in it
WIDTH, HEIGHT = 640, 160


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
    texts = written_rows(out, table, night.explainer, judged, what["class_names"])
    facts = facts_of(texts)
    pages = dict(row_files(texts))
    pages["data/index.js"] = index_file(judged, facts)
    classes = [row.class_id for row in night.shown_classes[:CLUSTERED]]
    drawn = {
        "mean_maps": mean_maps(night, read_state(out, night.run_id)),
        "clusters": cluster_maps(*clusters_of_classes(table, night.explainer, classes)),
        "rows": len(judged),
        "lost": Counter(fact.lost for fact in facts if fact.lost),
        "bare": sum(1 for fact in facts if not (fact.has_picture or fact.lost or fact.error)),
        "causes": cause_cards(out, night),
        "first": first_pictures(night, judged, texts, facts),
        "properties": property_rows(night, judged),
    }
    pages["index.html"] = _first_page(nights, what, drawn).encode()
    for name in ("report.css", "report.js"):
        pages[name] = files("camray.audit").joinpath("pages", name).read_bytes()
    for entry in out.entries(REPORT):
        if entry.path not in pages and entry.path.startswith("data/"):
            out.delete(f"{REPORT}/{entry.path}")  # of a longer queue before
    out.write_all({f"{REPORT}/{name}": content for name, content in pages.items()})
    write_side(out, f"{REPORT}/pages.json", {"pages": {n: checksum(c) for n, c in pages.items()}})
    return out.child_uri(f"{REPORT}/index.html") if not out.is_local else out.at(f"{REPORT}/index.html")


def print_report(place: str, limit: int | None, as_json: bool) -> ExitCode:
    """Write the report and say where it is."""
    first = write_report(place, limit)
    print(json.dumps({"report": first}) if as_json else first)
    return ExitCode.DONE


def _first_page(nights: Sequence[Night], what: dict[str, Any], drawn: dict[str, Any]) -> str:
    """Render the page: everything but the queue is in it, so that it shows before any script runs."""
    pages = Environment(
        loader=PackageLoader("camray.audit", "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    night = nights[-1]
    titles = {verdict: title(verdict, night.has_labels) for verdict in VERDICTS}
    pages.filters |= {"title": titles.__getitem__, "share": lambda v: f"{v:.2%}", "date": date_of}
    pages.filters |= {"thousands": lambda v: f"{v:,}", "address": quote}
    before = [n for n in nights[:-1] if n.images.rows and night.images.rows][-1:]
    config = {
        "run": night.run_id, "explainer": night.explainer, "verdicts": list(VERDICTS),
        "flags": list(QUEUE_FLAGS), "classes": what["class_names"], "out": "../",
        "titles": titles | {"picture": "has a picture"},
        "shown": SHOWN,
    }  # fmt: skip
    return pages.get_template("index.html.j2").render(
        night=night, before=before[0] if before else None, nights=nights[-NIGHTS:], what=what,
        verdicts=VERDICTS, version=installed_versions().get("camray", ""), config=_for_script(config),
        history=history(nights[-NIGHTS:]), bars=bars(night), **drawn,
    )  # fmt: skip


def _for_script(value: Any) -> str:
    """Give JSON that cannot end the script element it stands in."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def date_of(run_id: str) -> str:
    """Read when a run started from its name, for people; the name itself where it says no time."""
    try:
        return f"{datetime.strptime(run_id.partition('-')[0], '%Y%m%dT%H%M%SZ'):%-d %B %Y, %H:%M} UTC"
    except ValueError:
        return run_id


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


def cause_cards(out: Folder, night: Night) -> list[dict[str, Any]]:
    """Give each cause with what shows it: a wall of hot spots, the image that falls most with and without."""
    looks = read_looks(out, night.explainer, [*SEEN, "crop", "before", "after"])
    found = []
    for card in night.causes[:CARDS]:
        mine = looks.filter(pc.equal(looks.column("predicted_class"), card.class_id))
        alike = pc.subtract(mine.column("same"), mine.column("other"))
        wall = mine.append_column("alike", alike).filter(pc.is_valid(mine.column("crop")))
        wall = (
            wall.sort_by([("alike", "descending")]).slice(0, WALL)
            if card.cause in _LOCAL
            else wall.slice(0, 0)
        )
        pairs = mine.filter(pc.equal(mine.column("intervention"), card.intervention))
        pairs = pairs.filter(pc.is_valid(pairs.column("before"))).sort_by([("drop", "descending")])
        found.append(
            {"card": card, "wall": [_crop_uri(crop) for crop in wall.column("crop").to_pylist()],
             "pair": [_shown_pair(row) for row in pairs.slice(0, 1).to_pylist()],
             "what": CAUSES[card.cause], "change": CHANGES[card.intervention]}
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


def history(nights: Sequence[Night]) -> Markup:
    """Draw the rates of the nights as lines; empty where there are not two to compare."""
    shown = [night.rates for night in nights if night.images.rows]
    if len(shown) < 2:
        return Markup("")
    top = max([rates[name] for rates in shown for name in _RATES] or [0.0]) or 0.01
    lines = []
    for which, name in enumerate(_RATES):
        across = [10 + (WIDTH - 20) * (i / max(len(shown) - 1, 1)) for i in range(len(shown))]
        down = [10 + (HEIGHT - 20) * (1 - rates[name] / top) for rates in shown]
        points = list(zip(across, down, strict=True))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)
        lines.append(f'<g class="line line-{which}"><polyline points="{path}" fill="none"/>{dots}</g>')
    frame = f'<line class="axis" x1="0" x2="{WIDTH}" y1="{HEIGHT - 10}" y2="{HEIGHT - 10}"/>'
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="rates of the last {len(shown)} nights; '
        f'the largest is {top:.2%}">{frame}{"".join(lines)}</svg>'
    )


def mean_maps(night: Night, state: NightState | None) -> dict[int, Markup]:
    """Draw where each of the first 200 classes looked, one small picture a class."""
    if state is None:
        return {}
    known = [row.class_id for row in night.classes[:200] if row.class_id in state.map_sums]
    means = {c: state.map_sums[c] / max(state.map_counts[c], 1) for c in known}
    text = "where the class looks on average"
    return {c: small_map(mean.tolist(), state.grid, text) for c, mean in means.items()}


def cluster_maps(clusters: Mapping[int, Sequence[Cluster]], grid: Sequence[int]) -> dict[int, list[Markup]]:
    """Draw the mean map of each group of heatmaps, by class."""
    return {
        c: [small_map(g.mean_map.tolist(), grid, f"{g.size} maps that look alike") for g in groups]
        for c, groups in clusters.items()
    }


def small_map(values: Sequence[float], grid: Sequence[int], text: str) -> Markup:
    """Draw one map of a grid (h, w), row by row, in ten shades; `text` is ours and says what it is."""
    height, width = grid
    top = max(*values, 1e-9)
    shades: dict[int, str] = {}
    for i, value in enumerate(values):
        if (shade := round(10 * value / top)) > 0:
            shades[shade] = f"{shades.get(shade, '')}M{i % width} {i // width}h1v1h-1z"
    cells = "".join(f'<path opacity="{shade / 10}" d="{cell}"/>' for shade, cell in sorted(shades.items()))
    return Markup(
        f'<svg class="mean-map" viewBox="0 0 {width} {height}" role="img" aria-label="{text}">{cells}</svg>'
    )
