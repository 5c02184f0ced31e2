"""`--frames`: each frame is explained as the picture it is, accounted for, and resumed exactly."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import camray
from camray.flow.actor import network_of
from camray.upkeep.verify import print_verify
from tests.image.test_frames import animation, dicom, picture

SUFFIX = {"GIF": "gif", "TIFF": "tif"}


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    rows = camray.open_records(str(out)).to_table().to_pylist()
    assert len({(row["shard"], row["index"]) for row in rows}) == len(rows)
    return {row["member"]: row for row in rows}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Animations, a DICOM file, a still and a damaged one, as loose files and in a tar."""
    place = tmp_path / "archive"
    place.mkdir()
    files = {f"{name.lower()}.{suffix}": animation(name, 5) for name, suffix in SUFFIX.items()}
    files |= {"scan.dcm": dicom(7), "still.png": animation("PNG", 1), "damaged.gif": animation("GIF")[:40]}
    for name, content in files.items():
        (place / name).write_bytes(content)
    with tarfile.open(place / "packed.tar", "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"packed/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return place


def test_all_frames_are_members(
    archive: Path, demo: Path, explain: Callable[..., Any], tmp_path: Path
) -> None:
    """5 + 5 + 7 + 1 pictures and a damaged file, twice; each explained as if it were a file alone."""
    model, out = demo / "models" / "hans64-poisoned", tmp_path / "out"
    many = {"archive__frames": "all", "run__max_failed": 9, "run__chunk_size": 4}
    outcome = explain(archive, out, model, overlay__on="original", overlay__policy="all", **many)
    assert outcome.accounting.members == 38
    assert outcome.accounting.ok == 36
    rows = rows_of(out)
    assert {f"packed/scan.dcm#{i}" for i in range(7)} < rows.keys()
    assert {"still.png", "damaged.gif"} < rows.keys()
    assert print_verify(str(out), False) == 0

    alone = tmp_path / "alone"
    alone.mkdir()
    for i in range(7):
        Image.fromarray(picture(i)).save(alone / f"{i}.png")
    explain(alone, tmp_path / "alone-out", model)
    truth = rows_of(tmp_path / "alone-out")
    for i in range(7):
        for name in ("scan.dcm", "packed/scan.dcm", *(("tiff.tif", "packed/tiff.tif") if i < 5 else ())):
            row = rows[f"{name}#{i}"]
            assert row["heatmap"] == pytest.approx(truth[f"{i}.png"]["heatmap"], rel=1e-4, abs=1e-6)
            with Image.open(out / row["overlay_path"]) as drawn:
                assert drawn.width >= 32

    again = explain(archive, out, model, **many)
    assert again.accounting.members == 0


def test_middle_and_numbers(archive: Path, demo: Path, explain: Callable[..., Any], tmp_path: Path) -> None:
    model, out = demo / "models" / "hans64-poisoned", tmp_path / "out"
    first = explain(archive, out, model, run__max_failed=9)
    assert first.accounting.members == 10
    assert "scan.dcm" in rows_of(out)
    explain(archive, out, model, archive__frames="middle", run__max_failed=9)  # takes the place of the first
    assert rows_of(out).keys() >= {"scan.dcm#3", "gif.gif#2", "still.png", "packed/gif.gif#2"}
    assert "scan.dcm" not in rows_of(out)
    sixth = explain(archive, out, model, archive__frames="6", run__max_failed=99)
    assert sixth.accounting.failed["no_such_frame"] == 4
    assert rows_of(out)["scan.dcm#6"]["status"] == "ok"


def test_an_interrupted_run_goes_on_exactly(
    archive: Path, demo: Path, explain: Callable[..., Any], tmp_path: Path
) -> None:
    """Files of finished chunks, which end between frames, are taken over; the rows are those of one run."""
    model = demo / "models" / "hans64-poisoned"
    settings = {"archive__frames": "all", "run__max_failed": 9, "run__chunk_size": 4}
    explain(archive, tmp_path / "whole", model, **settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for gone in ("records/_delta_log", "intake"):
        shutil.rmtree(tmp_path / "cut" / gone)
    files = sorted((tmp_path / "cut" / "records").rglob("*.parquet"))
    kept = {path.name: path.stat().st_mtime_ns for path in files[::2]}
    for path in files[1::2]:
        path.unlink()
    shutil.rmtree(tmp_path / "cut" / "runs")
    (tmp_path / "cut" / "runs").mkdir()
    outcome = explain(archive, tmp_path / "cut", model, **settings)
    assert outcome.accounting.members == 38
    now = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cut" / "records").rglob("*.parquet")}
    assert sum(now.get(name) == time for name, time in kept.items()) > len(kept) / 2
    whole, cut = rows_of(tmp_path / "whole"), rows_of(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for name, row in whole.items():
        assert (row["index"], row["content_sha256"]) == (cut[name]["index"], cut[name]["content_sha256"])
        assert row["heatmap"] is None or np.allclose(
            row["heatmap"], cut[name]["heatmap"], rtol=1e-4, atol=1e-6
        )
    assert print_verify(str(tmp_path / "cut"), False) == 0


def test_a_limit_counts_files(archive: Path, demo: Path, explain: Callable[..., Any], tmp_path: Path) -> None:
    model = demo / "models" / "hans64-poisoned"
    outcome = explain(
        archive, tmp_path / "out", model, archive__frames="all", archive__limit=2, archive__include=["*.tar"]
    )
    assert outcome.accounting.sentence() == "10 members = 10 ok + 0 failed + 0 skipped"


def test_the_canary_finds_its_frames_again(
    archive: Path, demo: Path, explain: Callable[..., Any], tmp_path: Path
) -> None:
    """A place in the table leads back to the file: its frames are explained again, and are the same."""
    from dataclasses import replace

    from camray.archive.frames import file_index
    from camray.flow.flow import Pool
    from camray.job.canary import choose, difference, explain_again
    from camray.job.prepare import prepare
    from camray.ledger.table import Table
    from camray.options import load

    settings = {
        "archive.path": str(archive), "out": str(tmp_path / "out"), "run.engine": "here", "run.max_failed": 9,
        "model.name": str(demo / "models" / "hans64-poisoned"), "archive.frames": "all",
        "archive.include": ["*.tar"],
    }  # fmt: skip
    named = {
        n.replace(".", "__"): v for n, v in settings.items() if n.partition(".")[0] in ("archive", "run")
    }
    named.pop("archive__path")
    explain(archive, tmp_path / "out", demo / "models" / "hans64-poisoned", **named)
    ready = prepare(load(None, settings))
    first = choose(Table(ready.out), ready.explainer.id, 8)
    assert len(first) == 8
    (shard,) = ready.listing.shards
    places = tuple(sorted({file_index(answer["index"], "all") for answer in first}))
    network = network_of(ready.model)
    pool = Pool(actors=1, max_actors=1, device="cpu", cpus=0.5, gpus=0, threads=1, batch_size=8)
    now = explain_again(
        pool, lambda: network, [replace(shard, selection=places)], ready.config, ready.explainer
    )
    found = difference(first, now)
    assert (found["images"], found["gone"], found["changed"]) == (8, 0, 0)
