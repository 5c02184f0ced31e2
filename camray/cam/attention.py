"""Methods that read a transformer's attention: rollout, gradient x attention, LeGrad.

Flows in: the scene. Flows out: raw maps (B, K, h, w) on the layer's grid. Attention probabilities are
taken by watching the attention function of the library, fused or not, during one forward; no model is
rewritten and no implementation of attention needs to be known by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from camray.cam.registry import method
from camray.cam.scene import Scene
from camray.cam.split import call, first_tensor, hooks, plain
from camray.cam.tail import make_tail
from camray.errors import ModelError

_PLAIN = "use gradcam, or a plain vision transformer"


class _Watch(TorchFunctionMode):
    """Collect attention probabilities (B, heads, N, N), with a graph, in the order they are used."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.seen: list[Tensor] = []
        self.pooled: list[Tensor] = []  # (B, heads, queries, N): of queries that are no tokens

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._attend_in_heads(*args, **kwargs)
        out = func(*args, **kwargs)
        if func in (F.softmax, torch.softmax, Tensor.softmax):
            self._keep(out)
        return out

    def _keep(self, p: Any) -> None:
        if isinstance(p, Tensor) and p.ndim == 4 and p.shape[0] == self.batch:
            (self.seen if p.shape[2] == p.shape[3] else self.pooled).append(p)

    def _attend_in_heads(
        self, query: Tensor, key: Tensor, value: Tensor, width: int, heads: int, weight: Tensor | None,
        bias: Tensor | None, bias_k: Tensor | None, bias_v: Tensor | None, add_zero_attn: bool,
        dropout_p: float, out_weight: Tensor, out_bias: Tensor | None, **rest: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """Do the library's multi-head attention on (N, B, C), with the softmax kept."""
        masked = rest.get("attn_mask") is not None or rest.get("key_padding_mask") is not None
        if weight is None or bias_k is not None or add_zero_attn or masked:
            raise ModelError("method", "this model's attention is masked, or has biases of its own", _PLAIN)
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).reshape(*x.shape[:2], heads, -1).permute(1, 2, 0, 3)  # (B, heads, N, d)
            for x, w, b in zip((query, key, value), weight.chunk(3), biases, strict=True)
        )
        out = self._attend(q, k, v).permute(2, 0, 1, 3).flatten(2)
        return F.linear(out, out_weight, out_bias), None

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_: Any,
    ) -> Tensor:
        """softmax(q k^T * scale + mask) v, with the softmax kept."""
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        logits = query @ key.transpose(-2, -1) * factor
        if is_causal:
            n, m = logits.shape[-2:]
            attn_mask = torch.ones(n, m, dtype=torch.bool, device=logits.device).tril()
        if attn_mask is not None:
            logits = (
                logits.masked_fill(~attn_mask, -torch.inf)
                if attn_mask.dtype == torch.bool
                else logits + attn_mask
            )
        p = logits.softmax(-1)
        self._keep(p)
        return p @ value


def _attentions(scene: Scene, method: str, graph: bool) -> tuple[list[Tensor], Tensor]:
    """Attention of every block over the tokens of the layer's grid, (B, heads, N, N), and scores."""
    with torch.inference_mode(False), torch.set_grad_enabled(graph):
        images = scene.inputs.clone().requires_grad_(graph)
        watch = _Watch(len(images))
        with watch:
            scores = scene.aim.scores(call(scene.model, images))
    cells = scene.A.shape[2] * scene.A.shape[3]
    sizes = [p.shape[-1] for p in watch.seen if p.shape[-1] - cells in range(16)]
    if not sizes or scene.layer.layout != "tokens":
        raise ModelError(
            "method", f"{method} needs attention over all {cells} patches at once; this model has none",
            _PLAIN,
        )  # fmt: skip
    length = max(set(sizes), key=sizes.count)
    return [p for p in watch.seen if p.shape[-1] == length], scores


def _read_out(scene: Scene, relevance: Tensor) -> Tensor:
    """Token-to-token relevance (B, N, N) as a map: the class token's row, or the mean row without one."""
    prefix = relevance.shape[-1] - scene.A.shape[2] * scene.A.shape[3]
    row = relevance[:, 0] if prefix else relevance.mean(1)
    return row[:, prefix:].reshape(len(row), *scene.A.shape[2:])


@method(
    "rollout", needs="scene", cost="2", per_class=False, doc="attention multiplied through the blocks",
    when="plain vision transformers",
    paper="Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020",
)  # fmt: skip
def rollout(scene: Scene) -> Tensor:
    """Attention rollout: R = prod over blocks of (mean over heads of attention + I) / 2."""
    attentions, _ = _attentions(scene, "rollout", graph=False)
    relevance = _identity(attentions[0])
    for p in attentions:
        relevance = (p.float().mean(1) + _identity(p)) / 2 @ relevance
    return _read_out(scene, relevance)[:, None]  # (B, 1, h, w)


