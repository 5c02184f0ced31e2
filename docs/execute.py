"""Execute the notebooks of docs/notebooks/ from a clean kernel, in place: `python -m docs.execute`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parent / "notebooks"


def executed(path: Path) -> Any:
    """Give a notebook with the outputs it has now, made in an empty folder, without places of this machine.

    Raises:
        CellExecutionError: a cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}).execute()
        text = nbformat.writes(notebook).replace(f"file://{folder}/", "").replace(f"{folder}/", "")
    for cell in (plain := json.loads(text))["cells"]:
        cell["metadata"] = {}  # times
        cell["outputs"] = [
            o for o in cell.get("outputs", []) if o["output_type"] == "execute_result"
        ]  # not the log
        for data in (output.get("data", {}) for output in cell["outputs"]):
            if "image/jpeg" in data:
                data.pop("image/png", None)  # twice the same picture
        if cell["cell_type"] != "code":
            del cell["outputs"]
    plain["metadata"].pop("language_info", None)
    return nbformat.from_dict(plain)


if __name__ == "__main__":
    import nbformat

    for each in sorted(NOTEBOOKS.glob("*.ipynb")):
        nbformat.write(executed(each), each)
