"""The notebooks of docs/notebooks/ run from a clean kernel, and show what they gave."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.cookbook_kitchen import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_shows_what_a_run_from_its_top_gave(path: Path) -> None:
    code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    kinds = [output["output_type"] for cell in code for output in cell["outputs"]]
    assert "error" not in kinds
    assert "display_data" in kinds
    assert "stderr" not in path.read_text()  # no noise of libraries
    assert not re.search(r"/(home|root|tmp|Users|work)/", path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_runs_from_a_clean_kernel(path: Path, tmp_path: Path, demo: Path) -> None:
    pytest.importorskip("nbclient")
    from docs.notebooks import executed

    there = tmp_path / "docs" / "notebooks"
    there.mkdir(parents=True)
    (tmp_path / "demo").symlink_to(demo)
    shutil.copy(path, there)
    ran = executed(there / path.name)
    told = "".join(
        str(output.get("text") or output.get("data", {}).get("text/html", ""))
        for cell in ran.cells if cell.cell_type == "code" for output in cell.outputs
    )  # fmt: skip
    assert "360" in told  # the images of the demonstration
