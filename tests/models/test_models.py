"""A classifier by name: what loads, and every way in which one is refused with the fix."""

import json
import math
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config

from camray.config import ModelConfig, PreprocessConfig
from camray.errors import ModelError
from camray.models.labels import IMAGENET_CLASSES, classes_named, imagenet_names, label_lookup
from camray.models.load import load_model, state_sha256
from camray.models.preprocessing import input_spec, timm_defaults

CLEAN = Path(__file__).resolve().parents[2] / "demo/models/hans64-clean"
SHAPES = ("disk", "square", "triangle", "cross", "ring", "star")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched unless the user asked: an attempt to is a failed test."""

    def refused(*args: Any, **_: Any) -> None:
        pytest.fail(f"an attempt to reach the network: {args[:2]}")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return load_file(CLEAN / "model.safetensors")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the clean model's folder, to damage."""
    shutil.copytree(CLEAN, tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, **changes: Any) -> Path:
    described = json.loads((folder / "config.json").read_text())
    described |= changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in described.items() if v != "-"}))
    return folder


def refusal(**config: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(ModelConfig(**{k: str(v) if isinstance(v, Path) else v for k, v in config.items()}))
    said = str(caught.value)
    assert "\n" not in said
    assert caught.value.fix or caught.value.problem
    return said


# ── what loads ───────────────────────────────────────────────────────────────────────────────────


def test_a_local_folder_gives_all_that_decides_an_answer(state: dict[str, torch.Tensor]) -> None:
    found = load_model(ModelConfig(name=str(CLEAN)))
    assert (found.name, found.num_classes, found.class_names) == ("test_resnet", 6, SHAPES)
    assert (found.input.height, found.input.width, found.input.resize) == (64, 64, (64, 64))
    assert found.input.mean == (0.485, 0.456, 0.406)
    own = found.module.state_dict()
    assert all(torch.equal(own[k], v) for k, v in state.items())
    assert not found.module.training
    assert not any(p.requires_grad for p in found.module.parameters())
    again = load_model(ModelConfig(name=f"local-dir:{CLEAN}"))
    assert again.weights_sha256 == found.weights_sha256
    assert len(found.weights_sha256) == 64


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "model", "ema", "module."])
def test_checkpoints_as_trainers_write_them(
    tmp_path: Path, state: dict[str, torch.Tensor], wrap: str
) -> None:
    zeros = {k: torch.zeros_like(v) for k, v in state.items()}
    content: dict[str, Any] = {
        "bare": state,
        "state_dict": {"state_dict": state, "epoch": 3},
        "model": {"model": state, "epoch": 3},
        "ema": {"state_dict": zeros, "state_dict_ema": state},
        "module.": {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    }[wrap]
    torch.save(content, tmp_path / "w.pth")
    found = load_model(ModelConfig(name=str(CLEAN), checkpoint=str(tmp_path / "w.pth")))
    assert torch.equal(found.module.state_dict()["fc.weight"], state["fc.weight"])


def test_a_head_of_another_size_comes_with_its_number(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    small = state | {"fc.weight": state["fc.weight"][:3].clone(), "fc.bias": state["fc.bias"][:3].clone()}
    save_file(small, tmp_path / "w.safetensors")
    given = {"name": "test_resnet", "checkpoint": str(tmp_path / "w.safetensors")}
    assert "is (3,), the model has (7,). Fix: --num-classes 3" in refusal(**given, num_classes=7)
    for found in (load_model(ModelConfig(**given)), load_model(ModelConfig(**given, num_classes=3))):
        assert (found.num_classes, found.class_names) == (3, ())
        assert torch.equal(found.module.state_dict()["fc.weight"], small["fc.weight"])


def test_the_recipe_is_timms_own() -> None:
    for name in ("resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_100"):
        module = timm.create_model(name, pretrained=False)
        cfg = resolve_data_config({}, model=module)
        spec = input_spec(timm_defaults(module))
        steps = create_transform(**cfg, is_training=False).transforms
        size = steps[0].size
        assert max(spec.resize) == (size if isinstance(size, int) else max(size))
        assert (spec.height, spec.width) == tuple(cfg["input_size"][1:])
        assert spec.mean == tuple(steps[-1].mean.tolist()) or spec.mean == pytest.approx(steps[-1].mean)
        assert spec.std == pytest.approx(tuple(float(s) for s in steps[-1].std))


def test_the_hash_of_weights_follows_values_names_and_shapes(state: dict[str, torch.Tensor]) -> None:
    base = state_sha256(state)
    assert state_sha256(dict(reversed(state.items()))) == base
    bit = {k: v.clone() for k, v in state.items()}
    bit["fc.bias"][0] = torch.nextafter(bit["fc.bias"][0], torch.tensor(math.inf))
    assert state_sha256(bit) != base
    assert state_sha256({f"x{k}": v for k, v in state.items()}) != base
    assert state_sha256(state | {"fc.weight": state["fc.weight"].reshape(-1)}) != base


# ── names of classes ─────────────────────────────────────────────────────────────────────────────


def test_names_from_a_file_replace_those_of_the_folder(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("\ufeffa\n b \r\n\nc\nd\ne\nf\n", encoding="utf-8")
    found = load_model(ModelConfig(name=str(CLEAN), class_names=str(file)))
    assert found.class_names == ("a", "b", "c", "d", "e", "f")


@pytest.mark.parametrize("content", [b"a\nb\n", b"\xff\xfe\x00", b""])
def test_names_that_cannot_be_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    assert refusal(name=CLEAN, class_names=tmp_path / "names.txt").startswith("--class-names: ")
    assert refusal(name=CLEAN, class_names=tmp_path / "nope.txt").startswith("--class-names: ")


def test_imagenet_labels_are_found_by_every_name_an_archive_uses() -> None:
    names = imagenet_names()
    assert len(names) == IMAGENET_CLASSES
    assert names[281].startswith("tabby")
    lookup = label_lookup(names)
    assert lookup["n02123045"] == lookup["tabby"] == lookup[names[281]] == 281
    assert lookup["n01440764"] == lookup["tench"] == 0
    assert "" not in lookup


def test_labels_of_other_models_are_their_own_names_only() -> None:
    assert label_lookup(("cat, house cat", "dog")) == {"cat, house cat": 0, "cat": 0, "dog": 1}
    assert label_lookup(()) == {}


def test_a_name_of_two_classes_is_no_label() -> None:
    """ImageNet has two cranes: guessing one would make right answers wrong."""
    names = imagenet_names()
    assert names[134] == names[517] == "crane"
    lookup = label_lookup(names)
    assert "crane" not in lookup
    assert (lookup["n02012849"], lookup["n03126707"]) == (134, 517)
    assert classes_named("crane", names) == [134, 517]
    assert label_lookup(("cat, house cat", "cat, big cat", "dog")).keys() == {
        "cat, house cat", "cat, big cat", "dog",
    }  # fmt: skip


def test_an_exact_name_wins_over_the_first_word_of_another() -> None:
    assert label_lookup(("cat, house cat", "dog", "cat"))["cat"] == 2


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


def test_an_unknown_name_is_told_its_neighbours() -> None:
    said = refusal(name="resnet5o")
    assert "'resnet5o' is no timm model, no local folder and no file" in said
    assert "did you mean resnet50" in said
    assert refusal(name="zzzzqqqq").endswith("see timm.list_models()")


@pytest.mark.parametrize("name", ["test_resnet", "regnetz_005", "legacy_seresnet18", "resnet18.a1_in1k"])
def test_pretrained_weights_are_never_fetched_unasked(name: str) -> None:
    assert "are not on this machine. Fix: --checkpoint FILE, or --download" in refusal(name=name)


def test_a_pretrained_head_is_never_filled_with_random_numbers() -> None:
    said = refusal(name="resnet18", num_classes=7)
    assert said.startswith("--num-classes: 7, but the pretrained resnet18 has 1000 classes")


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    assert "is not a file" in refusal(name=CLEAN, checkpoint=tmp_path / "no.pth")
    assert "is not a file" in refusal(name=CLEAN, checkpoint=tmp_path)


def test_the_weights_of_another_architecture(tmp_path: Path) -> None:
    other = timm.create_model("test_vit", pretrained=False, num_classes=6).state_dict()
    save_file(other, tmp_path / "w.safetensors")
    said = refusal(name=CLEAN, checkpoint=tmp_path / "w.safetensors")
    assert "weights missing" in said or "the model has" in said


def test_missing_and_unexpected_weights(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({k: v for k, v in state.items() if k != "conv1.0.weight"}, tmp_path / "a.safetensors")
    assert "1 weights missing, 0 unexpected (missing conv1.0.weight)" in refusal(
        name=CLEAN, checkpoint=tmp_path / "a.safetensors"
    )
    save_file(state | {"odd": torch.zeros(1)}, tmp_path / "b.safetensors")
    assert "0 weights missing, 1 unexpected (unexpected odd)" in refusal(
        name=CLEAN, checkpoint=tmp_path / "b.safetensors"
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite(tmp_path: Path, state: dict[str, torch.Tensor], bad: float) -> None:
    broken = {k: v.clone() for k, v in state.items()}
    broken["fc.bias"][0] = bad
    save_file(broken, tmp_path / "w.safetensors")
    assert "fc.bias holds NaN or infinity" in refusal(name=CLEAN, checkpoint=tmp_path / "w.safetensors")


def test_a_whole_pickled_model_is_not_run(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", pretrained=False), tmp_path / "w.pth")
    said = refusal(name=CLEAN, checkpoint=tmp_path / "w.pth")
    assert "is a whole pickled model" in said
    assert "state_dict" in said


def test_a_pickle_that_would_run_code_does_not(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"state_dict": Trap()}, tmp_path / "w.pth")
    refusal(name=CLEAN, checkpoint=tmp_path / "w.pth")
    assert not (tmp_path / "sprung").exists()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize("content", [LFS, b"", b"\x00" * 64], ids=["lfs pointer", "empty", "zeros"])
def test_a_file_that_holds_no_weights(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"w{suffix}").write_bytes(content)
    assert refusal(name=CLEAN, checkpoint=tmp_path / f"w{suffix}").startswith("--checkpoint: w")


def test_a_truncated_file(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    whole = (CLEAN / "model.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:-100])
    refusal(name=CLEAN, checkpoint=tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:-100])
    refusal(name=CLEAN, checkpoint=tmp_path / "w.pth")


@pytest.mark.parametrize(
    "content", [[1, 2], torch.zeros(3), {"fc.weight": 3}, {"state_dict": None}, {}, 7], ids=str
)
def test_a_pickle_of_something_else(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert refusal(name=CLEAN, checkpoint=tmp_path / "w.pth").startswith("--checkpoint: w.pth")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '"x"', '{"architecture": 3}', '{"architecture": "nonesuch"}']
)
def test_a_folder_whose_description_is_none(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    assert refusal(name=copy).startswith("--model: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"model_args": 5}, {"model_args": {"nonesuch": 1}}, {"num_classes": "many"}, {"pretrained_cfg": 5},
        {"label_names": 5}, {"label_names": ["one"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_description_that_makes_no_sense(copy: Path, changes: dict[str, Any]) -> None:
    refusal(name=edit(copy, **changes))


@pytest.mark.parametrize(
    "changes", [{"model_args": None, "architecture": "test_resnet"}, {"pretrained_cfg": None}]
)
def test_a_null_in_a_description_is_nothing_there(copy: Path, changes: dict[str, Any]) -> None:
    load_model(ModelConfig(name=str(edit(copy, **changes))))


def test_a_folder_without_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert "holds no model.safetensors" in refusal(name=copy)


def test_a_model_without_a_classifier(tmp_path: Path) -> None:
    """The features of a headless model are not classes, though their shape is that of logits."""
    module = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet", "num_classes": 0}))
    said = refusal(name="test_resnet", checkpoint=tmp_path / "w.safetensors")
    assert "weights missing" in said
    edit(tmp_path, model_args={"num_classes": 0})
    shutil.move(tmp_path / "w.safetensors", tmp_path / "model.safetensors")
    assert "give a classifier" in refusal(name=tmp_path)


def test_the_hub_is_asked_only_by_name_and_tells_in_a_line_that_it_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = refusal(name="hf-hub:nobody/nothing-of-this-name")
    assert said.startswith("--model: hf-hub:nobody/nothing-of-this-name cannot be fetched (")
    assert "Fix: go online once, or copy it here and give the folder" in said


def put_in_cache(cache: Path, repository: str, files: dict[str, bytes]) -> None:
    """Lay files as the hub's client keeps what it once fetched."""
    revision = "0" * 40
    folder = cache / f"models--{repository.replace('/', '--')}"
    for name, content in files.items():
        place = folder / "snapshots" / revision / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)


def test_a_model_that_was_fetched_once_needs_no_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    files = {n: (CLEAN / n).read_bytes() for n in ("config.json", "model.safetensors")}
    put_in_cache(tmp_path, "owner/shapes", files)
    found = load_model(ModelConfig(name="hf-hub:owner/shapes"))
    assert found.class_names == SHAPES
    assert all(torch.equal(found.module.state_dict()[k], v) for k, v in state.items())
    assert found.weights_sha256 == load_model(ModelConfig(name=str(CLEAN))).weights_sha256
    put_in_cache(tmp_path, "owner/bare", {"config.json": files["config.json"]})
    given = ModelConfig(name="hf-hub:owner/bare", checkpoint=str(CLEAN / "model.safetensors"))
    assert load_model(given).weights_sha256 == found.weights_sha256  # only the description is needed
    assert "cannot be fetched" in refusal(name="hf-hub:owner/bare")


def test_a_dead_network_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Named or with --download, the network is tried; when it is away there is one line, not a long wait."""
    asked = []

    def away(*args: Any, **_: Any) -> None:
        asked.append(args)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", away)
    started = time.monotonic()
    assert "cannot be fetched" in refusal(name="hf-hub:owner/nothing")
    assert "pretrained weights of resnet18" in refusal(name="resnet18", download=True)
    assert asked
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_torchvisions_weights_meet_the_network_they_were_made_for(tmp_path: Path, name: str) -> None:
    """torchvision's builder sets transform_input with weights; without it every logit is another."""
    torch.manual_seed(0)
    wanted = torchvision.models.get_model(name, weights=None, transform_input=True, init_weights=False).eval()
    torch.save(wanted.state_dict(), tmp_path / "w.pth")
    given = ModelConfig(name=f"torchvision:{name}", checkpoint=str(tmp_path / "w.pth"))
    small = PreprocessConfig(input_size=(96,))
    found = load_model(given, small)
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.allclose(found.module(x), wanted(x), atol=1e-5)
    assert any("transform_input=True" in note for note in found.notes)
    without = load_model(replace(given, args={"transform_input": False}), small)
    assert not without.module.transform_input
