"""What a comparison found: a summary, and one HTML file that works from disk and asks for nothing outside.

Flows in: the committed rows of one sample. Flows out: OUT/comparisons/<sample>/summary.json and index.html,
made anew from the scores table whenever a comparison ends.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from camray.compare import charts
from camray.compare.panel import SCORES, Panel
from camray.compare.results import named
from camray.compare.sample import Sample
from camray.compare.summary import summarise
from camray.config import OverlayConfig
from camray.explain.overlays import encode_jpeg, overlay_on_input
from camray.ledger.out import comparison_file, costs_file
from camray.ledger.side import as_object, recovered, write_side
from camray.ledger.table import Table
from camray.storage import Folder

Tree = Mapping[str, Any]
GREY = 9  # the colour of controls; methods have 0..8
_FRONT = "road"  # set against cost
_SIDE = 160  # pixels of a picture on the page
_PICTURED = [
    "panel", "shard", "index", "member", "method", "target_label", "target_class", "confidence",
    "picture", "heatmap", "heat_h", "heat_w",
]  # fmt: skip


@dataclass(frozen=True)
class Strip:
    """One image under every method: `pictures` are data URIs by method; the first one is the image itself."""

    title: str
    image: str
    pictures: Mapping[str, str]


def render(tree: Tree, facts: Mapping[str, str], strips: Sequence[Strip]) -> str:
    """Draw the page. `facts` say what was run, in the order they are shown."""
    where = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "pages"),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    where.filters["num"] = number
    colours = colours_of(tree)
    shown = sorted(tree["metrics"], key=lambda m: not m["ranks"])  # those that rank come first
    return where.get_template("comparison.html.j2").render(
        tree=tree, facts=facts, strips=strips, colours=colours, metrics=shown,
        rows=_rows(tree), pairs=_pairs(tree), ranks=_rank_plot(tree, colours), front=_front(tree, colours),
        curves=_curves(tree, colours), shade=shade,
    )  # fmt: skip


def number(value: float | None, digits: int = 3) -> str:
    """Write a number as the page does: `0.123`, `-0.045`, or a dash where there is none."""
    return "\N{EN DASH}" if value is None else f"{value:.{digits}f}"


def colours_of(tree: Tree) -> dict[str, int]:
    """Give every method its colour; controls are grey, twins share one."""
    first = {m: g[0] for g in tree["groups"] for m in g}
    colours: dict[str, int] = {}
    for method in tree["methods"]:
        one = first.get(method, method)
        taken = len({c for c in colours.values() if c != GREY})
        colours[method] = GREY if method in tree["controls"] else colours.get(one, taken % GREY)
    return colours


def shade(value: float | None, low: float = -1.0) -> str:
    """Give the opacity 0..1 of a cell whose value lies between `low` and 1."""
    return "0" if value is None else f"{min(max((value - low) / (1 - low), 0.0), 1.0) ** 2:.2f}"


def _rows(tree: Tree) -> list[dict[str, Any]]:
    """Give a row of the main table for each method: its lines by metric, its mark, its cost."""
    lines = {(line["method"], line["metric"]): line for line in tree["lines"]}
    twins = {m: [t for t in g if t != m] for g in tree["groups"] for m in g}
    boxes = {line["method"]: line for line in tree["boxes"]}
    return [
        {
            "method": method, "control": method in tree["controls"], "twins": twins.get(method, []),
            "advised": method == tree["advice"]["method"], "rejected": tree["advice"]["rejected"].get(method),
            "overall": tree["overall"].get(method), "cost": tree["cost"].get(method),
            "boxes": boxes.get(method),
            "cells": {m["name"]: lines.get((method, m["name"])) for m in tree["metrics"]},
        }
        for method in tree["methods"]
    ]  # fmt: skip


def _pairs(tree: Tree) -> dict[str, dict[str, Tree]]:
    """Give the differences from the reference, method -> metric, of the metrics that rank."""
    used = {m["name"] for m in tree["metrics"] if m["ranks"]}
    pairs: dict[str, dict[str, Tree]] = {}
    for d in tree["differences"]:
        if d["metric"] in used:
            pairs.setdefault(d["method"], {})[d["metric"]] = d
    return pairs


def _one_of_each(tree: Tree) -> list[str]:
    """Leave out methods whose map is that of one before, best rank first."""
    twins = {m for g in tree["groups"] for m in g[1:]}
    return sorted((m for m in tree["methods"] if m not in twins), key=lambda m: tree["overall"].get(m) or 99)


def _rank_plot(tree: Tree, colours: Mapping[str, int]) -> Markup:
    names = [m["name"] for m in tree["metrics"] if m["ranks"] and m["name"] in tree["ranks"]]
    order = _one_of_each(tree)
    place = [tree["methods"].index(m) for m in order]
    panels = []
    for name in names:
        ranks = tree["ranks"][name]
        panels.append((name, [ranks["mean"][i] for i in place], ranks["critical_difference"]))
    return Markup(charts.rank_plot(order, colours, panels)) if panels else Markup("")


def _front(tree: Tree, colours: Mapping[str, int]) -> Markup:
    points, apart = {}, _one_of_each(tree)
    for line in tree["lines"]:
        method, cost = line["method"], tree["cost"].get(line["method"])
        if method in apart and line["metric"] == _FRONT and cost is not None and line["low"] is not None:
            points[method] = (max(cost["work"], 0.01), (line["mean"], line["low"], line["high"]))
    if not points:
        return Markup("")
    return Markup(charts.scatter(points, colours, "arithmetic, in forwards of the model", "ROAD"))


def _curves(tree: Tree, colours: Mapping[str, int]) -> list[Markup]:
    axes = {
        "insertion": "share of pixels shown, hottest first",
        "deletion": "share of pixels hidden, hottest first",
    }
    return [
        Markup(charts.curves(tree["curves"][m], colours, tree["controls"], text))
        for m, text in axes.items()
        if tree["curves"].get(m)
    ]


def write_page(out: Folder, sample: Sample, panels: Sequence[Panel], facts: Mapping[str, str]) -> str:
    """Write summary and page anew and give the place of the page, "" where no image was measured."""
    dataset = Table(out, SCORES).dataset()
    ours = pc.field("panel").isin([p.id for p in panels])
    columns = [n for n in dataset.schema.names if n != "picture"]
    rows = dataset.to_table(columns=columns, filter=ours)
    if rows["method"].null_count == rows.num_rows:
        return ""
    subjects = subjects_of(panels)
    found = {p.id: recovered(out, costs_file(p.id), as_object) for p in panels}
    costs = {panel: price for panel, price in found.items() if price is not None}
    tree = summarise(rows, subjects, costs)
    strips = _strips(_pictured(dataset, ours, sample), subjects)
    page = comparison_file(sample.id, "index.html")
    write_side(out, comparison_file(sample.id, "summary.json"), {"facts": dict(facts), **tree})
    out.write(page, render(tree, facts, strips).encode())
    return f"{out.uri}/{page}"


def subjects_of(panels: Sequence[Panel]) -> dict[str, str]:
    """Say what tells the panels apart beside their methods: model, layer, target, baseline; "" if nothing."""
    about = [
        (p.explainer.model, p.explainer.target_layer, f"target {p.explainer.target}", p.settings["baseline"])
        for p in panels
    ]
    differ = [i for i in range(4) if len({facts[i] for facts in about}) > 1]
    return {p.id: " ".join(facts[i] for i in differ) for p, facts in zip(panels, about, strict=True)}


def _pictured(dataset: Any, ours: pc.Expression, sample: Sample) -> pa.Table:
    """Read the maps of the images that the page shows."""
    indices = sorted({i for own in sample.pictured.values() for i in own})
    maps = ours & (pc.field("metric") == "map") & pc.field("index").isin(indices)
    return dataset.to_table(columns=_PICTURED, filter=maps)


def _strips(rows: pa.Table, subjects: Mapping[str, str]) -> list[Strip]:
    """Draw every pictured image under every method."""
    by_image: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        by_image.setdefault((row["shard"], row["index"]), []).append(row)
    strips = []
    for _, own in sorted(by_image.items()):
        picture = next((row["picture"] for row in own if row["picture"]), None)
        if picture is None:
            continue  # the same index of another shard
        view = np.asarray(Image.open(io.BytesIO(picture)))
        first = own[0]
        label = first["target_label"] or f"class {first['target_class']}"
        drawn = {named(row["method"], subjects[row["panel"]]): _drawn(view, row) for row in own}
        strips.append(Strip(f"{label} {first['confidence']:.0%} · {first['member']}", _uri(view), drawn))
    return strips


def _drawn(view: np.ndarray[Any, np.dtype[np.uint8]], row: Mapping[str, Any]) -> str:
    heat = np.array(row["heatmap"], np.float32).reshape(row["heat_h"], row["heat_w"])
    return _uri(overlay_on_input(view, heat, OverlayConfig())) if np.isfinite(heat).all() else ""


def _uri(image: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    small = Image.fromarray(image).resize((_SIDE, _SIDE * image.shape[0] // image.shape[1]))
    jpeg = encode_jpeg(np.asarray(small, np.uint8), 82)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
