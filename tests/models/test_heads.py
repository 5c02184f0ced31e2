"""Prompts and heads: scores are those of the whole contrastive model, maps those of a plain backward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from camray import cam
from camray.config import ModelConfig
from camray.errors import ModelError
from camray.models.heads import read_prompts
from camray.models.load import build, load_model
from camray.models.outputs import class_scores

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

_SIDE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
_WORDS = ["<pad>", "<end>", "<start>", "a", "photo", "of", "drawing", *(f"thing{i}" for i in range(1000))]


def save_tokenizer(folder: Path, start: bool) -> None:
    """A tokenizer of whole words, with the marks that CLIP's and SigLIP's have."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(_WORDS)}, unk_token="<end>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    pattern = "<start> $A <end>" if start else "$A <end>"
    inner.post_processor = processors.TemplateProcessing(
        single=pattern, special_tokens=[("<start>", 2), ("<end>", 1)]
    )
    marks = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<end>"}
    marks |= {"bos_token": "<start>"} if start else {}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **marks).save_pretrained(folder)


def save_pair(folder: Path, kind: str) -> nn.Module:
    """A whole model of images and texts with random weights."""
    torch.manual_seed(3)
    text = {**_SIDE, "vocab_size": len(_WORDS), "max_position_embeddings": 16}
    text |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    sides = {"text_config": text, "vision_config": {**_SIDE, "image_size": 64, "patch_size": 16}}
    if kind == "clip":
        config = transformers.CLIPConfig(**sides, projection_dim=24)
        whole = transformers.CLIPModel(config)
        processor = transformers.CLIPImageProcessor(
            size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}
        )
    else:
        whole = transformers.SiglipModel(transformers.SiglipConfig(**sides))
        processor = transformers.SiglipImageProcessor(size={"height": 64, "width": 64})
    with torch.no_grad():
        for p in whole.parameters():
            if p.ndim > 1:
                p.normal_(0, 1 / p[0].numel() ** 0.5)
        whole.logit_scale.fill_(2.3)
        if kind == "siglip":
            whole.logit_bias.fill_(-1.7)
    whole.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    save_tokenizer(folder, start=kind == "clip")
    return whole.requires_grad_(False)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, nn.Module, str]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, save_pair(folder, request.param), request.param


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def zero_shot(
    folder: Path, whole: nn.Module, kind: str, texts: list[str], pixels: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits and probabilities as transformers gives them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = {"padding": "max_length", "max_length": 16} if kind == "siglip" else {"padding": True}
    tokens = tokenizer(texts, return_tensors="pt", **padding)
    given = {k: tokens[k] for k in ("input_ids", "attention_mask") if k in tokens}
    logits = whole(pixel_values=pixels, **given).logits_per_image
    return logits, logits.sigmoid() if kind == "siglip" else logits.softmax(1)


def test_a_thousand_prompts_score_as_the_whole_model_does(
    pair: tuple[Path, nn.Module, str], tmp_path: Path
) -> None:
    """Probabilities <= 1e-5 of transformers' zero-shot ones, on a worker too."""
    folder, whole, kind = pair
    prompts = tmp_path / "classes.txt"
    prompts.write_text("\n".join(f"n{i}: a photo of thing{i}" for i in range(1000)))
    loaded = load_model(ModelConfig(name=str(folder), prompts=str(prompts)))
    assert loaded.class_names == tuple(f"n{i}" for i in range(1000))
    assert loaded.activation == ("sigmoid" if kind == "siglip" else "softmax")
    worker = build(json.loads(json.dumps(loaded.build_args))).eval()
    worker.load_state_dict(loaded.module.state_dict(), assign=True)
    logits, wanted = zero_shot(folder, whole, kind, [f"a photo of thing{i}" for i in range(1000)], images())
    assert float(wanted.std()) > 1e-5
    for module in (loaded.module, worker):
        with torch.no_grad():
            ours = module(images())
        assert float((ours - logits).abs().max()) <= 1e-4
        assert float((class_scores(ours, loaded.activation) - wanted).abs().max()) <= 1e-5


def test_the_map_of_a_prompt_is_that_of_the_whole_model(
    pair: tuple[Path, nn.Module, str], tmp_path: Path
) -> None:
    """Grad-CAM <= 1e-5 of one by hand: a hook on the whole model, the gradient of its own logit."""
    folder, whole, kind = pair
    (tmp_path / "p.txt").write_text("a photo of thing1\na photo of thing2\na drawing of thing3\n")
    loaded = load_model(ModelConfig(name=str(folder), prompts=str(tmp_path / "p.txt")))
    layer = cam.find_target_layer(loaded.module, (3, 64, 64))
    assert (layer.layout, layer.prefix, layer.grid) == ("tokens", 1 if kind == "clip" else 0, (4, 4))
    kept: list[Tensor] = []
    inner = layer.name.removeprefix("tower.")
    place = inner if kind == "clip" else f"vision_model.{inner.removeprefix('vision_model.')}"
    handle = whole.get_submodule(place).register_forward_hook(
        lambda _m, _a, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    texts = ["a photo of thing1", "a photo of thing2", "a drawing of thing3"]
    logits, _ = zero_shot(folder, whole, kind, texts, images(1).requires_grad_())
    handle.remove()
    found = cam.explain(
        loaded.module, images(1), layer, [cam.parse_method("gradcam")], cam.TargetRule.parse("1")
    )
    (ours,) = found.maps.values()
    (G,) = torch.autograd.grad(logits[0, 1], kept[0])
    A, G = layer.to_maps(kept[0].detach()), layer.to_maps(G)
    by_hand = (G.mean((2, 3), keepdim=True) * A).sum(1)[0]
    assert float((ours[0, 0] - by_hand).abs().max()) <= 1e-5 * float(by_hand.abs().max())


def test_legrad_of_a_prompt_is_that_of_the_paper(tmp_path: Path) -> None:
    """Each block's mean token, projected and compared with the text, differentiated by the block's attention.

    Positive parts, averaged over heads, queries and blocks: by transformers' own attentions, <= 1e-5.
    """
    save_pair(tmp_path / "clip", "clip")
    whole = transformers.CLIPModel.from_pretrained(tmp_path / "clip", attn_implementation="eager").eval()
    (tmp_path / "p.txt").write_text("a photo of thing1\na photo of thing2\na drawing of thing3\n")
    loaded = load_model(ModelConfig(name=str(tmp_path / "clip"), prompts=str(tmp_path / "p.txt")))
    layer = cam.find_target_layer(loaded.module, (3, 64, 64))
    found = cam.explain(loaded.module, images(2), layer, "legrad", cam.TargetRule.parse("2"))
    (ours,) = found.maps.values()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "clip")
    tokens = tokenizer(["a drawing of thing3"], return_tensors="pt")
    text = normalize(
        whole.get_text_features(**{k: tokens[k] for k in ("input_ids", "attention_mask")}).pooler_output,
        dim=-1,
    )
    seen = whole.vision_model(pixel_values=images(2), output_attentions=True, output_hidden_states=True)
    total = torch.zeros(2, 17)
    for state, attention in zip(seen.hidden_states[1:], seen.attentions, strict=True):
        feature = normalize(whole.visual_projection(whole.vision_model.post_layernorm(state.mean(1))), dim=-1)
        similarity = (feature @ text[0]) * whole.logit_scale.exp()
        (slope,) = torch.autograd.grad(similarity.sum(), attention, retain_graph=True)
        total = total + slope.relu().mean((1, 2)) / 3
    by_hand = total[:, 1:].reshape(2, 4, 4)
    assert float((ours[:, 0] - by_hand).abs().max()) <= 1e-5 * float(by_hand.abs().max())


def test_legrad_of_a_pooler_is_that_of_the_paper(tmp_path: Path) -> None:
    """SigLIP: each block's tokens through norm and pooler, differentiated by the pooler's own attention.

    The pooler is written out by hand; positive parts, averaged over heads and blocks: <= 1e-5.
    """
    whole = save_pair(tmp_path, "siglip")
    (tmp_path / "p.txt").write_text("a photo of thing1\na drawing of thing3\n")
    loaded = load_model(ModelConfig(name=str(tmp_path), prompts=str(tmp_path / "p.txt")))
    layer = cam.find_target_layer(loaded.module, (3, 64, 64))
    (ours,) = cam.explain(loaded.module, images(2), layer, "legrad", cam.TargetRule.parse("1")).maps.values()
    tower, pooler = whole.vision_model, whole.vision_model.head
    seen = tower(pixel_values=images(2), output_hidden_states=True).hidden_states[1:]
    text = whole.get_text_features(**_tokens(tmp_path, ["a drawing of thing3"])).pooler_output
    inner, by_hand = pooler.attention, torch.zeros(2, 16)
    for state in seen:
        tokens = tower.post_layernorm(state)
        q, k, v = (
            torch.nn.functional.linear(x, w, b).unflatten(2, (4, 8)).transpose(1, 2)
            for x, w, b in zip(
                (pooler.probe.expand(2, -1, -1), tokens, tokens),
                inner.in_proj_weight.chunk(3), inner.in_proj_bias.chunk(3), strict=True,
            )
        )  # fmt: skip
        p = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1).requires_grad_()  # (2, heads, 1, 16)
        found = inner.out_proj((p @ v).transpose(1, 2).flatten(2))
        found = (found + pooler.mlp(pooler.layernorm(found)))[:, 0]
        score = (normalize(found, dim=-1) @ normalize(text, dim=-1)[0]) * whole.logit_scale.exp()
        (slope,) = torch.autograd.grad(score.sum(), p)
        by_hand += slope.relu().mean(1)[:, 0] / 3
    wanted = by_hand.reshape(2, 4, 4)
    assert float(wanted.min()) >= 0
    assert float((ours[:, 0] - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def _tokens(folder: Path, texts: list[str]) -> dict[str, Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = tokenizer(texts, return_tensors="pt", padding="max_length", max_length=16)
    return {k: found[k] for k in ("input_ids", "attention_mask") if k in found}


def test_templates_are_averaged_as_the_papers_do(pair: tuple[Path, nn.Module, str], tmp_path: Path) -> None:
    """Each embedding is normalised, their mean is normalised again."""
    folder, whole, kind = pair
    (tmp_path / "p.txt").write_text("a photo of {}\na drawing of {}\nthing1\nthing2\n")
    loaded = load_model(ModelConfig(name=str(folder), prompts=str(tmp_path / "p.txt")))
    texts = [f"a {how} of thing{i}" for i in (1, 2) for how in ("photo", "drawing")]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = {"padding": "max_length", "max_length": 16} if kind == "siglip" else {"padding": True}
    tokens = tokenizer(texts, return_tensors="pt", **padding)
    each = normalize(
        whole.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output, dim=-1
    )
    mean = normalize(each.reshape(2, 2, -1).mean(1), dim=-1)
    seen = normalize(whole.get_image_features(images()).pooler_output, dim=-1)
    bias = whole.logit_bias if kind == "siglip" else 0.0
    with torch.no_grad():
        assert (
            float((loaded.module(images()) - (seen @ mean.T * whole.logit_scale.exp() + bias)).abs().max())
            <= 1e-5
        )


def test_a_tower_without_prompts_is_refused(pair: tuple[Path, nn.Module, str]) -> None:
    """Embedding dimensions are no classes."""
    with pytest.raises(
        ModelError,
        match=r"gives embeddings, not classes. Fix: --prompts classes.txt, --head FILE, or",
    ):
        load_model(ModelConfig(name=str(pair[0])))


def test_a_tower_of_own_code_is_refused_without_a_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model object with a temperature, as open_clip and OpenAI write it, called on images alone."""
    (tmp_path / "pairs.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Pair(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.visual = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "        self.logit_scale = nn.Parameter(torch.tensor(2.6))\n"
        "    def forward(self, image, text=None):\n        return self.visual(image)\n"
    )
    torch.manual_seed(0)
    state = {
        "visual.0.weight": torch.randn(8, 3, 4, 4),
        "visual.0.bias": torch.zeros(8),
        "logit_scale": torch.tensor(2.6),
    }
    save_file(state, tmp_path / "w.safetensors")
    given: dict[str, Any] = {"name": f"{tmp_path}/pairs.py:Pair", "checkpoint": f"{tmp_path}/w.safetensors"}
    with pytest.raises(ModelError, match=r"gives embeddings, not classes. Fix: .*--head FILE"):
        load_model(ModelConfig(**given))
    text = (tmp_path / "pairs.py").read_text()
    text += "class Inside(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    text += "        self.pair = Pair()\n    def forward(self, x): return self.pair(x)\n"
    (tmp_path / "pairs.py").write_text(text)
    save_file({f"pair.{name}": value for name, value in state.items()}, tmp_path / "i.safetensors")
    held = {"name": f"{tmp_path}/pairs.py:Inside", "checkpoint": f"{tmp_path}/i.safetensors"}
    with pytest.raises(ModelError, match=r"Inside is a tower .* gives embeddings, not classes"):
        load_model(ModelConfig(**held))
    rows = torch.randn(5, 8)
    save_file({"weight": rows, "bias": torch.arange(5.0)}, tmp_path / "h.safetensors")
    loaded = load_model(ModelConfig(**given, head=f"{tmp_path}/h.safetensors"))
    seen = torch.nn.functional.conv2d(images(), state["visual.0.weight"], stride=4).mean((2, 3))
    assert torch.allclose(loaded.module(images()), seen @ rows.T + torch.arange(5.0), atol=1e-5)


def test_rows_of_a_head_get_the_temperature_as_prompts_do(
    pair: tuple[Path, nn.Module, str], tmp_path: Path
) -> None:
    """Rows without a bias are embeddings of classes; with a bias the head is affine and is taken as it is."""
    folder, whole, kind = pair
    width = 24 if kind == "clip" else 32
    rows = normalize(torch.randn(5, width, generator=torch.Generator().manual_seed(1)), dim=-1)
    save_file({"weight": rows}, tmp_path / "rows.safetensors")
    save_file({"weight": rows, "bias": torch.arange(5.0)}, tmp_path / "affine.safetensors")
    seen = normalize(whole.get_image_features(images()).pooler_output, dim=-1)
    bias = whole.logit_bias if kind == "siglip" else 0.0
    wanted = {
        "rows": seen @ rows.T * whole.logit_scale.exp() + bias,
        "affine": seen @ rows.T + torch.arange(5.0),
    }
    for name, logits in wanted.items():
        loaded = load_model(ModelConfig(name=str(folder), head=str(tmp_path / f"{name}.safetensors")))
        assert float((loaded.module(images()) - logits).abs().max()) <= 1e-5
    save_file({"weight": torch.randn(5, 7)}, tmp_path / "odd.safetensors")
    with pytest.raises(ModelError, match=f"its rows have 7 numbers, the embedding has {width}"):
        load_model(ModelConfig(name=str(folder), head=str(tmp_path / "odd.safetensors")))


@pytest.mark.parametrize("name", ["Dinov2", "Dinov2WithRegisters"])
@pytest.mark.parametrize("patches", [False, True])
def test_a_linear_head_on_a_backbone(name: str, patches: bool, tmp_path: Path) -> None:
    """The class token, or it and the mean of the patches, as the head's width says."""
    torch.manual_seed(0)
    module = getattr(transformers, f"{name}Model")(
        getattr(transformers, f"{name}Config")(**_SIDE, image_size=64, patch_size=8)
    ).eval()
    module.save_pretrained(tmp_path)
    transformers.BitImageProcessor(
        size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"gives embeddings, not classes. Fix: --head FILE"):
        load_model(ModelConfig(name=str(tmp_path)))
    rows = torch.randn(6, 64 if patches else 32)
    save_file({"weight": rows, "bias": torch.arange(6.0)}, tmp_path / "head.safetensors")
    loaded = load_model(ModelConfig(name=str(tmp_path), head=str(tmp_path / "head.safetensors")))
    with torch.no_grad():
        tokens = module(images()).last_hidden_state
        skipped = 5 if "Registers" in name else 1
        seen = torch.cat([tokens[:, 0], tokens[:, skipped:].mean(1)], 1) if patches else tokens[:, 0]
        assert float((loaded.module(images()) - (seen @ rows.T + torch.arange(6.0))).abs().max()) <= 1e-5
    layer = cam.find_target_layer(loaded.module, (3, 64, 64))
    assert (layer.prefix, layer.grid) == (skipped, (8, 8))


@pytest.mark.parametrize(
    "name", ["vit_xsmall_patch16_clip_224", "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"]
)
def test_a_tower_of_timm_is_refused_without_a_head(name: str, tmp_path: Path) -> None:
    """Its 512 numbers are an embedding's, though timm calls them classes; another head has classes."""
    torch.manual_seed(0)
    module = timm.create_model(name)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    given = {"name": name, "checkpoint": f"{tmp_path}/w.safetensors"}
    with pytest.raises(ModelError, match=r"gives embeddings, not classes. Fix: .*--num-classes N"):
        load_model(ModelConfig(**given))
    assert load_model(ModelConfig(**given, num_classes=512)).num_classes == 512
    module.reset_classifier(3)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    assert load_model(ModelConfig(**given)).num_classes == 3


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_linear_head_on_a_timm_tower(name: str, tmp_path: Path) -> None:
    """The statistics of batch norms are those of the file, whatever was run to look at the network."""
    module = timm.create_model(name, num_classes=3).eval()
    save_file(module.state_dict(), tmp_path / "w.safetensors")  # with the head that it was trained with
    module.reset_classifier(0)
    size = module.pretrained_cfg["input_size"]
    rows = torch.randn(4, module.num_features)
    save_file({"weight": rows}, tmp_path / "head.safetensors")
    given = ModelConfig(
        name=name, checkpoint=str(tmp_path / "w.safetensors"), head=str(tmp_path / "head.safetensors")
    )
    loaded = load_model(given)
    x = torch.randn(2, *size)
    with torch.no_grad():
        assert torch.allclose(loaded.module(x), module(x) @ rows.T, atol=1e-5)
    assert any("the head it was trained with is left out" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cat\ndog\n", {"cat": ["cat"], "dog": ["dog"]}),
        (
            "cat: a tabby\n\ndog: a hound\ncat: a kitten\n",
            {"cat": ["a tabby", "a kitten"], "dog": ["a hound"]},
        ),
        ("a {} here\ncat\ndog\n", {"cat": ["a cat here"], "dog": ["a dog here"]}),
        (
            "{}, drawn\na {}\ncat\ndog: no template\n",
            {"cat": ["cat, drawn", "a cat"], "dog": ["no template"]},
        ),
        ("\ufeffcat\r\ndog\r\ncat\r\n", {"cat": ["cat"], "dog": ["dog"]}),
    ],
)
def test_a_file_of_prompts(text: str, wanted: dict[str, list[str]], tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(text, "utf-8")
    assert read_prompts(str(tmp_path / "p.txt")) == wanted


@pytest.mark.parametrize("text", ["", "cat\n", "a photo of a {}\n", "a {}\ncat\n"])
def test_one_class_is_no_choice(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(ModelError, match="give at least two"):
        read_prompts(str(tmp_path / "p.txt"))


def test_options_that_do_not_go_together(pair: tuple[Path, nn.Module, str], tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("cat\ndog\n")
    np.save(tmp_path / "h.npy", np.zeros((3, 4)))
    given = {"name": str(pair[0]), "prompts": str(tmp_path / "p.txt")}
    for more, said in (
        ({"head": str(tmp_path / "h.npy")}, "--prompts: given together with --head"),
        ({"num_classes": 2}, "--num-classes: given together with --prompts"),
        ({"prompts": None, "head": str(tmp_path / "h.npy")}, "--head: .*give safetensors"),
        ({"prompts": str(tmp_path / "none.txt")}, "none.txt: No such file"),
        ({"name": "resnet18"}, "--prompts: this model has no text side"),
    ):
        with pytest.raises(ModelError, match=said):
            load_model(ModelConfig(**{**given, **more}))
