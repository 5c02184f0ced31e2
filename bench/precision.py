"""What `--precision bf16` changes: classes and maps of real photographs beside fp32.

    python bench/precision.py MODEL WEIGHTS.safetensors FOLDER...

Not a matter of speed. Maps are compared by rank correlation where the class is the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor

from camray import cam
from camray.models.folding import find_last_block, find_pairs, fold


def main() -> None:
    name, weights, *folders = sys.argv[1:]
    model = timm.create_model(name).eval().requires_grad_(False)
    model.load_state_dict(load_file(weights))
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    files = sorted(f for folder in folders for f in Path(folder).rglob("*.JPEG"))
    images = torch.stack([transform(Image.open(f).convert("RGB")) for f in files])
    layer = cam.find_target_layer(model, tuple(images.shape[1:]))
    folded = fold(model, find_pairs(model, images[:2], layer.name) + find_last_block(model, layer.name))

    def run(dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        parts = [cam.explain(folded, x, layer, "gradcam", autocast=dtype) for x in images.split(8)]
        maps = torch.cat([next(iter(part.maps.values()))[:, 0] for part in parts])
        return torch.cat([part.logits for part in parts]).float(), maps

    logits, maps = run(None)
    for dtype in (torch.bfloat16, torch.float16):
        low, moved = run(dtype)
        same = low.argmax(1) == logits.argmax(1)
        pairs = zip(maps[same], moved[same], strict=True)
        ranks = np.array([spearmanr(a.flatten(), b.flatten()).statistic for a, b in pairs])
        change = (moved - maps).abs().amax((1, 2)) / maps.abs().amax((1, 2))
        print(
            f"{name} {dtype}: {int(same.sum())} of {len(same)} classes equal; rank correlation of maps "
            f"median {np.median(ranks):.4f}, least {ranks.min():.4f}; largest change of a map median "
            f"{float(change[same].median()):.1%}, most {float(change[same].max()):.1%} of its height"
        )


if __name__ == "__main__":
    main()
