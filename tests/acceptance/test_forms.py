"""The same images give the same records in every form of archive, whatever the actors and batches."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import camray

SCORES = ("confidence", "margin", "entropy", "heat_max", "heat_entropy", "heat_center_x", "heat_center_y")


def images_of_demo(demo: Path) -> dict[str, bytes]:
    """60 images of the bundled archive, read with the standard library."""
    found = {}
    for shard in sorted((demo / "archive").glob("*.tar"))[:2]:
        with tarfile.open(shard) as tar:
            for member in tar.getmembers()[::2]:
                if member.name.endswith(".jpg"):
                    found[member.name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


def pack(images: dict[str, bytes], form: str, folder: Path) -> Path:
    folder.mkdir()
    names = sorted(images)
    if form == "folder":
        for name in names:
            (folder / name).write_bytes(images[name])
    elif form == "tar":
        for i in range(7):
            with tarfile.open(folder / f"part-{i}.tar", "w") as tar:
                for name in names[i::7]:
                    info = tarfile.TarInfo(name)
                    info.size = len(images[name])
                    tar.addfile(info, io.BytesIO(images[name]))
    elif form == "zip":
        with zipfile.ZipFile(folder / "all.zip", "w") as archive:
            for name in names:
                archive.writestr(name, images[name])
    else:
        column = [{"bytes": images[name], "path": name} for name in names]
        pq.write_table(pa.table({"image": column}), folder / "all.parquet", row_group_size=17)
    return folder


def by_member(out: Path) -> dict[str, dict[str, object]]:
    rows = camray.open_records(str(out)).to_table().to_pylist()
    assert len({r["member"] for r in rows}) == len(rows)
    return {r["member"]: r for r in rows}


def assert_same(left: dict[str, dict[str, object]], right: dict[str, dict[str, object]]) -> None:
    assert left.keys() == right.keys()
    for name, a in left.items():
        b = right[name]
        for column in ("status", "predicted_class", "target_class", "content_sha256", "width", "key"):
            assert a[column] == b[column], (name, column)
        for column in SCORES:
            assert a[column] == pytest.approx(b[column], abs=1e-5, rel=1e-5), (name, column)
        np.testing.assert_allclose(a["heatmap"], b["heatmap"], rtol=1e-4, atol=1e-5)


def check_forms(
    images: dict[str, bytes], explain: Callable[..., object], tmp_path: Path, model: str, **settings: object
) -> None:
    forms = ("folder", "tar", "zip", "parquet")
    archives = {form: pack(images, form, tmp_path / form) for form in forms}
    runs: dict[str, dict[str, dict[str, object]]] = {}
    # Neither engine nor actors nor batches may show.
    plan = zip(forms, ("here", "ray", "here", "here"), (1, 2, 1, 1), (16, 1, 7, 32), strict=True)
    for form, engine, actors, batch_size in plan:
        out = tmp_path / f"out-{form}-{actors}-{batch_size}"
        outcome = explain(
            archives[form], out, model, run__engine=engine, run__actors=actors, run__batch_size=batch_size,
            overlay__policy="none", run__chunk_size=20, **settings,
        )  # fmt: skip
        assert outcome.code == camray.ExitCode.DONE  # type: ignore[attr-defined]
        runs[out.name] = by_member(out)
    reference = runs["out-folder-1-16"]
    assert sorted(reference) == sorted(images)
    for records in runs.values():
        assert_same(reference, records)


def test_demo_images_in_every_form(
    local_ray: None, demo: Path, explain: Callable[..., object], tmp_path: Path
) -> None:
    check_forms(images_of_demo(demo), explain, tmp_path, str(demo / "models" / "hans64-clean"))


@pytest.mark.slow
def test_photographs_in_every_form(
    local_ray: None, shared: Path, explain: Callable[..., object], tmp_path: Path
) -> None:
    images = {p.name: p.read_bytes() for p in sorted((shared / "imagenet_val").iterdir())}
    checkpoint = shared / "weights" / "mobilenetv2_100_imagenet" / "model.safetensors"
    check_forms(images, explain, tmp_path, "mobilenetv2_100", model__checkpoint=str(checkpoint))
