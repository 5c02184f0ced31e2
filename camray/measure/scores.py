"""All metrics of one batch: what an actor calls.

Flows in: a model, images with ids, perhaps regions or boxes; layers, methods, a target. Flows out:
`Scores`: long rows (image, method, metric, value, status), rows of pairs of methods, and counts that add
up over an archive. Rows of an image depend on neither its batch nor the other methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from camray.cam import TargetLayer, TargetRule, parse_method
from camray.cam.split import as_found, call, model_precision
from camray.cam.targets import choose
from camray.errors import UsageError
from camray.measure.boxes import BoxAccuracy, box_iou
from camray.measure.catalogue import CONTROLS
from camray.measure.faithfulness import Baseline, masking_metrics, removal_metrics
from camray.measure.localisation import box_regions, region_metrics
from camray.measure.maps import Key, MapSet, make_maps
from camray.measure.pixel_precision import PixelCounts
from camray.measure.removal import Activation, Judge, class_probability
from camray.measure.robustness import max_sensitivity
from camray.measure.rows import PairRow, Row, map_status, pair_rows, score_rows
from camray.measure.sanity import complexity_rise, head_of, map_correlation, randomised
from camray.measure.sparsity import entropy, gini


@dataclass(frozen=True)
class Settings:
    """How metrics are computed; part of what a result means."""

    steps: int = 10  # of insertion and deletion
    fractions: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)  # of ROAD
    baseline: Baseline = "blur"
    samples: int = 3  # of max-sensitivity; 0 leaves it out
    radius: float = 0.2  # of its noise
    activation: Activation = "softmax"
    seed: int = 0
    chunk: int = 64  # altered images run at once
    autocast: torch.dtype | None = None  # of altered images; maps are made in full precision


@dataclass(frozen=True)
class Batch:
    """Images as the model wants them, and what the archive marks on them, in pixels of that input.

    Boxes are x0, y0, x1, y1 with far edges outside, (n, 4) for each image; without `regions` they are
    the regions. An image without a mark has no box, or an empty region.
    """

    ids: Sequence[str]
    images: Tensor  # (B, C, H, W)
    labels: Tensor | None = None  # (B,)
    regions: Tensor | None = None  # (B, H, W) bool
    boxes: Sequence[Tensor] | None = None


@dataclass(frozen=True)
class Copies:
    """Copies of the model that have forgotten: the last layer only, and everything."""

    head: nn.Module
    whole: nn.Module

    @classmethod
    def of(cls, model: nn.Module, images: Tensor, seed: int = 0) -> Copies:
        """Make both from a model and images that it takes; once for a whole archive."""
        with as_found(model):
            return cls(randomised(model, head_of(model, images[:1]), seed), randomised(model, None, seed))


@dataclass(frozen=True)
class Scores:
    """What a batch gave. `forwards` counts the altered images really run, after sharing."""

    rows: tuple[Row, ...]
    pairs: tuple[PairRow, ...]
    boxes: tuple[Mapping[Key, BoxAccuracy], ...]  # of each image, if it has a box; a useless map hits nothing
    pixels: Mapping[Key, PixelCounts]  # of images with a region
    maps: MapSet
    curves: Mapping[str, Tensor]  # insertion, deletion: (B, M, S + 1)
    logits: Tensor  # (B, outputs) of the unaltered images
    forwards: int

    def box_accuracy(self) -> dict[Key, BoxAccuracy]:
        """Add up the boxes of all images, by method."""
        total: dict[Key, BoxAccuracy] = {}
        for image in self.boxes:
            for key, one in image.items():
                total[key] = total[key] + one if key in total else one
        return total


def score_batch(
    model: nn.Module,
    batch: Batch,
    layers: Iterable[TargetLayer] | TargetLayer,
    methods: Sequence[str],
    target: str = "predicted",
    copies: Copies | None = None,
    settings: Settings | None = None,
    controls: Sequence[str] = CONTROLS,
) -> Scores:
    """Measure methods, and the controls beside them, on a batch.

    `target` gives one class per image, settled on the unaltered images. The randomisation test runs
    where `copies` are given, localisation where the batch has regions or boxes.

    Raises:
        UsageError: a target of several classes, or a method that explains concepts instead of a class.
    """
    settings = settings or Settings()
    places = [layers] if isinstance(layers, TargetLayer) else list(layers)
    methods = list(dict.fromkeys([*methods, *controls]))
    rule = check_target(target, methods)
    x = batch.images
    with as_found(model), torch.no_grad():
        with model_precision(x.device.type, None):
            logits = call(model, x).float()  # (B, outputs)
        classes = choose(rule, logits, batch.labels)[:, 0]
        original = class_probability(logits, classes, settings.activation)
        explain = partial(make_maps, layers=places, methods=methods, chunk=settings.chunk)
        maps = explain(model, x, classes=torch.stack([classes, _other_class(logits, classes)], 1))
        judge = Judge(model, classes, settings.activation, settings.chunk)
        with model_precision(x.device.type, settings.autocast):
            values, curves, forwards = _altered(judge, x, maps, original, settings)
        again = partial(explain, classes=classes[:, None])
        values |= _read_off(maps) | _explained_again(model, x, maps, again, copies, settings)
    marks, boxes, pixels = _marked(batch, maps)
    status = map_status(maps, classes, original)
    rows = tuple(score_rows(batch.ids, maps.keys, classes, values | marks, status, _forwards(settings)))
    pairs = tuple(pair_rows(batch.ids, maps, status))
    return Scores(rows, pairs, boxes, pixels, maps, curves, logits, forwards)


def _altered(
    judge: Judge, x: Tensor, maps: MapSet, original: Tensor, settings: Settings
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Metrics that look at the class in altered images, their curves, and how many of these were run."""
    found = removal_metrics(
        judge, x, maps.heat, original,
        settings.steps, settings.fractions, settings.baseline, settings.seed,
    )  # fmt: skip
    masked = masking_metrics(judge, x, maps.heat, original)
    curves = {"insertion": found.insertion, "deletion": found.deletion}
    return {**found.values, **masked}, curves, found.forwards + len(x) * len(maps.keys)


