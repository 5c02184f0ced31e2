"""Networks that find objects: an image in, boxes with scores and classes out, and how each box was found.

    module ──Detector──> detections of one image, equal to the library's own, each with maps of its evidence

A detection is explained as ODAM does (Zhao and Chan, ICLR 2022, "Gradient-based instance-specific visual
explanations"): the gradient of its own score, as it was before duplicates were suppressed, times the
activation, element by element, at the maps that the boxes are read from. There the network is cut: one
forward serves all detections of an image, and no gradient goes through the backbone. Images are taken one by
one, because padding to the largest of a batch would change what the others get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from camray.errors import ModelError
from camray.models import hugging_face, yolo
from camray.models.libraries import torchvision
from camray.models.sources import Recipe

TASK = "detection"
METHOD = "odam"
_NORMS_OF_ZERO = (
    "fasterrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn"
)  # fmt: skip
_WHOLE = 2**20  # cells: more than any level has
_SAME_SCORE = 1e-5  # of the same anchor: what the rounding of a smaller convolution may move
SIDE = 640  # of the canvas for a network that names no size of its own


Part = tuple[tuple[float, float], tuple[float, float]]
WHOLE: Part = ((0.0, 1.0), (0.0, 1.0))


@dataclass(frozen=True, slots=True)
class Detection:
    """One box (x0, y0, x1, y1) in pixels of the image, and for each level what its cells gave the score.

    `levels`: maps (h, w), raw and signed, of the network's input; `part` of it, the shares (top, bottom) and
    (left, right), is image.
    """

    box: tuple[float, float, float, float]
    score: float
    class_id: int
    levels: tuple[Tensor, ...]
    part: Part


@dataclass(slots=True)
class _Cut:
    """Where the network is cut: maps or tokens, and how a product of their shape becomes a map (h, w)."""

    tensors: list[Tensor] = field(default_factory=list)
    grids: list[Callable[[Tensor], Tensor]] = field(default_factory=list)
    part: Part = WHOLE

    def take(self, values: Tensor, grid: Callable[[Tensor], Tensor]) -> Tensor:
        """Start the graph here."""
        self.tensors.append(values.detach().requires_grad_())
        self.grids.append(grid)
        return self.tensors[-1]

    def maps(self, found: Mapping[str, Tensor], i: int) -> tuple[Tensor, ...]:
        """Give gradient times activation of each tensor, as a map; `graded`: scores of the cut."""
        score = found.get("graded", found["scores"])[i].double().logit(eps=1e-12)
        gradients = torch.autograd.grad(score, self.tensors, retain_graph=True, allow_unused=True)
        return tuple(
            grid(torch.zeros_like(a) if g is None else g * a.detach())
            for g, a, grid in zip(gradients, self.tensors, self.grids, strict=True)
        )


@dataclass(slots=True)
class _Heads(_Cut):
    """Heads of convolutions on several levels: asked again around the cell where a box was found.

    The rest of a level, and the other levels, do not reach the score: a gradient through all of them costs
    as much as the network. Where a norm looks at a whole level (FCOS), the level is taken whole.
    """

    module: Any = None
    levels: list[Tensor] = field(default_factory=list)
    outputs: dict[str, Tensor] = field(default_factory=dict)  # (1, anchors, numbers): the graph starts here
    wholes: dict[int, tuple[list[Tensor], dict[str, Tensor]]] = field(
        default_factory=dict
    )  # levels asked again
    anchors: Tensor = field(default_factory=lambda: torch.empty(0))  # scores (anchors, classes)

    def maps(self, found: Mapping[str, Tensor], i: int) -> tuple[Tensor, ...]:
        """Give the map of every level; all but one are 0."""
        label, score = int(found["labels"][i]), found["scores"][i].detach()
        row = self._row(label, found["scores"][i])
        per_cell = self.module.anchor_generator.num_anchors_per_location()
        sizes = [level[0, 0].numel() * n for level, n in zip(self.levels, per_cell, strict=True)]
        here = next(i for i in range(len(sizes)) if row < sum(sizes[: i + 1]))
        cell, anchor = divmod(row - sum(sizes[:here]), per_cell[here])
        whole = self.levels[here]
        y, x = divmod(cell, whole.shape[3])
        for reach in (_reach(self.module.head), _WHOLE):
            part, own = self._around(here, y, x, reach, anchor)
            again = self.scores(own)[0, label]
            if abs(float(again.detach()) - float(score)) <= _SAME_SCORE:
                break
        else:
            said = f"{type(self.module).__name__} scores its boxes in a way of its own"
            raise ModelError("--model", said, "torchvision's own RetinaNet, FCOS or SSD")
        (gradient,) = torch.autograd.grad(again.logit(eps=1e-12), part, retain_graph=True)
        maps = [torch.zeros_like(level[0, 0]) for level in self.levels]
        rows, columns = (slice(max(at - reach, 0), at + reach + 1) for at in (y, x))
        maps[here][rows, columns] = _channels(gradient * part.detach())
        return tuple(maps)

    def _around(self, here: int, y: int, x: int, reach: int, anchor: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Ask the heads about the cells within `reach` of one: their maps, and the outputs of the anchor."""
        top, left = max(y - reach, 0), max(x - reach, 0)
        if reach != _WHOLE or here not in self.wholes:
            own = self.levels[here][:, :, top : y + reach + 1, left : x + reach + 1].detach()
            parts = [level[:, :, :2, :2] for level in self.levels]  # of the others next to nothing
            parts[here] = own.requires_grad_()
            self.wholes[here] = parts, self.module.head(parts)
        parts, outputs = self.wholes[here] if reach == _WHOLE else self.wholes.pop(here)
        per_cell = self.module.anchor_generator.num_anchors_per_location()
        part = parts[here]
        row = ((y - top) * part.shape[3] + x - left) * per_cell[here] + anchor
        row += sum(part[0, 0].numel() * n for part, n in zip(parts[:here], per_cell, strict=False))
        return part, {name: values[:, row : row + 1].double() for name, values in outputs.items()}

    def scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Score every anchor (anchors, classes) as the network does."""
        logits = outputs["cls_logits"][0]
        if isinstance(self.module, torchvision.models.detection.ssd.SSD):
            return logits.softmax(1)
        if "bbox_ctrness" in outputs:
            return (logits.sigmoid() * outputs["bbox_ctrness"][0].sigmoid()).sqrt()
        return logits.sigmoid()

    def _row(self, label: int, score: Tensor) -> int:
        """Find the anchor of a score: by its value, and where several have it by the network's own graph."""
        same = torch.nonzero(self.anchors[:, label] == score.detach())[:, 0].tolist()
        if len(same) == 1:
            return int(same[0])
        (gradient,) = torch.autograd.grad(score, self.outputs["cls_logits"], retain_graph=True)
        return int(gradient[0].abs().sum(1).argmax())


