"""The table of automatic layers: no silent failure in it, and it says what the code does."""

from __future__ import annotations

import csv

import pytest

from tests.cam.families import FIELDS, TABLE, describe

with TABLE.open() as file:
    ROWS = list(csv.DictReader(file))


def test_every_row_is_a_map_or_says_why_not() -> None:
    assert tuple(ROWS[0]) == FIELDS
    assert len({row["module"] for row in ROWS}) == len(ROWS)
    for row in ROWS:
        spoken = row["layer"].startswith(("refused: ", "not run: "))
        assert spoken or (row["gradcam"] == row["eigencam"] == "ok" and row["layout"]), row
    assert sum(row["gradcam"] == "ok" for row in ROWS) >= 0.9 * len(ROWS)
    assert {row["layout"] for row in ROWS} >= {"nchw", "nhwc", "tokens"}


@pytest.mark.parametrize("module", ["regnet", "mambaout", "pvt_v2"])
def test_rows_are_what_the_code_does(module: str) -> None:
    row = next(row for row in ROWS if row["module"] == module)
    assert describe(module, row["model"]) == row


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["module"])
def test_all_rows_are_what_the_code_does(row: dict[str, str]) -> None:
    assert describe(row["module"], row["model"]) == row
