"""Heat inside boxes and masks, against counting the pixels of a fine raster."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch.nn.functional import interpolate

from camray.explain.overlays import heat_mask
from camray.explain.regions import box_cover, boxes_of_heat, mask_cover, region_signals
from camray.records import Geometry

WHERE = {"width": 100, "height": 80, "crop_x0": 10.0, "crop_x1": 90.0, "crop_y0": -10.0, "crop_y1": 90.0}
FINE = 700  # pixels a side of the raster; a multiple of the grids


def box(*edges: float) -> dict[str, float]:
    return dict(zip(("x0", "y0", "x1", "y1"), edges, strict=True))


def counted(boxes: list[dict[str, float]], shape: tuple[int, int]) -> NDArray[np.float64]:
    """The share of each cell inside any box: which pixel centres of the input lie in one."""
    centre = (np.arange(FINE) + 0.5) / FINE
    x = (WHERE["crop_x0"] + centre * (WHERE["crop_x1"] - WHERE["crop_x0"])) / WHERE["width"]
    y = (WHERE["crop_y0"] + centre * (WHERE["crop_y1"] - WHERE["crop_y0"])) / WHERE["height"]
    inside = np.zeros((FINE, FINE), bool)
    for b in boxes:
        inside |= ((y >= b["y0"]) & (y < b["y1"]))[:, None] & ((x >= b["x0"]) & (x < b["x1"]))[None]
    h, w = shape
    return inside.reshape(h, FINE // h, w, FINE // w).mean((1, 3))


@pytest.mark.parametrize("shape", [(7, 7), (5, 10), (1, 1)])
@pytest.mark.parametrize(
    "boxes",
    [
        [box(0, 0, 1, 1)],
        [box(0.3, 0.4, 0.35, 0.9)],
        [box(0.2, 0.2, 0.6, 0.6), box(0.4, 0.1, 0.9, 0.5), box(0.41, 0.11, 0.5, 0.2)],
        [box(0.0, 0.0, 0.05, 1.0)],  # all of it cropped away
    ],
)
def test_cover_is_what_counting_pixels_gives(boxes: list[dict[str, float]], shape: tuple[int, int]) -> None:
    assert np.abs(box_cover(boxes, WHERE, shape) - counted(boxes, shape)).max() < 4 / (FINE / max(shape))


def test_masks_are_averaged_by_area() -> None:
    mask = np.random.default_rng(0).integers(0, 2, (21, 35)).astype(np.uint8) * 255
    exact = mask.reshape(7, 3, 5, 7).mean((1, 3)) / 255
    assert np.allclose(mask_cover(mask / 255, (7, 5)), exact)
    assert np.isclose(mask_cover(mask / 255, (4, 4)).mean(), mask.mean() / 255)  # cells that cut pixels


def test_signals() -> None:
    maps = torch.zeros(5, 4, 4)
    maps[:4, 1, 2] = 3.0
    maps[:4, 0, 0] = 1.0
    maps[:4, 3, 3] = -50.0  # what speaks against the class is no heat
    maps[3, 2, 2] = float("nan")
    whole = WHERE | {"crop_x0": 0, "crop_x1": 100, "crop_y0": 0, "crop_y1": 80}
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 4:6] = 255
    hot, half = [box(0.5, 0.25, 0.75, 0.5)], [box(0.5, 0.25, 0.625, 0.5)]
    rows = [
        whole | {"boxes": hot, "mask": mask.tobytes()},
        whole | {"boxes": half, "mask": None},
        whole | {"boxes": None, "mask": None},
        whole | {"boxes": hot, "mask": mask.tobytes()},
        whole | {"boxes": hot, "mask": None},
    ]
    found = region_signals(maps, rows, (8, 8))
    assert [tuple(f.values()) for f in found] == [
        (0.75, 0.75, 0), (0.375, None, 0), (None, None, 0), (None, None, None), (None, None, None),
    ]  # fmt: skip


def test_heat_on_padding() -> None:
    """An image of 100 x 80 in an input that reaches 25 beyond its left edge: one of five columns is empty."""
    maps = torch.tensor([[[4.0, 1.0, 1.0, 1.0, 1.0]]])
    padded = WHERE | {
        "crop_x0": -25,
        "crop_x1": 100,
        "crop_y0": 0,
        "crop_y1": 80,
        "boxes": None,
        "mask": None,
    }
    (found,) = region_signals(maps, [padded], (5, 5))
    assert found == {"heat_in_box": None, "heat_in_mask": None, "heat_in_padding": pytest.approx(0.5)}


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize(("width", "height"), [(100, 80), (640, 360)])
def test_boxes_and_mask_of_the_heat_are_those_of_torch_and_scipy(
    share: float, width: int, height: int
) -> None:
    """Boxes around the heat, in pixels of the upright image, against another library's resize and labels."""
    heat = np.random.default_rng(3).normal(size=(7, 9)).astype(np.float32)
    edges = (
        0.1 * width,
        -0.125 * height,
        0.9 * width,
        1.125 * height,
    )  # cropped; padded above
    where = Geometry(width, height, *edges)
    row = {name: getattr(where, name) for name in where.__slots__}
    tensor = torch.from_numpy(heat).clamp(min=0)[None, None]
    unit = interpolate(tensor, (70, 90), mode="bilinear", align_corners=False)[0, 0].numpy()
    labels, count = ndimage.label(unit >= share * unit.max(), np.ones((3, 3)))
    x = np.clip(edges[0] + np.arange(91) / 90 * (edges[2] - edges[0]), 0, width)
    y = np.clip(edges[1] + np.arange(71) / 70 * (edges[3] - edges[1]), 0, height)
    wanted = [
        (x[s[1].start], y[s[0].start], x[s[1].stop], y[s[0].stop]) for s in ndimage.find_objects(labels)
    ]
    wanted = [w for w in wanted if w[2] > w[0] and w[3] > w[1]]
    found = [tuple(b.values()) for b in boxes_of_heat(heat[None], [row], (70, 90), share)[0]]
    assert count
    assert np.allclose(sorted(found), sorted(wanted), atol=1e-3)
    mask = np.asarray(Image.open(io.BytesIO(heat_mask(heat, where, (70, 90), share))))
    column = np.floor((np.arange(width) + 0.5 - edges[0]) / (edges[2] - edges[0]) * 90).astype(int)
    line = np.floor((np.arange(height) + 0.5 - edges[1]) / (edges[3] - edges[1]) * 70).astype(int)
    inside = ((line >= 0) & (line < 70))[:, None] & ((column >= 0) & (column < 90))[None]
    truth = (labels > 0)[line.clip(0, 69)][:, column.clip(0, 89)] & inside
    assert mask.shape == (height, width)
    assert (mask > 0).any()
    assert ((mask > 0) != truth).mean() < 0.01  # a pixel whose centre lies on an edge may be either's


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_boxes_come_with_the_part_of_most_pixels_first(share: float) -> None:
    """Counted by another library, holes and parts inside of holes included, for maps in one call."""
    size = (64, 48)
    heats = np.random.default_rng(5).normal(size=(40, 12, 10)).astype(np.float32)
    row = {"width": 48, "height": 64, "crop_x0": 0.0, "crop_y0": 0.0, "crop_x1": 48.0, "crop_y1": 64.0}
    found = boxes_of_heat(heats, [row] * len(heats), size, share)
    several = 0
    for heat, boxes in zip(heats, found, strict=True):
        tensor = torch.from_numpy(heat).clamp(min=0)[None, None]
        unit = interpolate(tensor, size, mode="bilinear", align_corners=False)[0, 0].numpy()
        labels, count = ndimage.label(unit >= share * unit.max(), np.ones((3, 3)))
        pixels = np.bincount(labels.ravel())[1:]
        places = {(s[1].start, s[0].start, s[1].stop, s[0].stop): n
                  for s, n in zip(ndimage.find_objects(labels), pixels.tolist(), strict=True)}  # fmt: skip
        counts = [places[tuple(round(edge) for edge in box.values())] for box in boxes]
        assert counts == sorted(pixels.tolist(), reverse=True)
        several += count > 1
    assert several
