"""Ablation-CAM, exact for all channels, without running the network in front of the layer.

Flows in: the scene. Flows out: raw maps (B, K, h, w). Four ways to the same numbers, found out
numerically: a head that is affine in the layer needs no run at all; a head that sees the layer only
through its spatial mean is replayed on 1 x 1 maps; the class token of a ViT has algebra of its own;
any other is replayed behind the layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from camray.cam.gradients import Combine, weigh, weigh_each
from camray.cam.layout import TargetLayer
from camray.cam.registry import method
from camray.cam.scene import Scene
from camray.cam.split import call, plain, precision
from camray.cam.tail import Tail, make_tail

_TOKEN_PARTS = ("attn.qkv", "attn.proj", "norm2", "mlp")  # of the last block


@method(
    "ablationcam", needs="scene", cost="1 to 1 + C tails", graph=True,
    doc="drop of the score without each channel", when="exact, gradient-free in spirit",
    paper="Desai and Ramaswamy, Ablation-CAM: Visual Explanations for Deep Convolutional Network via "
    "Gradient-free Localization, WACV 2020",
)  # fmt: skip
def ablationcam(scene: Scene, combine: Combine = weigh) -> Tensor:
    """Ablation-CAM: c = sum_c w_c A_c, w_c = (S - S without channel c) / S.

    A channel is ablated by zero, also where A has negative values; in a token layer its prefix tokens are
    ablated with it. A channel that is zero has weight 0.
    """
    A, before = scene.A, scene.scores.detach()  # (B, C, h, w), (B, K)
    if scene.aim.linear and scene.split.logits.requires_grad and is_affine(scene.tail):
        columns = [scene.gradient(s) for s in scene.scores.unbind(1)]
        drop = torch.stack([torch.einsum("bchw,bchw->bc", G, A) for G in columns], 2)  # (B, C, K)
    else:
        drop = before[:, None] - _ablated_scores(scene)
    weights = drop / torch.where(before == 0, 1.0, before)[:, None]
    return weigh_each(weights, A, combine)


def _ablated_scores(scene: Scene) -> Tensor:
    """Scores with each channel zero, (B, C, K)."""
    quick = _class_token_scores(scene)
    if quick is not None:
        return quick
    tail, before = scene.tail, scene.scores.detach()
    raw = scene.split.raw[scene.layer.name].detach()
    if sees_only_mean(tail):
        raw = _mean_map(tail, raw)
    by_channel = raw.movedim(scene.layer.channel_dim, 1).flatten(2)  # (B, C, positions)
    scores = before[:, None].expand(-1, by_channel.shape[1], -1).clone()
    image, channel = by_channel.any(2).nonzero(as_tuple=True)
    chunk = max(1, min(len(image), 2**24 // max(1, raw[0].numel())))  # 64 MB of float32 a chunk
    for start in range(0, len(image), chunk):
        b, c = image[start : start + chunk], channel[start : start + chunk]
        altered = raw[b]
        altered.movedim(scene.layer.channel_dim, 1)[torch.arange(len(b), device=raw.device), c] = 0
        with torch.inference_mode(False), torch.no_grad():
            scores[b, c] = scene.aim.scores(tail.replay(altered, b), b)
    return scores


def _mean_map(tail: Tail, raw: Tensor) -> Tensor:
    dims = {"nchw": (2, 3), "nhwc": (1, 2), "tokens": (1,)}[tail.layer.layout]
    return raw.mean(dims, keepdim=True)


def _noise(tail: Tail, count: int) -> Tensor:
    """Random activations of the layer's shape for the first image, the same for every batch."""
    result = tail.result[0] if isinstance(tail.result, (tuple, list)) else tail.result
    draw = torch.randn(count, *result.shape[1:], generator=torch.Generator().manual_seed(0))
    return draw.to(result)


def is_affine(tail: Tail) -> bool:
    """Whether logits are an affine function of the layer, and of nothing else, by random probes.

    An affine f satisfies f(P) + f(Q) = f(P + Q) + f(0); a ReLU, a norm or a softmax does not.
    """
    if tail.needed or tail.needs_inputs:
        return False
    p, q = _noise(tail, 2)
    rows = torch.zeros(4, dtype=torch.long, device=p.device)
    with torch.inference_mode(False), torch.no_grad():
        z = tail.replay(torch.stack([p, q, p + q, torch.zeros_like(p)]), rows).float()
    tolerance = 1e-4 if z.dtype == torch.float32 else 1e-2
    return bool(
        torch.allclose(z[0] + z[1], z[2] + z[3], rtol=tolerance, atol=tolerance * float(z.abs().max()))
    )


def sees_only_mean(tail: Tail) -> bool:
    """Whether replaying a layer's spatial mean as a 1 x 1 map gives the logits of the full map."""
    if tail.needed or tail.needs_inputs or tail.layer.prefix:
        return False
    full = _noise(tail, 2) + 0.5
    rows = torch.zeros(2, dtype=torch.long, device=full.device)
    try:
        with torch.inference_mode(False), torch.no_grad():
            z, short = tail.replay(full, rows), tail.replay(_mean_map(tail, full), rows)
    except (RuntimeError, ValueError, AssertionError):
        return False
    return z.shape == short.shape and bool(
        torch.allclose(z, short, rtol=1e-4, atol=1e-5 * float(z.abs().max()))
    )


def _class_token_scores(scene: Scene) -> Tensor | None:
    """Scores (B, C, K) in front of the last attention of a class-token ViT; None where this does not hold.

    Only the class token leaves the last block, and removing channel c changes queries, keys and values by a
    product of two vectors: x W - a_c w_c. So all C ablated attentions follow from one set of keys and values,
    and the rest of the block runs on C class tokens instead of C whole sequences: for ViT-S/16 a fifth of a
    forward instead of 32. The result is compared with a real replay of a few channels.
    """
    parent, _, leaf = scene.layer.name.rpartition(".")
    if scene.layer.layout != "tokens" or not scene.layer.prefix or leaf != "norm1" or not parent:
        return None
    block = plain(scene.model).get_submodule(parent)
    known = dict(block.named_modules())
    if not all(part in known for part in _TOKEN_PARTS) or not isinstance(known["attn.qkv"], nn.Linear):
        return None
    with torch.inference_mode(False), torch.no_grad():
        x = scene.split.raw[scene.layer.name].detach().float()  # (B, N, C)
        try:
            scores = _scores_of_token(scene, block, parent, x)
        except (RuntimeError, ValueError, TypeError, AttributeError):
            return None
        return scores if _holds(scene, scores) else None


def _scores_of_token(scene: Scene, block: nn.Module, parent: str, x: Tensor) -> Tensor:
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
