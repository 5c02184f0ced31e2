"""Each promise names the test that holds it, and each test that is named is there."""

from __future__ import annotations

import ast
import csv
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = {"README.md": "## What it promises"}  # page -> the section with its table of promises


@cache
def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def is_there(path: str, name: str) -> bool:
    file = ROOT / path
    return name.startswith("test_") and file.is_file() and name.partition("[")[0] in functions_of(file)


@pytest.mark.parametrize("page", SECTIONS)
def test_no_promise_is_without_its_test(page: str) -> None:
    section = (ROOT / page).read_text("utf-8").partition(SECTIONS[page])[2].partition("\n#")[0]
    rows = re.findall(r"^\| (?!promise|---)(.+) \| (.+) \|$", section.partition("| exit code |")[0], re.M)
    assert len(rows) >= 5
    for promise, tests in rows:
        links = re.findall(r"\[`(\w+)`\]\((tests/[\w/]+\.py)\)", tests)
        assert links, promise
        assert [link for link in links if not is_there(link[1], link[0])] == [], promise


def test_every_case_is_held_by_a_test() -> None:
    with (ROOT / "tests" / "cases.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    ids = [row["id"] for row in rows]
    assert rows
    assert ids == sorted(ids)
    assert [row["test"] for row in rows if not is_there(*row["test"].split("::"))] == []
    assert all(row["behaviour"] for row in rows)
