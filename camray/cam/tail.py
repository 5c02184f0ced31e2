"""Run only the part of the network behind a layer, on activations of one's choice.

Flows in: model, images, a target layer. Flows out: `Tail`, whose `replay` maps altered activations of
chosen images to logits. Modules that finish before the layer are not run: for the length of a replay
they hand out what they returned before (or an empty stand-in, where a probe shows that nothing behind
the layer reads it). This works for any module tree and needs no knowledge of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from camray.cam.layout import TargetLayer
from camray.cam.split import call, first_tensor, hooks, plain, with_first


@dataclass(frozen=True)
class Tail:
    """What a replay needs. `outputs` holds, per module before the layer, what each call returned."""

    model: nn.Module
    inputs: Tensor
    layer: TargetLayer
    result: Any  # the layer's own output, one image: a tuple keeps its other members
    outputs: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    needed: frozenset[str] = frozenset()  # modules whose outputs are read behind the layer
    needs_inputs: bool = True

    def replay(self, raw: Tensor, rows: Tensor) -> Tensor:
        """Logits for activations `raw`, as a split keeps them; row i belongs to image rows[i]."""
        stubs: dict[str, Callable[..., Any]] = {
            # a copy: a ReLU in place may stand behind the layer
            self.layer.name: lambda *_, **__: with_first(self.result, self.layer.turned(raw.clone()))
        }
        for name, calls in self.outputs.items():
            stubs[name] = self._stub(name, calls, rows)
        batch = len(self.inputs)
        inputs = self.inputs[rows] if self.needs_inputs else stand_in(self.inputs, len(rows), batch)
        with stubbed(self.model, stubs):
            return call(self.model, inputs)

    def _stub(self, name: str, calls: Sequence[Any], rows: Tensor) -> Callable[..., Any]:
        queue, batch = list(calls), len(self.inputs)
        original = self.model.get_submodule(name).forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not queue:  # a module shared with the tail
                return original(*args, **kwargs)
            pick = _rows_of if name in self.needed else stand_in_rows
            return pytree.tree_map(lambda t: pick(t, rows, batch), queue.pop(0))

        return forward


def stand_in(tensor: Tensor, count: int, batch: int) -> Tensor:
    """Zeros of the right shape for `count` images that take no memory."""
    lead = tensor.shape[0] // batch * count
    return tensor.new_zeros(()).expand(lead, *tensor.shape[1:])


def stand_in_rows(value: Any, rows: Tensor, batch: int) -> Any:
    """As `_rows_of`, without the numbers."""
    return stand_in(value, len(rows), batch) if _is_batched(value, batch) else value


def _rows_of(value: Any, rows: Tensor, batch: int) -> Any:
    """Take the images `rows` of a tensor whose first dimension runs over images (times windows)."""
    if not _is_batched(value, batch):
        return value
    grouped = value.reshape(batch, -1, *value.shape[1:])
    return grouped[rows].flatten(0, 1)


def _is_batched(value: Any, batch: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.ndim > 1
        and value.shape[0] >= batch
        and not value.shape[0] % batch
    )


@contextmanager
def stubbed(model: nn.Module, stubs: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Let modules answer with something else for the length of the body, and only then."""
    modules = dict(model.named_modules())
    handles = []
    try:
        for name, stub in stubs.items():
            modules[name].__dict__["forward"] = stub
            # torch's encoder layers run as one fused call, past their modules, unless one has a hook
            handles.append(modules[name].register_forward_hook(lambda *_: None))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name in stubs:
            modules[name].__dict__.pop("forward", None)


def make_tail(model: nn.Module, inputs: Tensor, layer: TargetLayer) -> Tail:
    """Learn from two images what runs before the layer and which of it the tail reads.

    A replay of unchanged activations must give the logits of the plain forward; where it does not
    (a model that keeps state of its own), replays fall back to running everything.
    """
    model = plain(model)
    with torch.inference_mode(False), torch.no_grad():
        images = inputs.clone() if inputs.is_inference() else inputs
        one = images[:1]
        before, result, logits = record(model, one, layer)
        whole = Tail(model, images, layer, result)
        if layer.sequence_first:  # of what runs before it, the first dimension does not count images
            return whole
        small = Tail(model, one, layer, result, before, frozenset(before))
        raw = first_tensor(result)
        assert raw is not None
        row = torch.zeros(1, dtype=torch.long, device=one.device)
        try:
            needed, needs_inputs = _needed(small, raw, row)
            small = replace(small, needed=needed, needs_inputs=needs_inputs)
            same = torch.allclose(small.replay(raw, row), logits, rtol=1e-3, atol=1e-4)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
            same = False
        if not same:
            return whole
        full = record(model, images, layer, needed)[0] if needed else {}
        outputs = {n: full.get(n, calls) for n, calls in before.items()}
        # modules not needed keep the one image's record: only its shape is used
        return replace(small, inputs=images, outputs=_scale(outputs, needed, len(images)))


def _scale(
    outputs: Mapping[str, Sequence[Any]], needed: frozenset[str], batch: int
) -> dict[str, Sequence[Any]]:
    every = torch.zeros(batch, dtype=torch.long)
    return {
        n: c if n in needed else [pytree.tree_map(lambda v: stand_in_rows(v, every, 1), o) for o in c]
        for n, c in outputs.items()
    }


def record(
    model: nn.Module, inputs: Tensor, layer: TargetLayer, only: frozenset[str] | None = None
) -> tuple[dict[str, list[Any]], Any, Tensor]:
    """Record the outermost modules that finish before the layer does, the layer's output, the logits."""
    finished: dict[str, list[Any]] = {}
    result: list[Any] = []

    def catch(name: str) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if name == layer.name:
                result.append(_copy(output))
            elif not result:
                for inner in [n for n in finished if n.startswith(name + ".")]:
                    del finished[inner]  # only the outermost need a stub
                finished.setdefault(name, []).append(_copy(output))

        return hook

    names = [n for n, _ in model.named_modules() if n and (only is None or n in only or n == layer.name)]
    with hooks(model, {n: catch(n) for n in names if not n.startswith(layer.name + ".")}):
        logits = call(model, inputs)
    return finished, result[0], logits


def _copy(output: Any) -> Any:
    return pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, output)


def _needed(tail: Tail, raw: Tensor, row: Tensor) -> tuple[frozenset[str], bool]:
    """Which recorded outputs, and whether the image itself, have a gradient path to the logits."""
    leaves: dict[str, list[Tensor]] = {}

    def leaf(name: str, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            leaves.setdefault(name, []).append(value.detach().requires_grad_())
            return leaves[name][-1].clone()
        return value

    with torch.enable_grad():
        inputs = tail.inputs.detach().requires_grad_()
        outputs = {
            n: [pytree.tree_map(lambda t, n=n: leaf(n, t), o) for o in calls]
            for n, calls in tail.outputs.items()
        }
        start = raw.detach().requires_grad_()
        logits = replace(tail, inputs=inputs, outputs=outputs).replay(start, row)
        flat = [(n, t) for n, ts in leaves.items() for t in ts]
        found = torch.autograd.grad(logits.sum(), [inputs, *(t for _, t in flat)], allow_unused=True)
    needed = frozenset(n for (n, _), g in zip(flat, found[1:], strict=True) if g is not None)
    whole = {n for n, calls in tail.outputs.items() if n not in leaves}  # no float tensor: keep as is
    return needed | whole, found[0] is not None
