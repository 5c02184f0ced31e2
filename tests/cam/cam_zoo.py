"""The architectures the engine's tests share: name, image side, layers, how to read a layer by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import timm
import torch
from torch import Tensor, nn

CLASSES = 16


def nchw(t: Tensor) -> Tensor:
    return t


def nhwc(t: Tensor) -> Tensor:
    return torch.stack([t[..., c] for c in range(t.shape[-1])], 1)


def tokens(prefix: int) -> Callable[[Tensor], Tensor]:
    def read(t: Tensor) -> Tensor:
        cells = t[:, prefix:]
        side = int(cells.shape[1] ** 0.5 + 0.5)
        return cells.permute(0, 2, 1).reshape(len(t), -1, side, side)

    return read


@dataclass(frozen=True)
class Arch:
    name: str
    last: str
    middle: str
    read: Callable[[Tensor], Tensor] = nchw
    side: int = 64
    relu: bool = False  # layer values are >= 0 with zeros in every image
    options: tuple[tuple[str, object], ...] = ()


ARCHS = (
    Arch("resnet50", "layer4", "layer2", relu=True),
    Arch("vgg16_bn", "features.42", "features.22", relu=True, options=(("mlp_ratio", 1 / 64),)),
    Arch("densenet121", "features.norm5", "features.denseblock3", relu=True),
    Arch("efficientnet_b0", "bn2", "blocks.4"),
    Arch("mobilenetv3_small_100", "blocks.5", "blocks.3"),
    Arch("convnext_tiny", "stages.3", "stages.2"),
    Arch("regnety_002", "s4", "s3", relu=True),
    Arch("botnet26t_256", "final_conv", "stages.1", side=256, relu=True),
    Arch(
        "vit_small_patch16_224", "blocks.11.norm1", "blocks.6.norm1", tokens(1), options=(("img_size", 64),)
    ),
    Arch(
        "deit3_small_patch16_224", "blocks.11.norm1", "blocks.6.norm1", tokens(1), options=(("img_size", 64),)
    ),
    Arch(
        "swin_tiny_patch4_window7_224",
        "norm",
        "layers.1",
        nhwc,
        options=(("img_size", 64), ("window_size", 2)),
    ),
    Arch("pvt_v2_b0", "stages.3", "stages.2"),
)
BY_NAME = {arch.name: arch for arch in ARCHS}


@lru_cache(maxsize=2)
def build(name: str) -> nn.Module:
    arch = BY_NAME[name]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, **dict(arch.options)).eval()
    head = model.get_classifier()
    nn.init.normal_(head.weight, std=0.2)
    for module in model.modules():  # random running statistics: a fresh network is too regular
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model


def images(side: int, count: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, truth: Tensor) -> float:
    """Largest difference, as a share of the largest value of the same map."""
    assert found.shape == truth.shape, (found.shape, truth.shape)
    scale = truth.abs().amax((-2, -1), keepdim=True).clamp(min=1e-12)
    return float(((found - truth).abs() / scale).max())
