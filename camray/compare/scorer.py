"""The core of a scoring actor: decoded images in, rows of scores out. A plain class that needs no Ray.

Flows in: a `DECODED` struct array. Flows out: a `SCORED` one: for every image one row per method and metric,
and one that holds the map; for a failed or skipped image one row without scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from camray.cam import explain
from camray.compare.panel import SCORED, Panel
from camray.errors import ErrorCode, ImageError, printable
from camray.explain.explainer import BatchExplainer, failure
from camray.explain.overlays import encode_jpeg
from camray.measure.boxes import BoxAccuracy
from camray.measure.rows import Row as ScoreRow
from camray.measure.rows import map_of
from camray.measure.scores import Batch, Copies, Scores, Settings, score_batch
from camray.models.outputs import class_scores
from camray.models.preprocessing import to_input
from camray.records import EDGES, Status, struct_array

Row = dict[str, Any]
# Altered images run at once. MobileNetV2, one core, 224 pixels: 34 to 64 ms each in fours, 113 to 118 in 64s.
_AT_ONCE = {"cpu": 4}
_PICTURE_SIDE, _PICTURE_QUALITY = 224, 85
_PASSED = (
    "index", "member", "label", "label_class", "status", "content_sha256",
    "error_code", "error_stage", "error_message",
)  # fmt: skip
_PLACE = ("boxes", "mask", "width", "height", "crop_x0", "crop_y0", "crop_x1", "crop_y1")


class BatchScorer:
    """Holds one model, its two randomised copies, and a panel of methods, on one device."""

    def __init__(
        self, panel: Panel, state: dict[str, Tensor], device: str = "cpu", batch_size: int = 8
    ) -> None:
        self.panel = panel
        self._core = BatchExplainer(panel.explainer, state, device, batch_size)
        self.settings = Settings(**panel.settings, chunk=_AT_ONCE.get(device, 64))
        self._copies: Copies | None = None

    def __call__(self, images: pa.StructArray, pictured: frozenset[int] = frozenset()) -> pa.StructArray:
        """Score every decoded item, in batches; of the indices in `pictured` the input comes along."""
        columns = {name: images.field(name).to_pylist() for name in (*_PASSED, *_PLACE)}
        items: list[Row] = [dict(zip(columns, v, strict=True)) for v in zip(*columns.values(), strict=True)]
        for item in items:
            item["label_class"] = self._core.label_class(item)
        pixels = images.field("pixels")
        ready = [i for i, item in enumerate(items) if item["status"] == Status.OK and self._core.accept(item)]
        found: dict[int, list[Row]] = {}
        for start in range(0, len(ready), self._core.batch_size):
            batch = ready[start : start + self._core.batch_size]
            views = np.stack([self._core.view(pixels[i]) for i in batch])
            found |= zip(batch, self._score_or_split([items[i] for i in batch], views), strict=True)
        rows = []
        for i, item in enumerate(items):
            own = {name: item[name] for name in _PASSED}
            scored = [own | one for one in found.get(i, [{}])]
            if item["index"] in pictured and i in found:
                scored[0]["picture"] = _jpeg(self._core.view(pixels[i]))
            rows += scored
        return struct_array({f.name: [row.get(f.name) for row in rows] for f in SCORED}, SCORED)

    @property
    def module(self) -> nn.Module:
        """The model under test."""
        return self._core.module

    def explainer_of(self, images: pa.StructArray) -> tuple[Callable[[str], Callable[[], object]], Tensor]:
        """Give a function that explains these items' predicted classes by one method, and their input."""
        views = np.stack([self._core.view(v) for v in images.field("pixels") if v.is_valid])
        x = self._input(views)
        return lambda method: partial(explain, self.module, x, self._core.layer, method), x

    def _input(self, views: np.ndarray[Any, Any]) -> Tensor:
        return to_input(torch.from_numpy(views).to(self._core.device), self._core.mean, self._core.std)

    def score(self, items: Sequence[Row], views: np.ndarray[Any, Any]) -> Scores:
        """Measure the panel on views, uint8 (B, H, W, 3), of decoded items."""
        core = self._core
        x = self._input(views)  # (B, C, H, W)
        if self._copies is None:
            self._copies = Copies.of(core.module, x, self.settings.seed)
        size = (views.shape[1], views.shape[2])
        batch = Batch(
            [str(i) for i in range(len(items))], x,
            labels=torch.tensor([-1 if i["label_class"] is None else i["label_class"] for i in items]),
            regions=_regions(items, size),
            boxes=[boxes_on_input(item, size) for item in items],
        )  # fmt: skip
        return score_batch(
            core.module, batch, core.layer, self.panel.methods,
            self.panel.explainer.target, self._copies, self.settings, controls=(),  # the first panel has them
        )  # fmt: skip

    def _score_or_split(self, items: Sequence[Row], views: np.ndarray[Any, Any]) -> list[list[Row]]:
        """Score a batch; where the model fails on it, image by image, so that one cannot harm others."""
        try:
            return self._rows(self.score(items, views))
        except torch.AcceleratorError:
            raise  # the device is lost for this process
        except RuntimeError as error:
            if len(items) == 1:
                return [[failure(ImageError(ErrorCode.MODEL_FAILED, printable(str(error))))]]
            return [
                rows
                for i in range(len(items))
                for rows in self._score_or_split(items[i : i + 1], views[i : i + 1])
            ]

    def _rows(self, scores: Scores) -> list[list[Row]]:
        """Give the rows of each image: its maps first, then its values."""
        predicted = self._predictions(scores.logits)
        made: list[list[Row]] = [[] for _ in predicted]
        for i, j, map_row in _map_rows(scores):
            made[i].append(map_row | {"method": scores.maps.keys[j][0]})
        place = {key: j for j, key in enumerate(scores.maps.keys)}
        for row in scores.rows:
            i, j = int(row.image), place[row.method, row.layer]
            made[i].append(_value_row(row) | _behind(row, scores, i, j))
        about = self.panel.explainer
        for own, said, class_id in zip(made, predicted, _classes(scores), strict=True):
            target = {"target_class": class_id, "target_label": about.label_of(class_id)}
            for one in own:
                one.update(said | target)
        return made

    def _predictions(self, logits: Tensor) -> list[Row]:
        p = class_scores(logits.double(), self.panel.explainer.activation)
        best = p.max(1)
        return [
            {"predicted_class": c, "predicted_label": self.panel.explainer.label_of(c), "confidence": s}
            for c, s in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def _map_rows(scores: Scores) -> Iterator[tuple[int, int, Row]]:
    """Give (image, method, row) of every map, at the resolution of the layer."""
    signed = scores.maps.signed.float().cpu()  # (B, M, h, w)
    for i, own in enumerate(signed):
        for j, one in enumerate(own):
            status = map_of(scores.maps, i, j)
            yield i, j, {
                "metric": "map", "score_status": str(status), "forwards": 0,
                "heatmap": one.flatten().tolist(), "heat_h": one.shape[0], "heat_w": one.shape[1],
            }  # fmt: skip


def _value_row(row: ScoreRow) -> Row:
    return {
        "method": row.method, "metric": row.metric, "value": row.value,
        "score_status": str(row.status), "forwards": row.forwards,
    }  # fmt: skip


def _behind(row: ScoreRow, scores: Scores, i: int, j: int) -> Row:
    """Give what a value was made of: the curve, or the hits of the boxes."""
    if row.metric in scores.curves:
        return {"curve": scores.curves[row.metric][i, j].tolist()}
    accuracy = scores.boxes[i].get((row.method, row.layer)) if row.metric == "box_iou" else None
    return {"hits": _bits(accuracy)} if accuracy is not None else {}


def _bits(accuracy: BoxAccuracy) -> bytes:
    return np.packbits(accuracy.any_part.astype(bool)).tobytes()


def _classes(scores: Scores) -> list[int]:
    """Name the class explained in each image."""
    chosen = {int(row.image): row.target_class for row in scores.rows}
    return [chosen[i] for i in range(len(chosen))]


def _regions(items: Sequence[Row], size: tuple[int, int]) -> Tensor | None:
    """Give masks (B, H, W) where the archive has masks; a box stands for the image that has none."""
    if all(item["mask"] is None for item in items):
        return None
    made = torch.zeros(len(items), *size, dtype=torch.bool)
    for i, item in enumerate(items):
        if item["mask"] is not None:
            made[i] = torch.from_numpy(np.frombuffer(item["mask"], np.uint8).reshape(size) > 127)
            continue
        for x0, y0, x1, y1 in boxes_on_input(item, size).round().int().tolist():
            made[i, y0:y1, x0:x1] = True
    return made


def boxes_on_input(item: Row, size: tuple[int, int]) -> Tensor:
    """Place boxes on the model's input (height, width): (n, 4), cut at its edges, none outside."""
    made = []
    for box in item["boxes"] or []:
        edges = []
        for edge, (axis, side) in zip(EDGES, (("x", 1), ("y", 0)) * 2, strict=True):
            low, high = item[f"crop_{axis}0"], item[f"crop_{axis}1"]
            length = item["width" if axis == "x" else "height"]
            edges.append(min(max((box[edge] * length - low) / (high - low), 0.0), 1.0) * size[side])
        if edges[2] > edges[0] and edges[3] > edges[1]:
            made.append(edges)
    return torch.tensor(made, dtype=torch.float64).reshape(-1, 4)


def _jpeg(view: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Encode a view for a page, its longer side 224 pixels."""
    scale = _PICTURE_SIDE / max(view.shape[:2])
    size = (round(view.shape[1] * scale), round(view.shape[0] * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return encode_jpeg(np.asarray(cv2.resize(view, size, interpolation=way), np.uint8), _PICTURE_QUALITY)
