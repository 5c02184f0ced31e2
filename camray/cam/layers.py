"""Which layer to look at: every layer of a model with its shape, and the one a probe chooses.

Flows in: a model and its input size. Flows out: `TargetLayer`. A probe runs the model once, forward and
backward, on noise, and keeps what each module returned. What has tokens is proved: stripes of the image are
changed, and positions count as places only where what moves lies there (`camray.cam.places`). The choice is
the last spatial map in execution order whose gradient reaches the score. In a ViT read out by its class
token this is the normalised input of the last attention: after it, patch tokens no longer influence the
score and get no gradient.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from camray.cam.layout import Layout, Size, TargetLayer, is_map_of, read_layout
from camray.cam.places import SEEN, Moves, watch_moves
from camray.cam.split import as_found, first_tensor, hooks, plain, read_logits, with_first
from camray.errors import ModelError

# Class attention (CaiT, XCiT, VOLO) reads patches into a class token; the map is the block before it.
_CLASS_ATTENTION = re.compile(r"Class(Attn|Attention|Block)")
_ATTENTION = re.compile(r"Attn|Attention")
_MOVED = "what changes there moves others"
UNREAD = "has tokens that are no places of the image in their order"
_NOT_A_MAP = (nn.Linear, nn.Dropout, nn.Identity)  # q, k, v and dropout inside an attention; no-ops


@dataclass(frozen=True)
class LayerInfo:
    """One module as the probe saw it. `problem` says why it cannot be a target; empty when it can."""

    name: str
    type: str
    shape: tuple[int, ...]  # of the output, batch first; empty when it returns no tensor
    layer: TargetLayer | None
    problem: str
    chosen: bool = False

    @property
    def usable(self) -> bool:
        """Whether it can be a target layer."""
        return not self.problem


def find_target_layer(
    model: nn.Module,
    input_size: tuple[int, int, int] = (3, 224, 224),
    name: str | None = None,
    grid: Size | None = None,
    prefix: int | None = None,
    within: str = "",
) -> TargetLayer:
    """Find the layer for this model, or check the named one, by a probe; `within`: choose in this part."""
    found = find_target_layers(model, input_size, name, grid, prefix, within)
    if len(found) > 1:
        raise ModelError("layer", f"{name!r} matches {len(found)} layers", "name one, or ask for several")
    return found[0]


def find_target_layers(
    model: nn.Module,
    input_size: tuple[int, int, int] = (3, 224, 224),
    pattern: str | None = None,
    grid: Size | None = None,
    prefix: int | None = None,
    within: str = "",
) -> list[TargetLayer]:
    """As `find_target_layer`, for a pattern such as `layer*` or names joined by commas."""
    infos = list_layers(model, input_size, grid, prefix, within)
    if pattern is None:
        chosen = [info.layer for info in infos if info.chosen and info.layer]
        if not chosen:
            raise ModelError("layer", f"no layer of {type(plain(model)).__name__} can carry a map: "
                             f"{_why_none(infos)}", _way_on(infos))  # fmt: skip
        return chosen
    by_name = {info.name: info for info in infos}
    out: list[TargetLayer] = []
    for part in pattern.split(","):
        names = fnmatch.filter(by_name, part) if set(part) & set("*?[") else [part]
        usable = [n for n in names if n in by_name and by_name[n].usable]
        for n in usable if len(names) > 1 else names:
            out.append(_checked(plain(model), by_name, n))
        if not names:
            raise ModelError("layer", f"nothing matches {part!r}", _works(by_name))
    return out


def _checked(model: nn.Module, infos: Mapping[str, LayerInfo], name: str) -> TargetLayer:
    name = resolve_name(model, name, _works(infos))
    if name not in infos:
        raise ModelError("layer", f"{name} never runs", _works(infos))
    info = infos[name]
    if info.problem or info.layer is None:
        raise ModelError("layer", f"{name} cannot be explained: {info.problem}", _works(infos))
    return replace(info.layer, reason="named by the user")


def _works(infos: Mapping[str, LayerInfo]) -> str:
    good = [n for n, info in infos.items() if info.usable and not isinstance(info.layer, type(None))]
    best = [n for n, info in infos.items() if info.chosen]
    near = list(dict.fromkeys(best + [n for n in good if n.count(".") <= 1][-6:]))
    return f"choose one that works: {', '.join(near)}" if near else "no layer of this model works"


def _why_none(infos: list[LayerInfo]) -> str:
    reasons = [info.problem for info in infos if info.problem and (info.shape or "times" in info.problem)]
    if not reasons:
        return "nothing inside it depends on the image by a gradient" if infos else "it has no inner module"
    often = max(set(reasons), key=reasons.count)
    whole = next((i for i in infos if i.problem == often and "." not in i.name and "times" in often), None)
    if whole is None:
        return often
    return (
        f"{whole.name}, a {whole.type}, runs {often.split()[2]} times in one forward, each with its own map"
    )


def _way_on(infos: list[LayerInfo]) -> str:
    if any("times" in info.problem for info in infos):
        return "give the network inside (file.py:Class of it); METHOD(aug_smooth=True) averages over views"
    return "name a layer, or use another model"


def resolve_name(model: nn.Module, name: str, fix: str = "see the layers of this model") -> str:
    """Make negative indices of a dotted name positive: `blocks.-1.norm1` -> `blocks.11.norm1`."""
    module, done = model, list[str]()
    for written in name.split("."):
        children = list(dict(module.named_children()))
        back = int(written) if written[:1] == "-" and written[1:].isdigit() else 0
        part = children[back] if 0 < -back <= len(children) else written
        if part not in children:
            where = ".".join(done) or "the model"
            raise ModelError("layer", f"{name!r}: {where} has no {part!r}", fix)
        module, done = module.get_submodule(part), [*done, part]
    return ".".join(done)


def list_layers(
    model: nn.Module,
    input_size: tuple[int, int, int] = (3, 224, 224),
    grid: Size | None = None,
    prefix: int | None = None,
    within: str = "",
) -> list[LayerInfo]:
    """Every module that ran, in the order they finished, with the chosen one marked, a part of `within`.

    `grid`, `prefix`: how tokens are to be read, where the user knows; else it is proved.
    """
    inner = plain(model)
    with as_found(inner):
        outputs, runs, gradients = _probe(inner, input_size)
        proof = any(o.ndim == 3 and runs[n] == 1 for n, o in outputs.items())
        moves = watch_moves(inner, input_size) if proof else None
    reader = _Reader(inner, input_size[1:], moves, grid, prefix)
    infos = [_describe(inner, name, outputs.get(name), runs[name], gradients, reader) for name in runs]
    choice = _choose(inner, [i for i in infos if f"{i.name}.".startswith(within)], outputs)
    return [replace(i, chosen=True, layer=choice) if choice and i.name == choice.name else i for i in infos]


class _Reader:
    """Reads outputs as maps, in the order they ran: of sequences the first of a length shows best."""

    def __init__(
        self, model: nn.Module, size: Size, moves: Mapping[str, Moves] | None,
        grid: Size | None, prefix: int | None,
    ) -> None:  # fmt: skip
        self.size, self._moves, self._grid, self._asked = size, moves, grid, prefix
        self._hint = int(getattr(model, "num_prefix_tokens", 0) or 0)
        self._prefer: Layout = "nhwc" if str(getattr(model, "output_fmt", "")).endswith("NHWC") else "nchw"
        self._known: dict[int, list[TargetLayer]] = {}
        tokens = [m.moved["tokens"] for m in (moves or {}).values() if "tokens" in m.moved]
        self._lengths = {t.shape[1] for t in tokens}

    def read(self, name: str, shape: tuple[int, ...]) -> tuple[TargetLayer | None, str]:
        """Give the reading of an output of this shape, or why there is none."""
        no_map = f"its output {shape} is no spatial map of a {self.size[0]} x {self.size[1]} image"
        if self._moves is None or len(shape) not in (3, 4):
            layer = read_layout(name, shape, self.size, self._hint, self._prefer)
            return layer, "" if layer else no_map
        moves = self._moves.get(name)
        if moves is None:
            return None, f"its first dimension, {shape[0]}, counts parts of an image, not images"
        if len(shape) == 4:
            shapes: dict[Layout, tuple[int, ...]] = {"nchw": shape[2:], "nhwc": shape[1:3]}
            fitting = [
                TargetLayer(name, layout) for layout, cells in shapes.items() if is_map_of(cells, self.size)
            ]
            if not fitting:
                return None, no_map
            best = max(fitting, key=moves.agreement)
            if shapes[best.layout][0] not in self._lengths:
                return best, ""  # no matrix of tokens by tokens: the shape alone tells a map
            return self._borne_out(best, moves)
        return self._tokens(name, moves)

    def _tokens(self, name: str, moves: Moves) -> tuple[TargetLayer | None, str]:
        tokens = moves.moved["tokens"].shape[1]
        if self._grid is not None and tokens >= self._grid[0] * self._grid[1]:
            spare = tokens - self._grid[0] * self._grid[1]
            before = min(self._asked if self._asked is not None else spare, spare)
            return TargetLayer(
                name, "tokens", before, self._grid, "", spare - before, moves.sequence_first
            ), ""
        found = self._known.get(tokens) or moves.best(name, self.size)
        if self._asked is not None:
            found = [layer for layer in found if layer.prefix == self._asked]
        if found:
            self._known[tokens] = found
        if len(found) > 1:
            ways = [f"--grid {f.grid[0]}x{f.grid[1]} --prefix {f.prefix}" for f in found[:2] if f.grid]
            return None, f"its {tokens} tokens can be read in two ways: {' or '.join(ways)}"
        if not found:
            return None, f"its {tokens} tokens are no places of the image: {_MOVED}"
        return self._borne_out(replace(found[0], name=name, sequence_first=moves.sequence_first), moves)

    def _borne_out(self, layer: TargetLayer, moves: Moves) -> tuple[TargetLayer | None, str]:
        if moves.agreement(layer) >= SEEN:
            return layer, ""
        return None, f"its positions are no places of the image: {_MOVED}"


def _probe(
    model: nn.Module, input_size: tuple[int, int, int]
) -> tuple[dict[str, Tensor], dict[str, int], dict[str, Tensor | None]]:
    """One forward and backward on noise: outputs, how often each module ran, gradients."""
    runs: dict[str, int] = {}
    outputs: dict[str, Tensor] = {}

    def catch(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            runs[name] = runs.get(name, 0) + 1
            tensor = first_tensor(output)
            if tensor is None or not tensor.is_floating_point():
                return None
            if not torch.is_grad_enabled():  # a no_grad() of the model's own: the graph starts here
                torch.set_grad_enabled(True)
                tensor = tensor.detach().requires_grad_()
            if not tensor.requires_grad:
                return None
            outputs[name] = tensor
            return with_first(output, tensor.clone())  # an in-place ReLU must not change the original

        return hook

    names = [n for n, _ in model.named_modules() if n]
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    noise = torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(False), torch.enable_grad():
        images = noise.to(like.device, like.dtype).requires_grad_()
        with hooks(model, {n: catch(n) for n in names}):
            logits = read_logits(model(images))
        _refuse_nan(model, logits)
        if logits.shape[1] > 1 and not bool((logits - logits[:, :1]).any()):
            raise ModelError(
                "model", "every class gets the same logit", "load trained weights: is the head zero?"
            )
        values = list(outputs.values())
        top = logits.float().amax(1).sum()
        found: tuple[Tensor | None, ...] = (None,) * len(values)
        if top.requires_grad:
            found = torch.autograd.grad(top, values, allow_unused=True)
    return outputs, runs, dict(zip(outputs, found, strict=True))


def _refuse_nan(model: nn.Module, logits: Tensor) -> None:
    if bool(logits.isfinite().all()):
        return
    refuse_bad_weights(model)
    raise ModelError("model", "its logits on noise are not finite", "check weights and precision")


def refuse_bad_weights(model: nn.Module) -> None:
    """Raise when a weight is NaN or infinite, naming it."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    bad = [n for n, t in tensors if t.is_floating_point() and not bool(t.isfinite().all())]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ModelError("model", f"weights are not finite: {bad[0]}{more}", "load another checkpoint")