@dataclass(slots=True)
class _Cells(_Cut):
    """A head of ultralytics: each level's cells are scored by convolutions, asked again around one cell."""

    levels: list[Tensor] = field(default_factory=list)
    scorers: Any = None

    def maps(self, found: Mapping[str, Tensor], i: int) -> tuple[Tensor, ...]:
        """Give the map of every level; all but one are 0."""
        maps = [torch.zeros_like(level[0, 0]) for level in self.levels]
        here, cell = 0, int(found["cells"][i])
        while cell >= maps[here].numel():
            cell, here = cell - maps[here].numel(), here + 1
        (y, x), scorer = divmod(cell, maps[here].shape[1]), self.scorers[here]
        reach = _reach(scorer)
        rows, columns = (slice(max(at - reach, 0), at + reach + 1) for at in (y, x))
        part = self.levels[here][:, :, rows, columns].detach().clone().requires_grad_()
        logit = scorer(part)[0, int(found["labels"][i]), y - rows.start, x - columns.start]
        if abs(float(logit.detach().sigmoid()) - float(found["scores"][i])) > _SAME_SCORE:
            raise ModelError("--model", "it scores its boxes in a way of its own", "ultralytics' own head")
        (gradient,) = torch.autograd.grad(logit, part)
        maps[here][rows, columns] = _channels(gradient * part.detach())
        return tuple(maps)


