"""Charts as inline SVG, drawn from numbers; colours and fonts come from the page's style sheet.

Flows in: numbers by name. Flows out: SVG text, names escaped. Every mark has a title that a pointer shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Interval = tuple[float, float, float]  # mean, low, high


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x0: float, y0: float, x1: float, y1: float, kind: str) -> str:
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" class="{kind}"/>'


def _dot(x: float, y: float, colour: int, title: str, radius: float = 5) -> str:
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="m{colour}"'
    return f"<circle {place}><title>{escape(title)}</title></circle>"


def rank_plot(
    methods: Sequence[str],
    colours: Mapping[str, int],
    panels: Sequence[tuple[str, Sequence[float | None], float | None]],
) -> str:
    """Draw mean ranks: a row for each method, a column for each (metric, ranks, critical difference).

    The shaded band reaches from the best rank to the critical difference beyond it: methods in it are not
    told apart from the best.
    """
    left, column, row, top = 26 + 7.4 * max(map(len, methods)), 118.0, 22.0, 40.0
    height = top + row * len(methods) + 26
    parts = []
    worst = len(methods)
    for p, (metric, ranks, critical) in enumerate(panels):
        x0 = left + p * column
        scale = (column - 30) / max(1, worst - 1)
        known = [r for r in ranks if r is not None]
        parts.append(_text(x0 + (column - 30) / 2, 16, metric, "head", "middle"))
        if known and critical is not None:
            low = x0 + (min(known) - 1) * scale
            wide = min(critical * scale, x0 + (column - 30) + 6 - low)
            box = f'x="{low:.1f}" y="{top - 12:.1f}" width="{wide:.1f}" height="{row * len(methods):.1f}"'
            parts.append(f'<rect {box} class="band"/>')
        for tick in (1, worst):
            parts.append(_text(x0 + (tick - 1) * scale, height - 8, str(tick), "tick", "middle"))
        for i, (method, value) in enumerate(zip(methods, ranks, strict=True)):
            y = top + i * row
            parts.append(_line(x0, y, x0 + column - 30, y, "grid"))
            if value is not None:
                title = f"{method}: mean rank {value:.2f} on {metric}"
                parts.append(_dot(x0 + (value - 1) * scale, y, colours[method], title))
    parts += [_text(left - 14, top + i * row + 4, m, "name", "end") for i, m in enumerate(methods)]
    return _svg(left + column * len(panels), height, parts, "Mean ranks of the methods")


def scatter(
    points: Mapping[str, tuple[float, Interval]], colours: Mapping[str, int], across: str, up: str
) -> str:
    """Draw cost (log) against a mean with its interval; a line joins those that nothing beats on both."""
    width, height, left, bottom, top = 640.0, 340.0, 56.0, 44.0, 14.0
    costs = [max(c, 1e-3) for c, _ in points.values()]
    low_x, high_x = math.log10(min(costs)) - 0.15, math.log10(max(costs)) + 0.45
    low_y, high_y = min(i[1] for _, i in points.values()), max(i[2] for _, i in points.values())
    pad = 0.06 * (high_y - low_y or 1)
    low_y, high_y = low_y - pad, high_y + pad

    def place(cost: float, value: float) -> tuple[float, float]:
        x = left + (math.log10(max(cost, 1e-3)) - low_x) / (high_x - low_x) * (width - left - 10)
        return x, top + (high_y - value) / (high_y - low_y) * (height - top - bottom)

    parts = _axes(left, top, width - 10, height - bottom, low_y, high_y, up)
    for exponent in range(math.ceil(low_x), math.floor(high_x) + 1):
        x, _ = place(10.0**exponent, low_y)
        parts.append(_line(x, top, x, height - bottom, "grid"))
        parts.append(_text(x, height - bottom + 16, f"{10.0**exponent:g}", "tick", "middle"))
    parts.append(_text((left + width) / 2, height - 8, across, "axis", "middle"))
    front = [
        place(points[m][0], points[m][1][0]) for m in pareto({m: (c, i[0]) for m, (c, i) in points.items()})
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in front)
    parts.append(f'<polyline points="{path}" class="front"/>')
    taken: list[tuple[float, float]] = []
    for method, (cost, (mean, low, high)) in sorted(points.items(), key=lambda item: -item[1][1][0]):
        x, y = place(cost, mean)
        parts.append(_line(x, place(cost, low)[1], x, place(cost, high)[1], f"whisker s{colours[method]}"))
        parts.append(
            _dot(x, y, colours[method], f"{method}: {mean:.3f} [{low:.3f}, {high:.3f}], cost {cost:.2f}")
        )
        ty = _free(taken, x, y)
        taken.append((x, ty))
        parts.append(_text(x + 9, ty + 4, method, "name"))
    return _svg(width, height, parts, f"{up} against cost")


def _free(taken: Sequence[tuple[float, float]], x: float, y: float) -> float:
    """Move a label down until it lies on no other."""
    while any(abs(x - tx) < 150 and abs(y - ty) < 13 for tx, ty in taken):
        y += 2
    return y


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Name the points that none beats on cost (low) and value (high) both, cheapest first."""
    best, front = -math.inf, []
    for name, (_, value) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if value > best:
            front.append(name)
            best = value
    return front


def curves(
    series: Mapping[str, Sequence[float]], colours: Mapping[str, int], dashed: Sequence[str], across: str
) -> str:
    """Draw one line a method over the share of pixels 0..1; all values lie in 0..1."""
    width, height, left, bottom, top = 460.0, 300.0, 44.0, 42.0, 10.0
    right = width - 18
    parts = _axes(left, top, right, height - bottom, 0.0, 1.0, "probability of the class")
    for share in (0, 0.5, 1):
        x = left + share * (right - left)
        parts.append(_text(x, height - bottom + 16, f"{share:.0%}", "tick", "middle"))
    parts.append(_text((left + right) / 2, height - 6, across, "axis", "middle"))
    for method, values in series.items():
        step = (right - left) / (len(values) - 1)
        path = " ".join(
            f"{left + i * step:.1f},{top + (1 - v) * (height - bottom - top):.1f}"
            for i, v in enumerate(values)
        )
        kind = f"curve s{colours[method]}" + (f" dash{dashed.index(method)}" if method in dashed else "")
        parts.append(f'<polyline points="{path}" class="{kind}"><title>{escape(method)}</title></polyline>')
    return _svg(width, height, parts, across)


def _axes(left: float, top: float, right: float, base: float, low: float, high: float, up: str) -> list[str]:
    """Draw the frame and about five round ticks of the vertical axis."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (k * step) <= 6)
    parts = [_line(left, base, right, base, "frame"), _line(left, top, left, base, "frame")]
    tick = math.ceil(low / step) * step
    while tick <= high + 1e-9:
        y = base - (tick - low) / (high - low) * (base - top)
        parts.append(_line(left, y, right, y, "grid"))
        parts.append(_text(left - 6, y + 4, f"{tick:.2f}".rstrip("0").rstrip(".") or "0", "tick", "end"))
        tick += step
    turn = f"translate(13 {(top + base) / 2:.1f}) rotate(-90)"
    parts.append(f'<text transform="{turn}" class="axis" text-anchor="middle">{escape(up)}</text>')
    return parts
