"""The map lies on the object: ImageNet's own boxes, real weights, and images whose object is off centre.

A model that only looked at the middle would pass on most photographs. Not on those whose boxes miss the
centre: there the heat inside must beat the area inside, which is what even heat would have.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import camray


def shown(row: dict[str, Any]) -> float:
    """The share of the model's view that the boxes cover, counted on a fine grid."""
    x0, y0, x1, y1 = (row[f"crop_{edge}"] for edge in ("x0", "y0", "x1", "y1"))
    steps = [(i + 0.5) / 100 for i in range(100)]
    places = [((x0 + u * (x1 - x0)) / row["width"], (y0 + v * (y1 - y0)) / row["height"])
              for u in steps for v in steps]  # fmt: skip
    inside = sum(
        any(b["x0"] <= x < b["x1"] and b["y0"] <= y < b["y1"] for b in row["boxes"]) for x, y in places
    )
    return inside / len(places)


@pytest.mark.slow
def test_heat_beats_area_on_objects_off_centre(
    shared: Path, explain: Callable[..., Any], tmp_path: Path
) -> None:
    with (shared / "imagenet_val.csv").open() as file:
        facts = {row["file"]: row for row in csv.DictReader(file)}
    boxes: dict[str, list[dict[str, str]]] = defaultdict(list)
    with (shared / "imagenet_val_boxes.csv").open() as file:
        for row in csv.DictReader(file):
            boxes[row["file"]].append(row)
    lines = ["path,label,xmin,ymin,xmax,ymax"]
    for name, own in sorted(boxes.items()):
        place = shared / "imagenet_val" / name
        wnid = facts[name]["wnid"]
        lines += [f"{place},{wnid},{b['xmin']},{b['ymin']},{b['xmax']},{b['ymax']}" for b in own]
    (tmp_path / "val.csv").write_text("\n".join(lines))
    explain(
        tmp_path / "val.csv", tmp_path / "out", "mobilenetv2_100", method__target="label",
        model__checkpoint=str(shared / "weights" / "mobilenetv2_100_imagenet" / "model.safetensors"),
        overlay__policy="none",
    )  # fmt: skip
    rows = camray.open_records(str(tmp_path / "out")).to_table().to_pylist()
    assert {Path(row["member"]).name for row in rows} == set(facts)
    off = [row for row in rows if facts[Path(row["member"]).name]["centre_in_box"] == "0"]
    off = [row for row in off if row["heat_in_box"] is not None]
    heat, area = [row["heat_in_box"] for row in off], [shown(row) for row in off]
    better = sum(h > a for h, a in zip(heat, area, strict=True))
    print(
        f"{len(off)} of {len(rows)} images whose boxes miss the centre: median {median(heat):.2f} of the heat"
        f" in {median(area):.2f} of the view; more than even heat in {better}"
    )
    assert len(off) >= 15
    assert median(heat) > 1.3 * median(area)
    assert better >= 0.8 * len(off)
    every = [row for row in rows if row["heat_in_box"] is not None]
    assert median(r["heat_in_box"] for r in every) > median(shown(r) for r in every)
