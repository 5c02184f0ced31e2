"""Run the notebooks of docs/notebooks/ in place, each from a clean kernel: ``python -m docs.notebooks``.

Their outputs are committed, so that they can be read where they are shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent / "notebooks"


def executed(path: Path) -> Any:
    """Run a notebook in its folder and give it with its outputs; names of files in them begin there.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell ended with an error.
    """
    place = {"metadata": {"path": str(path.parent)}}
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, record_timing=False, resources=place).execute()
    return nbformat.reads(nbformat.writes(notebook).replace(f"{path.parent}/", ""), as_version=4)


if __name__ == "__main__":
    for path in sorted(HERE.glob("*.ipynb")):
        nbformat.write(executed(path), path)
