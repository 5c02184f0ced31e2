"""Backward passes that skip the tokens no gradient reaches.

Flows in: the linear layers and attentions of a tail. Flows out: the same gradients. A vision transformer
read out by its class token has, behind its last attention, a gradient at one token of 197; the other rows
are exactly zero and stay so through a linear layer. Skipping them changes no number: a zero row times a
matrix is a zero row. For ViT-S/16 this makes the gradient of one more class cost 3 % of a forward
instead of 9 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

SPARSE = 0.25  # share of rows with a gradient up to which gathering them pays


class SkipZeroRows(TorchFunctionMode):
    """While `active`, linear layers and fused attentions on token sequences get the skipping backward."""

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
