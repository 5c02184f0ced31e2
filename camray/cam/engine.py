"""One pass, many answers: M methods x K targets x L layers from a single forward.

Flows in: a model, images (B, 3, H, W) as the model wants them, layers, methods, targets. Flows out:
`Explanation`, raw signed maps at layer resolution. Results depend on neither batch size nor neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from camray.cam import targets as aims
from camray.cam.layers import find_target_layers, refuse_bad_weights
from camray.cam.layout import TargetLayer
from camray.cam.registry import Method, parse_method
from camray.cam.split import Split, as_found, run_split
from camray.cam.targets import TargetRule
from camray.errors import UsageError

Targets = str | TargetRule | Tensor | Sequence[str | TargetRule]


@dataclass(frozen=True)
class Explanation:
    """What one pass found. `maps` is keyed by (method as written, layer name)."""

    logits: Tensor  # (B, classes) float32
    classes: Tensor  # (B, K) int64; -1 where an image has no such class
    scores: Tensor  # (B, K) float32, the scores that were explained
    maps: Mapping[tuple[str, str], Tensor]  # (B, K, h, w) float32, raw and signed


def explain(
    model: nn.Module,
    inputs: Tensor,
    layers: Iterable[TargetLayer | str] | TargetLayer | str | None = None,
    methods: str | Iterable[str] = "gradcam",
    targets: Targets = "predicted",
    labels: Tensor | None = None,
    autocast: torch.dtype | None = None,
) -> Explanation:
    """Explain a batch. Without `layers` one is chosen by a probe; pass a `TargetLayer` to probe once."""
    wanted = [parse_method(m) for m in ([methods] if isinstance(methods, str) else methods)]
    rules = aims.as_rules(targets)
    places = _places(model, inputs, layers)
    _refuse_lengths(inputs, labels)
    with as_found(model), _precision(inputs, autocast):
        return _explain(model, inputs, places, wanted, rules, labels)


def _explain(
    model: nn.Module,
    inputs: Tensor,
    layers: Sequence[TargetLayer],
    methods: Sequence[Method],
    rules: Sequence[TargetRule],
    labels: Tensor | None,
) -> Explanation:
    differentiate = any(m.entry.needs == "gradient" for m in methods)
    split = run_split(model, inputs, layers, differentiate)
    logits = split.logits.detach().float()  # (B, classes)
    if not bool(logits.isfinite().any()):
        refuse_bad_weights(model)
    chosen = [aims.choose(rule, logits, labels) for rule in rules]
    with torch.set_grad_enabled(differentiate):
        scores = torch.cat(
            [aims.score(r, split.logits, c) for r, c in zip(rules, chosen, strict=True)], 1
        )  # (B, K)
    classes = torch.cat(chosen, 1)  # (B, K)
    maps = _gradient_maps(split, scores, [m for m in methods if m.entry.needs == "gradient"])
    return Explanation(logits, classes, scores.detach(), maps)


def _gradient_maps(split: Split, scores: Tensor, methods: Sequence[Method]) -> dict[tuple[str, str], Tensor]:
    """All gradient methods of all layers from one backward through the tail per target."""
    found: dict[tuple[str, str], list[Tensor]] = {}
    count = scores.shape[1] if methods else 0
    activations = {name: split.activation(name) for name in split.raw}
    for k in range(count):
        gradients = split.gradients(scores[:, k], keep=k + 1 < count)
        for method in methods:
            for name, G in gradients.items():
                made = method.entry.run(activations[name], G, **method.options)  # (B, h, w)
                found.setdefault((method.text, name), []).append(made)
    return {key: torch.stack(each, 1) for key, each in found.items()}  # (B, K, h, w)


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


def _refuse_lengths(inputs: Tensor, labels: Tensor | None) -> None:
    if labels is not None and len(labels) != len(inputs):
        raise UsageError("labels", f"{len(labels)} for {len(inputs)} images", "give one per image")


def _precision(inputs: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return torch.autocast(inputs.device.type, dtype) if dtype else nullcontext()
