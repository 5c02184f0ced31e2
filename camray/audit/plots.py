"""Small pictures of numbers, as SVG that takes its colours from the page.

Flows in: the summaries of nights. Flows out: markup made of numbers alone; no text of the archive is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from camray.audit.clusters import Cluster
from camray.audit.night import Night
from camray.audit.verdicts import VERDICTS

_RATES = ("confirmed_rate", "suspected_rate", "wrong_rate", "failed_rate")
WIDTH, HEIGHT = 640, 160


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
    """Draw the rates of the nights as lines; one night is a row of dots."""
    shown = [night.rates for night in nights if night.images.rows]
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


def mean_maps(night: Night, state: Mapping[str, Any] | None) -> dict[int, Markup]:
    """Draw where each of the first 200 classes looked, one small picture a class."""
    if state is None:
        return {}
    maps = {row.class_id: state["mean_maps"].get(str(row.class_id)) for row in night.classes[:200]}
    text = "where the class looks on average"
    return {c: small_map(map_, state["grid"], text) for c, map_ in maps.items() if map_}


def cluster_maps(clusters: Mapping[int, Sequence[Cluster]], grid: Sequence[int]) -> dict[int, list[Markup]]:
    """Draw the mean map of each group of heatmaps, by class."""
    return {
        c: [small_map(g.mean_map.tolist(), grid, f"{g.size} maps that look alike") for g in groups]
        for c, groups in clusters.items()
    }


def small_map(values: Sequence[float], grid: Sequence[int], text: str) -> Markup:
    """Draw one map of a grid (h, w), row by row; `text` is ours and says what it is."""
    height, width = grid
    top = max(*values, 1e-9)
    cells = "".join(
        f'<rect x="{i % width}" y="{i // width}" width="1.02" height="1.02" '
        f'fill-opacity="{value / top:.2f}"/>'
        for i, value in enumerate(values)
        if value > 0.01 * top
    )
    return Markup(
        f'<svg class="mean-map" viewBox="0 0 {width} {height}" role="img" aria-label="{text}">{cells}</svg>'
    )
