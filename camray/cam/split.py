"""One forward pass, split at the target layers: no graph before, a graph only after.

Flows in: model, images, layers. Flows out: `Split`: logits, the activations A of each layer, and
gradients dS/dA of any score S through the part of the network behind the layer (the tail). Parameters
need no gradient; callers may sit inside `no_grad` or `inference_mode`; the model is left as found.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from camray.cam.layout import TargetLayer
from camray.errors import ModelError

FP16_SCALE = 1024.0  # keeps gradients of a mean over 7*7 cells above fp16's smallest normal, 6e-5
SPARSE = 0.25  # share of rows with a gradient up to which gathering them pays

_PRECISION: ContextVar[tuple[str, torch.dtype] | None] = ContextVar("precision", default=None)


@contextmanager
def model_precision(device: str, dtype: torch.dtype | None) -> Iterator[None]:
    """Let the model run under autocast to `dtype` (or as the caller's autocast says), and only it.

    Everything else in the body is float32: a matrix product of a method must not be rounded to bf16.
    """
    if dtype is None and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    token = _PRECISION.set((device, dtype) if dtype else None)
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        _PRECISION.reset(token)


def precision() -> AbstractContextManager[object]:
    """Autocast, where the model runs under it: to be entered around calls of the model or parts of it."""
    chosen = _PRECISION.get()
    return torch.autocast(*chosen) if chosen else nullcontext()


def asked_precision() -> torch.dtype | None:
    """Give the type that the model is asked to be cast to; None: as it is."""
    chosen = _PRECISION.get()
    return chosen[1] if chosen else None


def call(model: nn.Module, images: Tensor) -> Tensor:
    """Run the model as it is to be run: logits (B, classes)."""
    with precision():
        return read_logits(plain(model)(images))


@dataclass(frozen=True)
class Split:
    """The outcome of one forward. `raw` holds each layer's output in the layer's own layout."""

    logits: Tensor  # (B, classes), in the model's dtype, with a graph back to `raw`
    raw: Mapping[str, Tensor]
    layers: Mapping[str, TargetLayer]
    images: Tensor | None = None  # the input, where the graph starts there

    def activation(self, name: str) -> Tensor:
        """Return A, the layer's output as float32 maps."""
        return self.layers[name].to_maps(self.raw[name].detach()).float()  # (B, C, h, w)

    def gradients(self, score: Tensor, keep: bool = True) -> dict[str, Tensor]:
        """G = dS/dA of every layer, float32 maps, from one backward through the tail.

        Scores of different images do not interact in evaluation mode, so summing them loses nothing.
        """
        names = list(self.raw)
        scale = FP16_SCALE if self.logits.dtype == torch.float16 else 1.0
        found = torch.autograd.grad(
            score.sum() * scale, [self.raw[n] for n in names], retain_graph=keep, allow_unused=True
        )
        out = {}
        for name, gradient in zip(names, found, strict=True):
            if gradient is None:
                raise ModelError(
                    "layer",
                    f"the score does not depend on {name}",
                    "choose a layer before the head",
                )
            out[name] = self.layers[name].to_maps(gradient).float() / scale  # (B, C, h, w)
        return out


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Hold the model in evaluation mode, frozen; afterwards both are exactly as before.

    Freezing spares the graph of the tail the copies it would keep for weight gradients. A model that
    is already frozen and in evaluation mode is not touched, so threads may share it.
    """
    training = [m for m in model.modules() if m.training]
    learning = [p for p in model.parameters() if p.requires_grad]
    try:
        for module in training:
            module.training = False
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in learning:
            parameter.requires_grad_(True)


def plain(model: nn.Module) -> nn.Module:
    """Unwrap the module behind `torch.compile`, whose traces ignore hooks set after the first call."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def pick_output(output: Any, name: str | None = None) -> Any:
    """Find the logits in what a classifier returns, (B, classes) or (B, classes, 1, 1).

    Of several tensors the one called `name` (a key, or an index), else the one called logits, else the only
    one whose shape could be that of class scores. What is not a tensor is left out.

    Raises:
        ModelError: several could be, or there is no such name.
    """
    if isinstance(output, Tensor) and name is None:
        return output
    found = _tensors(output)
    shapes = ", ".join(f"{n or 'its output'} {tuple(t.shape)}" for n, t in found.items())
    if name is not None:
        if name not in found:
            raise ModelError("--output", f"the network has no output {name!r}, but {shapes}", "name one")
        return found[name]
    if "logits" in found:
        return found["logits"]
    flat = {n: t for n, t in found.items() if t.ndim and t.is_floating_point() and not any(
        size != 1 for size in t.shape[2:])}  # fmt: skip
    if len(flat) > 1 or (len(found) > 1 and not flat):
        what = "several outputs that could be class scores" if flat else "several outputs, none class scores"
        fix = "--output NAME or INDEX"
        if any(n.endswith("boxes") for n in found):
            fix += "; of detectors those of torchvision and transformers are known"
        elif not flat:
            fix += "; where each pixel has a class, --task segmentation"
        raise ModelError("--output", f"the network has {what}: {shapes}", fix)
    return next(iter((flat or found).values()), None if not found and _is_nest(output) else output)


def _is_nest(output: Any) -> bool:
    return isinstance(output, Mapping | tuple | list)


def _tensors(output: Any) -> dict[str, Tensor]:
    """Name every tensor of nested outputs by its keys, fields or indices: `heads.0`."""
    if isinstance(output, Tensor):
        return {"": output}
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(output, Mapping):
        items = output.items()
    elif isinstance(output, tuple | list):
        items = zip(getattr(output, "_fields", range(len(output))), output, strict=True)
    elif hasattr(output, "__dict__"):
        items = vars(output).items()
    nested = ((str(key), _tensors(value)) for key, value in items)
    return {f"{key}.{inner}".rstrip("."): t for key, own in nested for inner, t in own.items()}


def read_logits(output: Any) -> Tensor:
    """Find the logits (B, classes) in what a classifier returns; anything of another shape is refused."""
    output = pick_output(output)
    if isinstance(output, Tensor) and output.ndim == 1:
        output = output[:, None]
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError("model", f"it returns {shape}, not logits (B, classes)", "use a classifier")
    return output


def first_tensor(output: Any) -> Tensor | None:
    """Pick the tensor that carries the maps in a module's output (itself, or first of a tuple).

    None of maps of several sizes, as an encoder gives them: the first, the finest, would not stand for all.
    """
    if isinstance(output, (tuple, list)) and output:
        if len({t.shape[2:] for t in output if isinstance(t, Tensor) and t.ndim == 4}) > 1:
            return None
        output = output[0]
    return output if isinstance(output, Tensor) else None


def with_first(output: Any, tensor: Tensor) -> Any:
    """Rebuild the output with its maps replaced."""
    if isinstance(output, (tuple, list)):
        return type(output)([tensor, *output[1:]])
    return tensor


@contextmanager
def hooks(model: nn.Module, found: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Forward hooks by module name, for the body only and for this thread only."""
    modules, owner, handles = dict(model.named_modules()), threading.get_ident(), []

    def mine(hook: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: hook(*args) if threading.get_ident() == owner else None

    try:
        for name, hook in found.items():
            handles.append(modules[name].register_forward_hook(mine(hook)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_split(
    model: nn.Module,
    inputs: Tensor,
    layers: Sequence[TargetLayer],
    differentiate: bool = True,
    watch: Mapping[str, Callable[..., Any]] | None = None,
) -> Split:
    """Run the model once; the graph starts at the first target layer reached, or at the input to `watch`.

    The hook detaches the layer's output into a leaf and passes a copy on, so that an in-place ReLU
    behind the layer cannot overwrite A. Layers further on keep their place in the same graph.
    `watch`: further forward hooks by module name, for methods that differentiate the whole network.
    """
    choose = None if watch else getattr(model, "compiled_for", None)
    model = (choose(inputs, layers) if choose else None) or plain(model)
    known = dict(model.named_modules())
    for layer in layers:
        if layer.name not in known:
            raise ModelError("layer", f"there is no {layer.name!r} in this model", "see its layers")
    raw: dict[str, Tensor] = {}
    skip = SkipZeroRows()

    def catch(layer: TargetLayer) -> Callable[..., Any]:
        name = layer.name

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            tensor = first_tensor(output)
            if tensor is None:
                raise ModelError("layer", f"{name} returns no tensor", "choose a layer that does")
            if name in raw:
                raise ModelError("layer", f"{name} runs twice in one forward", "choose another layer")
            tensor = layer.turned(tensor)
            if not differentiate:
                raw[name] = tensor.clone()
                return None
            skip.active = True
            torch.set_grad_enabled(True)  # a no_grad() of the model's own around the layer hides nothing
            leaf = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
            raw[name] = leaf
            return with_first(output, layer.turned(leaf.clone()))

        return hook

    # Nothing in front of the layer requires a gradient, so no graph is made there.
    with torch.inference_mode(False), torch.set_grad_enabled(differentiate or watch is not None):
        images = inputs.clone() if inputs.is_inference() else inputs
        if watch is not None:
            images = inputs.detach().clone().requires_grad_()
        tokens = differentiate and any(layer.prefix for layer in layers)
        with (
            hooks(model, watch or {}),
            hooks(model, {layer.name: catch(layer) for layer in layers}),
            skip if tokens else nullcontext(),
        ):
            logits = call(model, images)
    for layer in layers:
        if layer.name not in raw:
            raise ModelError("layer", f"{layer.name} never runs", "see the layers of this model")
    if differentiate and layers and not logits.requires_grad:
        raise ModelError("layer", f"the score does not depend on {layers[0].name}", "choose another")
    by_name = {layer.name: layer for layer in layers}
    return Split(logits, raw, by_name, images if watch is not None else None)


class SkipZeroRows(TorchFunctionMode):
    """While `active`, linear layers and fused attentions on token sequences skip rows without gradient.

    A vision transformer read out by its class token has, behind its last attention, a gradient at one token
    of 197; the other rows are exactly zero and stay so through a linear layer. Skipping them changes no
    number, and for ViT-S/16 the gradient of one more class costs 3 % of a forward instead of 9 %.
    """

    def __init__(self) -> None:
        super().__init__()
        self.active = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.active and torch.is_grad_enabled():
            if func is F.linear and not kwargs and _frozen_tokens(*args):
                return _Linear.apply(*args, *(None,) * (3 - len(args)))
            if func is F.scaled_dot_product_attention and _plain_attention(args, kwargs):
                scale = kwargs.get("scale") or 1 / math.sqrt(args[0].shape[-1])
                return _Attention.apply(*args[:3], scale)
        return func(*args, **kwargs)


def _frozen_tokens(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    learning = weight.requires_grad or (bias is not None and bias.requires_grad)
    return x.ndim == 3 and x.requires_grad and not learning


def _plain_attention(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    extra = any(kwargs.get(k) for k in ("is_causal", "enable_gqa", "dropout_p"))
    return len(args) == 3 and kwargs.get("attn_mask") is None and not extra and args[0].ndim == 4


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        g = gradients[0]  # (B, N, out)
        weight = weight.to(g.dtype)
        flat = g.reshape(-1, g.shape[-1])
        rows = flat.any(1).nonzero().squeeze(1)
        if len(rows) > SPARSE * len(flat):
            return (g @ weight).to(ctx.dtype), None, None
        found = flat.new_zeros(len(flat), weight.shape[1]).index_copy(0, rows, flat[rows] @ weight)
        return found.view(*g.shape[:-1], -1).to(ctx.dtype), None, None


class _Attention(torch.autograd.Function):
    """softmax(q k^T scale) v whose backward recomputes only the queries that have a gradient."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        return F.scaled_dot_product_attention(query, key, value, scale=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors  # (B, heads, N, d)
        g = gradients[0].to(query.dtype)
        rows = g.any(3).any(0).any(0).nonzero().squeeze(1)
        q, g = query[:, :, rows], g[:, :, rows]  # (B, heads, n, d)
        p = (q @ key.transpose(2, 3) * ctx.scale).softmax(-1)  # (B, heads, n, N)
        to_p = g @ value.transpose(2, 3)
        to_logits = p * (to_p - (to_p * p).sum(-1, keepdim=True)) * ctx.scale
        to_query = torch.zeros_like(query).index_copy(2, rows, to_logits @ key)
        return to_query, to_logits.transpose(2, 3) @ q, p.transpose(2, 3) @ g, None
