"""One pass, many answers: M methods x K targets x L layers from a single forward.

Flows in: a model, images (B, 3, H, W) as the model wants them, layers, methods, targets. Flows out:
`Explanation`, raw signed maps at layer resolution. Results depend on neither batch size nor neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from camray.cam import targets as aims
from camray.cam.ablation import is_affine
from camray.cam.biases import BiasTerms
from camray.cam.contrast import refinecam
from camray.cam.decompositions import smoothed
from camray.cam.layers import find_target_layers, refuse_bad_weights
from camray.cam.layout import TargetLayer
from camray.cam.registry import Method, parse_method
from camray.cam.scene import Scene
from camray.cam.smooth import average_views
from camray.cam.split import Split, as_found, model_precision, run_split
from camray.cam.targets import TargetRule
from camray.errors import ModelError, UsageError

Targets = str | TargetRule | Tensor | Sequence[str | TargetRule]


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


def explain(
    model: nn.Module,
    inputs: Tensor,
    layers: Iterable[TargetLayer | str] | TargetLayer | str | None = None,
    methods: str | Iterable[str] = "gradcam",
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
    wanted = [parse_method(m) for m in ([methods] if isinstance(methods, str) else methods)]
    rules = aims.as_rules(targets)
    places = _places(model, inputs, layers)
    if labels is not None and len(labels) != len(inputs):
        raise UsageError("labels", f"{len(labels)} for {len(inputs)} images", "give one per image")
    notes = _notes(wanted, rules)
    with as_found(model), model_precision(inputs.device.type, autocast):
        try:
            return _explain(model, inputs, places, wanted, rules, labels, chunk, notes)
        except torch.OutOfMemoryError:
            if len(inputs) < 2:
                raise
    return _in_halves(model, inputs, places, wanted, rules, labels, autocast, chunk)


def _explain(
    model: nn.Module,
    inputs: Tensor,
    layers: Sequence[TargetLayer],
    methods: Sequence[Method],
    rules: Sequence[TargetRule],
    labels: Tensor | None,
    chunk: int,
    notes: tuple[str, ...],
    aim: aims.Aim | None = None,
) -> Explanation:
    averaged = [m for m in methods if m.options.get("aug_smooth")]
    methods = [m for m in methods if m not in averaged]
    differentiate = any(m.entry.needs == "gradient" or m.entry.graph for m in methods)
    biases = BiasTerms(model) if any(m.entry.biases for m in methods) else None
    split = run_split(model, inputs, layers, differentiate, biases.watch if biases else None)
    logits = split.logits.detach().float()  # (B, classes)
    if not bool(logits.isfinite().any()):
        refuse_bad_weights(model)
    aim = aim or aims.Aim.settle(rules, logits, labels)
    with torch.inference_mode(False), torch.enable_grad():
        scores = aim.scores(split.logits)  # (B, K)
        scenes = [Scene(model, inputs, layer, split, aim, chunk, biases) for layer in layers]
        maps = _gradient_maps(split, scores, [m for m in methods if m.entry.needs == "gradient"])
        for method in methods:
            for scene in scenes:
                if method.entry.affine:
                    _refuse_curved_head(scene, method)
                if method.entry.needs == "activation":
                    found = method.entry.run(scene.A, **method.options)
                    maps[method.text, scene.layer.name] = found if found.ndim == 4 else found[:, None]
                elif method.entry.needs == "scene":
                    maps[method.text, scene.layer.name] = method.entry.run(scene, **method.options).detach()
    for method in averaged:  # every view explains the classes of the unaltered images
        plain = replace(method, options={k: v for k, v in method.options.items() if k != "aug_smooth"})
        for layer in layers:

            def raw_maps(view: Tensor, layer: TargetLayer = layer, plain: Method = plain) -> Tensor:
                found = _explain(model, view, [layer], [plain], rules, labels, chunk, (), aim)
                return found.maps[plain.text, layer.name]

            maps[method.text, layer.name] = average_views(inputs, raw_maps)
    return Explanation(logits, aim.classes, scores.detach(), maps, notes)


def _gradient_maps(split: Split, scores: Tensor, methods: Sequence[Method]) -> dict[tuple[str, str], Tensor]:
    """All gradient methods of all layers from one backward through the tail per target."""
    found: dict[tuple[str, str], list[Tensor]] = {}
    activations = {name: split.activation(name) for name in split.raw}
    for score in scores.unbind(1) if methods else ():
        gradients = split.gradients(score)
        for method in methods:
            if method.name == "refinecam":
                key = (method.text, "+".join(gradients))
                found.setdefault(key, []).append(refinecam(activations, gradients, **method.options))
                continue
            for name, G in gradients.items():
                made = _apply(method, activations[name], G)  # (B, h, w)
                found.setdefault((method.text, name), []).append(made)
    return {key: torch.stack(each, 1) for key, each in found.items()}  # (B, K, h, w)


def _apply(method: Method, A: Tensor, G: Tensor) -> Tensor:
    options = dict(method.options)
    if options.pop("eigen_smooth", False):
        options["combine"] = smoothed
    made: Tensor = method.entry.run(A, G, **options)
    return made


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


def _notes(methods: Sequence[Method], rules: Sequence[TargetRule]) -> tuple[str, ...]:
    """Say which methods explain no class; refuse a target when none of them does."""
    free = [m.text for m in methods if not m.entry.per_class]
    asked = any(rule != TargetRule() for rule in rules)
    if asked and free and len(free) == len(methods):
        raise UsageError(
            "targets", f"{', '.join(free)} explains no class", "leave targets out, or use gradcam"
        )
    return tuple(f"{name} explains no class: one result per image, whatever the target" for name in free)


def _in_halves(
    model: nn.Module,
    inputs: Tensor,
    layers: Sequence[TargetLayer],
    methods: Sequence[Method],
    rules: Sequence[TargetRule],
    labels: Tensor | None,
    autocast: torch.dtype | None,
    chunk: int,
) -> Explanation:
    if inputs.is_cuda:
        torch.cuda.empty_cache()
    half = len(inputs) // 2
    parts = []
    for rows in (slice(0, half), slice(half, None)):
        own = [
            r if r.select != "given" or r.tensor is None else replace(r, tensor=r.tensor[rows]) for r in rules
        ]
        names = [m.text for m in methods]
        own_labels = None if labels is None else labels[rows]
        parts.append(
            explain(model, inputs[rows], layers, names, own, own_labels, autocast, max(1, chunk // 2))
        )
    width = max(p.classes.shape[1] for p in parts)

    def join(tensors: Sequence[Tensor], empty: float = 0.0) -> Tensor:
        return torch.cat([_widen(t, width, empty) for t in tensors])

    keys = parts[0].maps.keys()
    return Explanation(
        torch.cat([p.logits for p in parts]),
        join([p.classes for p in parts], -1),
        join([p.scores for p in parts]),
        {
            k: join([p.maps[k] for p in parts])
            if _widens(k, parts)
            else torch.cat([p.maps[k] for p in parts])
            for k in keys
        },
        parts[0].notes,
    )


def _widens(key: tuple[str, str], parts: Sequence[Explanation]) -> bool:
    return all(p.maps[key].shape[1] == p.classes.shape[1] for p in parts)


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
