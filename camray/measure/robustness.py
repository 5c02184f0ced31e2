"""How far a map moves when the image moves a little.

Flows in: images (B, C, H, W) and a function from images to maps. Flows out: (B, M).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from camray.cam.finish import normalise


def max_sensitivity(
    images: Tensor,
    maps: Tensor,
    explain: Callable[[Tensor], Tensor],
    samples: int = 3,
    radius: float = 0.2,
    seed: int = 0,
) -> Tensor:
    """Largest |h(x + e) - h(x)| / |h(x)| over samples of e, even noise of +- radius: (B, M); low is good.

    `maps` are h(x), (B, M, h, w), and `explain` gives those of altered images for the same classes; both
    are scaled to [0, 1] here. All images share each draw of e, in units of the model's input. nan for a
    blank map. A map that ignores the image is not sensitive at all: read it beside faithfulness.
    Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019.
    """
    generator = torch.Generator().manual_seed(seed)
    still = normalise(maps).double()
    found = torch.zeros(maps.shape[:2], dtype=torch.float64, device=maps.device)
    for _ in range(samples):
        e = (torch.rand(images.shape[1:], generator=generator) * 2 - 1) * radius
        moved = normalise(explain(images + e.to(images))).double()
        found = torch.maximum(found, (moved - still).flatten(2).norm(dim=2))
    length = still.flatten(2).norm(dim=2)
    return torch.where(length > 0, found / length, torch.nan)
