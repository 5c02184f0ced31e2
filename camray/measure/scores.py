"""All metrics of one batch: what an actor calls.

Flows in: a model, images, perhaps regions or boxes; layers, methods, a target. Flows out: `Scores`: values
and states by metric, (images, maps). Those of an image depend on neither its batch nor the other methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from camray.cam import TargetLayer, TargetRule, parse_method
from camray.cam.split import as_found, call, model_precision
from camray.cam.targets import choose
from camray.errors import UsageError
from camray.measure.catalogue import METRICS
from camray.measure.faithfulness import Baseline, Curves, masked_probability, removal_curves
from camray.measure.localisation import box_regions, hits_of
from camray.measure.maps import Maps, make_maps
from camray.measure.registry import CONTROLS, Metric, ScoreStatus
from camray.measure.removal import Activation, Judge, Ranking, class_probability
from camray.measure.sanity import head_of, randomised

Floats = NDArray[np.float64]


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
class Exam:
    """What metrics may read; whatever costs something is made when a metric first asks for it."""

    model: nn.Module
    batch: Batch
    classes: Tensor  # (B,), explained; -1 where there is none
    original: Tensor  # (B,), the probability of the class on the unaltered images
    maps: Maps
    maps_of: Callable[[nn.Module, Tensor], Maps]  # a model, images -> maps of the same classes
    copies: Copies | None
    settings: Settings

    def has(self, metric: Metric) -> bool:
        """Tell whether there is what a metric needs."""
        return {
            "": True, "noise": self.settings.samples > 0, "copies": self.copies is not None,
            "box": self.batch.boxes is not None, "region": self.regions is not None,
        }[metric.needs]  # fmt: skip

    @property
    def _judge(self) -> Judge:
        return Judge(self.model, self.classes, self.settings.activation, self.settings.chunk)

    @cached_property
    def curves(self) -> Curves:
        """The probability of the class while pixels go."""
        s, x = self.settings, self.batch.images
        with model_precision(x.device.type, s.autocast):
            return removal_curves(
                self._judge, x, self.maps.heat, self.original, s.steps, s.fractions, s.baseline, s.seed
            )

    @cached_property
    def masked(self) -> Tensor:
        """The probability of the class on images times their maps, (B, M)."""
        with model_precision(self.batch.images.device.type, self.settings.autocast):
            return masked_probability(self._judge, self.batch.images, self.maps.heat)

    @cached_property
    def regions(self) -> Tensor | None:
        """What the archive marks, (B, H, W) bool; boxes stand for missing regions."""
        regions, boxes = self.batch.regions, self.batch.boxes
        if regions is None and boxes is not None:
            regions = box_regions(boxes, self.maps.size)
        return None if regions is None else regions.to(self.batch.images.device)

    @cached_property
    def mass_ranking(self) -> Ranking:
        """The order of the pixels of each map's mass."""
        return Ranking.of(self.maps.mass)

    @cached_property
    def head(self) -> Maps:
        """Maps of the copy whose last layer has forgotten."""
        return self.maps_of(self._copies.head, self.batch.images)

    @cached_property
    def whole(self) -> Maps:
        """Maps of the copy that has forgotten everything."""
        return self.maps_of(self._copies.whole, self.batch.images)

    @property
    def _copies(self) -> Copies:
        if self.copies is None:
            raise ValueError("a metric that reads copies of the model must say that it needs them")
        return self.copies

    def shown_of(self, images: Tensor) -> Tensor:
        """Give the positive parts of the maps of other images for the same classes, (B, M, h, w)."""
        return self.maps_of(self.model, images).shown

    @cached_property
    def states(self) -> NDArray[np.str_]:
        """Whether values of a map count, (B, M)."""
        states = np.where(~self.original.isfinite().cpu()[:, None], ScoreStatus.NONFINITE, self.maps.states)
        return np.where((self.classes < 0).cpu()[:, None], ScoreStatus.NO_TARGET, states)

    def score(self, metric: Metric) -> tuple[Floats, NDArray[np.str_]]:
        """Compute a metric, (B, M): values, nan where there is none, and states, which say why."""
        values = np.asarray(metric.of(self).double().cpu())
        absent = ScoreStatus.NO_REGION if metric.needs in ("region", "box") else ScoreStatus.UNDEFINED
        good = self.states == ScoreStatus.OK
        states = np.where(good & ~np.isfinite(values), absent, self.states)
        return np.where(states == ScoreStatus.OK, values, np.nan), states


@dataclass(frozen=True)
class Scores:
    """What a batch gave. `forwards` counts the altered images really run, after sharing."""

    maps: Maps
    logits: Tensor  # (B, outputs) of the unaltered images
    classes: Tensor  # (B,), explained; -1 where there is none
    values: Mapping[str, Floats]  # by metric (B, M), nan where there is none
    states: Mapping[str, NDArray[np.str_]]  # by metric (B, M): a `ScoreStatus`
    curves: Mapping[str, Tensor]  # insertion, deletion: (B, M, S + 1)
    hits: Sequence[NDArray[np.bool_] | None]  # of each image with a box: (M, overlaps, cuts), of any part
    forwards: int


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
        again = partial(explain, classes=classes[:, None])
        exam = Exam(model, batch, classes, original, maps, again, copies, settings)
        scored = {name: exam.score(metric) for name, metric in METRICS.items() if exam.has(metric)}
    boxes = [torch.zeros(0, 4)] * len(x) if batch.boxes is None else batch.boxes
    return Scores(
        maps, logits, classes,
        {name: values for name, (values, _) in scored.items()},
        {name: states for name, (_, states) in scored.items()},
        {"insertion": exam.curves.insertion, "deletion": exam.curves.deletion},
        hits_of(maps.heat, boxes),
        exam.curves.forwards + exam.masked.numel(),
    )  # fmt: skip


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
