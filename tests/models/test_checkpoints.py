"""Files of weights: what trainers write is read and said; what is none is refused by what it looks like."""

from __future__ import annotations

import argparse
import collections
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from camray.config import ModelConfig
from camray.errors import ModelError
from camray.models.checkpoints import read_checkpoint
from camray.models.load import LoadedModel, build, load_model
from camray.models.weights import fit, head_size, rename

CLEAN = Path(__file__).resolve().parents[2] / "demo/models/hans64-clean"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return load_file(CLEAN / "model.safetensors")


def loaded(path: Path, **config: Any) -> LoadedModel:
    return load_model(ModelConfig(**({"name": str(CLEAN), "checkpoint": str(path)} | config)))


def refusal(path: Path, **config: Any) -> str:
    with pytest.raises(ModelError) as caught:
        loaded(path, **config)
    said = str(caught.value)
    assert "\n" not in said
    assert caught.value.fix
    return said


def nested(state: dict[str, Tensor], nest: str, prefix: str) -> dict[str, Any]:
    inner = {f"{prefix}{k}": v for k, v in state.items()}
    return {nest: inner, "epoch": 3} if nest else inner


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "net.encoder."]
)
@pytest.mark.parametrize("nest", ["", "state_dict", "model", "model_state_dict", "ema", "net"])
def test_nests_and_prefixes_are_undone_and_said(
    tmp_path: Path, state: dict[str, Tensor], nest: str, prefix: str
) -> None:
    torch.save(nested(state, nest, prefix), tmp_path / "w.pth")
    found = loaded(tmp_path / "w.pth")
    assert all(torch.equal(found.module.state_dict()[k], v) for k, v in state.items())
    said = " | ".join(found.notes)
    assert (f"taken from {nest!r}" in said) == bool(nest)
    assert (f"prefix {prefix!r}" in said) == bool(prefix)


def test_averaged_weights_win_and_nests_are_followed(tmp_path: Path, state: dict[str, Tensor]) -> None:
    zeros = {k: torch.zeros_like(v) for k, v in state.items()}
    torch.save({"model": zeros, "model_ema": {"state_dict": state}}, tmp_path / "w.pth")
    found = loaded(tmp_path / "w.pth")
    assert torch.equal(found.module.state_dict()["fc.weight"], state["fc.weight"])
    assert "taken from 'model_ema' > 'state_dict'" in found.notes[0]


def test_what_trainers_store_beside_weights_is_no_program(tmp_path: Path, state: dict[str, Tensor]) -> None:
    extras = {
        "best": np.float64(0.5), "losses": np.arange(3), "args": argparse.Namespace(lr=0.1),
        "counts": collections.OrderedDict(a=1),
    }  # fmt: skip
    torch.save({"state_dict": state} | extras, tmp_path / "w.pth")
    assert loaded(tmp_path / "w.pth").num_classes == 6


def test_the_suffix_does_not_matter(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "weights.bin")
    torch.save(state, tmp_path / "weights.th")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("weights.bin", "weights.th", "old.pt"):
        assert loaded(tmp_path / name).num_classes == 6


LOOKS = {
    "empty": (b"", "is empty"),
    "html": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page (HTML)"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n", "a git-lfs pointer"),
    "zeros": (b"\x00" * 4096, "zeros, as an interrupted download"),
    "text": (b"Quota exceeded\n", "is text"),
    "keras": (b"\x89HDF\r\n\x1a\n" + b"x" * 64, "HDF5 (Keras)"),
    "numpy": (b"\x93NUMPY" + b"x" * 64, "a NumPy array"),
    "gzip": (b"\x1f\x8b" + b"x" * 64, "gzip"),
    "zip": (b"PK\x03\x04" + b"x" * 64, "truncated"),
}


@pytest.mark.parametrize("kind", LOOKS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_files_say_what_they_look_like(tmp_path: Path, kind: str, suffix: str) -> None:
    content, said = LOOKS[kind]
    (tmp_path / f"w{suffix}").write_bytes(content)
    assert said in refusal(tmp_path / f"w{suffix}")


@pytest.mark.parametrize("cut", [100, 10_000])
def test_truncated_files(tmp_path: Path, state: dict[str, Tensor], cut: int) -> None:
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save(state, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "b.pth", "c.pth"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-cut])
        assert "truncated" in refusal(path)


