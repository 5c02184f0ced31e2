"""B: an own nn.Module in own files, ending in a sigmoid over (B, 1, 1, 1); and CIFAR's ResNet-20 as one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from tests.workflows.workflow_truth import IMAGENET, gradcam, heat, logits, recipe, records, relative

BLOCKS = """
from torch import nn


class ResNetBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x):
        return x + self.body(x)
"""
NET = '''
from torch import nn

from blocks import ResNetBlock


class SteelNet(nn.Module):
    """Is there a defect? One probability per image, (B, 1, 1, 1)."""

    def __init__(self, width, blocks=2):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 7, stride=4, padding=3)
        self.resnet_blocks = nn.ModuleList(ResNetBlock(width) for _ in range(blocks))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 1, 1), nn.Sigmoid())

    def forward(self, x):
        x = self.stem(x)
        for block in self.resnet_blocks:
            x = block(x)
        return self.head(x)
'''
PIXELS = {"input_size": 256, "resize": 256, "mean": [0.5], "std": [0.5]}
SETTINGS: dict[str, object] = {f"preprocess__{k}": v for k, v in PIXELS.items()}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, nn.Module]:
    """The model file, its weights, and the model as its author makes it."""
    folder = tmp_path / "nets"
    folder.mkdir()
    (folder / "blocks.py").write_text(BLOCKS)
    (folder / "steel.py").write_text(NET)
    space: dict[str, object] = {}
    exec(BLOCKS + NET.replace("from blocks import ResNetBlock", ""), space)
    torch.manual_seed(1)
    model = space["SteelNet"](width=8, blocks=3).eval()  # type: ignore[operator]
    with torch.no_grad():
        model.head[1].weight *= 20  # opinions, not coin flips
    torch.save(model.state_dict(), tmp_path / "steel.pth")
    return folder / "steel.py", tmp_path / "steel.pth", model


def test_one_probability_an_image(
    own: tuple[Path, Path, nn.Module], pictures: Path, explain: Callable[..., object], tmp_path: Path
) -> None:
    file, weights, model = own
    (tmp_path / "names.txt").write_text("fine\ndefect\n")
    settings = SETTINGS | {
        "model__checkpoint": str(weights), "model__args": {"width": 8, "blocks": 3},
        "model__class_names": str(tmp_path / "names.txt"), "method__layer": "resnet_blocks.-1",
        "overlay__colormap": "jet", "overlay__alpha": 0.4, "overlay__gamma": 1.0, "overlay__policy": "all",
    }  # fmt: skip
    explain(pictures, tmp_path / "out", f"{file}:SteelNet", **settings)
    explain(pictures, tmp_path / "fine", f"{file}:SteelNet", **settings, method__target="fine")
    found, fine = records(tmp_path / "out"), records(tmp_path / "fine")
    transform = recipe(256, 256, [0.5] * 3, [0.5] * 3)
    for name, row in found.items():
        x = transform(Image.open(pictures / name).convert("RGB"))[None]
        p = model(x).item()
        assert row["predicted_class"] == int(p > 0.5)
        assert row["predicted_label"] == ("fine", "defect")[p > 0.5]
        assert row["confidence"] == pytest.approx(max(p, 1 - p), abs=1e-3)
        assert sum(t["score"] for t in row["topk"]) == pytest.approx(1)
        assert row["target_layer"] == "resnet_blocks.2"
        sign = 1 if p > 0.5 else -1
        by_hand = gradcam(model, "resnet_blocks.2", x, lambda s: sign * s.logit().sum())  # noqa: B023
        assert relative(heat(row), by_hand) < 2e-3
        assert relative(heat(fine[name]), -sign * by_hand) < 2e-3
        with Image.open(tmp_path / "out" / row["overlay_path"]) as picture:
            assert picture.size == (256, 256)


def test_the_file_travels_by_its_text(own: tuple[Path, Path, nn.Module], tmp_path: Path) -> None:
    """A worker that has neither file builds the same model; another text is another explainer."""
    from camray.config import Config, ModelConfig
    from camray.explain.explainer import resolve
    from camray.models.load import build

    file, weights, model = own

    def resolved() -> tuple[str, dict[str, object]]:
        config = Config(
            model=ModelConfig(f"{file}:SteelNet", args={"width": 8, "blocks": 3}, checkpoint=str(weights))
        )
        explainer, _ = resolve(config)
        return explainer.id, explainer.model_args

    before, args = resolved()
    (file.parent / "blocks.py").write_text(BLOCKS + "# a changed block\n")
    assert resolved()[0] != before
    shutil.rmtree(file.parent)
    made = build(args).eval()
    made.load_state_dict(torch.load(weights))
    x = torch.rand(2, 3, 64, 64)
    assert torch.allclose(made(x), model(x).reshape(2, 1).logit(), atol=1e-4)


def test_what_is_wrong_with_an_own_file_is_told_in_a_line(
    own: tuple[Path, Path, nn.Module], pictures: Path, refused: Callable[..., str]
) -> None:
    file, weights, _ = own
    given = {"model__checkpoint": str(weights)}
    assert "missing 1 required positional argument: 'width'. Fix: --model-arg" in refused(
        pictures, f"{file}:SteelNet", **given
    )
    assert "NAME is one of SteelNet" in refused(pictures, f"{file}:Stele", **given)
    assert "NAME is one of SteelNet" in refused(pictures, str(file), **given)
    assert "is not a file" in refused(pictures, f"{file.parent}/none.py:SteelNet", **given)
    assert "--checkpoint: is missing" in refused(pictures, f"{file}:SteelNet", model__args={"width": 8})
    assert "takes no num_classes" in refused(
        pictures, f"{file}:SteelNet", **given, model__args={"width": 8}, model__num_classes=3
    )
    (file.parent / "blocks.py").write_text("import nothing_of_this_name\n")
    assert "No module named 'nothing_of_this_name'" in refused(pictures, f"{file}:SteelNet", **given)
    file.write_text("class SteelNet(:\n")
    assert "invalid syntax" in refused(pictures, f"{file}:SteelNet", **given)


@pytest.fixture
def cifar(shared: Path, tmp_path: Path) -> Path:
    """Every tenth of the shared CIFAR images, in class folders; all of them in the slow run."""
    for folder in sorted((shared / "cifar10_test").iterdir()):
        (tmp_path / "cifar" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[::5]:
            shutil.copy(file, tmp_path / "cifar" / folder.name)
    return tmp_path / "cifar"


CIFAR = {
    "preprocess__input_size": 32, "preprocess__resize": 32,
    "preprocess__mean": IMAGENET[0], "preprocess__std": IMAGENET[1], "overlay__policy": "none",
}  # fmt: skip


def plain_resnet20(weights: Path) -> nn.Module:
    """The model and its weights, as their authors load them."""
    space: dict[str, object] = {}
    exec((weights / "cifar_resnet.py").read_text(), space)
    model = space["resnet20"]()  # type: ignore[operator]
    state = torch.load(weights / "resnet20-12fca82f.th", map_location="cpu")["state_dict"]
    model.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    return model


@pytest.mark.slow
def test_resnet20_of_cifar_is_as_good_as_its_authors_file(
    shared: Path, explain: Callable[..., object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The .th has the DataParallel prefix and a nest; every prediction is that of a plain forward.

    PROVENANCE.md measured 1000 of these images, of which 500 are here: top-1 may differ by what half a
    sample may (standard error 1.3 points).
    """
    weights = shared / "weights"
    explain(
        shared / "cifar10_test", tmp_path / "out", f"{weights / 'cifar_resnet.py'}:resnet20",
        model__checkpoint=str(weights / "resnet20-12fca82f.th"),
        model__class_names=str(shared / "cifar10_classes.json"), **CIFAR,
    )  # fmt: skip
    told = capfd.readouterr().err
    assert "taken from 'state_dict'" in told
    assert "prefix 'module.' of the weights' names undone" in told
    found = records(tmp_path / "out")
    assert len(found) == 500
    files = sorted((shared / "cifar10_test").rglob("*.jpg"))
    plain = logits(plain_resnet20(weights), recipe(None, 32, *IMAGENET), files).argmax(1).tolist()
    names = [file.relative_to(shared / "cifar10_test").as_posix() for file in files]
    assert [found[name]["predicted_class"] for name in names] == plain
    top1 = 100 * sum(row["correct"] for row in found.values()) / len(found)
    written = re.search(r"no resize: ([\d.]+) %", (shared / "PROVENANCE.md").read_text())
    assert written is not None
    print(f"top-1 of {len(found)} images: {top1:.1f} %; PROVENANCE.md: {written[1]} % of 1000")
    assert abs(top1 - float(written[1])) <= 2.5


def test_resnet20_equals_a_plain_forward(
    shared: Path, cifar: Path, explain: Callable[..., object], tmp_path: Path
) -> None:
    weights = shared / "weights"
    explain(
        cifar, tmp_path / "out", f"{weights / 'cifar_resnet.py'}:resnet20",
        model__checkpoint=str(weights / "resnet20-12fca82f.th"), **CIFAR,
    )  # fmt: skip
    files = sorted(cifar.rglob("*.jpg"))
    z = logits(plain_resnet20(weights), recipe(None, 32, *IMAGENET), files)
    found = records(tmp_path / "out")
    for file, own in zip(files, z, strict=True):
        row = found[file.relative_to(cifar).as_posix()]
        assert row["predicted_class"] == int(own.argmax())
        assert row["confidence"] == pytest.approx(float(own.softmax(0).max()), abs=1e-4)
        assert row["label"] == file.parent.name
        assert row["correct"] == (sorted(p.name for p in cifar.iterdir())[int(own.argmax())] == row["label"])
