"""Test-time augmentation of any method: `METHOD(aug_smooth=True)`.

Flows in: images, and a function that gives the raw maps of altered images. Flows out: finished maps
(B, K, H, W) in [0, 1], a mean of six.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from camray.cam.finish import finish

FACTORS = (0.9, 1.0, 1.1)  # of the normalised image, as is customary


def average_views(inputs: Tensor, raw_maps: Callable[[Tensor], Tensor]) -> Tensor:
    """Average the maps in [0, 1] of six views: plain and mirrored, each times 0.9, 1 and 1.1.

    The mean is not stretched to 1 again.
    """
    size = (inputs.shape[2], inputs.shape[3])
    total = torch.zeros((), device=inputs.device)
    for factor in FACTORS:
        view = inputs * factor
        total = total + finish(raw_maps(view), size) + finish(raw_maps(view.flip(3)), size).flip(3)
    return total / (2 * len(FACTORS))
