"""The same function for less: batch norms folded into convolutions, a last block for the class token alone.

    module, layer ──find_pairs, find_last_block──> pairs ──fold──> the network with less to compute
                                                     └─reshape──> its structure without weights, on a worker

In evaluation a batch norm is an affine map of each channel, and so is a convolution before it: one can carry
both. Folded are only pairs that end before the target layer's output, so that the layer, its gradient and
the tail are those of the plain network. `camray.explain` proves it on a probe and keeps the plain network
where rounding moved more than it should.

Of a vision transformer that reads its class token alone, the last block need not compute the others behind
its first norm: they reach the scores as keys and values only (10 of 12 parts of the block, forward and back).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from camray.models.libraries import timm

Pairs = tuple[tuple[str, str], ...]
"""Names of a convolution and of the batch norm behind it; or of a layer and of the last block, its parent."""

_CONVOLUTIONS = (nn.Conv2d, timm.layers.Conv2dSame)  # exactly these: a subclass may do more with its weight
_NORMS = (nn.BatchNorm2d, timm.layers.BatchNormAct2d)


class _Activation(nn.Module):
    """What is left of a `BatchNormAct2d` whose norm went into the convolution."""

    def __init__(self, norm: timm.layers.BatchNormAct2d) -> None:
        super().__init__()
        self.drop, self.act = norm.drop, norm.act

    def forward(self, x: Tensor) -> Tensor:
        """Apply what stood behind the norm."""
        out: Tensor = self.act(self.drop(x))
        return out


class _ClassTokenBlock(nn.Module):
    """A `Block` whose output is its first token's; its modules are those of the block, by the same names."""

    attn: Any
    norm1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    ls1: nn.Module
    ls2: nn.Module

    def __init__(self, block: timm.models.vision_transformer.Block) -> None:
        super().__init__()
        for name, part in block.named_children():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """Give (B, 1, D) for tokens (B, N, D)."""
        own, tokens = self.attn, self.norm1(x)
        parts = (own.num_heads, own.head_dim)
        weight = own.qkv.weight.split([own.attn_dim, 2 * own.attn_dim])
        bias = (None, None) if own.qkv.bias is None else own.qkv.bias.split([own.attn_dim, 2 * own.attn_dim])
        q = F.linear(tokens[:, :1], weight[0], bias[0]).unflatten(-1, parts).transpose(1, 2)
        k, v = F.linear(tokens, weight[1], bias[1]).unflatten(-1, (2, *parts)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(own.q_norm(q), own.k_norm(k), v)
        x = x[:, :1] + self.ls1(own.proj(own.norm(seen.transpose(1, 2).flatten(2))))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


def find_pairs(module: nn.Module, images: Tensor, layer: str) -> Pairs:
    """Run the network once and find the pairs to fold, in order, up to the output of `layer`.

    A pair is a convolution whose output, untouched, is the input of a batch norm with running statistics.
    Left alone: modules that run twice, share weights, or carry hooks or parametrisations of their own.
    """
    known = {name: m for name, m in module.named_modules() if type(m) in (*_CONVOLUTIONS, *_NORMS)}
    known = {name: m for name, m in known.items() if _is_free(m)}
    owners = Counter(id(p) for m in module.modules() for p in m.parameters(recurse=False))
    known = {n: m for n, m in known.items() if all(owners[id(p)] == 1 for p in m.parameters())}
    runs: Counter[str] = Counter()
    made: list[tuple[str, Tensor, int]] = []  # kept alive, so that no two share an identity
    pairs: list[tuple[str, str]] = []
    reached = False

    def watch(name: str) -> Any:
        def hook(own: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            runs[name] += 1
            if isinstance(own, _CONVOLUTIONS):
                made.append((name, output, output._version))
            elif not reached:
                pairs.extend((c, name) for c, out, v in made if out is args[0] and out._version == v)

        return hook

    def stop(*_: Any) -> None:
        nonlocal reached
        reached = True

    # The layer's own hook comes last: a batch norm that is the layer itself may still be folded.
    handles = [m.register_forward_hook(watch(name)) for name, m in known.items()]
    handles.append(module.get_submodule(layer).register_forward_hook(stop))
    try:
        with torch.no_grad():  # inference mode does not count the writes to a tensor
            module(images)
    finally:
        for handle in handles:
            handle.remove()
    readers = Counter(conv for conv, _ in pairs)
    return tuple((c, n) for c, n in pairs if runs[c] == runs[n] == 1 == readers[c] and layer != c)


def find_last_block(module: nn.Module, layer: str) -> Pairs:
    """Pair the layer with the last block, where a vision transformer reads the class token alone behind it.

    For methods that look at nothing but the layer and its gradient.
    """
    model: Any = module
    kinds = timm.models.vision_transformer
    if type(model) is not kinds.VisionTransformer or model.global_pool != "token" or model.attn_pool:
        return ()
    name, block = f"blocks.{len(model.blocks) - 1}", model.blocks[-1]
    plain = type(block) is kinds.Block and type(block.attn) is kinds.Attention and block.attn.gate is None
    free = not any(_is_hooked(m) for m in block.modules())
    return ((layer, name),) if plain and free and layer == f"{name}.norm1" else ()


def fold(module: nn.Module, pairs: Pairs) -> nn.Module:
    """Give a network of the same function without the batch norms of `pairs`; the given one stays."""
    known: dict[str, Any] = dict(module.named_modules())
    carried: dict[str, Tensor] = {}
    for conv_name, norm_name in pairs:
        conv, norm = known[conv_name], known[norm_name]
        if _is_block(norm):
            continue
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        carried |= {f"{conv_name}.weight": weight.detach(), f"{conv_name}.bias": bias.detach()}
    folded = reshape(_without_copies(module), pairs)
    folded.load_state_dict(carried, strict=False, assign=True)
    return folded.eval().requires_grad_(False)


def reshape(module: nn.Module, pairs: Pairs) -> nn.Module:
    """Take the batch norms of `pairs` out of this module and give each convolution a bias, not yet filled."""
    known: dict[str, Any] = dict(module.named_modules())
    for conv_name, norm_name in pairs:
        conv, norm = known[conv_name], known[norm_name]
        if _is_block(norm):
            known["blocks"][-1] = _ClassTokenBlock(norm)
            continue
        bias = torch.zeros(conv.out_channels, dtype=conv.weight.dtype, device=conv.weight.device)
        conv.bias = nn.Parameter(bias, requires_grad=False)  # (a lazy weight has no length yet)
        place, _, name = norm_name.rpartition(".")
        rest = _Activation(norm) if isinstance(norm, timm.layers.BatchNormAct2d) else nn.Identity()
        known[place].register_module(name, rest.eval())
    return module


def largest_change(plain: Iterable[Tensor], folded: Iterable[Tensor]) -> float:
    """Give the largest difference of tensor pairs, each as a share of the plain one's greatest magnitude."""
    shares = [
        float((other - own).abs().max() / own.abs().max().clamp_min(torch.finfo(own.dtype).tiny))
        for own, other in zip(plain, folded, strict=True)
    ]
    return max(shares)


def _is_block(module: nn.Module) -> bool:
    return isinstance(module, timm.models.vision_transformer.Block)


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _is_free(module: nn.Module) -> bool:
    hooked = _is_hooked(module)
    if isinstance(module, _NORMS):
        return not hooked and module.track_running_stats and module.running_mean is not None
    return not hooked and module.padding_mode == "zeros"


def _without_copies(module: nn.Module) -> nn.Module:
    """Copy the structure and share the tensors: a copy of a large model need not double it."""
    shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)