def _describe(
    model: nn.Module,
    name: str,
    output: Tensor | None,
    runs: int,
    gradients: Mapping[str, Tensor | None],
    reader: _Reader,
) -> LayerInfo:
    kind = type(model.get_submodule(name)).__name__
    shape = tuple(output.shape) if output is not None else ()
    layer, unread = reader.read(name, shape) if runs == 1 else (None, "")
    gradient = gradients.get(name)
    if runs > 1:
        problem = f"it runs {runs} times in one forward"
    elif output is None:
        problem = "it returns no tensor that depends on the image"
    elif shape[0] != 1 and not (
        layer and layer.sequence_first
    ):  # TNT and window attention fold patches or windows into the batch
        problem = f"its first dimension, {shape[0]}, counts parts of an image, not images"
    elif layer is None:
        problem = unread
    else:
        peak = 0.0 if gradient is None else float(layer.to_maps(layer.turned(gradient)).abs().amax())
        problem = "" if 0 < peak < torch.inf else "its gradient is not finite"
        if peak == 0:
            problem = "its gradient is zero everywhere: its positions do not reach the score"
    return LayerInfo(name, kind, shape, layer, problem)


def _choose(model: nn.Module, infos: list[LayerInfo], outputs: Mapping[str, Tensor]) -> TargetLayer | None:
    """Pick the last usable layer that is a map of features, not a part of an attention."""
    by_name = {info.name: info for info in infos}
    usable = [info for info in infos if info.usable and info.layer and not _is_no_map(model, info)]
    outside = [info for info in usable if _carries_features(model, info, by_name)]
    last = next(reversed(outside or usable), None)
    if last is None or last.layer is None:
        return None
    name = _best_name(model, last, infos, outputs)
    reason = "last spatial map that reaches the score"
    if (
        last.layer.layout == "tokens"
        and last.layer.prefix
        and any(i.problem.startswith("its gradient is zero") for i in infos[infos.index(last) :])
    ):
        reason = "last tokens that reach the score: input of the last attention"
    if last.layer.layout != "tokens" and (unread := _unread_behind(model, last, infos)):
        reason += f"; {unread} and what is behind it {UNREAD}"
    return replace(last.layer, name=name, reason=reason)


