"""Folders of transformers: what camray sees and explains is what transformers itself computes."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from camray import cam
from camray.cam.layout import TargetLayer
from camray.config import InputSpec, ModelConfig
from camray.errors import ModelError
from camray.image.decode import decode
from camray.models.load import build, load_model
from camray.models.preprocessing import to_input

transformers = pytest.importorskip("transformers")
from tests.models.hugging_face_zoo import FOLDERS, Folder  # noqa: E402 - it needs transformers

QUICK = {
    "ViT-ViT-64",
    "ResNet-ConvNext--0.95",
    "MobileViT-MobileViT-64",
}
# Width x height of photographs: upright, wide, odd margins, small, as large as the input.
SIZES = ((500, 375), (333, 500), (641, 200), (97, 131), (64, 64), (224, 301), (1023, 767), (150, 150))


def zoo() -> list[Any]:
    seen: set[str] = set()
    found = []
    for i, folder in enumerate(FOLDERS):
        name = folder.id if folder.id not in seen else f"{folder.id}-{i}"
        quick = folder.id in QUICK and folder.id not in seen
        seen.add(folder.id)
        found.append(pytest.param(folder, id=name, marks=() if quick else pytest.mark.slow))
    return found


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight JPEGs of all shapes, with texture and edges."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(1)
    for i, (width, height) in enumerate(SIZES):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), np.uint8))
        picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
        picture.paste((250, 20, 30), (width // 5, height // 6, width // 2, height // 3))
        picture.save(folder / f"{i}.jpg", quality=90)
    return sorted(folder.iterdir())


def processed(folder: Path, image: Path) -> Tensor:
    """What the folder's own processor gives: (1, C, H, W)."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels: Tensor = processor(Image.open(image).convert("RGB"), return_tensors="pt")["pixel_values"]
    return pixels


def seen(image: Path, spec: InputSpec) -> Tensor:
    """What camray gives the network: (1, C, H, W)."""
    pixels = torch.from_numpy(decode(image.read_bytes(), spec, 10**8).pixels)[None]
    return to_input(pixels, torch.tensor(spec.mean), torch.tensor(spec.std))


