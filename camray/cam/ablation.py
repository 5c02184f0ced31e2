"""Ablation-CAM, exact for all channels, without running the network in front of the layer.

Flows in: the scene. Flows out: raw maps (B, K, h, w). Four ways to the same numbers, found out
numerically: a head that is affine in the layer needs no run at all; a head that sees the layer only
through its spatial mean is replayed on 1 x 1 maps; the class token of a ViT has algebra of its own;
any other is replayed behind the layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from camray.cam import class_token
from camray.cam.registry import method
from camray.cam.scene import Scene
from camray.cam.tail import Tail


@method(
    "ablationcam", needs="scene", cost="1 to 1 + C tails", graph=True,
    doc="drop of the score without each channel", when="exact, gradient-free in spirit",
    paper="Desai and Ramaswamy, Ablation-CAM: Visual Explanations for Deep Convolutional Network via "
    "Gradient-free Localization, WACV 2020",
)  # fmt: skip
def ablationcam(scene: Scene) -> Tensor:
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
    return torch.einsum("bck,bchw->bkhw", weights, A)


def _ablated_scores(scene: Scene) -> Tensor:
    """Scores with each channel zero, (B, C, K)."""
    quick = class_token.ablated_scores(scene)
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
