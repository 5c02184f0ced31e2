"""Pictures drawn from records alone are the files that the run wrote; what is gone is said."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camray.explain.overlays import encode_jpeg
from camray.ledger.out import open_out
from camray.serve.redraw import COLUMNS, Redraw

STYLES = [
    {"overlay__picture": "triple"},
    {"overlay__on": "original", "overlay__caption": True, "overlay__colormap": "viridis"},
]


def drawn(out: Path, **style: object) -> list[tuple[dict[str, object], object, str]]:
    folder, table = open_out(str(out))
    columns = [*COLUMNS, "overlay_path"]
    rows = [row for row in table.dataset().to_table(columns=columns).to_pylist() if row["heatmap"]]
    return [(done.row, done.picture, done.why) for done in Redraw(folder)(rows, style)]


def loose(demo: Path, folder: Path) -> Path:
    """A folder of loose images of other sizes, one of them turned by EXIF, one a GIF of three frames."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 90, 140, 3), np.uint8)
    folder.mkdir()
    for i, form in enumerate(("a.png", "b.bmp")):
        Image.fromarray(noise[i]).save(folder / form)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise[2]).save(folder / "turned.jpg", exif=turned)
    frames = [Image.fromarray(n) for n in noise]
    frames[0].save(folder / "three.gif", save_all=True, append_images=frames[1:])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES, ids=["input", "original"])
@pytest.mark.parametrize("kind", ["tar", "files"])
def test_redrawn_is_the_file(
    demo: Path, tmp_path: Path, explain: Callable[..., object], kind: str, style: dict[str, object]
) -> None:
    out = tmp_path / "out"
    archive = demo / "archive/hans64-00001.tar" if kind == "tar" else loose(demo, tmp_path / "loose")
    more = {"archive__frames": "all"} if kind == "files" else {"archive__limit": 12}
    explain(archive, out, demo / "models/hans64-poisoned", overlay__policy="all", **more, **style)
    done = drawn(out)
    assert len(done) == (6 if kind == "files" else 12)
    for row, picture, why in done:
        assert picture is not None, why
        file = np.asarray(Image.open(out / str(row["overlay_path"])).convert("RGB"), int)
        assert file.shape == np.asarray(picture).shape
        again = np.asarray(Image.open(io.BytesIO(encode_jpeg(np.asarray(picture), 90))).convert("RGB"), int)
        assert np.abs(again - file).max() <= 2


def test_an_image_that_is_gone_or_another_is_said(
    demo: Path, tmp_path: Path, explain: Callable[..., object]
) -> None:
    archive, out = loose(demo, tmp_path / "loose"), tmp_path / "out"
    explain(archive, out, demo / "models/hans64-poisoned", overlay__policy="none")
    (archive / "a.png").unlink()
    shutil.copy(archive / "turned.jpg", archive / "b.bmp")
    whys = {row["member"]: (picture is not None, why) for row, picture, why in drawn(out)}
    assert {name for name, (is_there, _) in whys.items() if is_there} == {"three.gif", "turned.jpg"}
    assert all("no longer holds" in whys[name][1] for name in ("a.png", "b.bmp"))


def test_an_archive_that_is_gone_fails_each_picture_and_no_more(
    demo: Path, tmp_path: Path, explain: Callable[..., object]
) -> None:
    shard, out = tmp_path / "a.tar", tmp_path / "out"
    shutil.copy(demo / "archive/hans64-00001.tar", shard)
    explain(shard, out, demo / "models/hans64-poisoned", overlay__policy="none", archive__limit=3)
    shard.unlink()
    done = drawn(out)
    assert len(done) == 3
    assert all(picture is None and "No such file" in why for _, picture, why in done)
