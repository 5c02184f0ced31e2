"""Folders as `save_pretrained` writes them: narrow networks of random weights with the real processors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

_VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
_SQUARE, _SHORT = {"height": 64, "width": 64}, {"shortest_edge": 72}


@dataclass(frozen=True)
class Folder:
    """One architecture, its configuration, and its processor with what differs from its defaults."""

    model: str
    config: dict[str, Any]
    processor: str
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        sizes = "-".join(str(v) for v in self.given.values() if not isinstance(v, dict | list))
        return (
            f"{self.model.removesuffix('ForImageClassification')}-{self.processor.removesuffix('ImageProcessor')}"
            + (f"-{self.config.get('image_size', '')}-{sizes}".rstrip("-"))
        )

    def save(self, place: Path) -> nn.Module:
        """Write config.json, weights and preprocessor_config.json; give the network."""
        torch.manual_seed(len(self.id))
        classes = 7
        names = {i: f"thing {i}" for i in range(classes)}
        kind = getattr(transformers, self.model)
        config = kind.config_class(**self.config, num_labels=classes)
        config.id2label, config.label2id = names, {v: k for k, v in names.items()}
        module = kind(config).eval()
        with torch.no_grad():
            for name, p in module.named_parameters():
                if p.ndim > 1:  # as made, the layers of a narrow network say next to nothing
                    p.normal_(0, 1 / p[0].numel() ** 0.5)
                elif "lambda" in name or "gamma" in name or "layer_scale" in name:
                    p.fill_(0.7)
            for name, b in module.named_buffers():
                if name.endswith("running_var"):
                    b.uniform_(0.5, 2)
                elif name.endswith("running_mean"):
                    b.normal_(0, 0.2)
        module.save_pretrained(place)
        getattr(transformers, self.processor)(**self.given).save_pretrained(place)
        return module


def _vit(name: str, size: int = 64, patch: int = 16, **more: Any) -> tuple[str, dict[str, Any]]:
    return f"{name}ForImageClassification", {**_VIT, "image_size": size, "patch_size": patch, **more}


_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}
_CONVNEXT = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}
_SWIN = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 12,
    "depths": [1, 1, 2],
    "num_heads": [2, 2, 4],
    "window_size": 4,
}
_CLIP = {
    "vision_config": {**_VIT, "image_size": 64, "patch_size": 16},
    "text_config": {**_VIT, "vocab_size": 99},
    "projection_dim": 24,
}
_MOBILE = {"size": {"shortest_edge": 75}, "crop_size": {"height": 64, "width": 64}}
_OWN = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}


def _c(name: str) -> str:
    return f"{name}ForImageClassification"


FOLDERS = (
    Folder(*_vit("ViT"), "ViTImageProcessor", {"size": _SQUARE}),
    Folder(*_vit("ViT", 96, 16), "ViTImageProcessor", {"size": {"height": 96, "width": 96}, "resample": 3}),
    Folder(*_vit("ViT", 64, 8), "ViTImageProcessor", {"size": _SQUARE, "do_normalize": False}),
    Folder(*_vit("ViT", 64, 16, hidden_act="relu"), "ViTImageProcessor", {"size": _SQUARE, **_OWN}),
    Folder(*_vit("DeiT"), "DeiTImageProcessor", {"size": {"height": 73, "width": 73}, "crop_size": _SQUARE}),
    Folder(
        *_vit("DeiT", 96),
        "DeiTImageProcessor",
        {"size": {"height": 109, "width": 109}, "crop_size": {"height": 96, "width": 96}, "resample": 2},
    ),
    Folder(
        "DeiTForImageClassificationWithTeacher",
        _vit("DeiT")[1],
        "DeiTImageProcessor",
        {"size": {"height": 73, "width": 73}, "crop_size": _SQUARE},
    ),
    Folder(
        *_vit("Beit"), "BeitImageProcessor", {"size": _SQUARE, "crop_size": _SQUARE, "do_center_crop": False}
    ),
    Folder(
        *_vit("Beit", 64, 16, use_relative_position_bias=True, use_mean_pooling=False),
        "BeitImageProcessor",
        {"size": {"height": 80, "width": 80}, "crop_size": _SQUARE, "do_center_crop": True},
    ),
    Folder(*_vit("Data2VecVision"), "BeitImageProcessor", {"size": _SQUARE, "do_center_crop": False}),
    Folder(*_vit("Dinov2", 64, 16), "BitImageProcessor", {"size": _SHORT, "crop_size": _SQUARE}),
    Folder(
        *_vit("Dinov2", 56, 14),
        "BitImageProcessor",
        {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}, **_OWN},
    ),
    Folder(*_vit("Dinov2WithRegisters", 64, 8), "BitImageProcessor", {"size": _SHORT, "crop_size": _SQUARE}),
    Folder(
        *_vit("Dinov2WithRegisters", 56, 14),
        "BitImageProcessor",
        {"size": {"shortest_edge": 63}, "crop_size": {"height": 56, "width": 56}},
    ),
    Folder(
        *_vit("Dinov2WithRegisters", 96, 8, num_register_tokens=2),
        "BitImageProcessor",
        {"size": {"shortest_edge": 109}, "crop_size": {"height": 96, "width": 96}},
    ),
    Folder(*_vit("ViTMSN"), "ViTImageProcessor", {"size": _SQUARE}),
    Folder(*_vit("IJepa"), "ViTImageProcessor", {"size": _SQUARE}),
    Folder(
        _c("Siglip"),
        {"vision_config": {**_VIT, "image_size": 64, "patch_size": 16}, "text_config": {**_VIT}},
        "SiglipImageProcessor",
        {"size": _SQUARE},
    ),
    Folder(
        _c("Siglip"),
        {"vision_config": {**_VIT, "image_size": 64, "patch_size": 8}, "text_config": {**_VIT}},
        "SiglipImageProcessor",
        {"size": _SQUARE, "resample": 2},
    ),
    Folder(_c("CLIP"), _CLIP, "CLIPImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": _SQUARE}),
    Folder(_c("CLIP"), _CLIP, "CLIPImageProcessor", {"size": {"shortest_edge": 71}, "crop_size": _SQUARE}),
    Folder(
        _c("MetaClip2"), _CLIP, "CLIPImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": _SQUARE}
    ),
    Folder(
        _c("ResNet"),
        {**_RESNET, "layer_type": "basic"},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 64}},
    ),
    Folder(
        _c("ResNet"), _RESNET, "ConvNextImageProcessor", {"size": {"shortest_edge": 64}, "crop_pct": 0.95}
    ),
    Folder(_c("ResNet"), _RESNET, "ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    Folder(_c("ResNet"), _RESNET, "ViTImageProcessor", {"size": {"height": 64, "width": 96}}),
    Folder(
        _c("RegNet"),
        {**_RESNET, "groups_width": 8},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 64}},
    ),
    Folder(
        _c("RegNet"),
        {**_RESNET, "groups_width": 8, "layer_type": "x"},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 80}},
    ),
    Folder(_c("ConvNext"), _CONVNEXT, "ConvNextImageProcessor", {"size": {"shortest_edge": 64}}),
    Folder(
        _c("ConvNext"), _CONVNEXT, "ConvNextImageProcessor", {"size": {"shortest_edge": 96}, "resample": 3}
    ),
    Folder(_c("ConvNext"), _CONVNEXT, "ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    Folder(_c("ConvNextV2"), _CONVNEXT, "ConvNextImageProcessor", {"size": {"shortest_edge": 64}}),
    Folder(_c("ConvNextV2"), _CONVNEXT, "BitImageProcessor", {"size": _SHORT, "crop_size": _SQUARE}),
    Folder(
        _c("Bit"),
        {"embedding_size": 16, "hidden_sizes": [32, 32, 64, 64], "depths": [1, 1, 1, 1], "num_groups": 4},
        "BitImageProcessor",
        {"size": _SHORT, "crop_size": _SQUARE},
    ),
    Folder(_c("Swin"), _SWIN, "ViTImageProcessor", {"size": _SQUARE}),
    Folder(_c("Swin"), {**_SWIN, "embed_dim": 16}, "ViTImageProcessor", {"size": _SQUARE}),
    Folder(_c("Swin"), {**_SWIN, "window_size": 2}, "ViTImageProcessor", {"size": _SQUARE, **_OWN}),
    Folder(_c("Swinv2"), _SWIN, "ViTImageProcessor", {"size": _SQUARE}),
    Folder(
        _c("Pvt"),
        {
            "image_size": 64,
            "hidden_sizes": [16, 32, 40, 48],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 5, 8],
        },
        "PvtImageProcessor",
        {"size": _SQUARE},
    ),
    Folder(
        _c("PvtV2"),
        {
            "image_size": 64,
            "hidden_sizes": [16, 32, 40, 48],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 5, 8],
        },
        "PvtImageProcessor",
        {"size": _SQUARE},
    ),
    Folder(
        _c("MobileNetV1"), {"depth_multiplier": 0.25, "image_size": 64}, "MobileNetV1ImageProcessor", _MOBILE
    ),
    Folder(
        _c("MobileNetV2"), {"depth_multiplier": 0.35, "image_size": 64}, "MobileNetV2ImageProcessor", _MOBILE
    ),
    Folder(
        _c("MobileNetV2"),
        {"depth_multiplier": 0.5, "image_size": 96},
        "MobileNetV2ImageProcessor",
        {"size": {"shortest_edge": 109}, "crop_size": {"height": 96, "width": 96}},
    ),
    Folder(
        _c("MobileViT"),
        {"image_size": 64, "hidden_sizes": [32, 40, 48], "neck_hidden_sizes": [8, 8, 16, 24, 32, 40, 64]},
        "MobileViTImageProcessor",
        {"size": {"shortest_edge": 72}, "crop_size": _SQUARE},
    ),
    Folder(
        _c("MobileViTV2"),
        {"image_size": 64, "width_multiplier": 0.25},
        "MobileViTImageProcessor",
        {"size": {"shortest_edge": 72}, "crop_size": _SQUARE},
    ),
    Folder(
        _c("EfficientNet"),
        {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320, "image_size": 64},
        "EfficientNetImageProcessor",
        {"size": _SQUARE},
    ),
    Folder(
        _c("EfficientNet"),
        {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320, "image_size": 64},
        "EfficientNetImageProcessor",
        {
            "size": _SQUARE,
            "rescale_offset": True,
            "rescale_factor": 1 / 127.5,
            "resample": 2,
            "include_top": False,
        },
    ),
    Folder(
        _c("PoolFormer"),
        {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]},
        "PoolFormerImageProcessor",
        {"size": {"shortest_edge": 64}, "crop_size": _SQUARE},
    ),
    Folder(
        _c("Levit"),
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        "LevitImageProcessor",
        {"size": {"shortest_edge": 64}, "crop_size": _SQUARE},
    ),
    Folder(
        _c("Segformer"),
        {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 4]},
        "SegformerImageProcessor",
        {"size": _SQUARE},
    ),
    Folder(
        _c("FocalNet"),
        {"image_size": 64, "embed_dim": 16, "depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 48]},
        "BitImageProcessor",
        {"size": _SHORT, "crop_size": _SQUARE},
    ),
    Folder(
        _c("Hiera"),
        {"image_size": [64, 64], "embed_dim": 16, "num_heads": [1, 1, 2, 2], "depths": [1, 1, 1, 1]},
        "BitImageProcessor",
        {"size": _SHORT, "crop_size": _SQUARE},
    ),
    Folder(
        _c("Cvt"),
        {
            "embed_dim": [16, 32, 48],
            "num_heads": [1, 2, 3],
            "depth": [1, 2, 3],
            "cls_token": [False, False, True],
        },
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 64}},
    ),
    Folder(
        _c("SwiftFormer"),
        {"image_size": 64, "embed_dims": [16, 24, 32, 48], "depths": [1, 1, 1, 1]},
        "ViTImageProcessor",
        {"size": _SQUARE},
    ),
    Folder(_c("HGNetV2"), {}, "ViTImageProcessor", {"size": _SQUARE}),
)
