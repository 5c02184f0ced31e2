"""Maps that ignore the model: what any method must beat.

Flows in: A or the scene. Flows out: (B, h, w), or of the image's size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from camray.cam.gradients import weigh
from camray.cam.registry import method
from camray.cam.scene import Scene


@method(
    "random", needs="activation", cost="1", per_class=False, doc="channels with random weights",
    when="a control: any method must beat it",
)  # fmt: skip
def random(A: Tensor, seed: int = 0) -> Tensor:
    """Channels with random weights U(-1, 1), the same draw for every image, so that results repeat."""
    draw = torch.rand(A.shape[1], generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return weigh(draw.to(A).expand(len(A), -1), A)


@method(
    "center", needs="activation", cost="1", per_class=False, doc="a blob in the middle of the image",
    when="a control: any method must beat it",
)  # fmt: skip
def center(A: Tensor) -> Tensor:
    """Put a Gaussian in the middle, with a standard deviation of a quarter of each side."""
    rows, columns = A.shape[2:]
    y = torch.linspace(-2, 2, rows, device=A.device)[:, None] if rows > 1 else torch.zeros(1, 1).to(A)
    x = torch.linspace(-2, 2, columns, device=A.device)[None]
    return torch.exp(-(x.square() + y.square()) / 2).expand(len(A), -1, -1)


def sobel(inputs: Tensor) -> Tensor:
    """Edge strength of the image: the length of the Sobel gradient of its channel mean, (B, H, W)."""
    grey = F.pad(inputs.float().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=inputs.device)
    kernels = torch.stack([across, across.T])[:, None]  # (2, 1, 3, 3)
    return F.conv2d(grey, kernels).square().sum(1).sqrt()


@method(
    "sobel", needs="scene", cost="1", per_class=False, doc="edges of the image",
    when="a control: any method must beat it",
)  # fmt: skip
def edges(scene: Scene) -> Tensor:
    """Give the edge strength of the batch as maps, (B, 1, H, W)."""
    return sobel(scene.inputs)[:, None]
