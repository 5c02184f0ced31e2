"""The engine on one device, without Ray and without a hub: what explaining costs beside the forward alone.

    python bench/gpu.py                                        resnet50, vit_base, convnext_tiny, mobilenetv2
    python bench/gpu.py --device cpu --models resnet18 --batch 8 --side 64 --rounds 2

Random weights: speed does not depend on them. Forms: fp32, TF32 and compiled (GPU and CPU), bf16, bf16
compiled. Of each: images a second of the forward alone, Grad-CAM and eight methods as a share of it, how
busy the GPU was, peak memory, and how far the map lies from that of float64. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from camray import cam
from camray.models.folding import find_last_block, find_pairs, fold

MODELS = ["resnet50", "vit_base_patch16_224", "convnext_tiny", "mobilenetv2_100"]
FAMILY = ["gradcam", "gradcam++", "xgradcam", "hirescam", "gradcam-elementwise", "layercam",
          "eigengradcam", "segeigencam"]  # fmt: skip
FORMS: dict[str, tuple[torch.dtype | None, bool]] = {
    "fp32": (None, False), "tf32": (None, False), "compiled": (None, True),
    "bf16": (torch.bfloat16, False), "bf16 compiled": (torch.bfloat16, True),
}  # fmt: skip


def seconds(call: Callable[[], Any], device: str) -> float:
    """Time a call, the device's work included."""
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def forward(model: nn.Module, x: Tensor, dtype: torch.dtype | None) -> None:
    with torch.inference_mode(), torch.autocast(x.device.type, dtype, enabled=dtype is not None):
        model(x)


def measure(name: str, form: str, x: Tensor, rounds: int) -> None:
    """Print the line of one network in one form."""
    dtype, is_compiled = FORMS[form]
    device = x.device.type
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = form == "tf32"
    torch.manual_seed(0)
    size = {"img_size": x.shape[2]} if "vit" in name else {}
    model = timm.create_model(name, **size).eval().requires_grad_(False)
    layer = cam.find_target_layer(model, tuple(x.shape[1:]))
    few = x[:2].cpu()
    truth = cam.explain(model.double(), few.double(), layer, "gradcam").maps["gradcam", layer.name]
    model = model.float()
    folded = fold(model, find_pairs(model, few, layer.name) + find_last_block(model, layer.name)).to(device)
    model = model.to(device, memory_format=torch.channels_last)
    fast: nn.Module = cam.compiled(folded, x, layer, dtype) if is_compiled else folded
    alone = torch.compile(model) if is_compiled else model
    explain = partial(cam.explain, fast, x, layer, autocast=dtype)
    calls = {"forward": partial(forward, alone, x, dtype), "gradcam": explain,
             "eight methods": partial(explain, FAMILY)}  # fmt: skip
    times: dict[str, list[float]] = {key: [] for key in calls}
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for lap in range(rounds + 1):
        for key, call in calls.items():
            took = seconds(call, device)
            times[key] += [took] if lap else []  # the first lap warms up
    median = {key: statistics.median(values) for key, values in times.items()}
    shares = ", ".join(f"{key} {median['forward'] / median[key]:.2f}" for key in list(calls)[1:])
    found = explain().maps["gradcam", layer.name][:2].double().cpu()
    error = float((found - truth).abs().max() / truth.abs().max())
    print(f"{name} {form}: forward {len(x) / median['forward']:,.1f} images/s; share of it: {shares}; map "
          f"{error:.0e} off float64{on_gpu(explain) if device == 'cuda' else ''}", flush=True)  # fmt: skip


def on_gpu(call: Callable[[], Any]) -> str:
    """Say how busy the GPU was in a call, and the peak of its memory."""
    peak = torch.cuda.max_memory_allocated() / 2**30
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        took = seconds(call, "cuda")
    busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 / took
    return f"; GPU busy {busy:.0%}, peak {peak:.1f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    on = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    print(f"torch {torch.__version__}, {on}, batches of {args.batch} at {args.side}")
    x = torch.randn(args.batch, args.side, args.side, 3, generator=torch.Generator().manual_seed(1))
    x = x.permute(0, 3, 1, 2).to(args.device)  # channels last, as decoded pixels come
    for name in args.models:
        for form in args.forms:
            if args.device == "cuda" or form != "tf32":
                measure(name, form, x, args.rounds)


if __name__ == "__main__":
    main()