def layer_of(module: nn.Module) -> str | None:
    """Name the part whose output the boxes are read from; None of what is no detector of a known kind."""
    kinds = (torchvision.models.detection.generalized_rcnn.GeneralizedRCNN,
             torchvision.models.detection.RetinaNet, torchvision.models.detection.FCOS,
             torchvision.models.detection.ssd.SSD)  # fmt: skip
    if isinstance(module, kinds):
        return "backbone"
    if yolo.is_one(module):
        return ",".join(f"model.{i}" for i in yolo.head_of(module).f)
    if not hugging_face.is_detector(module):
        return None
    parts = dict(module.named_modules())
    if "vit.encoder.layer" in parts:
        return f"vit.encoder.layer.{len(parts['vit.encoder.layer']) - 1}"
    if "model.encoder" in parts and {"model.input_projection", "model.encoder_input_proj"} & parts.keys():
        return "model.encoder"
    raise ModelError(
        "--model", f"{type(module).__name__} is a detector of a kind that is not known",
        "torchvision's, DETR, Conditional DETR, RT-DETR, D-FINE or YOLOS",
    )  # fmt: skip


def with_trained_norms(recipe: Recipe) -> Recipe:
    """Ask for batch norms as torchvision gives them to its own weights: the first detectors add 0."""
    if recipe.task != TASK or recipe.name not in _NORMS_OF_ZERO:
        return recipe
    return replace(recipe, args={**recipe.args, "norm_eps": 0.0})


def count_classes(module: nn.Module) -> int:
    """Give the number of classes, the background that torchvision counts as class 0 included."""
    if hugging_face.is_detector(module):
        return int(module.config.num_labels)  # type: ignore[union-attr, arg-type]
    if yolo.is_one(module):
        return int(yolo.head_of(module).nc)
    heads = [part for name, part in module.named_modules() if name.endswith(("cls_score", "cls_logits"))]
    head: Any = next((part for part in heads if hasattr(part, "out_features")), None)
    found = head.out_features if head is not None else None
    for part in () if found else module.modules():
        found = getattr(part, "num_classes", None) or getattr(part, "num_columns", None) or found
    if not isinstance(found, int):
        raise ModelError("--model", "nothing tells how many classes it has", "name the head cls_score")
    return found


def canvas_side(module: nn.Module) -> int:
    """Give the longest side at which the network itself would look at an image; `SIDE` where that is smaller.

    What an archive has beyond it is lost to the network anyway.
    """
    if yolo.is_one(module):
        return max(SIDE, int(module.imgsz))  # type: ignore[arg-type]
    transform = getattr(module, "transform", None)
    fixed = getattr(transform, "fixed_size", None)
    longest = max(fixed) if fixed else getattr(transform, "max_size", 0)
    return max(SIDE, int(longest or 0))


