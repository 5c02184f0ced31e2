"""The core of a scoring actor: decoded images in, rows of scores out. A plain class that needs no Ray.

`Trial` measures on a few images what a panel costs, before that is paid.

Flows in: a `DECODED` struct array. Flows out: a `SCORED` one: for every image one row per method and metric,
and one that holds the map; for a failed or skipped image one row without scores.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from camray import cam
from camray.cam.targets import ranked
from camray.compare.panel import SCORED, Panel
from camray.explain.explainer import BatchExplainer, Views
from camray.explain.overlays import encode_jpeg
from camray.explain.regions import share_of_input
from camray.flow.actor import device_here
from camray.measure.catalogue import METRICS
from camray.measure.cost import count_passes, measure_cost
from camray.measure.registry import ScoreStatus
from camray.measure.scores import Batch, Copies, Scores, Settings, score_batch
from camray.models.load import LoadedModel
from camray.models.outputs import class_scores
from camray.records import EDGES, bytes_at, struct_array

Row = dict[str, Any]
# Altered images run at once. MobileNetV2, one core, 224 pixels: 34 to 64 ms each in fours, 113 to 118 in 64s.
_AT_ONCE = {"cpu": 4}
_PICTURE_SIDE, _PICTURE_QUALITY = 224, 85


class BatchScorer(BatchExplainer):
    """Holds one model, its two randomised copies, and a panel of methods, on one device."""

    def __init__(
        self, panel: Panel, state: dict[str, Tensor], device: str = "cpu", batch_size: int = 8
    ) -> None:
        super().__init__(panel.explainer, state, device, batch_size)
        self.fixed = 0
        self.panel = panel
        self.settings = Settings(**panel.settings, chunk=_AT_ONCE.get(device, 64))
        self._copies: Copies | None = None

    def __call__(self, images: pa.StructArray, pictured: frozenset[int] = frozenset()) -> pa.StructArray:
        """Score every decoded item, in batches; of the indices in `pictured` the input comes along."""
        items, scores = self.in_batches(images)
        rows = []
        for i, item in enumerate(items):
            own = [item | score for score in scores.get(i, [{}])]
            if item["index"] in pictured and i in scores:
                own[0]["picture"] = _jpeg(self._picture(images.field("pixels")[i]))
            rows += own
        return struct_array({f.name: [row.get(f.name) for row in rows] for f in SCORED}, SCORED)

    def _picture(self, pixels: pa.LargeBinaryScalar) -> np.ndarray[Any, np.dtype[np.uint8]]:
        spec = self.explainer.input
        return np.frombuffer(pixels.as_buffer(), np.uint8).reshape(spec.height, spec.width, 3)

    def _explain(self, rows: Sequence[Row], views: Views) -> list[list[Row]]:
        """Give the rows of a batch, image by image: what `BatchExplainer` asks for."""
        return self._rows(self.score(rows, views))

    def score(self, items: Sequence[Row], views: Views) -> Scores:
        """Measure the panel on views, (B, H, W, 3 or C), of decoded items."""
        x = self.model_input(views)
        if self._copies is None:
            self._copies = Copies.of(self.module, x, self.settings.seed)
        size = views[0].shape[:2]
        batch = Batch(
            x,
            labels=torch.tensor([-1 if i["label_class"] is None else i["label_class"] for i in items]),
            regions=_regions(items, size),
            boxes=[boxes_on_input(item, size) for item in items],
        )
        return score_batch(
            self.module, batch, self.layer, self.panel.methods, self.explainer.target, self._copies,
            self.settings, controls=(),  # the first panel has them
        )  # fmt: skip

    def _rows(self, scores: Scores) -> list[list[Row]]:
        """Give the rows of each image: its maps first, then its values."""
        best = ranked(scores.logits, 1)
        confidence = class_scores(scores.logits.double(), self.explainer.activation).gather(1, best)
        made = []
        for i, (predicted, target) in enumerate(
            zip(best[:, 0].tolist(), scores.classes.tolist(), strict=True)
        ):
            common = {
                "predicted_class": predicted, "predicted_label": self.explainer.label_of(predicted),
                "confidence": float(confidence[i]),
                "target_class": target, "target_label": self.explainer.label_of(target),
            }  # fmt: skip
            made.append([common | one for one in (*_map_rows(scores, i), *self._value_rows(scores, i))])
        return made

    def _value_rows(self, scores: Scores, i: int) -> Iterator[Row]:
        """Give the values of one image, with what is behind them: the curve, or the hits of the boxes."""
        hits = scores.hits[i]
        for j, (method, _) in enumerate(scores.maps.keys):
            for name, values in scores.values.items():
                state = scores.states[name][i, j]
                row: Row = {
                    "method": method, "metric": name, "score_status": str(state),
                    "value": float(values[i, j]) if state == ScoreStatus.OK else None,
                    "forwards": METRICS[name].cost(self.settings),
                }  # fmt: skip
                if name in scores.curves:
                    row["curve"] = scores.curves[name][i, j].tolist()
                if name == "box_iou" and hits is not None:
                    row["hits"] = np.packbits(hits[j]).tobytes()
                yield row


class Trial:
    """A panel on a few images of the archive, on the best device of this machine."""

    def __init__(self, panel: Panel, model: LoadedModel, images: pa.StructArray, device: str) -> None:
        self.device = device_here(device)
        self._scorer = BatchScorer(panel, model.module.state_dict(), self.device, len(images))
        self._images = images

    def estimate(self) -> dict[str, Any]:
        """Count and time one run: {forwards, backwards, seconds, device} of an image, what is shared once."""
        n, start = len(self._images), time.perf_counter()
        with count_passes(self._scorer.module) as passes:
            self._scorer(self._images)
        if self.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return {
            "forwards": passes.forwards / n, "backwards": passes.backwards / n, "seconds": seconds / n,
            "device": self.device,
        }  # fmt: skip

    def costs(self) -> dict[str, Any]:
        """Measure each method alone: {device, batch, methods: {method: `cost.Cost`}}."""
        scorer = self._scorer
        pixels = self._images.field(scorer.source)
        there = [i for i in range(len(pixels)) if pixels[i].is_valid]
        x = scorer.model_input([scorer.view(bytes_at(pixels, i)) for i in there])
        explains = {m: partial(cam.explain, scorer.module, x, scorer.layer, m) for m in scorer.panel.methods}
        costs = {m: asdict(measure_cost(scorer.module, x, explain)) for m, explain in explains.items()}
        return {"device": self.device, "batch": len(x), "methods": costs}


def _map_rows(scores: Scores, i: int) -> Iterator[Row]:
    """Give every map of one image, at the resolution of the layer."""
    for j, (method, _) in enumerate(scores.maps.keys):
        heat = scores.maps.signed[i, j].float().cpu()  # (h, w)
        yield {
            "method": method, "metric": "map", "score_status": str(scores.maps.states[i, j]), "forwards": 0,
            "heatmap": heat.flatten().tolist(), "heat_h": heat.shape[0], "heat_w": heat.shape[1],
        }  # fmt: skip


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
    sides = {"x": size[1], "y": size[0]}
    places = [
        [share_of_input(box[edge], item, edge[0]) * sides[edge[0]] for edge in EDGES]
        for box in item["boxes"] or []
    ]
    made = [(x0, y0, x1, y1) for x0, y0, x1, y1 in places if x1 > x0 and y1 > y0]
    return torch.tensor(made, dtype=torch.float64).reshape(-1, 4)


def _jpeg(view: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Encode a view for a page, its longer side 224 pixels."""
    scale = _PICTURE_SIDE / max(view.shape[:2])
    size = (round(view.shape[1] * scale), round(view.shape[0] * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return encode_jpeg(np.asarray(cv2.resize(view, size, interpolation=way), np.uint8), _PICTURE_QUALITY)
