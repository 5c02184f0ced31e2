"""Ablation of one channel in front of the last attention of a class-token ViT, for all channels at once.

Flows in: the scene. Flows out: scores (B, C, K), or None where this shortcut does not hold. Only the class
token leaves the last block, and removing channel c changes queries, keys and values by a product of two
vectors: x W - a_c w_c. So all C ablated attentions follow from one set of keys and values, and the rest
of the block runs on C class tokens instead of C whole sequences: for ViT-S/16 a fifth of a forward
instead of 32. The result is compared with a real replay of a few channels and dropped if it differs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from camray.cam.layout import TargetLayer
from camray.cam.scene import Scene
from camray.cam.split import call, plain, precision
from camray.cam.tail import make_tail

PARTS = ("attn.qkv", "attn.proj", "norm2", "mlp")


def ablated_scores(scene: Scene) -> Tensor | None:
    """Scores with each channel of the layer set to zero, (B, C, K)."""
    parent, _, leaf = scene.layer.name.rpartition(".")
    if scene.layer.layout != "tokens" or not scene.layer.prefix or leaf != "norm1" or not parent:
        return None
    block = plain(scene.model).get_submodule(parent)
    known = dict(block.named_modules())
    if not all(part in known for part in PARTS) or not isinstance(known["attn.qkv"], nn.Linear):
        return None
    with torch.inference_mode(False), torch.no_grad():
        x = scene.split.raw[scene.layer.name].detach().float()  # (B, N, C)
        try:
            scores = _scores(scene, block, parent, x)
        except (RuntimeError, ValueError, TypeError, AttributeError):
            return None
        return scores if _holds(scene, scores) else None


def _scores(scene: Scene, block: nn.Module, parent: str, x: Tensor) -> Tensor:
    parts = dict(block.named_modules())
    token = _block_input(scene, block)[:, :1]  # (B, 1, C), the class token on the shortcut
    attended = _attend(x, parts["attn.qkv"], int(getattr(parts["attn"], "num_heads", 0)))  # (B, C, width)
    with precision():
        for name in ("attn.norm", "attn.proj", "ls1"):
            attended = parts[name](attended) if name in parts else attended
        token = token + attended  # (B, C, width): one class token per ablated channel
        change = parts["mlp"](parts["norm2"](token))
        token = token + (parts["ls2"](change) if "ls2" in parts else change)
    behind = make_tail(scene.model, scene.inputs, TargetLayer(parent, "tokens", scene.layer.prefix))
    batch, channels = token.shape[:2]
    rows = torch.arange(batch, device=x.device).repeat_interleave(channels)
    logits = behind.replay(token.flatten(0, 1)[:, None].to(x.dtype), rows)  # sequences of one token
    return scene.aim.scores(logits, rows).unflatten(0, (batch, channels))  # type: ignore[no-untyped-call,no-any-return]


def _attend(x: Tensor, qkv: nn.Module, heads: int) -> Tensor:
    """Gather what the class token sees with channel c zero, for every c: (B, N, C) -> (B, C, width)."""
    assert isinstance(qkv, nn.Linear)
    batch, tokens, channels = x.shape
    packed = nn.functional.linear(x, qkv.weight.float(), None if qkv.bias is None else qkv.bias.float())
    q, k, v = packed.view(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, N, d)
    wq, wk, wv = qkv.weight.float().view(3, heads, -1, channels).permute(0, 3, 1, 2)  # (C, heads, d)
    query = q[:, None, :, 0] - x[:, 0, :, None, None] * wq  # (B, C, heads, d)
    logits = torch.einsum("bchd,bhnd->bchn", query, k)
    lost = torch.einsum("bchd,chd->bch", query, wk)
    logits = logits - lost[..., None] * x.transpose(1, 2)[:, :, None]
    p = (logits * q.shape[-1] ** -0.5).softmax(-1)  # (B, C, heads, N)
    out = torch.einsum("bchn,bhnd->bchd", p, v)
    changed: Tensor = (out - torch.einsum("bchn,bnc->bch", p, x)[..., None] * wv).flatten(2)
    return changed


def _block_input(scene: Scene, block: nn.Module) -> Tensor:
    seen: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        call(scene.model, scene.inputs)
    finally:
        handle.remove()
    return seen[0].float()


def _holds(scene: Scene, scores: Tensor) -> bool:
    """Compare with a real replay of three channels of the first image."""
    channels = torch.tensor([0, scores.shape[1] // 2, scores.shape[1] - 1], device=scores.device)
    raw = scene.split.raw[scene.layer.name].detach()[:1].repeat(3, 1, 1)
    raw[torch.arange(3, device=raw.device), :, channels] = 0
    rows = torch.zeros(3, dtype=torch.long, device=raw.device)
    truth = scene.aim.scores(scene.tail.replay(raw, rows), rows)
    scale = float(truth.abs().max()) + 1e-6
    tolerance = 1e-4 if scene.split.logits.dtype == torch.float32 else 2e-2
    return bool(((scores[0, channels] - truth).abs().max() <= tolerance * scale).item())