def logits_of(network: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(pixel_values=pixels).logits
    return found


def moved_cells(network: nn.Module, layer: TargetLayer, spec: InputSpec, tries: int = 12) -> bool:
    """Alter the image in one place after another: the cell of the map that changes most must be that one.

    Where patches overlap (LeViT's lie half in the next cell, which changes by nine tenths), of many tries.
    """
    kept: list[Tensor] = []
    handle = network.get_submodule(layer.name).register_forward_hook(
        lambda _m, _a, out: kept.append(layer.to_maps(cam.split.first_tensor(out)).detach())
    )
    random = torch.Generator().manual_seed(2)
    plain = torch.randn(tries, len(spec.mean), spec.height, spec.width, generator=random)
    with torch.no_grad():
        network(plain)
        rows, columns = kept[0].shape[2:]
        h, w = spec.height // rows, spec.width // columns
        cells = [(0, 0), (0, columns - 1), (rows - 1, 0), (rows // 2, columns // 3)]
        for row, column in cells:
            moved, place = plain.clone(), (slice(row * h, (row + 1) * h), slice(column * w, (column + 1) * w))
            moved[:, :, place[0], place[1]] += torch.randn(tries, len(spec.mean), h, w, generator=random)
            network(moved)
    handle.remove()
    changes = [(maps - kept[0]).pow(2).sum((0, 1)) for maps in kept[1:]]
    return [divmod(int(change.argmax()), columns) for change in changes] == cells


def gradcam_by_hand(network: nn.Module, layer: TargetLayer, x: Tensor, reversed_: bool = False) -> Tensor:
    """Grad-CAM of the predicted class, with a hook and autograd on transformers' own network: (h, w)."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = network.get_submodule(layer.name).register_forward_hook(keep)
    with torch.enable_grad():
        logits = network(pixel_values=(x.flip(1) if reversed_ else x).requires_grad_()).logits
    handle.remove()
    (G,) = torch.autograd.grad(logits[0, int(logits[0].argmax())], kept[0])
    A, G = (layer.to_maps(t.detach()) for t in (kept[0], G))
    return (G.mean((2, 3), keepdim=True) * A).sum(1)[0]


@pytest.mark.parametrize("folder", zoo())
def test_a_folder_gives_transformers_own_logits_layer_and_map(
    folder: Folder, tmp_path: Path, photographs: list[Path]
) -> None:
    """Pixels within rounding, logits <= 1e-5, the right cells, Grad-CAM <= 1e-5 of one by hand."""
    own = folder.save(tmp_path)
    loaded = load_model(ModelConfig(name=str(tmp_path)))
    spec, reversed_ = loaded.input, bool(loaded.build_args["args"].get("channels_reversed"))
    assert loaded.class_names == tuple(f"thing {i}" for i in range(7))
    rebuilt = build(json.loads(json.dumps(loaded.build_args))).eval()  # as a worker does: from plain data
    rebuilt.load_state_dict(loaded.module.state_dict())
    layer = cam.find_target_layer(loaded.module, (len(spec.mean), spec.height, spec.width))
    tries = 400 if folder.model.startswith("Levit") else 12
    assert layer.layout == "nchw" or moved_cells(loaded.module, layer, spec, tries)
    for image in photographs:
        theirs, ours = processed(tmp_path, image), seen(image, spec)
        own_order = ours.flip(1) if reversed_ else ours
        levels = (theirs - own_order).abs() * torch.tensor(spec.std)[:, None, None] * 255
        assert float(levels.mean()) < 0.75, image  # of 255 levels, by another resizer's rounding
        assert float(levels.max()) < 8, image
        wanted = logits_of(own, theirs)
        given = theirs.flip(1) if reversed_ else theirs
        scale = float(wanted.abs().max().clamp_min(1))
        with torch.no_grad():
            for network in (loaded.module, rebuilt):
                assert float((network(given) - wanted).abs().max()) <= 1e-5 * scale
    x = seen(photographs[0], spec)
    found = cam.explain(loaded.module, x, layer, [cam.parse_method("gradcam")], cam.TargetRule())
    (ours,) = found.maps.values()
    by_hand = gradcam_by_hand(own.requires_grad_(False), layer, x, reversed_)
    assert float((ours[0, 0] - by_hand).abs().max()) <= 1e-5 * float(by_hand.abs().max())


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    FOLDERS[0].save(tmp_path / "vit")
    return tmp_path / "vit"


def edited(folder: Path, file: str, **changes: Any) -> Path:
    said = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps(said))
    return folder


def refusal(**config: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(ModelConfig(**{k: str(v) if isinstance(v, Path) else v for k, v in config.items()}))
    return str(caught.value)


def test_without_the_extra_a_folder_is_refused_by_its_name(
    vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "which is not installed. Fix: pip install 'camray[transformers]'" in refusal(name=vit)


def test_a_grey_network_and_its_processor(tmp_path: Path, photographs: list[Path]) -> None:
    torch.manual_seed(0)
    kind = transformers.ViTForImageClassification
    network = kind(transformers.ViTConfig(**FOLDERS[0].config, num_channels=1)).eval()
    network.save_pretrained(tmp_path)
    processor = transformers.ViTImageProcessor(size=64, image_mean=[0.3], image_std=[0.2])
    processor.save_pretrained(tmp_path)
    loaded = load_model(ModelConfig(name=str(tmp_path)))
    assert (loaded.input.mean, loaded.input.std, loaded.input.resize) == ((0.3,), (0.2,), (64, 64))
    theirs = processor(Image.open(photographs[0]).convert("L"), return_tensors="pt")["pixel_values"]
    levels = (theirs - seen(photographs[0], loaded.input)).abs() * 0.2 * 255
    assert float(levels.mean()) < 0.75
    with torch.no_grad():
        assert torch.equal(loaded.module(theirs), logits_of(network, theirs))


def test_a_network_of_five_bands_takes_its_processor_at_its_word(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**FOLDERS[0].config, num_channels=5)
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    mean, std = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]
    transformers.ViTImageProcessor(size=64, image_mean=mean, image_std=std).save_pretrained(tmp_path)
    assert "it takes 5 channels" in refusal(name=tmp_path)
    loaded = load_model(ModelConfig(name=str(tmp_path)), bands=(4, 3, 2))
    assert (loaded.input.mean, loaded.input.std) == (tuple(mean), tuple(std))
    assert (loaded.input.resize, loaded.input.crop_mode) == ((64, 64), "squash")
    assert any("taken at their word" in note for note in loaded.notes)
    x = torch.randn(2, 5, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), logits_of(network, x))


def test_outputs_are_read_as_the_configuration_says_they_were_trained(tmp_path: Path) -> None:
    """Several labels an image: a sigmoid each. A regression: the value. Neither is a softmax over classes."""
    kinds = {"multi_label_classification": (3, "sigmoid", 3), "regression": (1, "value", 1)}
    for problem, (labels, activation, classes) in kinds.items():
        config = transformers.ViTConfig(**FOLDERS[0].config | {"num_labels": labels}, problem_type=problem)
        torch.manual_seed(0)
        transformers.ViTForImageClassification(config).save_pretrained(tmp_path / problem)
        transformers.ViTImageProcessor(size=64).save_pretrained(tmp_path / problem)
        loaded = load_model(ModelConfig(name=str(tmp_path / problem)))
        assert (loaded.activation, loaded.num_classes) == (activation, classes)
        assert any("as its configuration says" in note for note in loaded.notes)
    asked = ModelConfig(name=str(tmp_path / "multi_label_classification"), activation="softmax")
    assert load_model(asked).activation == "softmax"


def test_code_that_lies_in_a_folder_is_never_run(vit: Path) -> None:
    (vit / "modeling_mine.py").write_text("raise SystemExit('it ran')")
    name = "MineForImageClassification"
    code = {"AutoModelForImageClassification": f"modeling_mine.{name}"}
    edited(vit, "config.json", architectures=[name], model_type="mine", auto_map=code)
    said = refusal(name=vit)
    assert "its own code (modeling_mine.py) is not run" in said
    assert "--model FILE.py:ClassName" in said


def test_a_processor_of_own_code_is_neither_run_nor_asked_about(
    vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    (vit / "mine.py").write_text("raise SystemExit('it ran')")
    code = {"AutoImageProcessor": "mine.MineImageProcessor"}
    edited(vit, "preprocessor_config.json", image_processor_type="MineImageProcessor", auto_map=code)
    assert "its processor fails" in refusal(name=vit)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"hidden_size": "wide"}),
        ("config.json", {"architectures": None}),
        ("config.json", {"id2label": {"0": "a", "7": "b"}}),
        ("preprocessor_config.json", {"size": "large"}),
        ("preprocessor_config.json", {"image_mean": [0.5]}),
    ],
)
def test_descriptions_that_say_nonsense_are_refused_in_a_line(
    file: str, changes: dict[str, Any], vit: Path
) -> None:
    said = refusal(name=edited(vit, file, **changes))
    assert said.startswith("--model: ")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("Mask2FormerForUniversalSegmentation", "a segmenter of masks"),
        ("VideoMAEForVideoClassification", "a classifier of videos"),
        ("DPTForDepthEstimation", "a depth estimator"),
        ("ViTForMaskedImageModeling", "a pretraining model"),
        ("LlamaForCausalLM", "a language model"),
        ("ViltForQuestionAnswering", "an image and a text"),
    ],
)
def test_kinds_of_folders_that_cannot_be_are_named(vit: Path, architecture: str, kind: str) -> None:
    said = refusal(name=edited(vit, "config.json", architectures=[architecture]))
    assert architecture in said
    assert kind in said


def test_a_processor_that_is_no_resize_and_crop_is_refused_by_name(vit: Path) -> None:
    transformers.Siglip2ImageProcessor().save_pretrained(vit)  # patches of any number
    assert "Siglip2ImageProcessor" in refusal(name=vit)
    transformers.ViTImageProcessor(do_resize=False).save_pretrained(vit)
    assert "ViTImageProcessor gives every image a size of its own" in refusal(name=vit)


def test_a_folder_without_a_processor_says_what_is_guessed(vit: Path) -> None:
    (vit / "preprocessor_config.json").unlink()
    loaded = load_model(ModelConfig(name=str(vit)))
    assert (loaded.input.height, loaded.input.width) == (64, 64)
    assert any("no preprocessor_config.json" in note for note in loaded.notes)


def test_missing_and_damaged_weights_are_refused(vit: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(vit / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if "classifier" not in k}, vit / "model.safetensors", {"format": "pt"}
    )
    assert "2 weights missing (classifier.bias, classifier.weight)" in refusal(name=vit)
    (vit / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    assert "its weights cannot be loaded" in refusal(name=vit)
    (vit / "model.safetensors").unlink()
    assert "holds no model.safetensors" in refusal(name=vit)


def test_weights_in_several_files_and_legacy_names(vit: Path, tmp_path: Path) -> None:
    """Shards, pickles of tensors and the names of older versions are read as transformers reads them."""
    whole = load_model(ModelConfig(name=str(vit)))
    module = transformers.ViTForImageClassification.from_pretrained(vit)
    module.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    for file in ("preprocessor_config.json",):
        shutil.copy(vit / file, tmp_path / "shards" / file)
    assert len([*(tmp_path / "shards").glob("model-*.safetensors")]) > 1
    split = load_model(ModelConfig(name=str(tmp_path / "shards")))
    same = split.module.state_dict()
    assert all(torch.equal(v, same[k]) for k, v in whole.module.state_dict().items())
    assert re.fullmatch("[0-9a-f]{64}", split.weights_sha256)


@pytest.mark.parametrize("classes", [7, 3])
def test_a_checkpoint_beside_a_folder_is_named_as_transformers_saves_it(
    classes: int, vit: Path, tmp_path: Path
) -> None:
    """Weights of a trainer, saved with the names of files, wrapped; the head is that of the file."""
    from safetensors.torch import load_file

    torch.manual_seed(1)
    network = transformers.ViTForImageClassification.from_pretrained(
        vit, num_labels=classes, ignore_mismatched_sizes=True
    ).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(1.1)
    network.save_pretrained(tmp_path / "tuned")
    saved = load_file(tmp_path / "tuned" / "model.safetensors")
    torch.save({"state_dict": {f"model.{k}": v for k, v in saved.items()}}, tmp_path / "tuned.ckpt")
    given = {"name": str(vit), "checkpoint": str(tmp_path / "tuned.ckpt")}
    if classes != 7:
        assert "7 names for 3 classes" in refusal(**given)
        (tmp_path / "names.txt").write_text("a\nb\nc\n")
        given["class_names"] = str(tmp_path / "names.txt")
    loaded = load_model(ModelConfig(**given))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), logits_of(network, x))
    assert loaded.num_classes == classes


def test_a_repository_of_transformers_that_was_fetched_once_needs_no_network(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    revision = "0" * 40
    repository = tmp_path / "hub" / "models--owner--vit"
    shutil.copytree(vit, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    found = load_model(ModelConfig(name="hf-hub:owner/vit"))
    assert found.weights_sha256 == load_model(ModelConfig(name=str(vit))).weights_sha256
