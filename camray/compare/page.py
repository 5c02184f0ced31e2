"""The page of a comparison: one HTML file that works from disk and asks for nothing outside itself.

Flows in: the tree of a comparison (OUT/comparisons/<sample>/summary.json) and pictures. Flows out: HTML text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from camray.compare import charts

Tree = Mapping[str, Any]
GREY = 9  # the colour of controls; methods have 0..8
_FRONT = "road"  # set against cost


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
    found: dict[str, int] = {}
    for method in tree["methods"]:
        one = first.get(method, method)
        taken = len({c for c in found.values() if c != GREY})
        found[method] = GREY if method in tree["controls"] else found.get(one, taken % GREY)
    return found


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
    found: dict[str, dict[str, Tree]] = {}
    for d in tree["differences"]:
        if d["metric"] in used:
            found.setdefault(d["method"], {})[d["metric"]] = d
    return found


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
        cost = tree["cost"].get(line["method"])
        if (
            line["method"] in apart
            and line["metric"] == _FRONT
            and cost is not None
            and line["low"] is not None
        ):
            points[line["method"]] = (max(cost["work"], 0.01), (line["mean"], line["low"], line["high"]))
    return (
        Markup(charts.scatter(points, colours, "arithmetic, in forwards of the model", "ROAD"))
        if points
        else Markup("")
    )


def _curves(tree: Tree, colours: Mapping[str, int]) -> list[Markup]:
    told = {
        "insertion": "share of pixels shown, hottest first",
        "deletion": "share of pixels hidden, hottest first",
    }
    return [
        Markup(charts.curves(tree["curves"][m], colours, tree["controls"], text))
        for m, text in told.items()
        if tree["curves"].get(m)
    ]
