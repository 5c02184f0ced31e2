"""The grid shows each image and each map where its caption says, in the colours of its own pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from camray.cam import Explanation, blend, finish, plot
from camray.cam.plot import CAPTION
from camray.errors import UsageError


def explained() -> tuple[Explanation, torch.Tensor]:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8)
    maps = torch.randn(2, 2, 4, 8)
    classes = torch.tensor([[3, 1], [0, -1]])
    return Explanation(torch.randn(2, 5), classes, torch.ones(2, 2), {("gradcam", "layer"): maps}), images


def test_each_cell_holds_the_image_or_its_overlay() -> None:
    found, images = explained()
    grid = np.asarray(plot(found, images, side=64))
    assert grid.shape == (CAPTION + 2 * (32 + CAPTION), 3 * (64 + 4), 3)
    heat = finish(found.maps["gradcam", "layer"], (32, 64))
    for row in range(2):
        top = CAPTION + row * (32 + CAPTION) + CAPTION
        picture = images[row].permute(1, 2, 0)
        assert np.array_equal(grid[top : top + 32, :64], picture.numpy())
        for k in range(2):
            left = (1 + k) * 68
            assert np.array_equal(
                grid[top : top + 32, left : left + 64], blend(picture, heat[row, k]).numpy()
            )


def test_floats_are_stretched_and_other_images_refused() -> None:
    found, images = explained()
    normalised = (images.float() - 120) / 60
    grid = np.asarray(plot(found, normalised, side=64))
    shown = grid[2 * CAPTION : 2 * CAPTION + 32, :64].astype(int)
    assert (shown.min(), shown.max()) == (0, 255)
    low, high = int(images[0].min()), int(images[0].max())
    wanted = (images[0].permute(1, 2, 0).double() - low) / (high - low) * 255
    assert np.abs(shown - wanted.numpy()).max() <= 0.5 + 1e-4  # float32 of values up to 255, then rounded
    with pytest.raises(UsageError, match="images"):
        plot(found, images[:1])
