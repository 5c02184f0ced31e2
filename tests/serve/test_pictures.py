"""Pictures drawn from the records are those that the run drew; else the heat alone is said."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo import hans64
from tests.audit.night_world import night
from tests.serve.conftest import Served

pytestmark = pytest.mark.slow  # a model explains eight images
RUN = "20261101T000000Z-0"


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of a tar and two loose ones, all drawn as blends."""
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "archive").mkdir()
    samples = [hans64.render(0, "audit", i, tagged=True) for i in range(8)]
    hans64.write_tar_shards(samples[:6], folder / "archive", 6)
    for i in (6, 7):
        Image.fromarray(samples[i].image).save(folder / "archive" / f"loose-{i}.png")
    night(folder / "archive", folder / "out", RUN, overlay__policy="all", overlay__picture="blend",
          overlay__colormap="jet", overlay__contour=0.0)  # fmt: skip
    return folder


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), int)


def test_what_is_drawn_now_is_what_was_drawn_then(
    pictured: Path, tmp_path: Path, serving: Callable[..., Served]
) -> None:
    """A run.json of before there were contours names none: none is drawn."""
    out = Path(shutil.copytree(pictured / "out", tmp_path / "out"))
    run = (
        f'{{"config": {{"archive": {{"path": "{pictured / "archive"}"}}, "overlay": {{"colormap": "jet"}}}}}}'
    )
    (out / "runs" / RUN / "run.json").write_text(run)
    first = serving(out)
    rows = first.pages.rows.rows(first.ids[:8])
    drawn = {row["overlay_path"]: first.client.get(f"/picture/{row['id']}?of=drawn").content for row in rows}
    for path, jpeg in drawn.items():
        assert np.abs(pixels((out / path).read_bytes()) - pixels(jpeg)).max() <= 2
    shutil.rmtree(out / "overlays")
    again = serving(out)
    assert [again.client.get(f"/picture/{row['id']}").content for row in rows] == [*drawn.values()]
    assert "drawn now from the record" in again.client.get(f"/image/{again.ids[0]}").text
    other = again.client.get(f"/picture/{again.ids[0]}?of=drawn&colormap=viridis&alpha=1").content
    assert np.abs(pixels(other) - pixels(drawn[rows[0]["overlay_path"]])).mean() > 10


def test_an_image_that_is_gone_or_another_one_shows_the_heat_alone(
    pictured: Path, tmp_path: Path, serving: Callable[..., Served]
) -> None:
    out = Path(shutil.copytree(pictured / "out", tmp_path / "out"))
    archive = Path(shutil.copytree(pictured / "archive", tmp_path / "archive"))
    moved = f'{{"path": "{archive}", "name": "{pictured / "archive"}"}}'
    run = f'{{"config": {{"archive": {moved}, "overlay": {{}}}}}}'
    (out / "runs" / RUN / "run.json").write_text(run)
    Image.new("RGB", (64, 64)).save(archive / "loose-6.png")  # another image by now
    served = serving(out)
    ids = {row["member"]: row["id"] for row in served.pages.rows.rows(served.ids[:8])}
    page = served.client.get(f"/image/{ids['loose-6.png']}").text
    assert "the heat alone" in page
    assert "as it was drawn with the record" in page  # the file of the run is there
    assert (
        "drawn now" in served.client.get(f"/image/{ids['loose-7.png']}").text
    )  # it was moved: --archive-name
    shutil.rmtree(archive)
    gone = serving(out)
    page = gone.client.get(f"/image/{ids['loose-7.png']}").text
    assert re.search("the heat alone: <bdi>[^<]+</bdi>", page)
    assert gone.client.get(f"/picture/{ids['loose-7.png']}?of=drawn").status_code == 200
