"""`camray layers MODEL --maps LAYER --image X`: the picture shows what the layer gave, channel by channel."""

from __future__ import annotations

import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from camray.cli.main import main
from camray.config import ModelConfig
from camray.models import layers
from camray.models.load import load_model


@pytest.fixture
def picture(demo: Path, tmp_path: Path) -> Path:
    shard = sorted((demo / "archive").glob("*.tar"))[0]
    with tarfile.open(shard) as tar:
        member = next(m for m in tar if m.name.endswith(".jpg"))
        target = tmp_path / "image.jpg"
        target.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    return target


def test_the_grid_shows_the_strongest_channels(
    demo: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(demo / "models" / "hans64-clean")
    out = tmp_path / "maps"
    assert main(["layers", model, "--maps", "layer1", "--maps", "layer4", "--image", str(picture),
                 "--save", str(out)]) == 0  # fmt: skip
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed] == [str(out / "layer1.png"), str(out / "layer4.png")]

    loaded = load_model(ModelConfig(name=model))
    seen: list[torch.Tensor] = []
    handle = loaded.module.get_submodule("layer1").register_forward_hook(lambda _m, _a, y: seen.append(y[0]))
    view = np.asarray(Image.open(picture).convert("RGB"), np.float32) / 255  # 64 x 64: as the model wants it
    mean, std = np.float32(loaded.input.mean), np.float32(loaded.input.std)
    loaded.module(torch.from_numpy((view - mean) / std).permute(2, 0, 1)[None])
    handle.remove()
    A = seen[0].detach().numpy()  # (C, h, w)
    assert f"({A.shape[0]} x {A.shape[1]} x {A.shape[2]})" in printed[0]

    drawn = np.asarray(Image.open(out / "layer1.png").convert("RGB"))
    shown = sorted(np.argsort(-A.reshape(len(A), -1).std(1), kind="stable")[:64])
    columns = int(np.ceil(np.sqrt(len(shown))))
    factor = round(96 / A.shape[1])
    side = A.shape[1] * factor
    for place in (0, 1, columns, len(shown) - 1):
        one = A[shown[place]]
        grey = np.round((one - one.min()) / (one.max() - one.min()) * 255).astype(np.uint8)
        truth = cv2.applyColorMap(grey.repeat(factor, 0).repeat(factor, 1), cv2.COLORMAP_VIRIDIS)[..., ::-1]
        top, left = 4 + place // columns * (side + 18), 4 + place % columns * (side + 4)
        tile = drawn[top : top + side, left : left + side]
        assert np.abs(tile.astype(int) - truth.astype(int)).mean() < 1  # rounding of a grey level


def test_a_layer_of_constant_channels_is_drawn_dark() -> None:
    drawn = layers.grid(torch.full((3, 2, 2), 5.0), [0, 1, 2])
    assert drawn[4, 4].tolist() == [68, 1, 84]  # viridis at zero


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--maps", "layer1"], "--maps: needs an image"),
        (["--maps", "layer1", "--image", "absent.jpg"], "absent.jpg: No such file"),
        (["--maps", "layer9", "--image", __file__], "no 'layer9'"),
        (["--maps", "layer1", "--image", __file__], "--image"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    demo: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["layers", str(demo / "models" / "hans64-clean"), *options, "--save", str(tmp_path / "maps")]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert says in error[0]
    assert not (tmp_path / "maps").exists()
