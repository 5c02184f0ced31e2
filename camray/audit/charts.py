"""The drawings of the pages: SVG of numbers, with axes and units; no text of an archive is in them.

Flows in: rates of nights, maps. Flows out: markup.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from markupsafe import Markup

from camray.audit.clusters import Cluster
from camray.audit.counts import NightState
from camray.audit.history import NightRate
from camray.audit.night import Night

RATES = ("confirmed_rate", "suspected_rate", "wrong_rate", "failed_rate")
"""What is drawn night after night, in the order of the colours."""


def day_of(run_id: str) -> str:
    """Give the day of a run, short; nothing where its name says no time."""
    try:
        return f"{datetime.strptime(run_id.partition('-')[0], '%Y%m%dT%H%M%SZ'):%-d %b}"
    except ValueError:
        return ""


def ticks(top: float, most: int = 4) -> list[float]:
    """Give round numbers from 0 to just above `top`: steps of 1, 2 or 5 times a power of ten."""
    rough = max(top, 1e-4) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough * (1 - 1e-9))
    return [step * n for n in range(math.ceil(top / step - 1e-9) + 1)] if top > 0 else [0.0, step]


class Frame(NamedTuple):
    """Where a chart draws, in units of its own: axes left and below, `marks` on the scale."""

    width: int
    height: int
    left: int
    marks: Sequence[float]
    bottom: int = 26
    top: int = 10

    def down(self, value: float) -> float:
        """Give the height of a value on the scale."""
        return self.top + (self.height - self.top - self.bottom) * (1 - value / (self.marks[-1] or 1))

    def drawn(self, content: str, text: str) -> Markup:
        """Put content before the lines of the scale; `text` is ours and says what it is."""
        lines = "".join(
            f'<line class="axis" x1="{self.left}" x2="{self.width}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{_percent(mark)}</text>'
            for mark, y in ((mark, self.down(mark)) for mark in self.marks)
        )
        size = f'viewBox="0 0 {self.width} {self.height}"'
        return Markup(f'<svg class="chart" {size} role="img" aria-label="{text}">{lines}{content}</svg>')

    def days(self, runs: Sequence[str], across: Sequence[float]) -> str:
        """Write days under the axis, one for each 80 units, the first and the last among them."""
        count = max(2, min(self.width // 80, len(runs)))
        chosen = sorted({round(i * (len(runs) - 1) / (count - 1)) for i in range(count)})
        anchors = ["middle"] * (len(runs) - 1) + ["end"]
        return "".join(
            f'<text x="{across[i]:.1f}" y="{self.height - 6}" text-anchor="{anchors[i]}">'
            f"{day_of(runs[i])}</text>"
            for i in chosen
        )


def history(nights: Sequence[Night]) -> Markup:
    """Draw the rates of the nights as lines over days; empty where there are not two to compare."""
    shown = [night for night in nights if night.images.rows]
    if len(shown) < 2:
        return Markup("")
    names = [name for name in RATES if name != "wrong_rate" or any(night.has_labels for night in shown)]
    frame = Frame(640, 200, 52, ticks(max(night.rates[name] for name in names for night in shown)))
    across = [frame.left + (frame.width - frame.left - 14) * i / (len(shown) - 1) for i in range(len(shown))]
    lines = "".join(_line(name, frame, across, shown) for name in names)
    text = f"rates of {len(shown)} nights in percent; the scale ends at {_percent(frame.marks[-1])}"
    return frame.drawn(frame.days([night.run_id for night in shown], across) + lines, text)


def trend(nights: Sequence[NightRate]) -> Markup:
    """Draw the rate of a cause night after night as bars; empty where there are not two to compare."""
    if len(nights) < 2:
        return Markup("")
    rates = [night.images / max(night.looked, 1) for night in nights]
    frame = Frame(300, 110, 44, ticks(max(rates), 2))
    step = (frame.width - frame.left - 8) / len(nights)
    places = [frame.left + step * i for i in range(len(nights))]
    bars = "".join(
        f'<rect class="bar-of-night" x="{x + step * 0.1:.1f}" width="{step * 0.8:.1f}" '
        f'y="{frame.down(rate):.1f}" height="{frame.down(0) - frame.down(rate):.1f}">'
        f"<title>{day_of(n.run_id)}: {n.images:,} of {n.looked:,} ({rate:.1%})</title></rect>"
        for x, rate, n in zip(places, rates, nights, strict=True)
    )
    days = frame.days([night.run_id for night in nights], [x + step / 2 for x in places])
    text = f"share of the images looked at that hang on it, {len(nights)} nights, last {rates[-1]:.1%}"
    return frame.drawn(days + bars, text)


def _percent(value: float) -> str:
    return f"{100 * value:.4g} %"


def _line(name: str, frame: Frame, across: Sequence[float], nights: Sequence[Night]) -> str:
    points = [(x, frame.down(night.rates[name])) for x, night in zip(across, nights, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3">'
        f"<title>{name[:-5]} {night.rates[name]:.2%}, {day_of(night.run_id)}</title></circle>"
        for (x, y), night in zip(points, nights, strict=True)
    )
    return f'<g class="line line-{RATES.index(name)}"><polyline points="{path}" fill="none"/>{dots}</g>'


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
