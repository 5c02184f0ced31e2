"""What a tutorial computes by hand: torchvision's transforms, a plain forward, Grad-CAM with a hook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import InterpolationMode

import camray

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def recipe(
    resize: int | tuple[int, int] | None, crop: int, mean: Sequence[float], std: Sequence[float],
    mode: InterpolationMode = InterpolationMode.BILINEAR,
) -> Callable[[Image.Image], Tensor]:  # fmt: skip
    first = [] if resize is None else [transforms.Resize(resize, mode), transforms.CenterCrop(crop)]
    last = [transforms.ToTensor(), transforms.Normalize(list(mean), list(std))]
    return transforms.Compose(first + last)


def logits(model: nn.Module, transform: Callable[[Image.Image], Tensor], files: Sequence[Path]) -> Tensor:
    """Plain forwards, one after the other: (B, outputs)."""
    with torch.inference_mode():
        return torch.cat([model.eval()(transform(Image.open(f).convert("RGB"))[None]) for f in files])


def gradcam(model: nn.Module, layer: str, x: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Weights are the mean gradients; raw, before any ReLU: (h, w)."""
    kept: dict[str, Tensor] = {}

    def keep(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        output.retain_grad()
        kept["A"] = output
        return output.clone()  # an in-place ReLU behind the layer must not change A

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        score(model.eval()(x.requires_grad_())).backward()
    finally:
        handle.remove()
    A = kept["A"]
    return (A.grad.mean((2, 3), keepdim=True) * A).sum(1)[0].detach()


def records(out: Path) -> dict[str, dict[str, Any]]:
    """The committed records by member; a member has one row."""
    rows = all_records(out)
    found = {row["member"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def all_records(out: Path) -> list[dict[str, Any]]:
    rows = camray.open_records(str(out)).to_table().to_pylist()
    assert {row["status"] for row in rows} == {"ok"}, [row["error_message"] for row in rows]
    return sorted(rows, key=lambda r: (r["member"], r["target_class"]))


def heat(row: dict[str, Any]) -> Tensor:
    return torch.tensor(row["heatmap"]).reshape(row["heat_h"], row["heat_w"])


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
