"""LoRA adapters of peft, merged into the weights they were trained beside: W + scale B A.

    adapter_model.safetensors, adapter_config.json, the base's weights ──merge──> a plain state dict

The scale stands in adapter_config.json alone; without it, and for adapters that are more than a product of
two matrices, the file is refused: the base's weights by themselves are those before the training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from camray.errors import ModelError, printable

CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_INSERTED = ("base_layer", "modules_to_save", "default")  # parts of names that peft puts in
_NOT_PLAIN = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "lora_bias")
_MERGE = "model.merge_and_unload() where it was trained, then save its state_dict"


def is_adapted(state: Mapping[str, Tensor]) -> bool:
    """Tell whether adapters stand beside the weights, or alone."""
    return any(".lora_" in name for name in state)


def merge(
    state: Mapping[str, Tensor], file: Path, read_base: Callable[[], Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], str]:
    """Give plain weights, and in words what was done. `read_base`: weights for adapters that stand alone.

    Raises:
        ModelError: no configuration beside the file, another kind of adapter, a weight without a base.
    """
    scale = _scale(file)
    named = {_plain_name(k): v for k, v in state.items() if ".original_module." not in k}
    pairs = {k.partition(".lora_A.")[0]: v for k, v in named.items() if ".lora_A." in k}
    plain = {k: v for k, v in named.items() if ".lora_" not in k}
    if not all(f"{place}.weight" in plain for place in pairs):
        plain = {**read_base(), **plain}
    for place, down in pairs.items():
        up, weight = named.get(f"{place}.lora_B.weight"), plain.get(f"{place}.weight")
        if up is None or weight is None or weight.shape != (len(up), down.shape[-1]):
            said = printable(f"{file.name}: its adapter of {place} has no such weight in the base")
            raise ModelError("--checkpoint", said, "give the base as --model FOLDER")
        plain[f"{place}.weight"] = weight.float() + scale * (up.float() @ down.float())
    return plain, f"{len(pairs)} LoRA adapters of {file.name} merged, scale {scale:g}"


def _scale(file: Path) -> float:
    """Read the factor of the product, of adapters that are nothing else."""
    try:
        config: Mapping[str, Any] = json.loads((file.parent / CONFIG).read_text("utf-8"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError):
        said = f"{file.name}: it holds LoRA adapters beside the weights, and no {CONFIG} lies beside it"
        raise ModelError("--checkpoint", said, _MERGE) from None
    more = [name for name in _NOT_PLAIN if config.get(name)]
    if str(config.get("peft_type", "LORA")).upper() != "LORA" or more:
        what = ", ".join(more) or config.get("peft_type")
        raise ModelError("--checkpoint", printable(f"{file.name}: adapters with {what}"), _MERGE)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _plain_name(name: str) -> str:
    return ".".join(p for p in name.removeprefix(_PREFIX).split(".") if p not in _INSERTED)