def _read_off(maps: MapSet) -> dict[str, Tensor]:
    """Metrics of the maps alone."""
    return {
        "class_sensitivity": map_correlation(maps.signed, maps.other),
        "gini": gini(maps.shown),
        "entropy": entropy(maps.shown),
    }


def _explained_again(
    model: nn.Module,
    x: Tensor,
    maps: MapSet,
    again: Callable[[nn.Module, Tensor], MapSet],
    copies: Copies | None,
    settings: Settings,
) -> dict[str, Tensor]:
    """Metrics that compare with maps of moved images, or of models that have forgotten."""
    found = {}
    if settings.samples:
        found["max_sensitivity"] = max_sensitivity(
            x, maps.shown, lambda images: again(model, images).shown,
            settings.samples, settings.radius, settings.seed,
        )  # fmt: skip
    if copies is not None:
        head, whole = again(copies.head, x), again(copies.whole, x)
        found["mprt_head"] = map_correlation(maps.signed, head.signed)
        found["mprt_all"] = map_correlation(maps.signed, whole.signed)
        found["complexity_rise"] = complexity_rise(maps.heat, whole.heat)
    return found


def check_target(target: str, methods: Sequence[str]) -> TargetRule:
    """Read a target that gives one class per image.

    Raises:
        UsageError: it gives several, or a method explains concepts instead of a class.
    """
    rule = TargetRule.parse(target)
    if rule.select == "above" or rule.count > 1 or len(rule.classes) > 1 or rule.negative:
        raise UsageError("target", f"{target} is not one class per image", "predicted, label or a class")
    for method in methods:
        if parse_method(method).name == "dff":
            raise UsageError("method", "dff explains concepts, no class", "leave it out")
    return rule


def _other_class(logits: Tensor, classes: Tensor) -> Tensor:
    """Name the least likely class, or where that is explained, the most likely one: (B,)."""
    if logits.shape[1] == 1:
        return 1 - classes.clamp(min=0)
    least = logits.argmin(1)
    return torch.where(least == classes, logits.argmax(1), least)


def _marked(
    batch: Batch, maps: MapSet
) -> tuple[dict[str, Tensor], tuple[dict[Key, BoxAccuracy], ...], dict[Key, PixelCounts]]:
    """Compare with what the archive marks: values (B, M), boxes of each image, pixels of the batch."""
    regions, boxes = batch.regions, batch.boxes
    size = (maps.heat.shape[2], maps.heat.shape[3])
    if regions is None and boxes is not None:
        regions = box_regions(boxes, size)
    values: dict[str, Tensor] = {}
    accuracy: tuple[dict[Key, BoxAccuracy], ...] = tuple({} for _ in batch.ids)
    pixels: dict[Key, PixelCounts] = {}
    if regions is not None:
        values = region_metrics(maps.mass, regions, maps.cell)
        counts = PixelCounts.of(maps.heat, regions)
        values["pxap"] = counts.average_precision()
        marked = regions.flatten(1).any(1).cpu()
        for j, key in enumerate(maps.keys):
            pixels[key] = PixelCounts(counts.inside[marked, j].sum(0), counts.outside[marked, j].sum(0))
    if boxes is not None:
        heat = maps.heat.double().cpu().numpy()
        values["box_iou"] = torch.full(heat.shape[:2], torch.nan, dtype=torch.float64)
        for i, own in enumerate(boxes):
            true = own.double().cpu().reshape(-1, 4).numpy()
            for j, key in enumerate(maps.keys if len(true) else ()):
                values["box_iou"][i, j] = box_iou(heat[i, j], true)
                accuracy[i][key] = BoxAccuracy.of(heat[i, j], true)
    return values, accuracy, pixels


def _forwards(settings: Settings) -> dict[str, int]:
    """Altered images that one map needs for each metric; those that are free are left out."""
    road, copies = len(settings.fractions), dict.fromkeys(("mprt_head", "mprt_all", "complexity_rise"), 1)
    return {
        "insertion": settings.steps, "deletion": settings.steps,  # the end, all baseline, included
        "road": 2 * road, "road_morf": road, "road_lerf": road,
        "average_drop": 1, "increase": 1, "average_gain": 1,
        "max_sensitivity": settings.samples, **copies,
    }  # fmt: skip