def test_fixed_programs_are_refused_with_the_reason(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(6)).eval()
    model(torch.zeros(1, 3, 8, 8))
    torch.jit.trace(model, torch.zeros(1, 3, 8, 8)).save(str(tmp_path / "script.pt"))
    assert "is TorchScript: a fixed program" in refusal(tmp_path / "script.pt")
    torch.export.save(torch.export.export(model, (torch.zeros(1, 3, 8, 8),)), tmp_path / "exported.pt2")
    assert "is an exported program (.pt2)" in refusal(tmp_path / "exported.pt2")


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_only_trust_runs_a_pickle(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"state_dict": state, "hook": Trap(tmp_path / "sprung")}, tmp_path / "w.pth")
    said = refusal(tmp_path / "w.pth")
    assert "holds pickled Python objects" in said
    assert "a pickle runs code when opened. Fix: save model.state_dict()" in said
    assert "--trust-pickle" in said
    assert not (tmp_path / "sprung").exists()
    found = loaded(tmp_path / "w.pth", trust_pickle=True)
    assert (tmp_path / "sprung").exists()
    assert found.notes[0].startswith("WARNING: w.pth is a pickle and was run as a program")
    assert found.build_args["trust_pickle"] is True


def test_a_whole_model_of_an_own_class_finds_it_in_the_named_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notebooks save classes of `__main__`; the class is taken from the file that --model names."""
    text = (
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)\n"
        "    def forward(self, x):\n"
        "        return {'logits': self.head(self.conv(x).mean((2, 3))), 'aux': None}\n"
    )
    (tmp_path / "net.py").write_text(text)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(text, space)
    monkeypatch.setattr("__main__.Net", space["Net"], raising=False)
    torch.save(space["Net"](), tmp_path / "whole.pth")
    monkeypatch.delattr("__main__.Net")
    given = {"name": f"{tmp_path / 'net.py'}:Net"}
    assert "is a whole pickled model (__main__.Net" in refusal(tmp_path / "whole.pth", **given)
    found = loaded(tmp_path / "whole.pth", **given, trust_pickle=True)
    assert found.num_classes == 2
    assert tuple(found.module(torch.zeros(5, 3, 16, 16)).shape) == (5, 2)


def test_partial_goes_on_and_says_so_the_same_way_every_time(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    less = {k: v for k, v in state.items() if not k.startswith("fc.")} | {"aux.weight": torch.zeros(1)}
    save_file(less, tmp_path / "w.safetensors")
    said = refusal(tmp_path / "w.safetensors")
    assert "2 weights missing, 1 unexpected (missing fc." in said
    assert "or --partial" in said
    once, again = (loaded(tmp_path / "w.safetensors", partial=True) for _ in range(2))
    assert any(n.startswith("WARNING: --partial: 2 of") for n in once.notes)
    assert any("1 weights of w.safetensors have no place: aux.weight" in n for n in once.notes)
    assert torch.equal(once.module.state_dict()["fc.weight"], again.module.state_dict()["fc.weight"])
    assert once.build_args["partial"] is True
    save_file({"odd": torch.zeros(1)}, tmp_path / "none.safetensors")
    assert "not one weight fits" in refusal(tmp_path / "none.safetensors", partial=True)


def test_half_precision_is_said(tmp_path: Path, state: dict[str, Tensor]) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(half, tmp_path / "w.safetensors")
    found = loaded(tmp_path / "w.safetensors")
    assert "weights of w.safetensors are float16; computed with as float32" in found.notes
    assert found.module.state_dict()["fc.weight"].dtype == torch.float32


# ── names ────────────────────────────────────────────────────────────────────────────────────────


def test_a_head_in_a_sequential_is_taken_as_the_head(tmp_path: Path, state: dict[str, Tensor]) -> None:
    wrapped = {k.replace("fc.", "fc.1."): v for k, v in state.items()}
    save_file(wrapped, tmp_path / "w.safetensors")
    found = loaded(tmp_path / "w.safetensors")
    assert "head 'fc.1' taken as 'fc'" in found.notes
    assert torch.equal(found.module.state_dict()["fc.weight"], state["fc.weight"])


def test_the_head_is_sized_only_where_nothing_else_differs() -> None:
    module = timm.create_model("test_resnet", num_classes=6)
    own = module.state_dict()
    assert head_size(module, own) is None
    head = {"fc.weight": torch.zeros(9, 96), "fc.bias": torch.zeros(9)}
    assert head_size(module, own | head) == 9
    assert head_size(module, own | head | {"conv1.0.weight": torch.zeros(1, 2, 3, 3)}) is None
    assert head_size(module, own | {"fc.weight": torch.zeros(9, 95)}) is None


def test_counters_that_only_training_reads_may_lack() -> None:
    module = timm.create_model("test_resnet", num_classes=6)
    old = {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert fit(module, old, "w.pth").random == ()


def test_the_names_of_the_first_densenets() -> None:
    import torchvision

    module = torchvision.models.densenet121(weights=None, num_classes=2)
    old = {k.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): v
           for k, v in module.state_dict().items()}  # fmt: skip
    state, notes = rename(module, old)
    assert state.keys() == module.state_dict().keys()
    assert notes == ["names of torchvision's first DenseNets rewritten"]


def test_original_names_are_rewritten_as_timm_does() -> None:
    module = timm.create_model("pvt_v2_b0", num_classes=2)
    old: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        name = key
        if key.startswith("patch_embed."):
            name = key.replace("patch_embed.", "patch_embed1.")
        elif key.startswith("stages."):
            _, stage, part, *rest = key.split(".")
            number = str(int(stage) + 1)
            name = ".".join({"downsample": [f"patch_embed{number}"], "blocks": [f"block{number}"],
                             "norm": [f"norm{number}"]}[part] + rest)  # fmt: skip
        old[name] = value
    state, notes = rename(module, old)
    assert state.keys() == module.state_dict().keys()
    assert notes == ["names of the original authors rewritten, as timm does"]


def test_tensors_come_back_unaltered(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "w.pth")
    found = read_checkpoint(tmp_path / "w.pth")
    assert found.notes == ()
    assert found.state.keys() == state.keys()


def _renamed(state: Mapping[str, Tensor], change: Callable[[str], str]) -> dict[str, Tensor]:
    return {change(name): tensor for name, tensor in state.items()}


def _inside(name: str) -> str:
    """As `backbone.layers.weight` becomes where the part in the middle was compiled or wrapped."""
    parts = name.split(".")
    return ".".join([*parts[:-1], "_orig_mod", parts[-1]]) if len(parts) > 1 else name


WRAPPED: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "compiled inside": lambda s: _renamed(s, lambda n: f"backbone._orig_mod.{n}"),
    "compiled deeper": lambda s: _renamed(s, _inside),
    "DDP of a compiled one": lambda s: _renamed(s, lambda n: f"module._orig_mod.{n}"),
    "a compiled DDP in Lightning": lambda s: _renamed(s, lambda n: f"model._orig_mod.module.{n}"),
    "peft": lambda s: _renamed(
        s, lambda n: "base_model.model." + _inside(n).replace("_orig_mod", "base_layer")
    ),
    "FSDP": lambda s: _renamed(
        s, lambda n: f"_orig_mod.{_inside(n)}".replace("_orig_mod", "_fsdp_wrapped_module")
    ),
    "Lightning with a loss": lambda s: (
        _renamed(s, lambda n: f"model.{n}") | {"criterion.weight": torch.ones(6)}
    ),
    "bare names with a loss": lambda s: (
        s | {"criterion.weight": torch.ones(6), "train_acc.total": torch.ones(1)}
    ),
    "Lightning with metrics": lambda s: (
        _renamed(s, lambda n: f"net.{n}") | {"val_auroc.preds": torch.ones(3)}
    ),
    "private by Opacus": lambda s: _renamed(s, lambda n: _inside(n).replace("_orig_mod", "_module")),
    "weights of the classes": lambda s: s | {"class_weights": torch.ones(6), "ce.weight": torch.ones(6)},
    "counted by a profiler": lambda s: (
        _renamed(s, lambda n: f"model.{n}")
        | {"model.layer1.total_ops": torch.zeros(1), "total_params": torch.zeros(1)}
    ),
    "averaged beside it": lambda s: (
        _renamed({k: v + 1 for k, v in s.items()}, lambda n: f"model.{n}")
        | _renamed(s, lambda n: f"ema_model.module.{n}")
        | {"ema_model.n_averaged": torch.tensor(9)}
    ),
    "under two names": lambda s: _renamed(s, lambda n: f"model.{n}") | _renamed(s, lambda n: f"net.{n}"),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_what_wrappers_and_trainers_do_to_names_is_undone_and_said(kind: str, tmp_path: Path) -> None:
    """The same weights, whatever stands in, before or beside their names; with averaged ones, those."""
    made = WRAPPED[kind](load_file(CLEAN / "model.safetensors"))
    torch.save({"state_dict": made, "epoch": 3}, tmp_path / "w.ckpt")
    loaded = load_model(ModelConfig(name=str(CLEAN), checkpoint=str(tmp_path / "w.ckpt")))
    wanted = load_file(CLEAN / "model.safetensors")
    found = loaded.module.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    said = " ".join(loaded.notes)
    assert "undone" in said or "taken out" in said or "left out" in said
    for extra in ("criterion.weight", "val_auroc.preds"):
        assert (extra in made) == (extra in said)


def test_extras_that_may_belong_to_the_network_are_still_refused(tmp_path: Path) -> None:
    """All weights of resnet18 stand in a resnet34's file, with the same shapes: it is another network."""
    torch.save(timm.create_model("resnet34", num_classes=3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"unexpected layer1.2"):
        load_model(ModelConfig(name="resnet18", checkpoint=str(tmp_path / "w.pth"), num_classes=3))


def test_two_networks_in_one_file_are_not_guessed(tmp_path: Path) -> None:
    state = load_file(CLEAN / "model.safetensors")
    both = _renamed(state, lambda n: f"student.{n}") | _renamed(
        {k: v * 2 for k, v in state.items()}, lambda n: f"teacher.{n}"
    )
    torch.save(both, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"it holds the network 2 times: student., teacher."):
        load_model(ModelConfig(name="test_resnet", checkpoint=str(tmp_path / "w.pth")))


def test_adapters_that_are_not_merged_are_refused(tmp_path: Path) -> None:
    """Without them the weights are those before the training."""
    state = load_file(CLEAN / "model.safetensors")
    made = _renamed(state, lambda n: f"base_model.model.{n}") | {
        "base_model.model.fc.lora_A.default.weight": torch.ones(2, 64),
        "base_model.model.fc.lora_B.default.weight": torch.ones(6, 2),
    }
    torch.save(made, tmp_path / "w.pth")
    with pytest.raises(
        ModelError, match=r"holds LoRA adapters beside the weights, .*Fix: model.merge_and_unload"
    ):
        load_model(ModelConfig(name="test_resnet", checkpoint=str(tmp_path / "w.pth")))


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
def test_input_channels_of_torchvision_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    """Its builders have no argument for them: before, advice led from one refusal to the next."""
    network = torchvision.models.get_model(name, weights=None, num_classes=2).eval()
    stem = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    stem.weight, stem.in_channels = nn.Parameter(torch.randn_like(stem.weight[:, :1])), 1
    torch.save(network.state_dict(), tmp_path / "grey.pth")
    loaded = load_model(ModelConfig(name=f"torchvision:{name}", checkpoint=str(tmp_path / "grey.pth")))
    assert {"head of 2 outputs, as in grey.pth", "1 input channel, as in grey.pth"} <= set(loaded.notes)
    x = torch.randn(2, 1, 224, 224)
    rebuilt = build(loaded.build_args)
    rebuilt.load_state_dict(loaded.module.state_dict())
    with torch.no_grad():
        assert torch.equal(loaded.module(x), network(x))
        assert torch.equal(rebuilt.eval()(x), network(x))


def test_of_what_does_not_fit_the_refusal_names_what_no_option_mends(tmp_path: Path) -> None:
    """A head of another size comes with an own network's stem: `--num-classes` led to a second refusal."""
    state = torchvision.models.resnet18(num_classes=2).state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(64, 32, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    said = refusal(tmp_path / "w.pth", name="torchvision:resnet18")
    assert "layer1.0.conv1.weight is (64, 32, 3, 3)" in said
    assert "--num-classes" not in said


@pytest.mark.parametrize("name", ["resnet18", "test_convnext", "test_vit"])
def test_input_channels_are_those_of_the_file_as_the_head_is(name: str, tmp_path: Path) -> None:
    """One input channel, two classes: one line, no flag."""
    network = timm.create_model(name, in_chans=1, num_classes=2).eval()
    torch.save(network.state_dict(), tmp_path / "grey.pth")
    loaded = load_model(ModelConfig(name=name, checkpoint=str(tmp_path / "grey.pth")))
    assert {"head of 2 outputs, as in grey.pth", "1 input channel, as in grey.pth"} <= set(loaded.notes)
    assert len(loaded.input.mean) == 1
    x = torch.randn(2, 1, loaded.input.height, loaded.input.width)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), network(x))
