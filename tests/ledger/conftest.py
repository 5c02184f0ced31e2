"""One empty OUT."""

from pathlib import Path

import pytest

from camray.storage import Folder, open_folder


@pytest.fixture
def out(tmp_path: Path) -> Folder:
    return open_folder(str(tmp_path / "out"), "OUT")
