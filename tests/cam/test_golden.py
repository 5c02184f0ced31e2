"""Methods no peer gets right, against plain loops over single images and channels, and stored numbers.

The loops follow the papers word by word and are compared in double precision; the numbers were printed by the
loops in float32, and guard both sides: the draws of noise are part of them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camray.cam import explain, find_target_layer
from tests.cam.tolerance import SAME, U32, double_precision, gap, near


class Toy(nn.Module):
    """Two channels of 3 x 3, a ReLU, a mean, two classes; every weight written down."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 2, stride=2)
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.conv.weight[:, 0] = torch.tensor([[[1.0, -0.5], [0.25, 0.5]], [[-1.0, 0.75], [0.5, 0.5]]])
            self.conv.bias[:] = torch.tensor([0.1, -0.2])
            self.head.weight[:] = torch.tensor([[1.0, -0.5], [-0.25, 2.0]])
            self.head.bias[:] = torch.tensor([0.0, 0.3])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().square().mean((2, 3)))


def image() -> Tensor:
    return (torch.arange(36.0).view(1, 1, 6, 6) * 7 % 11 / 10) - 0.3


def gradient(model: Toy, x: Tensor, target: int) -> tuple[Tensor, Tensor]:
    A = model.conv(x)[0].detach().requires_grad_()
    score = model.head(A.relu().square().mean((1, 2)))[target]
    (G,) = torch.autograd.grad(score, A)
    return A.detach(), G


def masked_scores(model: Toy, x: Tensor, masks: list[Tensor], target: int) -> Tensor:
    with torch.no_grad():
        return torch.stack([model(x * m)[0, target] for m in masks])


def unit(channel: Tensor, guard: float) -> Tensor:
    """A channel in [0, 1]."""
    return (channel - channel.min()) / (channel.max() - channel.min() + guard)


def enlarged(channel: Tensor) -> Tensor:
    return F.interpolate(channel[None, None], size=(6, 6), mode="bilinear", align_corners=False)[0, 0]


def smooth_gradcam_plus_plus(model: Toy, x: Tensor) -> Tensor:
    samples, std, target = 3, 0.2, 1
    noise = torch.Generator().manual_seed(0)
    first, second, third = 0, 0, 0
    A, _ = gradient(model, x, target)
    for _ in range(samples):
        drawn = torch.randn(x.shape[1:], generator=noise) * std
        _, G = gradient(model, x + drawn, target)
        first, second, third = first + G / samples, second + G**2 / samples, third + G**3 / samples
    truth = torch.zeros(3, 3)
    for c in range(2):
        alpha = second[c] / (2 * second[c] + A[c].sum() * third[c] + 1e-6)
        truth += (alpha * first[c].relu()).sum() * A[c]
    return truth


def score_cam_over_noisy_masks(model: Toy, x: Tensor) -> Tensor:
    samples, std = 3, 0.5
    drawn = torch.randn((samples, 1, 6, 6), generator=torch.Generator().manual_seed(0)) * std
    A = model.conv(x)[0].detach()
    means = []
    for c in range(2):
        masks = [enlarged(unit(A[c], 1e-8)) + n for n in drawn]
        means.append(masked_scores(model, x, masks, 0).mean())
    weights = torch.stack(means).softmax(0)
    return weights[0] * A[0] + weights[1] * A[1]


def score_cam_along_the_path_to_the_mask(model: Toy, x: Tensor) -> Tensor:
    samples = 4
    A = model.conv(x)[0].detach()
    means = []
    for c in range(2):
        masks = [enlarged(unit(A[c], 1e-8)) * i / samples for i in range(1, samples + 1)]
        means.append(masked_scores(model, x, masks, 1).mean())
    weights = torch.stack(means).softmax(0)
    return weights[0] * A[0] + weights[1] * A[1]


def guided_gradcam(model: Toy, x: Tensor) -> Tensor:
    """By hand: the chain rule backwards, each ReLU passing positive gradients of positive inputs."""
    A, G = gradient(model, x, 1)
    passed = 2 * A.relu() / 9 * model.head.weight[1].detach()[:, None, None]  # d score / d relu(A)
    passed = passed.clamp(min=0) * (A > 0)
    guided = F.conv_transpose2d(passed[None], model.conv.weight.detach(), stride=2)[0, 0]  # (6, 6)
    coarse = (G.mean((1, 2))[:, None, None] * A).sum(0).relu()
    return guided.abs() * enlarged(unit(coarse, 1e-7))


