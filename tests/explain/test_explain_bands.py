"""A network of four and more bands through the job: the map is that of the bands as they were written."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet as pq
from torch import nn

from camray.errors import ExitCode, UsageError
from camray.ledger.table import Table
from camray.storage import open_folder

SIDE, BANDS = 32, 5
MEAN, STD = (0.5, 0.4, 0.3, 0.2, 0.1), (0.2, 0.3, 0.4, 0.5, 0.6)
CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, bands=5):
        super().__init__()
        torch.manual_seed(1)
        self.gate = nn.Conv2d(2, 1, 1)  # registered first, and not what receives the image
        more = (nn.ReLU(), nn.Conv2d(8, 6, 3, 2, 1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(bands, 8, 3, 2, 1), *more)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = self.body(x)
        return self.fc((x * self.gate(x[:, :2]).sigmoid()).mean((2, 3)))
"""
Explain = Callable[..., Any]


def network() -> Any:
    own: dict[str, Any] = {}
    exec(compile(CODE, "net", "exec"), own)
    return own["Net"]().eval()


@pytest.fixture
def model(tmp_path: Path) -> dict[str, Any]:
    """Settings of a network of five bands."""
    (tmp_path / "net.py").write_text(CODE)
    torch.save(network().state_dict(), tmp_path / "net.pth")
    return {
        "model": f"{tmp_path}/net.py:Net", "model__checkpoint": str(tmp_path / "net.pth"),
        "preprocess__mean": MEAN, "preprocess__std": STD, "preprocess__input_size": SIDE,
        "preprocess__resize": SIDE, "method__layer": "body",
    }  # fmt: skip


def scenes(count: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 65536, (SIDE, SIDE, BANDS), np.uint16) for _ in range(count)]


def map_by_hand(net: nn.Module, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Grad-CAM of the last map, of the class with the best logit."""
    x = torch.tensor((values / 65535 - MEAN) / STD, dtype=torch.float32).permute(2, 0, 1)[None]
    kept: list[torch.Tensor] = []
    handle = net.body.register_forward_hook(lambda *a: kept.append(a[2]))  # type: ignore[operator, union-attr]
    logits = net(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits.amax(), kept)
    return (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1)[0].detach().numpy()


def records(out: Path) -> dict[str, dict[str, Any]]:
    table = Table(open_folder(str(out), "OUT"))
    table.update()
    return {row["member"]: row for row in table.dataset().to_table().to_pylist()}


def test_maps_of_arrays_and_tiffs_are_those_by_hand(tmp_path: Path, explain: Explain, model: Any) -> None:
    tifffile = pytest.importorskip("tifffile")
    archive, values = tmp_path / "in", scenes(3)
    archive.mkdir()
    np.save(archive / "a.npy", values[0])
    tifffile.imwrite(archive / "b.tif", values[1], photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(archive / "c.tif", np.moveaxis(values[2], 2, 0), photometric="minisblack")
    np.save(archive / "four.npy", values[0][..., :4])
    Image.new("RGB", (40, 40)).save(archive / "photo.jpg")
    done = explain(
        archive, tmp_path / "out", archive__bands=(5, 3, 1), overlay__on="original", overlay__policy="all",
        run__max_failed=2, **model,
    )  # fmt: skip
    assert done.code == ExitCode.DONE
    found, net = records(tmp_path / "out"), network()
    for name, own in zip(("a.npy", "b.tif", "c.tif"), values, strict=True):
        row = found[name]
        wanted = map_by_hand(net, own)
        assert (row["heat_h"], row["heat_w"], row["target_layer"]) == (8, 8, "body")
        assert np.allclose(row["heatmap"], wanted.ravel(), rtol=0, atol=1e-5 * np.abs(wanted).max())
        assert row["pixel_rule"] == "5 bands of uint16 / 65535"
        assert row["overlay_path"]
    assert found["four.npy"]["error_message"] == "NumPy array of 32 x 32 x 4, and the model takes 5 bands"
    assert found["photo.jpg"]["error_message"] == "JPEG of 3 bands, and the model takes 5"


@pytest.mark.slow
def test_arrays_of_parquet_and_of_a_zip_give_the_same_records(
    tmp_path: Path, explain: Explain, model: Any
) -> None:
    import zipfile

    values = scenes(2)
    nested = pa.list_(pa.list_(pa.list_(pa.uint16())))
    cells = [*(v.tolist() for v in values), [[[1] * 5], [[1] * 5, [1] * 5]], None]
    pq.write_table(
        pa.table({"scene": pa.array(cells, nested), "label": [1, 2, 0, 0]}), tmp_path / "in.parquet"
    )
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as packed:
        for i, v in enumerate(values):
            file = io.BytesIO()
            np.save(file, v)
            packed.writestr(f"row-{i}.npy", file.getvalue())
    given = model | {"archive__bands": (1,), "run__max_failed": 2}
    rows = []
    for kind in ("parquet", "zip"):
        assert explain(tmp_path / f"in.{kind}", tmp_path / kind, **given).code == ExitCode.DONE
        rows.append(records(tmp_path / kind))
    for i, own in enumerate(values):
        one, other = (found[f"row-{i}{ending}"] for found, ending in zip(rows, ("", ".npy"), strict=True))
        assert np.allclose(one["heatmap"], map_by_hand(network(), own).ravel(), rtol=1e-4, atol=1e-6)
        assert one["heatmap"] == other["heatmap"]
        assert one["content_sha256"] == other["content_sha256"]
    assert [rows[0][f"row-{i}"]["error_code"] for i in (2, 3)] == ["member_unreadable"] * 2
    assert rows[0]["row-1"]["label_class"] == 2


def test_what_cannot_be_read_as_bands_is_refused_before_anything_is_written(
    tmp_path: Path, explain: Explain, model: Any
) -> None:
    archive = tmp_path / "in"
    archive.mkdir()
    np.save(archive / "a.npy", scenes(1)[0])
    Image.new("RGB", (40, 40)).save(archive / "photo.jpg")
    for more, said in (
        ({}, r"--model: it takes 5 channels; .*--bands 1,2,3"),
        ({"archive__bands": (1, 2, 6)}, r"--bands: 1,2,6 of a model that takes 5 bands"),
        ({"archive__bands": (1, 2)}, r"--bands: 1,2 of .* give three numbers, or one, of 1..5"),
        ({"archive__bands": (1,), "preprocess__mean": None}, r"--mean: 3 numbers for 5 channels"),
        ({"archive__bands": (1,), "preprocess__channels": 4, "preprocess__mean": 0.5,
          "preprocess__std": 0.5}, r"--model: it fails on an image of 4 x 32 x 32"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            explain(archive, tmp_path / "out", **model | more)
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_same_archive_without_bands_leaves_arrays_out(tmp_path: Path, explain: Explain) -> None:
    archive = tmp_path / "in"
    archive.mkdir()
    np.save(archive / "a.npy", scenes(1)[0])
    Image.new("RGB", (40, 40)).save(archive / "photo.jpg")
    demo = Path(__file__).resolve().parents[2] / "demo" / "models" / "hans64-clean"
    assert explain(archive, tmp_path / "out", demo).code == ExitCode.DONE
    found = records(tmp_path / "out")
    assert (found["a.npy"]["status"], found["photo.jpg"]["status"]) == ("skipped", "ok")