def _unread_behind(model: nn.Module, last: LayerInfo, infos: list[LayerInfo]) -> str:
    """Name the first sequence behind a map whose tokens, in their order, are no places of the image."""
    channels = last.shape[last.layer.channel_dim] if last.layer else 0
    for info in infos[infos.index(last) + 1 :]:
        is_sequence = len(info.shape) == 3 and info.shape[1] != channels  # else the map itself, flattened
        if is_sequence and info.problem.endswith(_MOVED) and not _attention_of(model, info.name):
            return info.name
    return ""


def _is_no_map(model: nn.Module, info: LayerInfo) -> bool:
    return isinstance(model.get_submodule(info.name), _NOT_A_MAP)


def _carries_features(model: nn.Module, info: LayerInfo, by_name: Mapping[str, LayerInfo]) -> bool:
    """Whether it is no gate and no part of an attention; the norm of all that goes into one is as outside."""
    if info.layer is not None and info.shape[info.layer.channel_dim] == 1:
        return False  # a gate that others are multiplied by
    if _CLASS_ATTENTION.search(" ".join(_owners(model, info.name).values())):
        return False
    within = _attention_of(model, info.name)
    whole = by_name[within].shape if within in by_name else ()
    return not within or ("Norm" in info.type and info.shape == whole)


def _attention_of(model: nn.Module, name: str) -> str:
    """Name the outermost attention that a module is a part of; empty without one."""
    owners = list(_owners(model, name).items())[:-1]
    return next((owner for owner, kind in owners if _ATTENTION.search(kind)), "")


def _owners(model: nn.Module, name: str) -> dict[str, str]:
    """Give the names and types of what a module lies in, the outermost first, itself last."""
    path = name.split(".")
    names = [".".join(path[:n]) for n in range(1, len(path) + 1)]
    return {name: type(model.get_submodule(name)).__name__ for name in names}


def _best_name(
    model: nn.Module, last: LayerInfo, infos: list[LayerInfo], outputs: Mapping[str, Tensor]
) -> str:
    """Of nested modules that return this very tensor, name the outermost with an index."""
    own, here = outputs[last.name], last.name + "."
    same = [
        i.name
        for i in infos
        if i.usable and i.type != "Identity" and outputs[i.name].shape == own.shape
        and (here.startswith(i.name + ".") or i.name.startswith(here)) and torch.equal(outputs[i.name], own)
    ]  # fmt: skip
    by_depth = sorted(same, key=lambda n: n.count("."))
    return next((n for n in by_depth if any(c.isdigit() for c in n)), by_depth[0])
