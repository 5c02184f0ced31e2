"""Rows of a scores table become arrays: each value in its place, whatever the order of the rows."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from camray.compare.panel import SCORE_SCHEMA
from camray.compare.results import Results
from camray.compare.scorer import boxes_on_input
from camray.compare.summary import same_maps
from camray.measure.localisation import CUTS, OVERLAPS
from camray.measure.statistics import weights

SCHEMA = pa.schema([("panel", pa.string()), *SCORE_SCHEMA])
METHODS = {"gradcam": "p1", "random": "p1", "cam": "p2"}


def rows() -> list[dict[str, Any]]:
    """Three images of two shards, two of one content; road of image i and method j is i + j / 10."""
    made: list[dict[str, Any]] = []
    for i, (shard, index, content) in enumerate((("b", 0, "x"), ("a", 7, "y"), ("a", 2, "x"))):
        for j, (method, panel) in enumerate(METHODS.items()):
            one = {"panel": panel, "shard": shard, "index": index, "content_sha256": content, "status": "ok",
                   "method": method, "target_class": i, "target_label": f"class {i}"}  # fmt: skip
            dead = (i, method) == (0, "random")
            status = "dead" if dead else "ok"
            heat = [0.0, -1.0, 2.0 + (method == "random"), 4.0 + i]
            hits = np.zeros((len(OVERLAPS), len(CUTS)), bool)
            hits[0, : 10 * (j + 1)] = True
            made += [
                one | {"metric": "road", "value": None if dead else i + j / 10, "score_status": status},
                one | {"metric": "insertion", "value": None if dead else 0.5, "score_status": status,
                       "curve": [0.0, i / 2, 1.0]},
                one | {"metric": "map", "score_status": status, "heatmap": heat, "heat_h": 2, "heat_w": 2},
                one | {"metric": "box_iou", "value": 0.5, "score_status": "ok",
                       "hits": np.packbits(hits).tobytes() if i else None},
                one | {"metric": "pointing", "value": None, "score_status": "no_region"},
            ]  # fmt: skip
    made.append({"panel": "p1", "shard": "a", "index": 3, "status": "failed", "error_code": "not_an_image"})
    random.Random(0).shuffle(made)
    return made


@pytest.fixture(scope="module")
def found() -> Results:
    return Results.of(pa.Table.from_pylist(rows(), schema=SCHEMA), {"p1": "", "p2": ""})


def test_every_value_is_in_its_place(found: Results) -> None:
    assert found.images == ("x", "y", "x")  # of (a, 2), (a, 7), (b, 0)
    assert set(found.methods[:2]) == {"gradcam", "cam"}
    assert found.methods[2] == "random"  # controls stand last
    assert found.classes.tolist() == [2, 1, 0]
    for method, j in (("gradcam", 0.0), ("random", 0.1), ("cam", 0.2)):
        column = found.values["road"][:, found.methods.index(method)]
        expected = [2 + j, 1 + j, np.nan if method == "random" else j]
        assert np.allclose(column, expected, equal_nan=True)
    assert found.states["road"][2, 2] == "dead"
    assert "pointing" not in found.values  # no image has a region
    assert found.failed == {"not_an_image": 1}
    assert found.panels == METHODS


def test_curves_hits_and_maps_follow(found: Results) -> None:
    assert len(found.curves["insertion"]["random"]) == 2
    assert sorted(found.curves["insertion"]["cam"][:, 1]) == [0.0, 0.5, 1.0]
    ids, hits = found.hits["random"]
    assert sorted(ids) == ["x", "y"]
    assert hits.shape == (2, len(OVERLAPS), len(CUTS))
    assert hits[0, 0].sum() == 20
    assert hits[:, 1:].sum() == 0
    assert np.isnan(found.maps[2][2]).all()
    assert found.maps[0][0].tolist() == [0, -1, 2, 6]


def test_maps_that_are_one_are_grouped(found: Results) -> None:
    assert [set(g) for g in same_maps(found)] == [{"gradcam", "cam"}]


def test_maps_are_one_only_if_they_are_it_on_every_image_and_with_every_member() -> None:
    """Two images: `far` is `one` on the first alone, `near` and `edge` lie on either side of `one`."""
    one = np.array([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]])
    shift = np.array([[0.0, 1.0, 0.0]] * 2)
    maps = {
        "one": one, "far": one + shift * [[0], [0.1]], "near": 3 * (one + 9e-4 * shift),
        "edge": one - 9e-4 * shift, "dead": one * np.nan, "fine": np.zeros((2, 8)),
    }  # fmt: skip
    found = Results(("x", "y"), np.zeros(2, int), tuple(maps), {}, {}, {}, {}, [*maps.values()], {}, {}, {})
    assert same_maps(found) == [("one", "near")]


def test_copies_of_an_image_are_resampled_together() -> None:
    assert (weights("x") == weights("x")).all()
    assert not (weights("x") == weights("y")).all()


def test_panels_of_two_models_are_told_apart() -> None:
    table = pa.Table.from_pylist(rows(), schema=SCHEMA)
    named = Results.of(table, {"p1": "resnet", "p2": "vit"}).methods
    assert set(named) == {"gradcam @ resnet", "cam @ vit", "random @ resnet"}


def test_boxes_lie_on_the_input() -> None:
    """A 200 x 100 image whose middle 100 x 100 became an input of 50 x 50."""
    item = {"width": 200, "height": 100, "crop_x0": 50.0, "crop_x1": 150.0, "crop_y0": 0.0, "crop_y1": 100.0}
    boxes = [
        {"x0": 0.25, "y0": 0.0, "x1": 0.5, "y1": 0.5},  # the left upper quarter of the input
        {"x0": 0.7, "y0": 0.2, "x1": 1.0, "y1": 0.4},  # cut at the right edge
        {"x0": 0.0, "y0": 0.0, "x1": 0.2, "y1": 1.0},  # the model never saw it
    ]
    found = boxes_on_input(item | {"boxes": boxes}, (50, 50))
    assert np.allclose(found.numpy(), [[0, 0, 25, 25], [45, 10, 50, 20]], atol=1e-5)
    assert boxes_on_input(item | {"boxes": None}, (50, 50)).shape == (0, 4)
