"""The notebooks of docs/: what is committed is what their cells give, from a clean kernel."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def said(notebook: dict[str, Any]) -> list[list[str]]:
    """The kinds of output of each cell."""
    return [[kind for out in c.get("outputs", []) for kind in out.get("data", {"text": 0})]
            for c in notebook["cells"]]  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_committed_small_and_of_no_machine(path: Path) -> None:
    text = path.read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert len(NOTEBOOKS) == 3
    assert all(cell["outputs"] for cell in cells)
    assert {out["output_type"] for cell in cells for out in cell["outputs"]} == {"execute_result"}
    assert len(text) < 400_000
    assert not re.search(r"/(home|root|tmp|Users|work)/|file://", text)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_run_from_a_clean_kernel_and_give_what_is_committed(path: Path) -> None:
    pytest.importorskip("nbclient")
    from docs.execute import executed

    assert said(executed(path)) == said(json.loads(path.read_text()))
