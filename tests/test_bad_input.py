"""The matrix of bad input: every bad option is one line that names the field and the fix; nothing is written.

In process and on one small model, so that hundreds of cases stay quick; `test_bad_use.py` has the command.
"""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from camray.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "demo" / "models" / "hans64-clean"
ARCHIVE = ROOT / "demo" / "archive"
Refusal = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """Run a command that must be refused; give its one line. The network is not even asked."""

    def no_network(*args: Any, **_: Any) -> None:
        pytest.fail(f"an attempt to reach the network: {args[:2]}")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)

    def go(*options: object, archive: object = ARCHIVE, model: object = MODEL, code: int = 2) -> str:
        out = tmp_path / "out"
        given = ["plan", str(archive), str(out), "--model", str(model), *map(str, options)]
        try:
            status = main(given)
        except SystemExit as stop:  # argparse's own
            status = int(str(stop.code))
        said = capsys.readouterr()
        assert status == code, (status, said)
        assert said.out == ""
        lines = said.err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("camray: error: ")
        assert ". Fix: " in lines[0]
        assert len(lines[0]) < 1100
        assert lines[0].isprintable()
        assert not out.exists()
        return lines[0].removeprefix("camray: error: ")

    return go


@pytest.fixture
def photo() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((70, 70, 3), 90, np.uint8)).save(file, "JPEG")
    return file.getvalue()


# ── options ──────────────────────────────────────────────────────────────────────────────────────

OPTIONS = """
--batch-size 0           | --batch-size: 0 is out of range. Fix: give a value between 1 and 4096
--batch-size -1          | --batch-size: -1 is out of range
--batch-size 1.5         | --batch-size: invalid int value: '1.5'
--batch-size 1000000000  | --batch-size: 1000000000 is out of range
--batch-size auto        | --batch-size: invalid int value: 'auto'
--batch-size 8 --batch-size 9 | --batch-size: is given twice: 8 and 9
--model other            | --model: is given twice
--actors 0               | --actors: 0 is out of range
--actors -1              | --actors: -1 is out of range
--timeout 0              | --timeout
--overlay-size 0         | --overlay-size
--chunk-size 0           | --chunk-size: 0 is out of range
--device cuda:9          | --device: invalid choice: 'cuda:9' (choose from 'auto', 'cpu', 'cuda')
--device mps             | --device: invalid choice: 'mps'
--device tpu             | --device: invalid choice: 'tpu'
--method magic           | --method: 'magic' is unknown. Fix: one of ablationcam, cam, captum
--method gradcan         | --method: 'gradcan' is unknown. Fix: did you mean gradcam?
--method gradcam(        | --method: 'gradcam(' cannot be read
--method gradcam(3)      | --method: 'gradcam(3)' cannot be read
--method gradcam(__import__('os').getcwd()) | cannot be read
--method gradcam(eigen_smooth=__import__('os')) | cannot be read
--method gradcam(smooth=1)       | --method: gradcam(smooth=1): no option 'smooth'. Fix: one of aug_smooth
--method gradcam(eigen_smooth=3) | eigen_smooth is 3. Fix: give True or False
--method scorecam(channels=0)    | --method: channels is 0. Fix: a positive number
--method captum:Foo      | --method: captum has no 'Foo'
--method rollout         | --method: rollout needs attention over all 64 patches at once; this model has none
--overlay-alpha 1.5      | --overlay-alpha: 1.5 is out of range. Fix: give a value between 0 and 1
--overlay-alpha nan      | --overlay-alpha: nan is out of range
--overlay-gamma 0        | --overlay-gamma: 0.0 is out of range
--colormap rainbow       | --colormap: 'rainbow' will not do. Fix: give one of inferno, turbo
--overlay-sample -1      | --overlay-sample: -1 is out of range
--max-failed 5.0         | --max-failed: 5.0 is out of range. Fix: give a value between 0 and 1
--max-failed 101%        | --max-failed: 1.01 is out of range
--max-failed some        | --max-failed: 'some' will not do. Fix: give a share (1% or 0.01) or a number
--max-failed nan         | --max-failed: nan is out of range
--max-failed=-1          | --max-failed: -1 is out of range. Fix: give a value at least 0
--input-size 0x0         | --input-size: 0 is out of range
--input-size 1000000     | --input-size: 1000000 is out of range
--input-size 3x4x5       | --input-size: 3 numbers. Fix: give one, or HEIGHTxWIDTH
--input-size abc         | --input-size: invalid sizes value: 'abc'
--input-size 1           | --layer: no layer of ResNet can carry a map
--mean 1,2               | --mean: 2 numbers for 3 channels
--std 0                  | --std: 0.0 is out of range
--crop-pct nan           | --crop-pct: nan is out of range
--limit 0                | --limit: 0 is out of range
--limit 3 --sample 3     | --sample: given together with --limit
--target=-1              | --target: '-1' is not a target
--target 6               | --target: class 6 of a model with 6 classes. Fix: give 0..5
--target 1.0             | --target: '1.0' is not a target
--target cat             | --target: 'cat' is not a target
--target top:0           | --target: 'top:0' asks for no class
--target above:2         | --target: 'above:2': scores are between 0 and 1
--target class:1,1       | --target: 'class:1,1' names a class twice
--target class:2@vs:2    | --target: 'class:2@vs:2' compares a class with itself
--target class:0@vs:6    | --target: class 6 of a model with 6 classes
--target predicted@vs:9  | --target: class 9 of a model with 6 classes
--layer layer9           | --layer: 'layer9': the model has no 'layer9'. Fix: choose one that works: layer4
--layer fc               | --layer: fc cannot be explained: its output (1, 6) is no spatial map of a 64
--layer global_pool      | --layer: global_pool cannot be explained: its output (1, 96)
--layer layer*           | --layer: 'layer*' matches 55 layers. Fix: name one
--layer ../x             | --layer: '../x': the model has no ''
--layer layer4.-9        | --layer: 'layer4.-9': layer4 has no '-9'
--exclude *              | 6
--include *.nope         | 6
"""


