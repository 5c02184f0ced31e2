"""G: Hugging Face, WebDataset, lists of paths: labels, boxes and masks end in the records."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet as pq

import camray
from demo.hans64 import decode_mask
from tests.workflows.workflow_truth import all_records, heat, records

SIDE, GRID = 64, 8  # the demonstration model sees whole images of 64 pixels as 8 x 8 cells
NAMES = ["disk", "square", "triangle", "cross", "ring", "star"]


@pytest.fixture(scope="session")
def samples(demo: Path) -> dict[str, dict[str, Any]]:
    """Twelve images of the bundled archive, with what is known of them."""
    found: dict[str, dict[str, Any]] = {}
    with tarfile.open(demo / "archive" / "hans64-00000.tar") as tar:
        for info in tar:
            key, ending = info.name.rsplit(".", 1)
            data = tar.extractfile(info)
            assert data is not None
            found.setdefault(key, {})[ending] = data.read()
    return {
        key: {"jpg": parts["jpg"], "class": int(parts["cls"]), **json.loads(parts["json"])}
        for key, parts in list(found.items())[:12]
    }


@pytest.fixture
def model(demo: Path) -> Path:
    return demo / "models" / "hans64-poisoned"


def pixels(box: list[float]) -> list[float]:
    return [edge * SIDE for edge in box]


def corner_and_size(box: list[float]) -> list[float]:
    x0, y0, x1, y1 = pixels(box)
    return [x0, y0, x1 - x0, y1 - y0]


def counted(row: dict[str, Any], marked: NDArray[np.bool_]) -> float:
    """The share of the heat on the marked pixels: every cell spread evenly over its 8 x 8 pixels."""
    q = np.maximum(np.array(heat(row)), 0).repeat(SIDE // GRID, 0).repeat(SIDE // GRID, 1)
    return float(q[marked].sum() / q.sum())


def in_boxes(*boxes: list[float]) -> NDArray[np.bool_]:
    marked = np.zeros((SIDE, SIDE), bool)
    for box in boxes:
        x0, y0, x1, y1 = (round(edge) for edge in pixels(box))
        marked[y0:y1, x0:x1] = True
    return marked


def edges(row: dict[str, Any]) -> list[list[float]]:
    return [[box[e] for e in ("x0", "y0", "x1", "y1")] for box in row["boxes"]]


def put(folder: Path, samples: dict[str, dict[str, Any]], ending: str = "jpg") -> None:
    folder.mkdir(parents=True)
    for key, sample in samples.items():
        (folder / f"{key}.{ending}").write_bytes(sample["jpg"])


def check(out: Path, samples: dict[str, dict[str, Any]], ending: str = ".jpg", folder: str = "") -> None:
    found = records(out)
    assert set(found) == {f"{folder}{key}{ending}" for key in samples}
    for key, sample in samples.items():
        row = found[f"{folder}{key}{ending}"]
        assert row["status"] == "ok"
        assert (row["label"], row["label_class"]) == (sample["label"], sample["class"])
        assert row["correct"] == (row["predicted_class"] == sample["class"])
        assert edges(row) == [sample["box"]]
        if row["heat_status"] == "ok":
            assert row["heat_in_box"] == pytest.approx(counted(row, in_boxes(sample["box"])), abs=1e-5)


def test_the_bundled_archive(
    samples: dict[str, dict[str, Any]], demo: Path, model: Path, explain: Callable[..., Any], tmp_path: Path
) -> None:
    """Its sidecars hold boxes: every record with heat says how much of it is on the object."""
    explain(demo / "archive" / "hans64-00000.tar", tmp_path / "out", model, overlay__policy="none")
    rows = all_records(tmp_path / "out")
    assert len(rows) == 60
    assert all((row["heat_in_box"] is None) == (row["heat_status"] != "ok") for row in rows)
    by_key = {row["key"]: row for row in rows}
    for key, sample in samples.items():
        row = by_key[key]
        assert edges(row) == [sample["box"]]
        assert row["heat_in_box"] == pytest.approx(counted(row, in_boxes(sample["box"])), abs=1e-5)


def test_hugging_face_folder(
    samples: dict[str, dict[str, Any]], model: Path, explain: Callable[..., Any], tmp_path: Path
) -> None:
    put(tmp_path / "hf" / "train", samples)
    lines = [
        {"file_name": f"{key}.jpg", "label": s["label"],
         "objects": {"bbox": [corner_and_size(s["box"])], "categories": [s["class"]]}}
        for key, s in samples.items()
    ]  # fmt: skip
    (tmp_path / "hf" / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    explain(tmp_path / "hf", tmp_path / "out", model)
    check(tmp_path / "out", samples, folder="train/")


def test_hugging_face_parquet(
    samples: dict[str, dict[str, Any]], model: Path, explain: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [
        {"image": {"bytes": s["jpg"], "path": f"{key}.jpg"}, "label": s["class"],
         "objects": {"bbox": [corner_and_size(s["box"])], "category": [0]}}
        for key, s in samples.items()
    ]  # fmt: skip
    features = {"label": {"names": NAMES, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.Table.from_pylist(rows)
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    explain(tmp_path / "data", tmp_path / "out", model)
    check(tmp_path / "out", samples)


def test_img2dataset(
    samples: dict[str, dict[str, Any]], model: Path, explain: Callable[..., Any], tmp_path: Path
) -> None:
    """What it writes into its folder, captions included; a caption never becomes a label."""
    (tmp_path / "web").mkdir()
    with tarfile.open(tmp_path / "web" / "00000.tar", "w") as tar:
        for key, sample in samples.items():
            info = {"caption": sample["label"], "key": key, "status": "success", "url": "https://host/x"}
            parts = {"jpg": sample["jpg"], "json": json.dumps(info).encode(), "txt": sample["label"].encode()}
            for ending, data in parts.items():
                entry = tarfile.TarInfo(f"{key}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    pq.write_table(pa.table({"key": list(samples), "url": ["x"] * 12}), tmp_path / "web" / "00000.parquet")
    (tmp_path / "web" / "00000_stats.json").write_text("{}")
    outcome = explain(tmp_path / "web", tmp_path / "out", model)
    assert outcome.accounting.sentence() == "12 members = 12 ok + 0 failed + 0 skipped"
    assert {(r["label"], r["label_class"], r["correct"]) for r in all_records(tmp_path / "out")} == {
        (None, None, None)
    }


def test_a_list_with_labels_boxes_and_masks(
    samples: dict[str, dict[str, Any]], model: Path, explain: Callable[..., Any], tmp_path: Path
) -> None:
    put(tmp_path / "images", samples)
    rows = ["path,index,x0,y0,x1,y1,mask"]
    for i, (key, sample) in enumerate(samples.items()):
        mask = Image.fromarray(decode_mask(sample["mask_runs"]))
        mask.save(tmp_path / "images" / f"{key}.mask.png")
        name = f"images/{key}.jpg"
        box = ",".join(map(str, pixels(sample["box"])))
        rows.append(f"{name},{sample['class']},{box},images/{key}.mask.png")
        rows += [f"{name},,0,0,16,16,"] * (i == 0)  # a second box
    rows += ["images/gone.jpg,1,,,,,"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    outcome = explain(tmp_path / "list.csv", tmp_path / "out", model, run__max_failed=0.5)
    assert outcome.accounting.sentence() == (
        "13 members = 12 ok + 1 failed (member_unreadable 1) + 0 skipped"
    )
    table = camray.open_records(str(tmp_path / "out")).to_table()
    found = {row["member"]: row for row in table.to_pylist()}
    gone = found.pop("images/gone.jpg")
    assert (gone["error_message"], gone["label_class"]) == ("No such file or directory", 1)
    for i, (key, sample) in enumerate(samples.items()):
        row = found[f"images/{key}.jpg"]
        boxes = [sample["box"]] + [[0, 0, 0.25, 0.25]] * (i == 0)
        assert edges(row) == boxes
        assert row["label_class"] == sample["class"]
        assert row["heat_in_box"] == pytest.approx(counted(row, in_boxes(*boxes)), abs=1e-5)
        marked = decode_mask(sample["mask_runs"])
        assert row["heat_in_mask"] == pytest.approx(counted(row, marked), abs=1e-5)
    assert {row["shard"] for row in found.values()} == {f"{tmp_path}/list.csv#000000"}

    again = explain(tmp_path / "list.csv", tmp_path / "out", model, run__max_failed=0.5)
    assert again.accounting.members == 0
    (tmp_path / "list.csv").write_text("\n".join(rows).replace(f"{rows[3].split(',')[0]},", "images/x.jpg,"))
    Path(tmp_path / "images" / "x.jpg").write_bytes(b"")
    third = explain(tmp_path / "list.csv", tmp_path / "out", model, run__max_failed=0.5)
    assert third.accounting.members == 1  # the new file; the others are remembered


def test_a_changed_label_is_a_changed_file(
    samples: dict[str, dict[str, Any]], model: Path, explain: Callable[..., Any], tmp_path: Path
) -> None:
    put(tmp_path / "images", samples)
    key = next(iter(samples))
    for label in ("disk", "star"):
        (tmp_path / "list.jsonl").write_text(json.dumps({"image": f"images/{key}.jpg", "label": label}))
        explain(tmp_path / "list.jsonl", tmp_path / "out", model)
        (row,) = all_records(tmp_path / "out")
        assert (row["label"], row["label_class"]) == (label, NAMES.index(label))
