"""The 66 rows of bad input and the tests that hold them: `bad_input_matrix.csv` names only what exists."""

from __future__ import annotations

import ast
import csv
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
with (HERE / "bad_input_matrix.csv").open(encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))


@cache
def functions_of(path: Path) -> set[str]:
    """Name the test functions of a file."""
    tree = ast.parse(path.read_text("utf-8"))
    return {n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}


def test_no_row_is_missing() -> None:
    assert [int(row["row"]) for row in ROWS] == list(range(1, 67))
    assert all(row["case"] and row["behaviour"] for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['row']} {row['field']}")
def test_every_row_is_held(row: dict[str, str]) -> None:
    assert row["tests"].split()
    for node in row["tests"].split():
        path, _, name = node.partition("::")
        assert name in functions_of(HERE / path), node
