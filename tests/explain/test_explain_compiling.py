"""A compiled network: maps of the plain one in float64, other calls as before, eager where it cannot be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from deltalake import DeltaTable

from camray import cam
from camray.cam.compiled import compile_to, load_compiled
from camray.config import Config, ModelConfig
from camray.explain import compiling
from camray.explain.explainer import resolve

NETWORKS = {"resnet18": "", "mobilenetv2_050": "", "vit_tiny_patch16_224": "", "resnet26d": "layer2"}


def same(found: cam.Explanation, truth: cam.Explanation) -> bool:
    return all(
        float((found.maps[key] - m).abs().max()) <= 1e-5 * float(m.abs().max())
        for key, m in truth.maps.items()
    )


def counted(calls: list[int], front: Callable[..., Any], images: torch.Tensor) -> Any:
    calls.append(1)
    return front(images)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_those_of_double_precision(name: str, tmp_path: Path) -> None:
    """For ViT a skip connection passes the layer; in the middle of a network one does not."""
    torch.manual_seed(0)
    size = {"img_size": 96} if "vit" in name else {}
    model = timm.create_model(name, num_classes=7, **size).eval()
    x = torch.randn(8, 3, 96, 96)
    layer = cam.find_target_layer(model, (3, 96, 96), NETWORKS[name] or None)
    compile_to(tmp_path / "front.so", model, x, layer)
    truth = cam.explain(copy.deepcopy(model).double(), x.double(), layer, ["gradcam", "layercam"], "top:2")
    for fast in (load_compiled(tmp_path / "front.so", model, x, layer), cam.compiled(model, x, layer)):
        calls: list[int] = []
        fast.__dict__["_front"] = partial(counted, calls, fast._front)
        found = cam.explain(fast, x, layer, ["gradcam", "layercam"], "top:2")
        assert same(found, truth)
        assert torch.equal(found.classes, truth.classes)
        assert calls == [1]
        few = cam.explain(fast, x[:3], layer, "gradcam")  # another size: the plain network
        assert torch.equal(few.logits, cam.explain(model, x[:3], layer, "gradcam").logits)
        cam.explain(fast, x, layer, "fullgrad" if "res" in name else "gradcam", autocast=torch.bfloat16)
        assert calls == [1]
        assert model.training is False
        assert all(p.requires_grad for p in model.parameters())


@pytest.mark.slow
def test_a_job_compiles_once_and_gives_the_records_of_the_plain_network(
    demo: Path, explain: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = {}
    for name, settings in {
        "plain": {},
        "first": {"run__compile": True},
        "again": {"run__compile": True},
    }.items():
        out = tmp_path / name
        done = explain(demo / "archive", out, demo / "models" / "hans64-clean", archive__limit=60, **settings)
        assert ("network compiled in front of its layer" in done.report.notes) == (name != "plain")
        rows[name] = DeltaTable(str(out / "records")).to_pyarrow_table().sort_by("member").to_pylist()
        if name == "first":
            (library,) = (tmp_path / "cache" / "camray" / "compiled").iterdir()
            made = library.stat().st_mtime_ns
    assert library.stat().st_mtime_ns == made
    for one, other in zip(rows["plain"], rows["first"], strict=True):
        assert one["explainer"] == other["explainer"]
        assert one["predicted_class"] == other["predicted_class"]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-6)
        height = max(map(abs, one["heatmap"]))
        assert other["heatmap"] == pytest.approx(one["heatmap"], abs=1e-5 * height)
    assert [r["heatmap"] for r in rows["first"]] == [r["heatmap"] for r in rows["again"]]


@pytest.fixture
def resolved(demo: Path) -> Any:
    return resolve(Config(model=ModelConfig(name=str(demo / "models" / "hans64-clean"))))


def test_without_a_compiler_the_network_runs_as_it_is(
    resolved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no working C++ compiler\nmore")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiling, "compile_to", fails)
    explainer, model = resolved
    assert compiling.compile_front(model, explainer, "cpu") == (None, "not compiled: no working C++ compiler")
    assert compiling.compile_front(model, explainer, "cuda")[0] is None
    assert "bf16" not in compiling.compile_front(model, replace(explainer, precision="bf16"), "cpu")[1]
    said = compiling.compile_front(model, replace(explainer, method="scorecam"), "cpu")[1]
    assert said.startswith("not compiled: scorecam runs the network more")
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]


def test_a_library_that_moves_maps_is_not_taken(
    resolved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer, model = resolved
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiling, "compile_to", lambda path, *_: path.write_bytes(b"x"))
    other = copy.deepcopy(model.module)
    with torch.no_grad():
        next(other.parameters()).mul_(1.001)
    monkeypatch.setattr(compiling, "load_compiled", lambda *_: other)
    library, said = compiling.compile_front(model, explainer, "cpu")
    assert library is None
    assert said.startswith("not compiled: rounding would move the map by")


def test_another_kind_of_machine_loads_nothing_and_a_changed_file_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    import numpy as np

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    content = np.frombuffer(b"machine code", np.uint8)
    own = compiling.Library(f"a-{compiling.machine_kind()}", hashlib.sha256(content).hexdigest(), content)
    assert compiling.installed(replace(own, name="a-00000000")) is None
    path = compiling.installed(own)
    assert path is not None
    path.write_bytes(b"somebody else's")
    assert compiling.installed(own) == path
    assert path.read_bytes() == b"machine code"


def test_where_no_cache_can_be_the_network_runs_as_it_is(
    resolved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    explainer, model = resolved
    library, said = compiling.compile_front(model, explainer, "cpu")
    assert library is None
    assert said.startswith("not compiled: ")
    content = np.zeros(1, np.uint8)
    assert compiling.installed(compiling.Library(f"a-{compiling.machine_kind()}", "", content)) is None
