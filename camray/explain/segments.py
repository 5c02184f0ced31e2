"""A segmenter's core: decoded images in, one record for each class that an image has pixels of.

The map of a class is that of Seg-Grad-CAM: what made the network take its pixels for it, or with the target
`label` what speaks for the class of the label on the pixels that the archive's mask has. A network of
torchvision prepares each image itself, at its own size; the others take the input that decoding made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from camray import cam
from camray.cam.engine import gradient_maps
from camray.cam.split import run_split
from camray.config import Config, Explainer
from camray.errors import ErrorCode, ModelError, Stage
from camray.explain.columns import Columns, Row, as_rows, by_column, heat_columns
from camray.explain.detections import Place, image_part, laid
from camray.explain.explainer import BatchExplainer, Views, steadiness
from camray.explain.regions import mask_cover, region_signals
from camray.models import segmenters
from camray.models.detectors import WHOLE
from camray.models.load import LoadedModel
from camray.models.segmenters import BACKGROUNDS, TASK, Labelled, pixels_of
from camray.records import SCHEMA_VERSION, failure

REDUCED = 4  # a cell of a mask is so many pixels of the input wide


@dataclass(frozen=True, slots=True)
class Found:
    """The classes of one image, their maps (K, h, w), and the class and softmax of each pixel."""

    ids: list[int]
    maps: Tensor
    classes: NDArray[np.int64]  # (H, W): of the pixels that are image
    shares: NDArray[np.float32]
    labelled: NDArray[np.bool_] | None = None  # (H, W): the pixels of the label, if these are explained


def resolve_segmenter(config: Config, loaded: LoadedModel) -> tuple[Explainer, LoadedModel]:
    """Check what was asked of a segmenter, find the end of its encoder, and name the result: the explainer.

    Raises:
        UsageError: a method or target that segments do not have, a layer that cannot be found.
    """
    asked, method = config.method, cam.parse_method(config.method.name)
    if method.entry.needs != "gradient" or not method.entry.per_class or method.averages_views:
        fix = "gradcam, or another that needs a layer and its gradient"
        raise ModelError("--method", f"{asked.name}, but this is a segmenter", fix)
    if asked.target not in ("predicted", "label"):
        said = f"{asked.target}, but each class that an image has pixels of is explained"
        raise ModelError("--target", said, "leave it out, or label: the pixels of the archive's masks")
    kind, part = loaded.build_args["kind"], segmenters.encoder_of(loaded.module)
    if part is None and asked.layer is None:
        said = "nothing tells where its encoder ends: it has no part called backbone or encoder"
        raise ModelError("--layer", said, "--layer NAME of its last module")
    spec = loaded.input
    side = segmenters.preset(loaded.build_args["name"]).resize_size[0] if kind == "torchvision" else None
    size = (len(spec.mean), side or spec.height, side or spec.width)
    layer = cam.find_target_layer(loaded.module, size, asked.layer, asked.pair, asked.prefix, part or "")
    doubts = () if side else steadiness(loaded, config.run.batch_size == 1)
    chosen = {"least_share": asked.min_share, "most": asked.max_detections}
    explainer = Explainer(
        model=loaded.name,
        model_args={**loaded.build_args, "segments": chosen},
        weights_sha256=loaded.weights_sha256,
        class_names=loaded.class_names,
        num_classes=loaded.num_classes,
        input=spec,
        method=method.spelled,
        target=asked.target,
        target_layer=layer.name,
        layout=layer.to_dict(),
        top_k=min(config.run.top_k, loaded.num_classes),
        max_pixels=config.archive.max_pixels,
        schema_version=SCHEMA_VERSION,
    )
    each = f"each class with at least {asked.min_share:g} of an image's pixels"
    told = f"a segmenter: one record for {'each label and mask' if asked.target == 'label' else each}"
    told += ". An audit judges the largest of each, by the heat on the object (where the archive says it is,"
    told += " or on its own pixels); second looks are not made"
    return explainer, replace(loaded, notes=(*loaded.notes, *doubts, told))


class SegmentationExplainer(BatchExplainer):
    """Holds a segmenter; explains each class that an image has pixels of."""

    def __init__(self, explainer: Explainer, *given: Any, **more: Any) -> None:
        super().__init__(explainer, *given, **more)
        self.fixed = 0
        args = explainer.model_args
        self._prepare: Any = segmenters.preset(args["name"]) if args["kind"] == "torchvision" else None
        self._least, self._most = args["segments"]["least_share"], args["segments"]["most"]
        self._last = {i for i, name in enumerate(explainer.class_names) if name in BACKGROUNDS}

    def _finish(
        self, items: Sequence[Row], found: Mapping[int, Any], pixels: pa.Array
    ) -> tuple[list[int], Columns]:
        return by_column(found)

    def _explain(self, rows: Sequence[Row], views: Views) -> list[list[Row]]:
        """Give for each view, uint8 (H, W, 3), one row a class; one row where no class has enough pixels."""
        places = [image_part(row, views[0].shape[:2]) for row in rows]
        if self._prepare is None:
            found = self._found(self.model_input(views), places, rows)
        else:  # every image has a size of its own
            found = [self._alone(*one) for one in zip(views, places, rows, strict=True)]
        return [self._rows(*one) for one in zip(rows, found, places, strict=True)]

    def accept(self, row: Row) -> bool:
        """Tell whether an item has pixels to explain; without its label and mask it becomes a failed one."""
        if not super().accept(row):
            return False
        if self._rule.select == "label" and not any(row["mask"] or b""):
            row |= failure(Stage.EXPLAIN, ErrorCode.BAD_TARGET, "no mask says which pixels are of the label")
            return False
        return True

    def _labelled(self, row: Row, place: Place, size: Sequence[int]) -> Labelled:
        """Give the class of the label, and its pixels, of the part of the view that is an input of `size`."""
        spec, (left, top, right, bottom) = self.explainer.input, place
        mask = np.frombuffer(row["mask"], np.uint8).reshape(spec.height, spec.width)
        part = cv2.resize(mask[top:bottom, left:right], (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
        return row["label_class"], torch.from_numpy(part >= 128)

    def _alone(self, view: NDArray[np.uint8], place: Place, row: Row) -> Found | None:
        """Prepare an image as torchvision does, and lay its maps on the canvas."""
        left, top, right, bottom = place
        seen = torch.from_numpy(view[top:bottom, left:right].copy()).to(self.device).permute(2, 0, 1)
        x = self._prepare(seen)[None]
        (found,) = self._found(x, [(0, 0, x.shape[3], x.shape[2])], [row], place)
        if not found or not found.ids:
            return found
        maps = torch.stack([laid([one], WHOLE, place, view.shape[:2]) for one in found.maps])
        return replace(found, maps=maps)

    def _found(
        self, x: Tensor, parts: Sequence[Place], rows: Sequence[Row], place: Place | None = None
    ) -> list[Found | None]:
        """Explain a batch (B, C, H, W) whose images lie in `parts`; None where the logits are not finite.

        `place`: of the view that x is of, where it is not the whole.
        """
        pixels = pixels_of(self.module)
        if self._rule.select == "label":
            whole = place or (0, 0, self.explainer.input.width, self.explainer.input.height)
            pixels.labelled = [self._labelled(row, whole, x.shape[2:]) for row in rows]
        split = run_split(self.module, x, [self.layer])
        cuts = [(slice(top, bottom), slice(left, right)) for left, top, right, bottom in parts]
        classes = [one[cut].cpu().numpy() for one, cut in zip(pixels.classes, cuts, strict=True)]
        shares = [one[cut].cpu().numpy() for one, cut in zip(pixels.shares, cuts, strict=True)]
        labelled = [mask[cut].numpy() for (_, mask), cut in zip(pixels.labelled, cuts, strict=False)]
        ids = [[k] for k, _ in pixels.labelled] or [self._choose(one) for one in classes]
        most = max(map(len, ids))
        maps = x.new_zeros(len(x), 0, 1, 1)
        if most:
            wanted = torch.tensor([[*one, *[-1] * (most - len(one))] for one in ids], device=x.device)
            with torch.enable_grad():
                scores = split.logits.gather(1, wanted.clamp(min=0)) * (wanted >= 0)
                (maps,) = gradient_maps(split, scores, [self._method]).values()  # (B, K, h, w)
        finite = split.logits.isfinite().all(1).tolist()
        own: list[NDArray[np.bool_] | None] = [*labelled] or [None] * len(x)
        each = [maps[i, : len(ids[i])].cpu() for i in range(len(x))]
        found = map(Found, ids, each, classes, shares, own)
        return [one if good else None for one, good in zip(found, finite, strict=True)]

    def _choose(self, classes: NDArray[np.int64]) -> list[int]:
        """Take the classes with enough pixels: the most first, the background last."""
        counts = np.bincount(classes.ravel(), minlength=self.explainer.num_classes)
        enough = np.flatnonzero((counts > 0) & (counts >= self._least * classes.size)).tolist()
        return sorted(enough, key=lambda c: (c in self._last, -counts[c]))[: self._most]

    def _rows(self, row: Row, found: Found | None, place: Place) -> list[Row]:
        if found is None:
            reason = "the model's logits are not finite"
            return [failure(Stage.EXPLAIN, ErrorCode.NONFINITE_OUTPUT, reason)]
        told = self.explainer
        kind = TASK if found.labelled is None else "label"
        common: Row = {"method": told.method, "target_layer": told.target_layer, "target_kind": kind}
        if not found.ids:
            return [common]
        size = (told.input.height, told.input.width)
        regions = region_signals(found.maps, [row] * len(found.ids), size)
        out, heats = [], as_rows(heat_columns(found.maps))
        for i, (class_id, heat) in enumerate(zip(found.ids, heats, strict=True)):
            own, seen = found.classes == class_id, class_id
            at = own
            if found.labelled is not None:  # what most of these pixels are taken for
                seen = int(np.bincount(found.classes[found.labelled]).argmax())
                at = found.labelled & (found.classes == seen)
                common["correct"] = seen == class_id
            out.append(common | heat | regions[i] | self._class_columns(class_id) | {
                "detection": i, "predicted_class": seen, "predicted_label": told.label_of(seen),
                "confidence": float(found.shares[at].mean(dtype=np.float64)),
                "segment_share": float(own.mean()),
            } | _mask_columns(own, place, size, heat["heatmap"]))  # fmt: skip
        return out


def _mask_columns(own: NDArray[np.bool_], place: Place, size: tuple[int, int], heat: Any) -> Row:
    """Lay the pixels of a class on the view of `size`: the mask in bits, and how much heat lies on it."""
    (height, width), (left, top, right, bottom) = size, place
    inside = ((top / height, bottom / height), (left / width, right / width))
    cells = (-(-height // REDUCED), -(-width // REDUCED))
    mask = mask_cover(own, cells, *inside) >= 0.5 - 1e-6  # half, but for rounding
    found: Row = {"segment_mask": np.packbits(mask).tobytes(), "segment_h": cells[0], "segment_w": cells[1]}
    q = np.zeros((1, 1)) if heat is None else np.maximum(heat.astype(np.float64), 0)
    if q.sum() > 0:
        found["heat_in_segment"] = float((q * mask_cover(own, q.shape, *inside)).sum() / q.sum())
    return found
