"""docs/guarantees.md names for each promise a protection that can be taken out, and the test that notices."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.faults.sabotage import SMALL_JOB

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text("utf-8")


def test_every_test_it_names_is_there() -> None:
    nodes = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(nodes) > 30
    for path, name in nodes:
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        assert not name or name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, (path, name)


def test_every_sabotage_is_on_the_page() -> None:
    missing = {name for name in SMALL_JOB if f"`{name}`" not in PAGE and not name.startswith("clock")}
    assert not missing


def test_every_promise_has_its_sabotage() -> None:
    promises, sabotages = (
        {line.split("|")[1].strip() for line in part.splitlines() if re.match(r"\| \d", line)}
        for part in (PAGE.partition("## Sabotage")[0], PAGE.partition("## Sabotage")[2])
    )
    assert promises
    assert promises == sabotages
