"""What a comparison found: a summary and a page, made anew from the scores table whenever it is asked for.

Flows in: the committed rows of one sample. Flows out: OUT/comparisons/<sample>/summary.json and index.html.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from camray.compare.arranged import named
from camray.compare.page import Strip, render
from camray.compare.panel import SCORES, Panel
from camray.compare.sample import Sample
from camray.compare.summary import summarise
from camray.config import OverlayConfig
from camray.explain.overlays import encode_jpeg, overlay_on_input
from camray.ledger.table import Table
from camray.storage import Folder

_SIDE = 160  # pixels of a picture on the page
_BEHIND = ["picture", "heatmap", "heat_h", "heat_w"]


def write_report(out: Folder, sample: Sample, panels: Sequence[Panel], facts: Mapping[str, str]) -> str:
    """Write both and give the place of the page, "" where no image was measured. `panels`: of the sample."""
    dataset = Table(out, SCORES).dataset()
    ours = pc.field("panel").isin([p.id for p in panels])
    columns = [n for n in dataset.schema.names if n != "picture"]
    rows = dataset.to_table(columns=columns, filter=ours)
    if rows["method"].null_count == rows.num_rows:
        return ""
    subjects = subjects_of(panels)
    costs = {
        p.id: json.loads(out.read(f"costs/{p.id}.json")) for p in panels if out.exists(f"costs/{p.id}.json")
    }
    tree = summarise(rows, subjects, costs)
    strips = _strips(_pictured(dataset, ours, sample), subjects)
    folder = f"comparisons/{sample.id}"
    out.write_all(
        {
            f"{folder}/summary.json": json.dumps({"facts": dict(facts), **tree}, indent=1).encode(),
            f"{folder}/index.html": render(tree, facts, strips).encode(),
        }
    )
    return f"{out.uri}/{folder}/index.html"


def subjects_of(panels: Sequence[Panel]) -> dict[str, str]:
    """Say what tells the panels apart beside their methods: model, layer, target, baseline; "" if nothing."""
    told = {
        p.id: (
            p.explainer.model,
            p.explainer.target_layer,
            f"target {p.explainer.target}",
            p.settings["baseline"],
        )
        for p in panels
    }
    differ = [i for i in range(4) if len({t[i] for t in told.values()}) > 1]
    return {panel: " ".join(t[i] for i in differ) for panel, t in told.items()}


def _pictured(dataset: Any, ours: pc.Expression, sample: Sample) -> pa.Table:
    """Read the maps of the images that the page shows."""
    indices = sorted({i for own in sample.pictured.values() for i in own})
    wanted = ours & (pc.field("metric") == "map") & pc.field("index").isin(indices)
    names = [
        "panel",
        "shard",
        "index",
        "member",
        "method",
        "target_label",
        "target_class",
        "confidence",
        *_BEHIND,
    ]
    return dataset.to_table(columns=names, filter=wanted)


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
        said = first["target_label"] or f"class {first['target_class']}"
        drawn = {named(row["method"], subjects[row["panel"]]): _drawn(view, row) for row in own}
        strips.append(Strip(f"{said} {first['confidence']:.0%} · {first['member']}", _uri(view), drawn))
    return strips


def _drawn(view: np.ndarray[Any, np.dtype[np.uint8]], row: Mapping[str, Any]) -> str:
    heat = np.array(row["heatmap"], np.float32).reshape(row["heat_h"], row["heat_w"])
    return _uri(overlay_on_input(view, heat, OverlayConfig())) if np.isfinite(heat).all() else ""


def _uri(image: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    small = np.asarray(
        Image.fromarray(image).resize((_SIDE, _SIDE * image.shape[0] // image.shape[1])), np.uint8
    )
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(small, 82)).decode()