def _identity(p: Tensor) -> Tensor:
    return torch.eye(p.shape[-1], device=p.device).expand(len(p), -1, -1)


@method(
    "chefer", needs="scene", cost="2 + 2 K", doc="attention times its gradient, through the blocks",
    when="plain vision transformers",
    paper="Chefer et al., Generic Attention-model Explainability for Interpreting Bi-Modal and "
    "Encoder-Decoder Transformers, ICCV 2021, eq. 5-6, for self-attention",
)  # fmt: skip
def gradient_attention(scene: Scene) -> Tensor:
    """Gradient x attention: R <- R + mean over heads of relu(dS/dP * P) R, block after block, from R = I."""
    attentions, scores = _attentions(scene, "chefer", graph=True)
    maps: list[Tensor] = []
    for score in scores.unbind(1):
        relevance = _identity(attentions[0])
        for p, g in zip(attentions, _gradients(score, attentions), strict=True):
            relevance = relevance + (p.detach() * g).relu().float().mean(1) @ relevance
        maps.append(_read_out(scene, relevance - _identity(attentions[0])))
    return torch.stack(maps, 1)


@method(
    "legrad", needs="scene", cost="2 + K", doc="positive attention gradients, block by block",
    when="plain vision transformers",
    paper="Bousselham et al., LeGrad: An Explainability Method for Vision Transformers via Feature Formation "
    "Sensitivity, ICCV 2025",
)  # fmt: skip
def legrad(scene: Scene) -> Tensor:
    """LeGrad: mean over blocks l of mean over heads and queries of relu(dS_l/dP_l).

    S_l is the score of the mean token behind block l, read out as the model reads its last block. P_l is
    the attention of that block. Where the model pools its tokens by an attention, S_l is the score of the
    tokens themselves, and P_l the attention of the pooler.
    """
    model = plain(scene.model)
    rows = torch.arange(len(scene.inputs), device=scene.inputs.device)
    outputs: dict[str, Tensor] = {}

    def catch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None and tensor.ndim == 3:
                outputs[name] = tensor

        return hook

    with hooks(model, {n: catch(n) for n in _parts_of_rows(model)}):
        attentions, _ = _attentions(scene, "legrad", graph=True)
    names = _blocks(outputs, len(attentions), attentions[0].shape[-1])
    tail = make_tail(model, scene.inputs, replace(scene.layer, name=names[-1]))
    pairs: list[tuple[Tensor, Tensor]] = []  # per block: scores (B, K), attention
    with torch.inference_mode(False), torch.enable_grad():
        for name, p in zip(names, attentions, strict=True):
            with _Watch(len(rows)) as watch:
                score = scene.aim.scores(tail.replay(outputs[name], rows))
            pooled = [q for q in watch.pooled if q.shape[-1] == p.shape[-1]]
            if not pooled:
                mean = outputs[name].mean(1, keepdim=True).expand_as(outputs[name])
                score = scene.aim.scores(tail.replay(mean, rows))
            pairs.append((score, pooled[-1] if pooled else p))
    return _positive_gradients(scene, pairs)


def _positive_gradients(scene: Scene, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean over pairs of positive dS/dP, by key, as maps (B, K, h, w): P (B, heads, queries, N)."""
    grid, maps = scene.A.shape[2:], []
    for k in range(pairs[0][0].shape[1]):
        total = torch.zeros((), device=scene.inputs.device)
        for s, p in pairs:
            (g,) = torch.autograd.grad(s[:, k].sum(), p, retain_graph=True)
            total = total + g.relu().float().mean((1, 2)) / len(pairs)  # (B, N)
        maps.append(total[:, total.shape[1] - grid.numel() :].reshape(len(total), *grid))
    return torch.stack(maps, 1)


def _parts_of_rows(model: nn.Module) -> list[str]:
    """Names of all modules that stand in a row, as the blocks of a transformer do."""
    rows = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    return [f"{name}.{child}".lstrip(".") for name, row in rows for child, _ in row.named_children()]


def _blocks(outputs: Mapping[str, Tensor], count: int, length: int) -> list[str]:
    """Find the blocks: the outermost row of modules that give tokens, one for each attention."""
    found: dict[str, list[str]] = {}
    for name, tokens in outputs.items():
        if tokens.shape[1] == length:
            found.setdefault(name.rpartition(".")[0], []).append(name)
    rows = [names for names in found.values() if len(names) == count]
    if not rows:
        raise ModelError("method", f"legrad finds no row of {count} blocks, one for each attention", _PLAIN)
    return min(rows, key=lambda names: names[0].count("."))


def _gradients(score: Tensor, attentions: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(score.sum(), attentions, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(attentions, found, strict=True)]
