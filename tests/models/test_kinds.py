"""Kinds that cannot be explained: one sentence names the kind, why not, and the way on."""

from __future__ import annotations

import io
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from camray.config import ModelConfig
from camray.errors import ModelError
from camray.models.load import load_model

# The first bytes of ONNX files: ir_version, then producer or graph, as exporters write them.
ONNX = (
    b"\x08\x0a\x12\x07pytorch\x1a\x053.0.0:\x80\x02",
    b"\x08\x08\x12\x06tf2onnx",
    b"\x08\x04:\x90\x01\n\x10",
)


class Net(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def refusal(**config: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(ModelConfig(**config))
    said = str(caught.value)
    assert "\n" not in said
    assert "Fix: " in said
    return said


def script() -> bytes:
    into = io.BytesIO()
    torch.jit.save(torch.jit.trace(Net(), torch.zeros(1, 3, 8, 8)), into)
    return into.getvalue()


def exported() -> bytes:
    into = io.BytesIO()
    torch.export.save(torch.export.export(Net(), (torch.zeros(1, 3, 8, 8),)), into)
    return into.getvalue()


def keras() -> bytes:
    into = io.BytesIO()
    with zipfile.ZipFile(into, "w") as held:
        held.writestr("config.json", "{}")
        held.writestr("model.weights.h5", b"\x89HDF")
    return into.getvalue()


FILES = [
    *((content, "ONNX: a fixed graph") for content in ONNX),
    (script(), "TorchScript: a fixed program"), (exported(), "an exported program (.pt2): a fixed graph"),
    (keras(), "a Keras model"),
    (b"\x89HDF\r\n\x1a\n", "HDF5 (Keras)"), (b"\x1c\0\0\0TFL3", "a TensorFlow Lite"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "kind"), FILES, ids=[kind for _, kind in FILES])
def test_a_fixed_graph_is_refused_by_its_kind_as_model_and_as_checkpoint(
    content: bytes, kind: str, tmp_path: Path
) -> None:
    """Neither option advises the other, which would refuse it, too."""
    file = tmp_path / "model.bin"
    file.write_bytes(content)
    as_model, as_weights = refusal(name=str(file)), refusal(name="resnet18", checkpoint=str(file))
    assert as_model.startswith(f"--model: {file} is {kind}")
    assert as_weights.startswith(f"--checkpoint: model.bin is {kind}")
    assert as_model.partition("Fix: ")[2] == as_weights.partition("Fix: ")[2]


@pytest.mark.parametrize(
    ("name", "kind", "fix"),
    [
        ("torchvision:r3d_18", "torchvision:r3d_18 is a classifier of videos", "torchvision:resnet50"),
        ("torchvision:raft_small", "torchvision:raft_small is a model of motion", "torchvision:resnet50"),
        ("deeplabv3_resnet50", "is no timm model", "--model torchvision:deeplabv3_resnet50"),
        ("swin_t", "is no timm model", "it is torchvision's: --model torchvision:swin_t"),
        ("google/vit-base-patch16-224", "is no timm model",
         "hf-hub:google/vit-base-patch16-224 to fetch it, or the path of a folder"),
        ("torchvision:unet", "no classifier 'unet'", "see torchvision.models.list_models()"),
    ],
)  # fmt: skip
def test_a_model_that_is_no_classifier_or_elsewhere_is_named(name: str, kind: str, fix: str) -> None:
    said = refusal(name=name)
    assert kind in said
    assert said.endswith(fix)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("def forward(self, image, text): return self.head(image.mean((2, 3)) + text)",
         "its forward takes 2 inputs (image, text)"),
        ("def forward(self, image, age, sex): return self.head(image.mean((2, 3)))",
         "its forward takes 3 inputs (image, age, sex)"),
        ("def forward(self, image, *, mask): return self.head(image.mean((2, 3)))", "2 inputs (image, mask)"),
        ("volume = nn.Conv3d(1, 3, 3)\n    def forward(self, x): return self.head(self.volume(x))",
         "it takes volumes or clips (3-D convolutions), not pictures"),
    ],
)  # fmt: skip
def test_own_code_that_takes_something_else_than_one_picture(body: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.head = nn.Linear(3, 2)\n"
        + ("        self.volume = nn.Conv3d(1, 3, 3)\n" if "volume" in body else "")
        + f"    {body.removeprefix('volume = nn.Conv3d(1, 3, 3)').strip()}\n"
    )
    state = {"head.weight": torch.ones(2, 3), "head.bias": torch.zeros(2)}
    if "volume" in body:
        state |= {"volume.weight": torch.ones(3, 1, 3, 3, 3), "volume.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "w.pth")
    assert kind in refusal(name=f"{tmp_path}/net.py:Net", checkpoint=str(tmp_path / "w.pth"))


def test_a_saved_model_of_tensorflow(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    assert "is a SavedModel of TensorFlow: a fixed graph" in refusal(name=str(tmp_path))


def test_files_of_yolov5_and_megadetector_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = types.ModuleType("models.yolo")
    kind = type("Model", (nn.Module,), {"__module__": "models.yolo", "__qualname__": "Model"})
    made.Model = kind
    for name in ("models", "models.yolo"):
        monkeypatch.setitem(sys.modules, name, made)
    torch.save({"epoch": -1, "model": kind(), "ema": None}, tmp_path / "yolo.pt")
    monkeypatch.undo()
    assert "yolo.pt is of YOLOv5's own repository" in (said := refusal(name=str(tmp_path / "yolo.pt")))
    assert said.endswith("or a detector of torchvision")
    said = refusal(name="resnet18", checkpoint=str(tmp_path / "yolo.pt"))
    assert "a pickle runs code when opened" in said
    assert said.endswith("--model FILE.pt, without --checkpoint: the file has its architecture")
