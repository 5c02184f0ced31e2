"""The page of a comparison: numbers where they belong, names made harmless, charts true to them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from camray.compare.charts import curves, pareto, rank_plot, scatter
from camray.compare.page import Strip, colours_of, number, render, shade

NASTY = '<script>alert("x")</script>'
METHODS = ["gradcam", "cam", NASTY, "random"]


def tree() -> dict[str, Any]:
    def line(method: str, mean: float | None, above: bool | None) -> dict[str, Any]:
        return {"method": method, "metric": "road", "images": 9, "dead": 1, "nonfinite": 0, "mean": mean,
                "low": mean and mean - 0.1, "high": mean and mean + 0.1, "class_mean": mean,
                "above_controls": above}  # fmt: skip

    square = [[1.0, 0.9, None, 0.1]] * 4
    return {
        "images": 10, "failed": {}, "methods": METHODS, "controls": ["random"], "reference": "gradcam",
        "groups": [["gradcam", "cam"]], "boxes": [], "differences": [],
        "metrics": [{"name": "road", "high_is_good": True, "ranks": True, "w": 0.05, "group": "faithfulness",
                     "says": "What it says.", "weakness": "How it misleads."}],
        "lines": [line("gradcam", 0.31, True), line("cam", 0.31, True), line(NASTY, None, False),
                  line("random", 0.02, None)],
        "ranks": {"road": {"mean": [1.5, 1.5, 3.0, 4.0], "blocks": 3, "critical_difference": 2.0,
                           "friedman_p": 0.1}},
        "overall": dict(zip(METHODS, [1.5, 1.5, 3.0, 4.0], strict=True)),
        "curves": {"insertion": {"gradcam": [0.0, 1.0]}, "deletion": {}},
        "agreement": dict.fromkeys(("rank_correlation", "top_overlap", "same_peak"), square),
        "classes": [{"class": 3, "label": NASTY, "images": 10, "means": {"road": [0.3, 0.3, None, 0.0]}}],
        "cost": {"gradcam": {"forwards": 1.0, "backwards": 1.0, "work": 2.5, "seconds": 0.01,
                             "peak_bytes": None, "device": "cpu", "batch": 2}},
        "advice": {"method": "gradcam", "sentences": ["Use gradcam."], "rejected": {NASTY: "fails"}},
    }  # fmt: skip


def test_names_from_outside_are_text() -> None:
    page = render(tree(), {"model": NASTY}, [Strip(NASTY, "data:,", {NASTY: "data:,"})])
    assert NASTY not in page
    assert page.count("&lt;script&gt;") >= 6
    assert len(re.findall("<script>", page)) == 1  # the page's own


def test_the_table_holds_means_intervals_and_marks() -> None:
    page = render(tree(), {"model": "m"}, [])
    row = re.search(r'<tr class=" advised".*?</tr>', page, re.S)
    assert row is not None
    assert re.search(r'0\.310<span class="win">✓</span><small>0\.210 … 0\.410 · 9</small>', row[0])
    assert "same map as cam" in row[0]
    assert '<span class="weak"' in page  # W of 0.05 orders nothing
    assert 'id="strip"' not in page
    control = re.search(r'<tr class="control.*?</tr>', page, re.S)
    assert control is not None
    assert "✗" not in control[0]


def test_a_page_without_recommendation_says_so() -> None:
    advice = {"method": None, "sentences": ["Too few."], "rejected": {}}
    assert "No recommendation" in render(tree() | {"advice": advice}, {"model": "m"}, [])


def test_twins_share_a_colour_and_controls_are_grey() -> None:
    colours = colours_of(tree())
    assert colours["gradcam"] == colours["cam"] != colours[NASTY]
    assert colours["random"] == 9


def test_the_front_holds_what_nothing_beats() -> None:
    points = {"cheap": (1.0, 0.3), "same": (1.0, 0.2), "dear": (9.0, 0.4), "wasteful": (50.0, 0.39)}
    assert pareto(points) == ["cheap", "dear"]


def test_marks_lie_where_the_numbers_say() -> None:
    colours = {"a": 0, "b": 1}
    svg = rank_plot(["a", "b"], colours, [("road", [1.0, 2.0], 0.5)])
    first, second = (float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg))
    band = re.search(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
    assert band is not None
    assert float(band[1]) == pytest.approx(first)
    assert float(band[2]) == pytest.approx((second - first) / 2, abs=0.11)
    drawn = curves({"a": [0.0, 0.5, 1.0]}, {"a": 0}, [], "share")
    (path,) = re.findall(r'<polyline points="([^"]+)"', drawn)
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, p.split(","))) for p in path.split())
    assert x1 == pytest.approx((x0 + x2) / 2)
    assert y1 == pytest.approx((y0 + y2) / 2)
    assert y0 > y2
    points = scatter({"a": (1.0, (0.2, 0.1, 0.3)), "b": (10.0, (0.4, 0.3, 0.5))}, colours, "cost", "ROAD")
    assert "a: 0.200 [0.100, 0.300], cost 1.00" in points


def test_numbers_and_shades() -> None:
    assert (number(None), number(0.1234), number(-0.5, 1)) == ("\N{EN DASH}", "0.123", "-0.5")
    assert [shade(v) for v in (None, -1.0, 0.0, 1.0)] == ["0", "0.00", "0.25", "1.00"]
