"""Batch norms folded into convolutions: the same function, and nothing folded that must not be.

Truth: the plain network in float64, which has rounding 1e9 times smaller than what is compared.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from timm.layers import BatchNormAct2d
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from camray import cam
from camray.config import Config, MethodConfig, ModelConfig
from camray.explain.explainer import FOLDING_CHANGE, resolve
from camray.models.folding import find_last_block, find_pairs, fold, reshape


def trained_like(module: nn.Module) -> nn.Module:
    """Give every batch norm statistics and weights as training leaves them, none of them trivial."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.8, 1.25)
            norm.weight.data.uniform_(0.9, 1.1)
            norm.bias.data.normal_(0, 0.1)
    return module.eval().requires_grad_(False)


def small_vit(**more: Any) -> nn.Module:
    return VisionTransformer(96, 16, num_classes=7, embed_dim=48, depth=3, num_heads=3, **more)


def gated_vit() -> nn.Module:
    module: Any = small_vit()
    module.blocks[-1].attn.gate = nn.Linear(48, 48)
    return module


def images(side: int = 96, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


ZOO: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    # name: how it is built, its target layer, how many norms have a convolution in front (counted by hand)
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=7), "layer4", 20),
    "resnet18 earlier": (lambda: timm.create_model("resnet18", num_classes=7), "layer2", 10),
    "mobilenetv2": (lambda: timm.create_model("mobilenetv2_050", num_classes=7), "bn2", 52),
    "efficientnet": (lambda: timm.create_model("tf_efficientnet_b0", num_classes=7), "bn2", 49),
    "torchvision resnet": (lambda: torchvision.models.resnet18(num_classes=7), "layer4", 20),
    "squeezenet": (lambda: torchvision.models.squeezenet1_1(num_classes=7), "features", 0),
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=96), "norm", 0),
    # its last block, for the class token alone: with norms of keys and queries and layer scales, too
    "vit's last block": (small_vit, "blocks.2.norm1", 1),
    "deit3's last block": (lambda: small_vit(qk_norm=True, init_values=0.5), "blocks.2.norm1", 1),
    "vit before its last block": (small_vit, "blocks.1.norm1", 0),
    "vit behind its last norm1": (small_vit, "blocks.2.attn", 0),
    "vit of all tokens": (lambda: small_vit(global_pool="avg"), "blocks.2.norm1", 0),
    "vit with a gate": (gated_vit, "blocks.2.norm1", 0),
}


@pytest.mark.parametrize("name", ZOO)
def test_every_pair_is_folded_and_the_function_stays(name: str) -> None:
    build, layer, count = ZOO[name]
    module = trained_like(build())
    x = images()
    pairs = (*find_pairs(module, x, layer), *find_last_block(module, layer))
    assert len(pairs) == count
    folded = fold(module, pairs)
    exact = copy.deepcopy(module).double()
    with torch.no_grad():
        truth, plain, other = exact(x.double()), module(x), folded(x)
    height = truth.abs().max()
    # Both round alike: a folded network may be off by as much as the plain one may, each by some 1e-6.
    assert (plain - truth).abs().max() <= FOLDING_CHANGE * height
    assert (other - truth).abs().max() <= FOLDING_CHANGE * height
    assert len(list(module.modules())) == len(list(build().modules()))  # the given one stays


