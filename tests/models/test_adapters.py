"""LoRA adapters, as peft writes them, end in the weights: W + alpha / r B A."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from camray.config import ModelConfig
from camray.errors import ModelError
from camray.models.load import load_model

pytest.importorskip("transformers")
from tests.models.hugging_face_zoo import FOLDERS

PLACE = "vit.encoder.layer.1.attention.attention.query"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    FOLDERS[0].save(tmp_path / "base")
    return tmp_path / "base"


def adapters(folder: Path, **changes: Any) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The two small matrices of one layer, and a new head, as `modules_to_save` has it."""
    folder.mkdir()
    torch.manual_seed(4)
    down, up, head = torch.randn(4, 32), torch.randn(32, 4), torch.randn(7, 32)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 10, "base_model_name_or_path": "x"} | changes)
    )
    tensors = {f"base_model.model.{PLACE}.lora_A.weight": down, f"base_model.model.{PLACE}.lora_B.weight": up}
    return tensors | {"base_model.model.classifier.weight": head}, up @ down, head


@pytest.mark.parametrize(("changes", "scale"), [({}, 2.5), ({"use_rslora": True}, 5.0)])
@pytest.mark.parametrize("alone", [True, False])
def test_adapters_are_merged_with_their_scale(
    changes: dict[str, Any], scale: float, alone: bool, base: Path, tmp_path: Path
) -> None:
    """Alone beside the base's folder, or in one state dict with `base_layer` and `original_module`."""
    tensors, product, head = adapters(tmp_path / "lora", **changes)
    saved = load_file(base / "model.safetensors")
    if not alone:
        tensors = {k.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."): v
                   for k, v in tensors.items() if "lora" in k}  # fmt: skip
        for name, tensor in saved.items():
            inner = name.replace(PLACE, f"{PLACE}.base_layer")
            inner = inner.replace("classifier.", "classifier.original_module.")
            tensors[f"base_model.model.{inner}"] = tensor
        tensors["base_model.model.classifier.modules_to_save.default.weight"] = head
        tensors["base_model.model.classifier.modules_to_save.default.bias"] = saved["classifier.bias"].clone()
    save_file(tensors, tmp_path / "lora" / "adapter_model.safetensors")
    file = tmp_path / "lora" / "adapter_model.safetensors"
    loaded = load_model(ModelConfig(name=str(base), checkpoint=str(file)))
    wanted = saved | {
        f"{PLACE}.weight": saved[f"{PLACE}.weight"] + scale * product,
        "classifier.weight": head,
    }
    save_file(wanted, base / "model.safetensors", {"format": "pt"})
    by_hand = load_model(ModelConfig(name=str(base)))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(loaded.module(x), by_hand.module(x), atol=1e-6)
    assert f"1 LoRA adapters of adapter_model.safetensors merged, scale {scale:g}" in loaded.notes


def test_adapters_that_are_more_than_a_product_are_refused(base: Path, tmp_path: Path) -> None:
    tensors, _, _ = adapters(tmp_path / "lora", use_dora=True)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"adapters with use_dora. Fix: model.merge_and_unload"):
        load_model(ModelConfig(name=str(base), checkpoint=str(file)))
    with pytest.raises(ModelError, match=r"holds adapters alone. Fix: --model BASE_FOLDER --checkpoint"):
        load_model(ModelConfig(name=str(tmp_path / "lora")))
