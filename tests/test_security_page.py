"""SECURITY.md names for each of its promises a test; the tests are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
NODE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_promise_has_a_test_and_every_test_is_there() -> None:
    table = PAGE.partition("## Each promise and its test")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "| promise |" not in line]
    assert len(rows) >= 30
    assert [row for row in rows if not NODE.search(row.split("|")[2])] == []
    for path, name in NODE.findall(PAGE):
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, f"{path}::{name}"
