"""Boxes in every spelling, and what is refused."""

import pytest

from camray.archive.annotations import MAX_BOXES, find_boxes
from camray.records import Boxes

PIXELS = Boxes(((10.0, 20.0, 40.0, 60.0),), in_pixels=True)


@pytest.mark.parametrize(
    "row",
    [
        {"x0": 10, "y0": 20, "x1": 40, "y1": 60},
        {"xmin": "10", "ymin": "20", "xmax": "40", "ymax": "60"},
        {"x": 10, "y": 20, "w": 30, "h": 40},
        {"box": [10, 20, 40, 60]},
        {"boxes": [[10, 20, 40, 60]]},
        {"boxes": [{"X0": 10, "y0": 20, "x1": 40, "y1": 60}]},
        {"bbox": [10, 20, 30, 40]},
        {"bbox": "[10, 20, 30, 40]"},
        {"bboxes": [[10, 20, 30, 40]]},
        {"objects": {"bbox": [[10, 20, 30, 40]], "category": [3]}},
        {"objects": [{"bbox": [10, 20, 30, 40], "category": 3}]},
    ],
)
def test_every_spelling_is_the_same_box(row):
    assert find_boxes(row) == PIXELS


def test_a_bbox_may_hold_edges():
    assert find_boxes({"bbox": [10, 20, 40, 60]}, "xyxy") == PIXELS
    assert find_boxes({"objects": {"bbox": [[10, 20, 40, 60]]}}, "xyxy") == PIXELS
    assert find_boxes({"box": [10, 20, 40, 60]}, "xyxy") == PIXELS


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"x0": "", "y0": " ", "x1": None, "y1": ""},
        {"boxes": []},
        {"objects": {"bbox": []}},
        {"bbox": None},
        {"h": 1},
        {"objects": "none"},
    ],
)
def test_no_box(row):
    assert find_boxes(row) is None


def test_shares_are_told_by_all_numbers_of_the_image():
    assert find_boxes({"box": [0, 0, 1, 1]}) == Boxes(((0, 0, 1, 1),), in_pixels=False)
    assert find_boxes({"boxes": [[0, 0, 1, 1], [0, 0, 2, 2]]}).in_pixels


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"x0": 1, "y0": 2, "x1": 3, "y1": ""}, "y1 is empty"),
        ({"x0": 1, "y0": 2, "x1": "wide", "y1": 9}, "'wide' is not a number"),
        ({"x0": 1, "y0": 2, "x1": "nan", "y1": 9}, "'nan' is not a number"),
        ({"x0": 9, "y0": 2, "x1": 3, "y1": 9}, "negative side"),
        ({"x": 9, "y": 2, "w": -3, "h": 9}, "negative side"),
        ({"box": [1, 2, 3]}, "not four numbers"),
        ({"bbox": 7}, "not four numbers"),
        ({"boxes": [[0, 0, 1, 1]] * (MAX_BOXES + 1)}, "1,001 boxes"),
    ],
)
def test_what_is_refused(row, says):
    with pytest.raises(ValueError, match=says):
        find_boxes(row)
