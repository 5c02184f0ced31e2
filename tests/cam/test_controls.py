"""The maps that know nothing of the class, against loops over positions; in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from camray.cam import controls, explain
from tests.cam.cam_zoo import images
from tests.cam.tolerance import SAME, gap

pytestmark = pytest.mark.usefixtures("double")


def layer() -> Tensor:
    return torch.randn(2, 5, 5, 5, generator=torch.Generator().manual_seed(0))


def random_gap(run: Callable[[Tensor], Tensor]) -> float:
    """One weight of U(-1, 1) a channel, the same draw for every image."""
    A = layer()
    draw = torch.rand(5, generator=torch.Generator().manual_seed(0))
    truth = sum((2 * draw[c] - 1) * A[:, c] for c in range(5))
    return gap(run(A), truth, SAME * truth.abs().max())


def center_gap(run: Callable[[Tensor], Tensor]) -> float:
    """A Gaussian about the middle; its standard deviation is half the way to the edge."""
    truth = torch.tensor(
        [[math.exp(-((y - 2) ** 2 + (x - 2) ** 2) / 2) for x in range(5)] for y in range(5)]
    ).expand(2, -1, -1)
    return gap(run(layer()), truth, SAME)


def sobel_gap() -> float:
    x = images(6, 2)
    grey = torch.nn.functional.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")[:, 0]
    truth = torch.zeros(2, 6, 6)
    for b in range(2):
        for r in range(6):
            for c in range(6):
                p = grey[b, r : r + 3, c : c + 3]
                across = p[0, 2] + 2 * p[1, 2] + p[2, 2] - p[0, 0] - 2 * p[1, 0] - p[2, 0]
                down = p[2, 0] + 2 * p[2, 1] + p[2, 2] - p[0, 0] - 2 * p[0, 1] - p[0, 2]
                truth[b, r, c] = math.hypot(across, down)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    return gap(explain(model, x, "0", "sobel").maps["sobel", "0"][:, 0], truth, SAME * truth.max())


def test_random_weights_are_one_draw_for_all() -> None:
    assert random_gap(controls.random) <= 1
    X = torch.rand(2, 5, 5, 5)
    assert torch.equal(controls.random(X), controls.random(X.clone()))
    assert torch.equal(controls.random(X)[1:], controls.random(X[1:]))
    assert not torch.equal(controls.random(X), controls.random(X, seed=1))


def test_center_is_a_gaussian_in_the_middle() -> None:
    assert center_gap(controls.center) <= 1
    assert int(controls.center(layer())[0].argmax()) == 12


def test_sobel_is_the_length_of_the_gradient() -> None:
    assert sobel_gap() <= 1