@pytest.mark.parametrize(
    "line", OPTIONS.strip().splitlines(), ids=lambda line: line.partition("|")[0].strip()
)
def test_options(refused: Refusal, line: str) -> None:
    options, _, said = (part.strip() for part in line.partition("|"))
    code = int(said) if said.isdecimal() else 2
    assert ("holds no image" if code == 6 else said) in refused(*options.split(), code=code)


CONFIGS: dict[str, tuple[bytes, str]] = {
    "binary": (bytes(range(256)), "not TOML"),
    "a key twice": (b"[run]\ntop_k=1\ntop_k=2\n", "not TOML: Cannot overwrite a value (at line 3, column 8)"),
    "no syntax": (
        b"[run\n",
        "not TOML: Expected ']' at the end of a table declaration (at line 1, column 5)",
    ),
    "nested": (b"a=" + b"[" * 100_000, "nested too deeply"),
    "long": (b"#" * 2_000_000, "more than 1,048,576 bytes"),
    "unknown": (
        b"[run]\nbatchsize = 8\n",
        "run.batchsize: no such setting. Fix: did you mean run.batch_size?",
    ),
    "another type": (b"[run]\nbatch_size = 'eight'\n", "'eight' will not do. Fix: give a whole number"),
    "another table": (b"[overlay]\ncolormap = 3\n", "3 will not do. Fix: give one of inferno"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_configs(tmp_path: Path, refused: Refusal, kind: str) -> None:
    content, said = CONFIGS[kind]
    (tmp_path / "c.toml").write_bytes(content)
    assert said in refused("--config", tmp_path / "c.toml")


def test_config_places(tmp_path: Path, refused: Refusal) -> None:
    assert "none.toml: No such file" in refused("--config", tmp_path / "none.toml")
    assert "Is a directory" in refused("--config", tmp_path)


# ── archives ─────────────────────────────────────────────────────────────────────────────────────

PLACES = """
/nope/deeper/x      | ARCHIVE: /nope/deeper/x is not there. Fix: what exists is /
/nope/*.tar         | /nope is not there. Fix: what exists is /
/nope/{010..001}.tar | /nope is not there. Fix: what exists is /
/usr/bin/{a,b}.tar | 2 of the 2 paths it stands for match nothing, the first is a.tar. Fix: see what /usr/bin
/dev/null           | ARCHIVE: /dev/null is neither a file nor a folder
ftp://host/x        | ARCHIVE: scheme 'ftp' is not supported. Fix: use a path or s3, gs
http://host/x.tar   | ARCHIVE: scheme 'http' is not supported
file://host/x       | ARCHIVE: file://host/x: Unsupported hostname
s3://               | ARCHIVE: s3:// names no bucket
gs://               | ARCHIVE: gs:// names no bucket
s3:///x             | Missing bucket name
s3://user:secret@bucket/x | ARCHIVE: credentials in the URI are refused
a\\0b               | ARCHIVE: 'a\\x00b' holds a zero byte
a\\nb\\x1b[31m      | a\\nb\\x1b[31m is not there
"""


@pytest.mark.parametrize("line", PLACES.strip().splitlines(), ids=lambda line: line.partition("|")[0].strip())
def test_places(refused: Refusal, line: str) -> None:
    place, _, said = (part.strip() for part in line.partition("|"))
    found = refused(archive=place.encode().decode("unicode_escape"))
    assert said in found
    assert "secret" not in found


def test_archives_that_are_not_what_they_should_be(tmp_path: Path, refused: Refusal) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "neither a file nor a folder" in refused(archive=tmp_path / "pipe")
    assert "File name too long" in refused(archive="x" * 5000)
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refused(archive=tmp_path / "empty", code=6)
    for text in ("", "\n\n# only a comment\n", "\ufeff"):
        (tmp_path / "list.txt").write_text(text)
        assert "holds no image" in refused(archive=tmp_path / "list.txt", code=6)
    (tmp_path / "list.csv").write_text("label\ncat\n")
    assert "no column of paths; there are: label" in refused(archive=tmp_path / "list.csv")


def test_parquet(tmp_path: Path, refused: Refusal, photo: bytes) -> None:
    pq.write_table(pa.table({"x": [1], "y": ["a"]}), tmp_path / "n.parquet")
    none = "--image-column: no column of images; there are: x (int64), y (string)"
    assert none in refused(archive=tmp_path / "n.parquet")
    named = ("--image-column", "img")
    assert "no column 'img'. Fix: one of x (int64)" in refused(*named, archive=tmp_path / "n.parquet")
    named = ("--image-column", "x")
    assert "'x' holds int64, not bytes" in refused(*named, archive=tmp_path / "n.parquet")
    pq.write_table(pa.table({"image": [photo]}), tmp_path / "i.parquet")
    named = ("--label-column", "nope")
    assert "--label-column: 'nope': no such column. Fix: leave" in refused(
        *named, archive=tmp_path / "i.parquet"
    )


# ── models, checkpoints, names ───────────────────────────────────────────────────────────────────

MODELS = """
resnet51              | --model: 'resnet51' is no timm model, no local folder and no file. Fix: did you mean
ResNet50              | did you mean resnet50
resnet18.nope         | --model: resnet18 has no pretrained weights 'nope'. Fix: one of
resnet18.a1_in1k      | pretrained weights of resnet18.a1_in1k are not on this machine. Fix: --checkpoint FILE
torchvision:          | torchvision has no classifier ''
torchvision:r3d_18 | is a classifier of videos, not of single images
torchvision:vgg16     | pretrained weights of torchvision:vgg16 are not on this machine
hf-hub:               | hf-hub: cannot be fetched
local-dir:/nope       | /nope/config.json: FileNotFoundError
x.py:Net              | x.py is not a file. Fix: give path/to/file.py:ClassName
nopackage.mod:f       | there is no package 'nopackage'
https://host/y.pth    | --model: https://host/y.pth is an address. Fix: fetch the file
timm/resnet18.a1_in1k | Fix: hf-hub:timm/resnet18.a1_in1k to fetch it
.                     | --model: . holds no config.json
pyproject.toml        | --model: pyproject.toml is a file of weights, not an architecture
"""


@pytest.mark.parametrize("line", MODELS.strip().splitlines(), ids=lambda line: line.partition("|")[0].strip())
def test_models(refused: Refusal, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name, _, said = (part.strip() for part in line.partition("|"))
    assert said in refused(model=name)


def test_more_models(refused: Refusal) -> None:
    assert "is no name of a model" in refused(model="a" * 3000)
    assert "is no name of a model" in refused(model="a\0b")
    said = "model.safetensors: fc.bias is (6,), the model has (7,). Fix: --num-classes 6"
    assert said in refused("--num-classes", 7)
    assert "unexpected keyword argument 'nope'" in refused("--model-arg", "nope=3")
    assert "'x' is not NAME=VALUE" in refused("--model-arg", "x")
    assert "conv1.0.weight is (16, 3, 3, 3), the model has (16, 1" in refused("--model-arg", "in_chans=1")


def test_checkpoints(tmp_path: Path, refused: Refusal) -> None:
    state = load_file(MODEL / "model.safetensors")
    file = tmp_path / "w.safetensors"

    def said(**changed: torch.Tensor) -> str:
        save_file(state | {k.replace("__", "."): v for k, v in changed.items()}, file)
        return refused("--checkpoint", file)

    seven = {"fc__weight": torch.zeros(7, 96), "fc__bias": torch.zeros(7)}
    assert "--class-names: 6 names for 7 classes" in said(**seven)
    assert "conv1.0.weight is (5, 3, 3, 3), the model has (16, 3, 3, 3)" in said(
        conv1__0__weight=torch.zeros(5, 3, 3, 3)
    )
    assert "--checkpoint: fc.bias holds NaN or infinity" in said(fc__bias=torch.full((6,), torch.nan))
    zero = {k.replace(".", "__"): torch.zeros_like(v) for k, v in state.items()}
    assert "every class gets the same logit" in said(**zero)
    for content, words in (
        ({"epoch": 3, "lr": 0.1}, "epoch is no tensor. Fix: give a state_dict"),
        (torch.zeros(3), "it holds a Tensor, not weights"),
        ({"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}, "optimizer is no tensor"),
    ):
        torch.save(content, tmp_path / "w.pth")
        assert words in refused("--checkpoint", tmp_path / "w.pth")
    for place in (tmp_path / "none.pth", tmp_path, "/dev/null"):
        assert f"{place} is not a file" in refused("--checkpoint", place)


NAMES: dict[str, tuple[str, str, str]] = {
    "empty": ("n.txt", "", "0 names for 6 classes"),
    "too few": ("n.txt", "a\nb\nc\nd\ne\n", "5 names for 6 classes"),
    "a gap": ("n.txt", "a\nb\n\nd\ne\nf\n", "5 names for 6 classes"),
    "a gap in json": ("n.json", '["a", "b", "c", "d", "e", ""]', "the name of class 5 is empty"),
    "from one": ("n.json", '{"1":"a","2":"b","3":"c","4":"d","5":"e","6":"f"}', "none for class 0"),
    "nested": ("n.json", "[" * 100_000, "maximum recursion depth"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
def test_class_names(tmp_path: Path, refused: Refusal, kind: str) -> None:
    name, text, said = NAMES[kind]
    (tmp_path / name).write_text(text)
    assert said in refused("--class-names", tmp_path / name)


def test_class_names_that_clash_or_cannot_be_read(tmp_path: Path, refused: Refusal) -> None:
    (tmp_path / "n.txt").write_text("a\na\nb\nc\nd\ne\n")
    found = refused("--class-names", tmp_path / "n.txt", "--target", "a")
    assert "--target: 2 classes are named 'a'. Fix: give an index: 0, 1" in found
    (tmp_path / "n.txt").write_bytes(b"\xe9\nb\nc\nd\ne\nf\n")
    assert "can't decode byte 0xe9" in refused("--class-names", tmp_path / "n.txt")
    assert "No such file" in refused("--class-names", "none.txt")
    (tmp_path / "n.txt").write_text("\x1b[31m" + "x" * 100_000 + "\nb\nc\nd\ne\nf\n")
    assert "'zzz' is not a target" in refused("--class-names", tmp_path / "n.txt", "--target", "zzz")
