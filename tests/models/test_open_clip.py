"""Folders of open_clip: scores are its own zero-shot ones, maps those of a plain backward."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from camray import cam
from camray.config import ModelConfig
from camray.errors import ModelError
from camray.image.fit import fit_image, plan_fit
from camray.models import sources
from camray.models.load import build, load_model
from camray.models.outputs import class_scores
from tests.models.test_heads import images

open_clip = pytest.importorskip("open_clip")

TEXT = {"context_length": 16, "width": 32, "heads": 4, "layers": 2}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"vision_cfg": {"image_size": 64, "layers": 3, "width": 32, "head_width": 8, "patch_size": 16}},
    "quick": {"vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
              "quick_gelu": True},
    "resnet": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}},
    "timm": {"vision_cfg": {"image_size": 64, "timm_model_name": "test_vit", "timm_pool": "",
                            "timm_proj": "linear"},
             "custom_text": True, "init_logit_bias": -2.0},
    "pooler": {"vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "head_width": 8, "patch_size": 16,
                              "attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 4,
                              "output_tokens": True}},
}  # fmt: skip
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("quick", "resnet", "timm", "pooler")]


def save_folder(folder: Path, kind: str = "vit", **preprocess: Any) -> Any:
    """Write a small model of random weights, as open_clip's own files are."""
    model = {"embed_dim": 24, "text_cfg": TEXT, **TOWERS[kind]}
    described = {"model_cfg": model, "preprocess_cfg": preprocess}
    (folder / open_clip_config).write_text(json.dumps(described))
    torch.manual_seed(0)
    whole = open_clip.create_model(f"local-dir:{folder}").eval().requires_grad_(False)
    save_file(whole.state_dict(), folder / "open_clip_model.safetensors")
    return whole


open_clip_config = "open_clip_config.json"


def prompts(folder: Path, *lines: str) -> str:
    (folder / "p.txt").write_text("\n".join(lines))
    return str(folder / "p.txt")


def logits_of(whole: Any, folder: Path, texts: list[str], pixels: Tensor) -> Tensor:
    """Compare as open_clip's own forward does."""
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    seen, written, scale, *bias = whole(pixels, tokens)
    found: Tensor = scale * seen @ written.T + (bias[0] if bias else 0)
    return found


@pytest.mark.parametrize("kind", ["vit", *SLOW])
def test_a_thousand_prompts_score_as_open_clips_own(kind: str, tmp_path: Path) -> None:
    """Probabilities <= 1e-5 of its zero-shot ones, on a worker too."""
    whole = save_folder(tmp_path, kind)
    texts = [f"a photo of thing {i}" for i in range(1000)]
    file = prompts(tmp_path, *(f"n{i}: {text}" for i, text in enumerate(texts)))
    loaded = load_model(ModelConfig(name=str(tmp_path), prompts=file))
    assert loaded.class_names == tuple(f"n{i}" for i in range(1000))
    worker = build(json.loads(json.dumps(loaded.build_args))).eval()
    worker.load_state_dict(loaded.module.state_dict(), assign=True)
    if kind == "pooler":
        whole.visual.output_tokens = False  # as CoCa takes the first of the two
    logits = logits_of(whole, tmp_path, texts, images())
    wanted = logits.sigmoid() if kind == "timm" else logits.softmax(1)
    assert float(wanted.std()) > 1e-5
    for module in (loaded.module, worker):
        with torch.no_grad():
            assert float((class_scores(module(images()), loaded.activation) - wanted).abs().max()) <= 1e-5


