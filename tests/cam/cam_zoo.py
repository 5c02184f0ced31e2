"""The architectures the engine's tests share: name, image side, layers, how to read a layer by hand.

Each family is there twice: as a narrow network of a few thousand weights, which shows the same layouts and
heads in milliseconds, and as published, for the long run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import timm
import torch
from timm.models.vgg import VGG
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
    published: str = ""  # of a narrow network: the timm name it is made from


PUBLISHED = (
    Arch("resnet50", "layer4", "layer2", relu=True),
    Arch("vgg16_bn", "features.42", "features.22", relu=True, options=(("mlp_ratio", 1 / 64),)),
    Arch("densenet121", "features.norm5", "features.denseblock3", relu=True),
    Arch("efficientnet_b0", "bn2", "blocks.4"),
    Arch("mobilenetv3_small_100", "blocks.5", "blocks.3"),
    Arch("convnext_tiny", "stages.3", "stages.2"),
    Arch("regnety_002", "s4", "s3", relu=True),
    Arch("botnet26t_256", "final_conv", "stages.2", side=256, relu=True),
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


def narrow(
    family: str,
    published: str,
    last: str,
    middle: str,
    read: Callable[[Tensor], Tensor] = nchw,
    relu: bool = False,
    **options: object,
) -> Arch:
    return Arch(family, last, middle, read, 64, relu, tuple(options.items()), published)


NARROW = (
    narrow("resnet", "resnet50", "layer4", "layer2", relu=True,
           layers=(1,) * 4, channels=(4, 6, 8, 10), stem_width=8),
    narrow("vgg", "vgg16_bn", "features.18", "features.14", relu=True),
    narrow("densenet", "densenet121", "features.norm5", "features.denseblock3", relu=True,
           growth_rate=6, block_config=(1,) * 4),
    narrow("efficientnet", "test_efficientnet", "bn2", "blocks.2"),
    narrow("mobilenetv3", "mobilenetv3_small_050", "blocks.5", "blocks.3"),
    narrow("convnext", "convnext_tiny", "stages.3", "stages.2",
           depths=(1,) * 4, dims=(8, 12, 16, 24), ls_init_value=0.5),
    narrow("regnet", "regnety_002", "s4", "s3", relu=True, depth=6, w0=8, wa=10.0, wm=2.0, group_size=4),
    narrow("vit", "vit_small_patch16_224", "blocks.2.norm1", "blocks.1.norm1", tokens(1),
           img_size=64, embed_dim=24, depth=3, num_heads=3),
    narrow("deit3", "deit3_small_patch16_224", "blocks.2.norm1", "blocks.1.norm1", tokens(1),
           img_size=64, embed_dim=24, depth=3, num_heads=3, init_values=0.5),
    narrow("swin", "swin_tiny_patch4_window7_224", "norm", "layers.1", nhwc,
           img_size=64, window_size=2, embed_dim=12, depths=(1,) * 4, num_heads=(1, 2, 3, 4)),
    narrow("pvt", "pvt_v2_b0", "stages.3", "stages.2",
           depths=(1,) * 4, embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4)),
)  # fmt: skip
BY_NAME = {arch.name: arch for arch in (*NARROW, *PUBLISHED)}


def make(arch: Arch) -> nn.Module:
    if arch.name == "vgg":
        return VGG(
            [4, "M", 6, "M", 6, "M", 8, "M", 8, "M"], CLASSES, mlp_ratio=1 / 256, norm_layer=nn.BatchNorm2d
        )
    return timm.create_model(arch.published or arch.name, num_classes=CLASSES, **dict(arch.options))


def stir(model: nn.Module) -> nn.Module:
    """Random statistics and biases of batch norms: those of a fresh network are 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model


@lru_cache(maxsize=16)
def build(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network in evaluation mode with random weights, the same in either dtype up to rounding."""
    arch = BY_NAME[name]
    if dtype != torch.float32:
        return copy.deepcopy(build(name)).to(dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    model = make(arch).eval()
    torch.set_default_dtype(before)
    for weight in model.parameters() if arch.published else ():
        if weight.ndim > 1:  # narrow: signals of order one, so that no part of it is nearly linear
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    head = model.get_classifier()
    if isinstance(head, nn.Linear):
        nn.init.normal_(head.weight, std=0.2)
    return stir(model)


def layer_and_gradient(
    model: nn.Module, x: Tensor, name: str, score: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's output, the gradient of score(logits).sum() in it, both as the layer has them, and logits."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, out: Tensor) -> Tensor:
        kept.append(out if out.requires_grad else out.requires_grad_())
        return kept[0].clone()  # a ReLU in place may stand behind the layer

    handle = model.get_submodule(name).register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = model(x)
            (slope,) = torch.autograd.grad(score(logits).sum(), kept[0])
    finally:
        handle.remove()
    return kept[0].detach(), slope, logits.detach()


def images(side: int, count: int = 3, seed: int = 1) -> Tensor:
    draw = torch.randn(
        count, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float32
    )
    return draw.to(torch.get_default_dtype())  # the same images in double precision


def relative(found: Tensor, truth: Tensor) -> float:
    """Largest difference, as a share of the largest value of the same map."""
    assert found.shape == truth.shape, (found.shape, truth.shape)
    scale = truth.abs().amax((-2, -1), keepdim=True).clamp(min=1e-12)
    return float(((found - truth).abs() / scale).max().detach())
