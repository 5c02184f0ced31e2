"""A detector's core: decoded images in, one record for each detection out. A plain class that needs no Ray.

The image is cut out of its canvas at its own size, so that the network prepares it as its library would.
The map of a detection lies on the canvas: what each cell of each level gave the score, over the cell's area.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from camray.config import Config, Explainer
from camray.errors import ErrorCode, ModelError, Stage
from camray.explain.columns import Columns, Row, as_rows, by_column, heat_columns
from camray.explain.explainer import BatchExplainer, Views, own_copies
from camray.explain.regions import overlap, region_signals
from camray.models import sources
from camray.models.detectors import METHOD, TASK, Detection, Detector, Part
from camray.models.folding import Pairs
from camray.models.labels import label_lookup
from camray.models.load import LoadedModel
from camray.models.sources import Recipe
from camray.records import SCHEMA_VERSION, failure

Place = tuple[int, int, int, int]
"""Pixels of a canvas that are image: left, top, right, bottom."""

CELLS = 64  # a side of a map: a pixel of it is a tenth of a large object


def core_of(
    explainer: Explainer, state: dict[str, Tensor], device: str, batch_size: int, folded: Pairs = ()
) -> BatchExplainer:
    """Make what explains with this explainer, whatever kind of network it is of."""
    from camray.explain.segments import SegmentationExplainer

    kinds: dict[str, type[BatchExplainer]] = {TASK: DetectionExplainer, "segmentation": SegmentationExplainer}
    kind = kinds.get(explainer.model_args.get("task", ""), BatchExplainer)
    return kind(explainer, state, device, batch_size, folded)


def resolve_detector(config: Config, loaded: LoadedModel) -> tuple[Explainer, LoadedModel]:
    """Check what was asked of a detector, try it on a grey image, and name the result: the explainer.

    Raises:
        UsageError: a method, target or layer that detections do not have.
    """
    asked = config.method
    if asked.name not in ("gradcam", METHOD):
        raise ModelError("--method", f"{asked.name}, but this is a detector", f"leave it out: {METHOD}")
    if asked.target != "predicted":
        raise ModelError("--target", f"{asked.target}, but each detection is explained", "leave it out")
    if asked.layer or asked.grid or asked.prefix is not None:
        raise ModelError("--layer", "a detector is explained at what its boxes are read from", "leave it out")
    chosen = {"least_score": asked.min_score, "most": asked.max_detections}
    detector = Detector(loaded.module, loaded.build_args.get("processor"))
    detector(torch.full((3, 64, 96), 0.5), 0.0, 1)  # a network that fails is told before anything is written
    explainer = Explainer(
        model=loaded.name,
        model_args={**loaded.build_args, TASK: chosen},
        weights_sha256=loaded.weights_sha256,
        class_names=loaded.class_names,
        num_classes=loaded.num_classes,
        input=loaded.input,
        method=METHOD,
        target=TASK,
        target_layer=str(detector.layer),
        layout={},
        top_k=min(config.run.top_k, loaded.num_classes),
        max_pixels=config.archive.max_pixels,
        schema_version=SCHEMA_VERSION,
        activation="none",
    )
    side = loaded.input.width
    told = f"a detector: one record for each detection of at least {asked.min_score:g}; larger images than"
    told += f" {side} pixels a side are reduced first (--input-size). An audit judges the surest detection of"
    told += " each image, by the heat inside its own box; second looks are not made"
    return explainer, replace(loaded, notes=(*loaded.notes, told))


class DetectionExplainer(BatchExplainer):
    """Holds a detector; explains each of its detections."""

    def __init__(
        self, explainer: Explainer, state: dict[str, Tensor], device: str = "cpu", batch_size: int = 16,
        folded: Pairs = (),
    ) -> None:  # fmt: skip
        self.explainer, self.batch_size, self.folded = explainer, batch_size, folded
        self.device = torch.device(device)
        module = sources.build(Recipe.from_dict(explainer.model_args))
        module.load_state_dict(own_copies(module, state, explainer.model_args["kind"]), assign=True)
        self.module = module.eval().requires_grad_(False).to(self.device)
        self._detector = Detector(self.module, explainer.model_args.get("processor"))
        self._chosen = explainer.model_args[TASK]
        self._lookup = label_lookup(explainer.class_names)

    def accept(self, row: Row) -> bool:
        """Take every image: what a detector explains does not depend on labels."""
        return True

    def _finish(
        self, items: Sequence[Row], found: Mapping[int, Any], pixels: pa.Array
    ) -> tuple[list[int], Columns]:
        return by_column(found)

    def _explain(self, rows: Sequence[Row], views: Views) -> list[list[Row]]:
        """Give for each view, uint8 (H, W, 3), one row a detection; one row where there is none."""
        return [self._explain_one(row, view) for row, view in zip(rows, views, strict=True)]

    def _explain_one(self, row: Row, view: NDArray[np.uint8]) -> list[Row]:
        left, top, right, bottom = place = image_part(row, view.shape[:2])
        seen = torch.from_numpy(view[top:bottom, left:right].copy()).to(self.device)
        found = self._detector(seen.permute(2, 0, 1).float() / 255, **self._chosen)
        common = {"method": METHOD, "target_layer": self.explainer.target_layer, "target_kind": TASK}
        if not found:
            return [common]
        if not all(np.isfinite([*one.box, one.score]).all() for one in found):
            return [failure(Stage.EXPLAIN, ErrorCode.NONFINITE_OUTPUT, "the detector's boxes are not finite")]
        maps = torch.stack([laid(one.levels, one.part, place, view.shape[:2]) for one in found])
        scale = (row["width"] / (right - left), row["height"] / (bottom - top))
        boxes = [_in_source(one, scale) for one in found]
        own = [row | {"boxes": [_shares(box, row)], "mask": None} for box in boxes]
        regions = region_signals(maps, own, (view.shape[0], view.shape[1]))
        return [
            common | heat | region | box | self._class_columns(one.class_id)
            | {"detection": i, "predicted_class": one.class_id, "confidence": one.score,
               "predicted_label": self.explainer.label_of(one.class_id)}
            for i, (one, heat, region, box) in enumerate(
                zip(found, as_rows(heat_columns(maps)), regions, boxes, strict=True))
        ]  # fmt: skip


def laid(levels: Sequence[Tensor], part: Part, place: Place, size: tuple[int, int]) -> Tensor:
    """Add levels (h, w), of which `part` is image, on the canvas of `size`, where it has `place`."""
    (height, width), (left, top, right, bottom) = size, place
    cells = (min(CELLS, height), min(CELLS, width))
    total = np.zeros(cells)
    for level in levels:
        values = level.detach().double().cpu().numpy()
        down = _spread(cells[0], values.shape[0], part[0], top / height, bottom / height)
        across = _spread(cells[1], values.shape[1], part[1], left / width, right / width)
        total += down @ values @ across.T
    return torch.from_numpy(total.astype(np.float32))


def _spread(
    cells: int, pieces: int, part: tuple[float, float], low: float, high: float
) -> NDArray[np.float64]:
    """Say which share of each piece of a level falls into each cell of the canvas; padding falls nowhere."""
    start, end = part
    edges = low + (high - low) * (np.arange(pieces + 1) / pieces - start) / (end - start)
    cut = np.clip(edges, low, high)
    return np.asarray(overlap(cells, cut) / np.diff(edges))


def image_part(row: Row, size: tuple[int, int]) -> Place:
    """Find the pixels of a view (height, width) that are image."""
    ends = []
    for axis, side, pixels in (("x", "width", size[1]), ("y", "height", size[0])):
        low, high = row[f"crop_{axis}0"], row[f"crop_{axis}1"]
        scale = pixels / (high - low)
        start = max(round(-low * scale), 0)
        ends.append((start, min(max(round((row[side] - low) * scale), start + 1), pixels)))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def _in_source(one: Detection, scale: tuple[float, float]) -> Row:
    """Give the box in pixels of the upright image, to a thousandth: its edge is no hair beyond the image."""
    return {f"box_{edge}": round(value * scale[i % 2], 3) for i, (edge, value) in enumerate(
        zip(("x0", "y0", "x1", "y1"), one.box, strict=True))}  # fmt: skip


def _shares(box: Row, row: Row) -> Row:
    return {edge: box[f"box_{edge}"] / row["width" if edge[0] == "x" else "height"]
            for edge in ("x0", "y0", "x1", "y1")}  # fmt: skip
