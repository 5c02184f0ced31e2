"""Small archives of real X-rays, and of pictures where nothing real is needed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def xrays(shared: Path, tmp_path: Path) -> Path:
    """Two chest X-rays of each class, in class folders."""
    for folder in sorted((shared / "xray_nih").iterdir()):
        (tmp_path / "xrays" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:2]:
            shutil.copy(file, tmp_path / "xrays" / folder.name)
    return tmp_path / "xrays"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures: square, wide and tall; smooth, so that rounding hardly matters."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for name, size in (("square", (300, 300)), ("wide", (500, 260)), ("tall", (240, 400))):
        seed = Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8))
        seed.resize(size, Image.Resampling.BICUBIC).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path / "pictures"


@pytest.fixture
def refused(explain: Callable[..., object], tmp_path: Path) -> Callable[..., str]:
    """The line a run is refused with; nothing is written."""
    from camray.errors import UsageError

    def go(archive: Path, model: str, **settings: object) -> str:
        out = tmp_path / "refused"
        with pytest.raises(UsageError) as caught:
            explain(archive, out, model, **settings)
        assert not out.exists()
        said = str(caught.value)
        assert "\n" not in said
        return said

    return go
