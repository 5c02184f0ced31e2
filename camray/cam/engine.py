"""One pass, many answers: M methods x K targets x L layers from a single forward.

Flows in: a model, images (B, 3, H, W) as the model wants them, layers, methods, targets. Flows out:
`Explanation`, raw signed maps at layer resolution. Results depend on neither batch size nor neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from camray.cam.ablation import is_affine
from camray.cam.biases import BiasTerms
from camray.cam.decompositions import smoothed
from camray.cam.finish import finish
from camray.cam.layers import find_target_layers, refuse_bad_weights
from camray.cam.layout import TargetLayer
from camray.cam.registry import Method, parse_method
from camray.cam.scene import Scene
from camray.cam.split import Split, as_found, model_precision, run_split
from camray.cam.targets import Aim, TargetRule, as_rules
from camray.errors import ModelError, UsageError

Targets = str | TargetRule | Tensor | Sequence[str | TargetRule]
Maps = dict[tuple[str, str], Tensor]
FACTORS = (0.9, 1.0, 1.1)  # of the normalised image, by which `aug_smooth` alters it, as is customary


@dataclass(frozen=True)
class Explanation:
    """What one pass found. `maps` is keyed by (method as written, layer name).

    A class-free method has one map per image (K = 1; deep feature factorisation one per concept), a
    method that differentiates pixels has maps of the image's size. `notes` says what a reader must know.
    """

    logits: Tensor  # (B, classes) float32
    classes: Tensor  # (B, K) int64; -1 where an image has no such class
    scores: Tensor  # (B, K) float32, the scores that were explained
    maps: Mapping[tuple[str, str], Tensor]  # (B, K, h, w) float32, raw and signed
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """What is asked of a batch of images."""

    layers: Sequence[TargetLayer]
    methods: Sequence[Method]
    rules: Sequence[TargetRule]
    labels: Tensor | None  # (B,)
    chunk: int
    aim: Aim | None = None  # the classes, where they were settled on other images

    def of(self, rows: slice) -> Request:
        """Ask the same of a part of the batch, in smaller chunks."""
        rules = [r if r.select != "given" or r.tensor is None else replace(r, tensor=r.tensor[rows])
                 for r in self.rules]  # fmt: skip
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, rules=rules, labels=labels, chunk=max(1, self.chunk // 2))


def explain(
    model: nn.Module,
    inputs: Tensor,
    layers: Iterable[TargetLayer | str] | TargetLayer | str | None = None,
    methods: str | Method | Iterable[str | Method] = "gradcam",
    targets: Targets = "predicted",
    labels: Tensor | None = None,
    autocast: torch.dtype | None = None,
    chunk: int = 64,
) -> Explanation:
    """Explain a batch of images (B, 3, H, W).

    Without `layers` one is chosen by a probe; pass a `TargetLayer` to probe once. `chunk` bounds how
    many altered images a perturbation method runs at once. When the device runs out of memory the
    batch is halved, and the halves explained one after the other.
    """
    asked = [methods] if isinstance(methods, str | Method) else methods
    parsed = [parse_method(m) if isinstance(m, str) else m for m in asked]
    request = Request(_places(model, inputs, layers), parsed, as_rules(targets), labels, chunk)
    if labels is not None and len(labels) != len(inputs):
        raise UsageError("labels", f"{len(labels)} for {len(inputs)} images", "give one per image")
    notes = _notes(request)
    with as_found(model), model_precision(inputs.device.type, autocast):
        return replace(_within_memory(model, inputs, request), notes=notes)


def _within_memory(model: nn.Module, inputs: Tensor, request: Request) -> Explanation:
    try:
        return _explain(model, inputs, request)
    except torch.OutOfMemoryError:
        if len(inputs) < 2:
            raise
    if inputs.is_cuda:  # here, and not above, the frames that hold the memory are gone
        torch.cuda.empty_cache()
    half = len(inputs) // 2
    halves = (slice(0, half), slice(half, None))
    return _joined([_within_memory(model, inputs[rows], request.of(rows)) for rows in halves])


def _explain(model: nn.Module, inputs: Tensor, request: Request) -> Explanation:
    """Make all maps from one forward; what averages views adds a forward and more for each view."""
    methods = [m for m in request.methods if not m.averages_views]
    biases = BiasTerms(model) if any(m.entry.biases for m in methods) else None
    differentiate = any(m.entry.needs in ("gradient", "layers") or m.entry.graph for m in methods)
    split = run_split(model, inputs, request.layers, differentiate, biases.watch if biases else None)
    logits = split.logits.detach().float()  # (B, classes)
    if not bool(logits.isfinite().any()):
        refuse_bad_weights(model)
    aim = request.aim or Aim.settle(request.rules, logits, request.labels)
    with torch.inference_mode(False), torch.enable_grad():
        scores = aim.scores(split.logits)  # (B, K)
        scenes = [Scene(model, inputs, layer, split, aim, request.chunk, biases) for layer in request.layers]
        maps = gradient_maps(split, scores, methods)
        for method in methods:
            for scene in scenes:
                maps |= _scene_maps(scene, method)
    for method in request.methods:
        for layer in request.layers if method.averages_views else ():
            one = replace(request, layers=[layer], methods=[method.of_one_view()], aim=aim)
            maps[method.text, layer.name] = _mean_of_views(model, inputs, one)
    return Explanation(logits, aim.classes, scores.detach(), maps)


def gradient_maps(split: Split, scores: Tensor, methods: Sequence[Method]) -> Maps:
    """All formulas in A and G, of all layers, one backward through the tail a column of scores."""
    found: dict[tuple[str, str], list[Tensor]] = {}
    methods = [m for m in methods if m.entry.needs in ("gradient", "layers")]
    activations = {name: split.activation(name) for name in split.raw}
    for score in scores.unbind(1) if methods else ():
        gradients = split.gradients(score)
        for method in methods:
            if method.entry.needs == "layers":
                key = (method.text, "+".join(gradients))
                found.setdefault(key, []).append(_run(method, activations, gradients))
                continue
            for name, G in gradients.items():
                found.setdefault((method.text, name), []).append(_run(method, activations[name], G))
    return {key: torch.stack(each, 1) for key, each in found.items()}  # (B, K, h, w)


def _scene_maps(scene: Scene, method: Method) -> Maps:
    """Run a method that is no formula in A and G; check the head for one that needs it affine."""
    if method.entry.affine:
        _refuse_curved_head(scene, method)
    if method.entry.needs == "activation":
        made = _run(method, scene.A)
        return {(method.text, scene.layer.name): made if made.ndim == 4 else made[:, None]}
    if method.entry.needs == "scene":
        return {(method.text, scene.layer.name): _run(method, scene).detach()}
    return {}


def _run(method: Method, *given: Any) -> Tensor:
    options = dict(method.options)
    if options.pop("eigen_smooth", False):
        options["combine"] = smoothed
    made: Tensor = method.entry.run(*given, **options)
    return made


def _mean_of_views(model: nn.Module, inputs: Tensor, request: Request) -> Tensor:
    """Average the maps in [0, 1] of six views: plain and mirrored, each times 0.9, 1 and 1.1, (B, K, H, W).

    Every view explains the classes of the unaltered images. The mean is not stretched to 1 again.
    """
    size = (inputs.shape[2], inputs.shape[3])

    def finished(view: Tensor) -> Tensor:
        (maps,) = _explain(model, view, request).maps.values()
        return finish(maps, size)

    total = torch.zeros((), device=inputs.device)
    for factor in FACTORS:
        view = inputs * factor
        total = total + finished(view) + finished(view.flip(3)).flip(3)
    return total / (2 * len(FACTORS))


def _refuse_curved_head(scene: Scene, method: Method) -> None:
    spread = 0.0
    if is_affine(scene.tail):
        G = scene.gradient(scene.scores[:, 0])
        spread = float((G - G.mean((2, 3), keepdim=True)).abs().max() / (G.abs().max() + 1e-30))
        if spread < 1e-3:
            return
    why = "weighs positions unequally" if spread else "is not linear in this layer"
    raise ModelError(
        "method", f"{method.name} needs a head that averages and is linear; this one {why}", "gradcam"
    )


def _notes(request: Request) -> tuple[str, ...]:
    """Say which methods explain no class; refuse a target when none of them does."""
    free = [m.text for m in request.methods if not m.entry.per_class]
    asked = any(rule != TargetRule() for rule in request.rules)
    if asked and free and len(free) == len(request.methods):
        raise UsageError(
            "targets", f"{', '.join(free)} explains no class", "leave targets out, or use gradcam"
        )
    return tuple(f"{name} explains no class: one result per image, whatever the target" for name in free)


def _joined(parts: Sequence[Explanation]) -> Explanation:
    """Join parts of a batch; a part with fewer classes an image is filled up with -1 and with zeros."""
    width = max(p.classes.shape[1] for p in parts)

    def join(tensors: Sequence[Tensor], empty: float = 0.0) -> Tensor:
        return torch.cat([_widen(t, width, empty) for t in tensors])

    maps = {}
    for key in parts[0].maps:
        own = [p.maps[key] for p in parts]
        by_class = all(m.shape[1] == p.classes.shape[1] for m, p in zip(own, parts, strict=True))
        maps[key] = join(own) if by_class else torch.cat(own)
    logits = torch.cat([p.logits for p in parts])
    return Explanation(logits, join([p.classes for p in parts], -1), join([p.scores for p in parts]), maps)


def _widen(tensor: Tensor, width: int, empty: float) -> Tensor:
    more = tensor.new_full((len(tensor), width - tensor.shape[1], *tensor.shape[2:]), empty)
    return torch.cat([tensor, more], 1)


def _places(
    model: nn.Module, inputs: Tensor, layers: Iterable[TargetLayer | str] | TargetLayer | str | None
) -> list[TargetLayer]:
    if inputs.ndim != 4:
        raise UsageError("inputs", f"shape {tuple(inputs.shape)}", "a batch (B, channels, H, W)")
    channels, rows, columns = inputs.shape[1:]
    size = (channels, rows, columns)
    if layers is None:
        return find_target_layers(model, size)
    items = [layers] if isinstance(layers, (str, TargetLayer)) else list(layers)
    out: list[TargetLayer] = []
    for item in items:
        out += find_target_layers(model, size, item) if isinstance(item, str) else [item]
    if len({layer.name for layer in out}) < len(out):
        raise UsageError("layers", "one layer is asked for twice", "name each layer once")
    return out