@pytest.mark.parametrize("kind", ["vit", *SLOW[1:3]])
def test_the_map_of_a_prompt_is_that_of_the_whole_model(kind: str, tmp_path: Path) -> None:
    """Grad-CAM <= 1e-5 of one by hand: a hook on the whole model, the gradient of its own logit."""
    whole = save_folder(tmp_path, kind)
    texts = ["a photo of a cat", "a photo of a dog", "a drawing"]
    loaded = load_model(ModelConfig(name=str(tmp_path), prompts=prompts(tmp_path, *texts)))
    layer = cam.find_target_layer(loaded.module, (3, 64, 64))
    if kind != "resnet":
        assert (layer.layout, layer.prefix, layer.grid) == ("tokens", 1, (4, 4))
    kept: list[Tensor] = []
    handle = whole.visual.get_submodule(layer.name.removeprefix("tower.")).register_forward_hook(
        lambda _m, _a, out: kept.append(out)
    )
    logits = logits_of(whole, tmp_path, texts, images(1).requires_grad_())
    handle.remove()
    (ours,) = cam.explain(loaded.module, images(1), layer, "gradcam", cam.TargetRule.parse("1")).maps.values()
    (gradient,) = torch.autograd.grad(logits[0, 1], kept[0])
    A, G = layer.to_maps(kept[0].detach()), layer.to_maps(gradient)
    by_hand = (G.mean((2, 3), keepdim=True) * A).sum(1)[0]
    assert float((ours[0, 0] - by_hand).abs().max()) <= 1e-5 * float(by_hand.abs().max())