class Detector:
    """A network of torchvision, ultralytics or transformers; of the last the fields of its processor, too."""

    def __init__(self, module: nn.Module, processor: Mapping[str, Any] | None = None) -> None:
        self.module, self.layer = module, layer_of(module)
        self._processor: Any = hugging_face.processor_of(processor) if processor else None

    def __call__(self, image: Tensor, least_score: float, most: int) -> list[Detection]:
        """Find the objects of an image, (3, H, W) in 0..1: at most `most`, the best scores first."""
        run = self._torchvision if self._processor is None else self._transformers
        run = self._ultralytics if yolo.is_one(self.module) else run
        with torch.enable_grad():
            found, cut = run(image, least_score)
            scores = found["scores"]
            order = torch.argsort(scores.detach(), descending=True, stable=True)
            kept = [i for i in order.tolist() if float(scores[i].detach()) >= least_score][:most]
            return [self._explained(found, i, cut) for i in kept]

    def _explained(self, found: Mapping[str, Tensor], i: int, cut: _Cut) -> Detection:
        """Ask for the gradient of one detection's log-odds: that of its score, which does not fade."""
        maps = cut.maps(found, i)
        x0, y0, x1, y1 = found["boxes"][i].detach().double().tolist()
        return Detection(
            (x0, y0, x1, y1), float(found["scores"][i].detach()), int(found["labels"][i]), maps, cut.part
        )

    def _torchvision(self, image: Tensor, _least: float) -> tuple[Mapping[str, Tensor], _Cut]:
        module: Any = self.module
        cut = _Cut() if hasattr(module, "roi_heads") else _Heads(module=module)

        def size(_module: nn.Module, _args: Any, out: Any) -> None:
            (height, width), whole = out[0].image_sizes[0], out[0].tensors.shape[2:]
            cut.part = ((0.0, height / whole[0]), (0.0, width / whole[1]))

        def begin(_module: nn.Module, _args: Any, out: Any) -> Any:
            if isinstance(out, Tensor):
                return cut.take(out, _channels)
            return type(out)((name, cut.take(level, _channels)) for name, level in out.items())

        parts: list[Any] = [(module.transform.register_forward_hook, size)]
        if not isinstance(cut, _Heads):
            return _by_regions(module, image, [*parts, (module.backbone.register_forward_hook, begin)]), cut

        def end(_module: nn.Module, args: Any, out: dict[str, Tensor]) -> dict[str, Tensor]:
            cut.levels, cut.outputs = args[0], {n: v.detach().requires_grad_() for n, v in out.items()}
            cut.anchors = cut.scores(out).detach()
            return cut.outputs

        with _hooked([*parts, (module.head.register_forward_hook, end)]), _InDouble():
            return module([image])[0], cut

    def _ultralytics(self, image: Tensor, least: float) -> tuple[Mapping[str, Tensor], _Cut]:
        found = yolo.find(self.module, image, least)
        cut = _Cells(part=found.part, levels=found.levels, scorers=yolo.scorers(self.module))
        named = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels, "cells": found.cells}
        return named, cut

    def _transformers(self, image: Tensor, least: float) -> tuple[Mapping[str, Tensor], _Cut]:
        pixels = (image.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        given = self._processor(images=[pixels], return_tensors="pt")
        given = {
            name: given[name].to(image.device) for name in ("pixel_values", "pixel_mask") if name in given
        }
        if self.layer is not None and self.layer.startswith("vit."):
            given.pop("pixel_mask", None)
        height, width = given["pixel_values"].shape[2:]
        cut = _Cut()
        if "pixel_mask" in given:
            mask = given["pixel_mask"][0]
            cut.part = ((0.0, float(mask[:, 0].sum()) / height), (0.0, float(mask[0].sum()) / width))
        with _hooked(_hooks_of_transformers(self.module, str(self.layer), cut, (height, width))):
            outputs = self.module(**given)
        with _InDouble():
            found = self._processor.post_process_object_detection(
                outputs, threshold=least, target_sizes=[tuple(image.shape[1:])]
            )
        return found[0], cut


_LOCAL = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Identity, nn.Dropout)


