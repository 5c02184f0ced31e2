"""A bright spot known to the pixel, a model that provably looks at it: every picture shows it where it is.

The network averages cells of 8 x 8 pixels and keeps what is brighter than the dark background; its score is
their sum. Grad-CAM at those cells is positive on the spot and zero everywhere else, so the hottest point of
the overlay must lie on the spot: on wide and tall images, and whatever EXIF says is up.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.workflows.workflow_truth import records

NET = """
from torch import nn


class Spot(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.Conv2d(3, 1, 8, stride=8)
        self.bright = nn.ReLU()
        self.head = nn.Linear(1, 2)

    def forward(self, x):
        return self.head(self.bright(self.cells(x)).mean((2, 3)))
"""
WEIGHTS = {
    "cells.weight": torch.full((1, 3, 8, 8), 1 / 192),
    "cells.bias": torch.tensor([-0.15]),  # the background has 0.10, the corner mark 0.09
    "head.weight": torch.tensor([[-1000.0], [1000.0]]),
    "head.bias": torch.tensor([0.1, -0.1]),
}
SIDE, CELLS, RADIUS = 64, 8, 12
# name: upright width and height, centre of the spot
SHAPES = {"wide": (600, 200, 237, 58), "tall": (200, 600, 150, 260)}
SHAPES |= {f"exif{n}": (300, 200, 90, 60) for n in range(1, 9)}
HOTTEST = np.array([122, 4, 3])  # the last colour of turbo
# EXIF 2.3, orientation: how what is stored becomes upright, as operations on rows and columns
STORED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[::-1],  # row 0 is the right side
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[::-1].transpose(1, 0, 2)[:, :],  # row 0 is the left side
}


def upright(width: int, height: int, x: int, y: int) -> NDArray[np.uint8]:
    """Dark, a white disc, and a blue mark in the corner that is the upper left one."""
    image = np.full((height, width, 3), 25, np.uint8)
    image[: height // 8, : width // 8] = (0, 0, 70)
    rows, columns = np.mgrid[:height, :width]
    image[(rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 < RADIUS**2] = 255
    return image


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spots")
    for name, shape in SHAPES.items():
        orientation = int(name[4:]) if name.startswith("exif") else 1
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = np.ascontiguousarray(STORED[orientation](upright(*shape)))
        Image.fromarray(stored).save(folder / f"{name}.jpg", quality=95, exif=exif)
    return folder


@pytest.fixture
def explained(spots: Path, explain: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Explain the spots, and give record and picture of each."""
    (tmp_path / "spot.py").write_text(NET)
    torch.save(WEIGHTS, tmp_path / "spot.pth")

    def go(**settings: Any) -> dict[str, tuple[dict[str, Any], NDArray[np.uint8]]]:
        explain(
            spots, tmp_path / "out", f"{tmp_path}/spot.py:Spot", model__checkpoint=f"{tmp_path}/spot.pth",
            preprocess__input_size=SIDE, preprocess__resize=SIDE, preprocess__mean=0.0, preprocess__std=1.0,
            method__target="1", overlay__policy="all", overlay__alpha=1.0, overlay__gamma=1.0,
            overlay__quality=98, overlay__colormap="turbo", overlay__contour=0.0, **settings,
        )  # fmt: skip
        found = records(tmp_path / "out")
        assert set(found) == {f"{name}.jpg" for name in SHAPES}
        return {
            name: (row, np.asarray(Image.open(tmp_path / "out" / row["overlay_path"])))
            for name in SHAPES
            for row in [found[f"{name}.jpg"]]
        }

    return go


def hottest(picture: NDArray[np.uint8]) -> tuple[float, float]:
    """The middle (x, y) of what has the hottest colour."""
    distance = np.abs(picture.astype(int) - HOTTEST).sum(2)
    assert distance.min() < 90, "the hottest colour is nowhere"
    rows, columns = np.nonzero(distance <= distance.min() + 15)
    return float(columns.mean() + 0.5), float(rows.mean() + 0.5)


def check_record(row: dict[str, Any], name: str, crop: tuple[float, float, float, float]) -> None:
    """The recorded geometry is that of the recipe by hand, and the recorded peak is on the spot."""
    width, height, x, y = SHAPES[name]
    assert (row["width"], row["height"]) == (width, height)
    assert row["target_layer"] == "bright"
    x0, y0, x1, y1 = (row[f"crop_{edge}"] for edge in ("x0", "y0", "x1", "y1"))
    pixel = (crop[2] - crop[0]) / SIDE  # of the input; odd padding is one more on one side
    assert (x0, y0, x1, y1) == pytest.approx(crop, abs=1.1 * pixel)
    cell = 1 / CELLS
    assert (row["heat_peak_x"], row["heat_peak_y"]) == pytest.approx(
        ((x - x0) / (x1 - x0), (y - y0) / (y1 - y0)), abs=cell
    )


def centre_crop(width: int, height: int) -> tuple[float, float, float, float]:
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    return left, top, left + short, top + short


def padded(width: int, height: int) -> tuple[float, float, float, float]:
    long = max(width, height)
    left, top = (width - long) / 2, (height - long) / 2
    return left, top, left + long, top + long


@pytest.mark.parametrize("mode", ["center", "border"])
def test_on_the_original(explained: Callable[..., Any], mode: str) -> None:
    for name, (row, picture) in explained(overlay__on="original", preprocess__crop_mode=mode).items():
        width, height, x, y = SHAPES[name]
        crop = (centre_crop if mode == "center" else padded)(width, height)
        check_record(row, name, crop)
        assert picture.shape == (height, width, 3)
        cell = (crop[2] - crop[0]) / CELLS
        assert hottest(picture) == pytest.approx((x, y), abs=cell * 0.75), name
        blue = picture[..., 2].astype(int) - picture[..., 0]
        corners = [blue[r, c] for r in (4, -4) for c in (4, -4)]
        assert corners[0] > 25, name  # dimmed by half where the model never saw it
        assert max(corners[1:]) < 15, name


def test_on_the_input(explained: Callable[..., Any]) -> None:
    for name, (row, picture) in explained().items():
        width, height, x, y = SHAPES[name]
        crop = centre_crop(width, height)
        check_record(row, name, crop)
        assert picture.shape[0] == picture.shape[1] >= 224
        side = picture.shape[0]
        wanted = ((x - crop[0]) / (crop[2] - crop[0]) * side, (y - crop[1]) / (crop[3] - crop[1]) * side)
        assert hottest(picture) == pytest.approx(wanted, abs=side / CELLS * 0.75), name
