"""The second look: which rows get it, and what is blurred, against plain loops and OpenCV."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch

from camray.explain import confirm


def row(ring: float | None, corner: float | None, target: int = 1) -> dict[str, Any]:
    return {"heat_ring_mass": ring, "heat_corner_mass": corner, "target_class": target, "predicted_class": 1}


def test_even_heat_is_not_suspicious_and_heat_on_the_border_is() -> None:
    assert confirm.suspicion(row(1 - 0.75**2, 9 / 64)) == pytest.approx(1)  # even heat: exactly its share
    assert confirm.suspicion(row(0.2, 0.2)) < 1
    assert confirm.suspicion(row(0.5, 0.2)) > 1
    assert confirm.suspicion(row(0.3, 0.4)) > 1
    assert confirm.suspicion(row(None, None)) == 0  # a dead map
    assert confirm.suspicion(row(0.9, 0.9, target=2)) == 0  # the map of a class that was not predicted


def test_the_most_suspicious_come_first_and_the_budget_holds() -> None:
    rows = [row(0.5, 0.1), row(0.1, 0.1), row(0.9, 0.1), row(0.6, 0.1)]
    assert confirm.due(rows, 2) == ([0, 2, 3], [2, 3])
    assert confirm.due(rows, 0) == ([0, 2, 3], [])


def test_only_the_hot_part_of_the_border_is_blurred() -> None:
    side = 32
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    maps = torch.zeros(2, 8, 8)
    maps[0, 7, 0] = 1  # bottom left
    maps[1, 3, 3] = 1  # in the middle
    changed = (confirm.without_hot_border(x, maps) != x).any(1)
    assert not changed[1].any()
    rows, columns = np.nonzero(changed[0].numpy())
    assert len(rows) > 0
    border = (rows < 4) | (rows >= 28) | (columns < 4) | (columns >= 28)
    assert border.all()
    assert (rows >= 24).all()
    assert (columns < 8).all()


def test_the_blur_is_a_gaussian() -> None:
    side = 48
    image = np.random.default_rng(0).random((side, side)).astype(np.float32)
    sigma = side / 16
    radius = int(np.ceil(3 * sigma))
    expected = cv2.GaussianBlur(image, (2 * radius + 1,) * 2, sigma, borderType=cv2.BORDER_REFLECT_101)
    hot = torch.ones(1, 2, 2)
    hot[0, 0, 0] = 3.0  # hotter than the mean at the top left
    found = confirm.without_hot_border(torch.from_numpy(image)[None, None], hot)[0, 0].numpy()
    changed = found != image
    assert changed[:6, :20].all()
    assert np.allclose(found[changed], expected[changed], atol=1e-5)


def test_columns_are_filled_within_the_budget() -> None:
    """A model that sums its input: the drop is what the blur takes from the predicted class."""
    rows = [
        (i, row(0.9 - i / 10, 0.1) | {"heatmap": np.eye(2, dtype=np.float32), "confidence": 0.8})
        for i in range(3)
    ]
    asked: list[int] = []

    def scores(images: Any, change: Any) -> torch.Tensor:
        asked.extend(images)
        assert change(torch.rand(len(images), 3, 16, 16)).shape == (len(images), 3, 16, 16)
        return torch.tensor([[0.7, 0.3], [0.1, 0.9]])[: len(images)]

    confirm.look_again(rows, 2, 1, scores)
    assert asked == [0, 1]
    assert [r.get("confirm_region") for _, r in rows] == ["border"] * 3
    assert rows[0][1]["confirm_drop"] == pytest.approx(0.5)
    assert (rows[0][1]["confirm_flip"], rows[1][1]["confirm_flip"]) == (True, True)
    assert "confirm_drop" not in rows[2][1]