def test_a_worker_builds_the_same_from_pairs_and_tensors() -> None:
    module = trained_like(timm.create_model("mobilenetv2_050", num_classes=7))
    pairs = find_pairs(module, images(), "bn2")
    folded = fold(module, pairs)
    built = reshape(timm.create_model("mobilenetv2_050", num_classes=7), pairs)
    built.load_state_dict(folded.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(built.eval()(images()), folded(images()))


def test_of_a_last_block_for_the_class_token_gradient_and_tensors_are_the_same() -> None:
    """What reaches the layer is that of the plain network in float64."""
    module = small_vit(init_values=0.5).eval().requires_grad_(False)
    layer = "blocks.2.norm1"
    pairs = find_last_block(module, layer)
    folded = fold(module, pairs)
    assert folded.state_dict().keys() == module.state_dict().keys()
    exact = copy.deepcopy(module).double()
    own, other = (cam.explain(m, images().to(kind), layer, "gradcam").maps.values()  # type: ignore[attr-defined]
                  for m, kind in ((exact, torch.float64), (folded, torch.float32)))  # fmt: skip
    (own,), (other,) = own, other
    assert (own - other).abs().max() <= FOLDING_CHANGE * own.abs().max()
    assert reshape(small_vit(init_values=0.5), pairs).eval()(images()).shape == (2, 7)


def test_a_method_that_reads_attention_gets_every_block_whole(tmp_path: Any) -> None:
    place = folder(tmp_path, "vit_tiny_patch16_224", img_size=96, depth=3)
    assert resolve(settings(place, "gradcam"))[1].folded == (("blocks.2.norm1", "blocks.2"),)
    assert resolve(settings(place, "rollout"))[1].folded == ()


class Traps(nn.Module):
    """A network in which only `first` and `first_norm` may be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.twice, self.twice_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)  # the convolution runs twice
        self.read, self.read_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)  # two norms read it
        self.read_too = nn.BatchNorm2d(8)
        self.changed, self.changed_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)  # a ReLU in place between
        self.tied, self.tied_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)  # shares its weight
        self.other = nn.Conv2d(8, 8, 1)
        self.other.weight = self.tied.weight
        self.live, self.live_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)
        self.mirror = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.mirror_norm = nn.BatchNorm2d(8)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.normed_norm = nn.BatchNorm2d(8)
        self.hooked, self.hooked_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.hooked.register_forward_hook(lambda *a: a[2] * 2)
        self.target = nn.ReLU()
        self.late, self.late_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)  # behind the layer
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first_norm(self.first(x))
        x = self.twice_norm(self.twice(x)) + self.twice(x)
        read = self.read(x)
        x = self.read_norm(read) - 2 * self.read_too(read)
        x = self.changed_norm(F.relu(self.changed(x), inplace=True))
        x = self.tied_norm(self.tied(x)) + self.other(x)
        x = self.live_norm(self.live(x))
        x = self.mirror_norm(self.mirror(x))
        x = self.hooked_norm(self.hooked(self.normed_norm(self.normed(x))))
        x = self.late_norm(self.late(self.target(x)))
        return self.head(x.mean((2, 3)))


def test_what_must_not_be_folded_is_left_alone() -> None:
    assert find_pairs(trained_like(Traps()), images(32), "target") == (("first", "first_norm"),)


def test_a_layer_that_is_a_convolution_keeps_its_norm() -> None:
    module = trained_like(timm.create_model("resnet18", num_classes=7))
    assert ("layer4.1.conv2", "layer4.1.bn2") in find_pairs(module, images(), "layer4.1.bn2")
    assert ("layer4.1.conv2", "layer4.1.bn2") not in find_pairs(module, images(), "layer4.1.conv2")


class Skipped(nn.Module):
    """The output of a convolution is read by its norm and once more: hooks cannot see the second reader."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.conv, self.bn, self.target = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(self.target(self.bn(x) + x).mean((2, 3)))


def settings(model: str, method: str = "gradcam", **more: Any) -> Config:
    return Config(model=ModelConfig(name=model, **more), method=MethodConfig(name=method))


def test_the_probe_refuses_a_fold_that_changes_the_function(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "skipped.py"
    imports = "import torch\nfrom torch import Tensor, nn\n\n\n"
    code.write_text(imports + inspect.getsource(Skipped))
    torch.save(trained_like(Skipped()).state_dict(), tmp_path / "weights.pt")
    _, loaded = resolve(settings(f"{code}:Skipped", checkpoint=str(tmp_path / "weights.pt")))
    assert loaded.folded == ()
    assert isinstance(loaded.module.get_submodule("bn"), nn.BatchNorm2d)
    assert any("batch norms not folded" in note for note in loaded.notes)


def folder(tmp_path: Any, name: str = "mobilenetv2_050", **args: Any) -> str:
    module = trained_like(timm.create_model(name, num_classes=4, **args))
    save_file(dict(module.state_dict()), tmp_path / "model.safetensors")
    about = {"architecture": name, "num_classes": 4, "model_args": args,
             "pretrained_cfg": {"input_size": [3, 96, 96]}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(about))
    return str(tmp_path)


def test_the_job_explains_the_folded_network_and_the_map_is_the_plain_one(tmp_path: Any) -> None:
    explainer, loaded = resolve(settings(folder(tmp_path)))
    assert len(loaded.folded) == 52
    assert not any(isinstance(m, BatchNormAct2d) for m in loaded.module.modules())
    plain = timm.create_model("mobilenetv2_050", num_classes=4).eval()
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"))
    x = images(96, 4)
    found = [cam.explain(m, x, explainer.target_layer, ["gradcam"]).maps for m in (plain, loaded.module)]
    (own,), (other,) = (maps.values() for maps in found)
    assert (own - other).abs().max() <= 2 * FOLDING_CHANGE * own.abs().max()


def test_a_method_that_reads_the_biases_of_the_norms_gets_the_plain_network(tmp_path: Any) -> None:
    place = folder(tmp_path)
    assert resolve(settings(place, "fullgrad"))[1].folded == ()
    assert resolve(settings(place, "gradcam"), methods=["layercam"])[1].folded == ()  # a comparison