def test_legrad_is_that_of_the_paper(tmp_path: Path) -> None:
    """Each block's mean token, through `ln_post` and `proj`, differentiated by attention written out here."""
    whole = save_folder(tmp_path)
    texts = ["a photo of a cat", "a photo of a dog"]
    loaded = load_model(ModelConfig(name=str(tmp_path), prompts=prompts(tmp_path, *texts)))
    layer = cam.find_target_layer(loaded.module, (3, 64, 64))
    (ours,) = cam.explain(loaded.module, images(2), layer, "legrad", cam.TargetRule.parse("1")).maps.values()
    tower, total = whole.visual, torch.zeros(2, 17)
    text = whole.encode_text(open_clip.get_tokenizer(f"local-dir:{tmp_path}")(texts), normalize=True)[1]
    x = tower._embeds(images(2))
    for block in tower.transformer.resblocks:
        inner = block.attn
        q, k, v = (
            t.unflatten(2, (4, 8)).transpose(1, 2)
            for t in linear(block.ln_1(x), inner.in_proj_weight, inner.in_proj_bias).chunk(3, 2)
        )
        p = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1).requires_grad_()
        after = x + inner.out_proj((p @ v).transpose(1, 2).flatten(2))
        after = after + block.mlp(block.ln_2(after))
        feature = normalize(tower.ln_post(after.mean(1)) @ tower.proj, dim=-1)
        (slope,) = torch.autograd.grad((feature @ text).sum() * whole.logit_scale.exp(), p)
        total += slope.relu().mean((1, 2)) / 3
        x = after.detach()
    wanted = total[:, 1:].reshape(2, 4, 4)
    assert float((ours[:, 0] - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


@pytest.mark.slow
def test_templates_are_averaged_as_open_clip_does(tmp_path: Path) -> None:
    """Equal to the rows of its own `build_zero_shot_classifier`."""
    whole = save_folder(tmp_path)
    file = prompts(tmp_path, "a photo of a {}", "a drawing of a {}", "cat", "dog")
    loaded = load_model(ModelConfig(name=str(tmp_path), prompts=file))
    rows = open_clip.build_zero_shot_classifier(
        whole, open_clip.get_tokenizer(f"local-dir:{tmp_path}"), ["cat", "dog"],
        [lambda name: f"a photo of a {name}", lambda name: f"a drawing of a {name}"],
    )  # fmt: skip
    wanted = whole.encode_image(images(), normalize=True) @ rows * whole.logit_scale.exp()
    assert float((loaded.module(images()) - wanted).abs().max()) <= 1e-5


def test_rows_of_a_head_get_the_temperature_as_trained(tmp_path: Path) -> None:
    whole = save_folder(tmp_path)
    rows = normalize(torch.randn(5, 24, generator=torch.Generator().manual_seed(1)), dim=-1)
    save_file({"weight": rows}, tmp_path / "rows.safetensors")
    (tmp_path / "rows.safetensors").rename(tmp_path.parent / f"{tmp_path.name}.safetensors")
    head = str(tmp_path.parent / f"{tmp_path.name}.safetensors")
    loaded = load_model(ModelConfig(name=str(tmp_path), head=head))
    wanted = whole.encode_image(images(), normalize=True) @ rows.T * whole.logit_scale.exp()
    assert float((loaded.module(images()) - wanted).abs().max()) <= 1e-5


@pytest.mark.parametrize(
    ("mode", "interpolation", "side"),
    [("shortest", "bicubic", 64), pytest.param("squash", "bilinear", 64, marks=pytest.mark.slow),
     *(pytest.param("shortest", "bicubic", side, marks=pytest.mark.slow) for side in (224, 384))],
)  # fmt: skip
def test_images_are_prepared_as_open_clip_does(
    mode: str, interpolation: str, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another resizer, less than one of 255 levels on average: odd margins are cut as torchvision does."""
    colours = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    vision = {**TOWERS["vit"]["vision_cfg"], "image_size": side, "layers": 1, "patch_size": 32}
    monkeypatch.setitem(TOWERS, "vit", {"vision_cfg": vision})
    whole = save_folder(tmp_path, resize_mode=mode, interpolation=interpolation, **colours)
    spec = load_model(ModelConfig(name=str(tmp_path), prompts=prompts(tmp_path, "cat", "dog"))).input
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (12, 17, 3), np.uint8)).resize((171, 120))
    cfg = open_clip.transform.PreprocessCfg(**open_clip.get_model_preprocess_cfg(whole))
    wanted = open_clip.transform.image_transform_v2(cfg, is_train=False)(picture)
    pixels = torch.from_numpy(np.array(fit_image(picture, plan_fit(*picture.size, spec), spec)))
    ours = (pixels / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    levels = (ours.permute(2, 0, 1) - wanted).abs() * torch.tensor(spec.std)[:, None, None] * 255
    assert float(levels.mean()) < 1


def test_long_prompts_are_told(tmp_path: Path) -> None:
    save_folder(tmp_path)
    file = prompts(tmp_path, "cat", "dog " * 30)
    loaded = load_model(ModelConfig(name=str(tmp_path), prompts=file))
    assert any("1 prompts are longer than the text side reads" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("given", "said"),
    [({}, r"CLIP gives embeddings, not classes. Fix: --prompts classes.txt, --head FILE, or"),
     ({"prompts": "p.txt", "checkpoint": "open_clip_model.safetensors"}, "--checkpoint: a folder of"),
     ({"prompts": "p.txt", "args": {"quick_gelu": True}}, "--model-arg: a folder of open_clip has")],
)  # fmt: skip
def test_what_a_folder_has_itself_is_refused(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    save_folder(tmp_path)
    prompts(tmp_path, "cat", "dog")
    files = {key: value if key == "args" else str(tmp_path / value) for key, value in given.items()}
    with pytest.raises(ModelError, match=said):
        load_model(ModelConfig(name=str(tmp_path), **files))


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_folder(tmp_path)
    given = ModelConfig(name=str(tmp_path), prompts=prompts(tmp_path, "cat", "dog"))
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="its weights cannot be loaded"):
        load_model(given)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"its weights cannot be loaded .*Required pretrained"):
        load_model(given)
    save_folder(tmp_path, resize_mode="longest")
    with pytest.raises(ModelError, match="resize_mode 'longest' of its images is not done here"):
        load_model(given)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(
        ModelError, match=r"open_clip, which is not installed. Fix: pip install 'camray\[open"
    ):
        load_model(given)
    (tmp_path / open_clip_config).write_text("{}")
    with pytest.raises(ModelError, match=r"open_clip_config.json: KeyError.'model_cfg'"):
        load_model(given)


def test_beside_timms_description_it_is_read_for_prompts(tmp_path: Path) -> None:
    """As timm's own CLIP folders are: config.json is of the tower alone."""
    save_folder(tmp_path, "timm")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "num_classes": 0}))
    (tmp_path / "model.safetensors").touch()
    with_prompts = ModelConfig(name=str(tmp_path), prompts=prompts(tmp_path, "cat", "dog"))
    assert sources.find_source(with_prompts).recipe.kind == "open_clip"
    assert sources.find_source(ModelConfig(name=str(tmp_path))).recipe.kind == "timm"


def test_a_folder_of_the_hub_is_read_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "models--me--pair" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    (tmp_path / "models--me--pair" / "refs").mkdir()
    (tmp_path / "models--me--pair" / "refs" / "main").write_text("abc")
    save_folder(cached)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded = load_model(ModelConfig(name="hf-hub:me/pair", prompts=prompts(tmp_path, "cat", "dog")))
    assert (loaded.name, loaded.num_classes) == ("VisionTransformer", 2)
    assert isinstance(loaded.module, nn.Module)
