"""What the automatic choice does for one small member of every timm module; writes families.csv.

python tests/cam/families.py
"""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import timm
import torch
from timm.models._registry import _module_to_models
from torch import nn

from camray.cam import explain, find_target_layer
from camray.errors import UsageError

TABLE = Path(__file__).with_name("families.csv")
FIELDS = ("module", "model", "side", "layer", "layout", "prefix", "map", "gradcam", "eigencam")
SMALL = [
    "zepto", "atto", "femto", "pico", "nano", "xxs", "xxt", "xs", "tiny", "mini", "_t0", "_s0", "_m0", "_b0",
    "18", "small", "lite", "_050", "_002", "26", "_s", "_t",
]  # fmt: skip


LARGE = 150  # million parameters; beyond it two blocks of the network stand for all


def rank(name: str) -> int:
    """How early the first sign of smallness comes in the list."""
    return next((i for i, sign in enumerate(SMALL) if sign in name), len(SMALL))


def members(modules: list[str]) -> dict[str, str]:
    """The member of each module with the fewest parameters among a dozen that look small."""
    chosen: dict[str, str] = {}
    for module in modules:
        names = _module_to_models[module]
        ranked = sorted(names, key=lambda n: (rank(n), len(n), n))
        sizes = {}
        for name in ranked[:6]:
            try:
                with torch.device("meta"):
                    sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
            except (RuntimeError, NotImplementedError, ValueError, TypeError):
                sizes[name] = 10**10
        chosen[module] = min(sizes, key=lambda n: (sizes[n], n))
    return chosen


def build(name: str, **smaller: int) -> tuple[nn.Module, int]:
    """The model with random weights whose head is not zero, and a side it accepts."""
    torch.manual_seed(0)
    model = timm.create_model(name, **smaller).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Linear) and not bool(module.weight.any()):
            nn.init.normal_(module.weight, std=0.05)
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)) and not bool(module.weight.any()):
            nn.init.ones_(module.weight)  # residual branches that start switched off
    cfg = model.pretrained_cfg
    if name.startswith("levit"):  # with statistics of nothing its signal fades and attention is uniform
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
                module.momentum = None
                module.reset_running_stats()
        model.train()(torch.randn(8, 3, 224, 224))
        model.eval()
    side = cfg.get("input_size", (3, 224, 224))[-1]
    return model, side if cfg.get("fixed_input_size") or side < 128 else 128


def describe(module: str, name: str) -> dict[str, str]:
    """One row of the table; a refusal is written into the columns it concerns."""
    row = dict.fromkeys(FIELDS, "") | {"module": module, "model": name}
    with torch.device("meta"):
        millions = sum(p.numel() for p in timm.create_model(name).parameters()) // 10**6
    smaller = {"depth": 2} if millions > LARGE else {}
    model, side = build(name, **smaller)
    for attempt in dict.fromkeys((side, model.pretrained_cfg.get("input_size", (3, 224, 224))[-1])):
        try:
            row["side"] = str(attempt)
            layer = find_target_layer(model, (3, attempt, attempt))
            break
        except UsageError as refused:
            row["layer"] = f"refused: {refused.problem}"[:200]
            return row
        except (RuntimeError, AssertionError, ValueError):  # a size the model does not take
            continue
    x = torch.randn(2, 3, attempt, attempt, generator=torch.Generator().manual_seed(1))
    maps = explain(model, x, layer, ["gradcam", "eigencam"]).maps
    row |= {"layer": layer.name, "layout": layer.layout, "prefix": str(layer.prefix)}
    row["map"] = "x".join(map(str, maps["gradcam", layer.name].shape[2:]))
    for method in ("gradcam", "eigencam"):
        found = maps[method, layer.name]
        spread = (found.amax((2, 3)) - found.amin((2, 3))) / found.abs().amax((2, 3)).clamp(min=1e-30)
        ok = bool(found.isfinite().all()) and float(spread.min()) > 1e-4
        row[method] = "ok" if ok else "constant or not finite"
    return row


def main() -> None:
    torch.set_num_threads(1)
    done: list[dict[str, str]] = []
    for module, name in members(sys.argv[1:] or sorted(_module_to_models)).items():
        try:
            done.append(describe(module, name))
        except Exception as error:  # noqa: BLE001 - a crash is a row to look at, not the end of the table
            crash = f"crash: {type(error).__name__} {error}"[:200]
            done.append(dict.fromkeys(FIELDS, "") | {"module": module, "model": name, "layer": crash})
        print(done[-1], flush=True)
    if len(sys.argv) == 1:
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(done)


if __name__ == "__main__":
    main()