# method as written, class, loop, the first nine numbers
GOLDEN: dict[str, tuple[str, int, Callable[[Toy, Tensor], Tensor], tuple[float, ...]]] = {
    "smoothgradcam++": (
        "smoothgradcam++(samples=3, std=0.2)", 1, smooth_gradcam_plus_plus,
        (0.4635, 0.2752, -0.3911, -0.3476, -0.2173, 0.2317, 0.2752, -0.3911, -0.2607),
    ),
    "sscam": (
        "sscam(samples=3, std=0.5)", 0, score_cam_over_noisy_masks,
        (0.2923, 0.1944, -0.1406, -0.0389, 0.2663, 0.0927, 0.1944, -0.1406, 0.1645),
    ),
    "iscam": (
        "iscam(samples=4)", 1, score_cam_along_the_path_to_the_mask,
        (0.3378, 0.2196, -0.1885, -0.0892, 0.2088, 0.1203, 0.2196, -0.1885, 0.1095),
    ),
    "guided-gradcam": (
        "guided-gradcam", 1, guided_gradcam,
        (0.3556, 0.2391, 0.1456, 0.0696, 0.0, 0.0, 0.1333, 0.1196, 0.0546),
    ),
}  # fmt: skip


def both(method: str) -> tuple[Tensor, Tensor]:
    """What the package says and what the loop says, (h, w) each, in the precision of new tensors."""
    text, target, loop, _ = GOLDEN[method]
    model, x = Toy().eval(), image()
    return explain(model, x, "conv", text, f"class:{target}").maps[text, "conv"][0, 0], loop(model, x)


def golden_gap(method: str) -> float:
    with double_precision():
        found, truth = both(method)
    return gap(found, truth, SAME * truth.abs().max())


@pytest.mark.parametrize("method", GOLDEN)
def test_the_loops_of_the_papers(method: str) -> None:
    assert golden_gap(method) <= 1


@pytest.mark.parametrize("method", GOLDEN)
def test_stored_numbers(method: str) -> None:
    """Half a unit of the last digit, and as much for 800 roundings of float32 (80, a cube, a quotient)."""
    stored = torch.tensor(GOLDEN[method][3])
    for values in both(method):
        assert values.dtype == torch.float32
        assert float((values.flatten()[:9] - stored).abs().max()) <= 1e-4


def test_masks_that_are_the_same_are_scored_once() -> None:
    """Silent channels and channels active in one and the same cell share a forward; others do not.

    In float32, where the guard of min-max vanishes beside the values. A score is the end of 73 products, and
    a softmax of logits up to 2.5 multiplies its error by 10.
    """
    torch.manual_seed(0)

    class Counting(nn.Module):
        rows = 0

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 3)
            self.conv.weight.data[:] = 0
            self.conv.bias.data[:] = 0
            self.conv.weight.data[0, 0] = 1.0
            self.conv.weight.data[1, 0] = 4.0  # the same mask as channel 0
            self.conv.weight.data[2, 1] = 1.0
            self.conv.weight.data[3, 0] = -1.0  # its negative: another one; channels 4 and 5 are silent

        def forward(self, x: Tensor) -> Tensor:
            Counting.rows += len(x)
            return self.head(self.conv(x).mean((2, 3)))

    model, x = Counting().eval(), torch.randn(2, 3, 8, 8)
    layer = find_target_layer(model, (3, 8, 8), "conv")
    Counting.rows, text = 0, "scorecam"
    found = explain(model, x, layer, text, "class:1").maps[text, "conv"]
    assert Counting.rows == 2 + 2 * 4  # the forward, then masks 0 = 1, 2, 3, 4 = 5 of both images
    A = model.conv(x).detach()
    for image in range(2):
        scores = []
        for c in range(6):
            up = F.interpolate(A[image, c][None, None], size=(8, 8), mode="bilinear", align_corners=True)
            mask = (up - up.min()) / (up.max() - up.min() + 1e-8)
            scores.append(model(x[image : image + 1] * mask)[0, 1])
        weights = torch.stack(scores).softmax(0).detach()
        truth = torch.einsum("c,chw->hw", weights, A[image])
        assert near(found[image, 0], truth, 2 * 10 * 73 * U32)