def _reach(head: nn.Module) -> int:
    """Say how many cells around a cell a head sees; very many where a part of it sees all of them."""
    ends = [part for part in head.modules() if not [*part.children()]]
    convolutions = [part for part in ends if isinstance(part, nn.Conv2d) and part.stride == (1, 1)]
    if any(not isinstance(part, (nn.Conv2d, *_LOCAL)) for part in ends):
        return _WHOLE
    return sum(max(c.dilation) * (max(c.kernel_size) // 2) for c in convolutions)


def _by_regions(module: Any, image: Tensor, parts: list[Any]) -> Mapping[str, Tensor]:
    """Find objects, then score the regions of those that were found again, with gradients for these alone.

    A thousand proposals go through the head once; a gradient through all of them would cost as much again.
    """
    heads, seen, rows = module.roi_heads, dict[str, Any](), list[int]()

    def pool(_module: nn.Module, args: Any, out: Tensor) -> Tensor:
        seen["features"], seen["proposals"], seen["shapes"] = args
        return out.detach()

    def score(_module: nn.Module, _args: Any, out: Any) -> Any:
        seen["logits"] = out[0].detach().requires_grad_()
        return seen["logits"], out[1]

    watched: list[Any] = [(heads.box_roi_pool.register_forward_hook, pool)]
    watched.append((heads.box_predictor.register_forward_hook, score))
    with _hooked([*parts, *watched]), _InDouble():
        found = dict(module([image])[0])
    for one in found["scores"]:
        (gradient,) = torch.autograd.grad(one, seen["logits"], retain_graph=True)
        rows.append(int(gradient.abs().sum(1).argmax()))
    if rows:
        regions = heads.box_roi_pool(seen["features"], [seen["proposals"][0][rows]], seen["shapes"])
        again = heads.box_predictor(heads.box_head(regions))[0].double().softmax(1)
        found["graded"] = again[torch.arange(len(rows), device=again.device), found["labels"]]
    return found


def _hooks_of_transformers(module: nn.Module, layer: str, cut: _Cut, size: tuple[int, int]) -> list[Any]:
    """Cut a network of transformers at the maps, or tokens, that its boxes are read from."""
    part, grid = module.get_submodule(layer), (0, 0)

    def of_projection(_module: nn.Module, _args: Any, out: Tensor) -> None:
        nonlocal grid
        grid = (out.shape[2], out.shape[3])

    def of_encoder(_module: nn.Module, _args: Any, out: Any) -> Any:
        last = out.last_hidden_state
        if isinstance(last, Tensor):
            out.last_hidden_state = cut.take(last, lambda product: product.sum(2).reshape(grid))
        else:
            out.last_hidden_state = [cut.take(level, _channels) for level in last]
        return out

    if layer == "model.encoder":
        projection = getattr(module.model, "input_projection", None)
        cuts: list[Any] = [(part.register_forward_hook, of_encoder)]
        return cuts + ([(projection.register_forward_hook, of_projection)] if projection is not None else [])
    config: Any = module.config
    patch = config.patch_size
    down, across = patch if isinstance(patch, list | tuple) else (patch, patch)
    rows, columns = size[0] // down, size[1] // across

    def of_tokens(_module: nn.Module, args: Any) -> Any:
        tokens = cut.take(args[0], lambda p: p[:, 1 : 1 + rows * columns].sum(2).reshape(rows, columns))
        return (tokens, *args[1:])

    return [(part.register_forward_pre_hook, of_tokens)]


def _channels(product: Tensor) -> Tensor:
    return product[0].sum(0)


@contextmanager
def _hooked(parts: list[Any]) -> Iterator[None]:
    """Watch parts of a network for one forward; `parts` are pairs of what registers a hook, and the hook."""
    handles = [register(hook) for register, hook in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _InDouble(TorchFunctionMode):
    """Gives softmax and sigmoid the gradient of float64: that of a score near 1 is more than rounding."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") not in ("softmax", "sigmoid") or not args:
            return func(*args, **(kwargs or {}))
        plain = func(*args, **(kwargs or {}))
        exact = func(args[0].double(), *args[1:], **(kwargs or {})).to(plain.dtype)
        return exact + (plain - exact).detach()  # the library's own value: ties stay ties
