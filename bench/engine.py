"""The engine beside its peers: one process, one run, medians over interleaved repeats, ratios printed.

    python bench/engine.py                          everything, about half an hour on two cores
    python bench/engine.py --models resnet50 --only own
    python bench/engine.py --device cuda --dtype bfloat16 --only own --batch 64

Each block lists seconds per call (median) and what the claim divides. Random weights: speed does not
depend on them, except for Score-CAM's dead channels, whose share is printed. Where a peer would need
minutes per image, it runs on a slice of the channels and its time is scaled up; such lines say `scaled`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import timm
import torch
from torch import Tensor, nn

from camray.cam import TargetLayer, explain, find_target_layer
from camray.cam.decompositions import eigencam
from camray.cam.perturbation import distinct_masks, scorecam
from camray.cam.pixels import guidedbackprop
from camray.cam.scene import Scene
from camray.cam.split import Split, as_found, run_split
from camray.cam.targets import Aim, TargetRule

MODELS = {  # model: a layer in the middle
    "resnet50": "layer2",
    "vit_small_patch16_224": "blocks.6.norm1",
    "convnext_tiny": "stages.2.blocks.4",
    "densenet121": "features.denseblock3",
}
FAMILY = ["gradcam", "gradcam++", "xgradcam", "hirescam", "gradcam-elementwise", "layercam",
          "eigengradcam", "segeigencam"]  # fmt: skip
PEER = {"gradcam": "GradCAM", "gradcam++": "GradCAMPlusPlus", "xgradcam": "XGradCAM", "hirescam": "HiResCAM",
        "layercam": "LayerCAM"}  # fmt: skip
TORCHCAM = {"gradcam": "GradCAM", "gradcam++": "GradCAMpp", "xgradcam": "XGradCAM", "layercam": "LayerCAM"}


CLOCK: list[Callable[[], float]] = [time.perf_counter]


def measure(calls: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each call; one round runs all of them, so that drift hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for lap in range(repeats + 1):
        for name, call in calls.items():
            time.sleep(0.2)  # NumPy's threads of the call before spin on for a while
            start = CLOCK[0]()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if lap:  # the first lap warms up
                times[name].append(CLOCK[0]() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def show(label: str, ratio: float, goal: str = "", note: str = "") -> None:
    print(f"    {label:<58} {ratio:8.2f}   {goal:<12} {note}", flush=True)


def build(name: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name).eval().requires_grad_(False).to(device)
    nn.init.normal_(model.get_classifier().weight, std=0.05)
    return model


class GraphMemory:
    """Bytes autograd keeps for the backward, parameters not counted."""

    def __init__(self, model: nn.Module) -> None:
        self.fixed = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
        self.seen: dict[int, int] = {}

    def __enter__(self) -> GraphMemory:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda t: t)
        self.hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.__exit__(None, None, None)

    def pack(self, t: Tensor) -> Tensor:
        store = t.untyped_storage()
        if store.data_ptr() not in self.fixed:
            self.seen[store.data_ptr()] = store.nbytes()
        return t

    @property
    def mib(self) -> float:
        return sum(self.seen.values()) / 2**20


def own(model: nn.Module, name: str, x: Tensor, repeats: int, dtype: torch.dtype | None) -> None:
    size = tuple(x.shape[1:])
    last, middle = find_target_layer(model, size), find_target_layer(model, size, MODELS[name])
    device = x.device.type
    cast = (lambda: torch.autocast(device, dtype)) if dtype else nullcontext

    def forward() -> Tensor:
        with torch.inference_mode(), cast():
            return model(x)

    calls: dict[str, Callable[[], Any]] = {
        "forward": forward,
        "last": lambda: explain(model, x, last, "gradcam", autocast=dtype),
        "middle": lambda: explain(model, x, middle, "gradcam", autocast=dtype),
        "family": lambda: explain(model, x, last, FAMILY, "top:5", autocast=dtype),
    }
    t = measure(calls, repeats, device)
    base = t["forward"]
    print(f"  own: forward {base:.3f} s for {len(x)} images; last = {last.name}, middle = {middle.name}")
    show("gradcam, last layer / forward", t["last"] / base, "<= 1.05")
    show("gradcam throughput as share of forward", base / t["last"], ">= 0.95")
    show("gradcam, middle layer / forward", t["middle"] / base, "<= 1.70")
    show("8 gradient methods x top-5 / forward", t["family"] / base, "<= 1.30")
    for label, layer in (("last", last), ("middle", middle)):
        with GraphMemory(model) as kept:
            explain(model, x, layer, "gradcam", autocast=dtype)
        show(f"graph kept for the backward, {label} layer, MiB per image", kept.mib / len(x))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        forward()
        plain = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        calls["last"]()
        show("peak memory, gradcam / forward", torch.cuda.max_memory_allocated() / plain)


def peer_cam(kind: str, model: nn.Module, layer: TargetLayer) -> Any:
    import pytorch_grad_cam as pgc

    reshape = None if layer.layout == "nchw" else layer.to_maps
    return getattr(pgc, kind)(model, [model.get_submodule(layer.name)], reshape_transform=reshape)


def targets_of(classes: list[int]) -> list[Any]:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    return [ClassifierOutputTarget(c) for c in classes]


def versus_gradcam(model: nn.Module, x: Tensor, repeats: int) -> None:
    """pytorch-grad-cam needs parameters that learn; they are unfrozen for its calls only."""
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

    layer = find_target_layer(model, tuple(x.shape[1:]))
    aims = targets_of([1] * len(x))

    def peer(kind: str, images: Tensor) -> Callable[[], Any]:
        def run() -> None:
            model.requires_grad_(True)
            cam = peer_cam(kind, model, layer)
            cam(images, targets_of([1] * len(images)))
            cam.activations_and_grads.release()
            model.requires_grad_(False)
            for p in model.parameters():
                p.grad = None

        return run

    print("  against pytorch-grad-cam (peer time / own time)")
    calls: dict[str, Callable[[], Any]] = {}
    for ours, theirs in PEER.items():
        calls[f"own {ours}"] = lambda m=ours: explain(model, x, layer, m, "class:1")
        calls[f"peer {ours}"] = peer(theirs, x)
    t = measure(calls, repeats, x.device.type)
    for ours in PEER:
        show(
            f"{ours}, batch {len(x)}",
            t[f"peer {ours}"] / t[f"own {ours}"],
            ">= 2.5" if ours == "gradcam" else "",
        )
    few = x[:4]
    calls = {"own": lambda: explain(model, few, layer, "eigencam"), "peer": peer("EigenCAM", few)}
    t = measure(calls, repeats, x.device.type)
    show("eigencam, batch 4, forward included", t["peer"] / t["own"], ">= 20")
    A = run_split(model, few, [layer], False).activation(layer.name)
    calls = {"own": lambda: eigencam(A), "peer": lambda: get_2d_projection(A.cpu().numpy())}
    t = measure(calls, repeats, x.device.type)
    show("eigencam, batch 4, decomposition alone", t["peer"] / t["own"], ">= 20")
    ablation(model, x, layer, aims)
    score(model, x, layer, aims)
    if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        one = x[:1]
        calls = {
            "own": lambda: explain(model, one, layer, "fullgrad", "class:1"),
            "peer": peer("FullGrad", one),
        }
        t = measure(calls, 1, x.device.type)
        show("fullgrad, batch 1", t["peer"] / t["own"], ">= 10")
        calls = {"own": lambda: explain(model, x, layer, "fullgrad", "class:1")}
        per_image = measure(calls, 1, x.device.type)["own"] / len(x)
        show(f"fullgrad per image, own batch {len(x)} against peer batch 1", t["peer"] / per_image, ">= 10")


def ablation(model: nn.Module, x: Tensor, layer: TargetLayer, aims: list[Any]) -> None:
    """The peer on 2 * 1 % of the channels of one image, scaled to all channels."""
    own_time = measure({"own": lambda: explain(model, x, layer, "ablationcam", "class:1")}, 2, x.device.type)[
        "own"
    ]
    import pytorch_grad_cam as pgc
    from pytorch_grad_cam.ablation_layer import AblationLayer, AblationLayerVit

    kind = AblationLayer() if layer.layout == "nchw" else AblationLayerVit()
    reshape = None if layer.layout == "nchw" else layer.to_maps
    cam = pgc.AblationCAM(model, [model.get_submodule(layer.name)], reshape, kind, 32, 0.02)
    channels = explain(model, x[:1], layer, "eigencam")  # warm, and a cheap way to the channel count
    with as_found(model):
        count = run_split(model, x[:1], [layer], False).activation(layer.name).shape[1]
    start = CLOCK[0]()
    cam(x[:1], aims[:1])
    spent = CLOCK[0]() - start
    cam.activations_and_grads.release()
    ran = 2 * int(count * 0.02)
    del channels
    show(f"ablationcam per image, {count} channels", spent * count / ran / (own_time / len(x)), ">= 100",
         f"scaled from {ran} channels of the peer")  # fmt: skip


def score(model: nn.Module, x: Tensor, layer: TargetLayer, aims: list[Any]) -> None:
    """32 different masks of one image on both sides; then the share of masks that are different counts."""
    with as_found(model), torch.no_grad():
        split = run_split(model, x[:1], [layer], False)
    A = split.activation(layer.name)
    different, _ = distinct_masks(A[0], torch.zeros(A.shape[1], device=A.device))
    some = different.sort().values[:32]
    part = Split(
        split.logits, {layer.name: A[:, some]}, {layer.name: replace(layer, layout="nchw", prefix=0)}
    )
    aim = Aim.settle((TargetRule.parse("1"),), split.logits, None)
    cam = peer_cam("ScoreCAM", model, layer)
    scene = Scene(model, x[:1], part.layers[layer.name], part, aim, 16)

    def ours() -> None:
        with as_found(model):
            scorecam(scene)

    def forwards() -> None:
        with torch.inference_mode():
            for _ in range(2):
                model(x[:16] if len(x) >= 16 else x[:1].repeat(16, 1, 1, 1))

    def theirs() -> None:
        with suppress(Exception):
            cam.get_cam_weights(x[:1], None, aims[:1], A[:, some].numpy(), None)
        cam.activations_and_grads.activations.clear() if hasattr(
            cam.activations_and_grads, "activations"
        ) else None

    t = measure({"own": ours, "peer": theirs, "32 forwards": forwards}, 2, x.device.type)
    cam.activations_and_grads.release()
    share = len(different) / A.shape[1]
    show("scorecam / (masks x forward)", t["own"] / t["32 forwards"], "<= 1.1", f"{len(some)} masks")
    show("scorecam, the same masks", t["peer"] / t["own"], ">= 2")
    show("scorecam, all channels of this layer", t["peer"] / (t["own"] * share), ">= 2",
         f"{share:.0%} of the masks are different")  # fmt: skip


def versus_torchcam_and_captum(model: nn.Module, x: Tensor, repeats: int) -> None:
    layer = find_target_layer(model, tuple(x.shape[1:]))
    if layer.layout != "nchw":
        print("  torch-cam does not read this layer's layout")
    calls: dict[str, Callable[[], Any]] = {}
    print("  against torch-cam and captum (peer time / own time)")

    def torchcam(kind: str) -> Callable[[], Any]:
        import torchcam.methods as tc

        def run() -> None:
            model.requires_grad_(True)
            with getattr(tc, kind)(model, layer.name) as cam:
                cam(1, model(x))
            model.requires_grad_(False)

        return run

    for ours, theirs in TORCHCAM.items() if layer.layout == "nchw" else ():
        calls[f"own {ours}"] = lambda m=ours: explain(model, x, layer, m, "class:1")
        calls[f"torch-cam {ours}"] = torchcam(theirs)
    with suppress(ImportError):
        from captum.attr import LayerGradCam

        attribute = LayerGradCam(model, model.get_submodule(layer.name)).attribute
        calls.setdefault("own gradcam", lambda: explain(model, x, layer, "gradcam", "class:1"))
        calls["captum gradcam"] = lambda: attribute(x, target=1)
    t = measure(calls, repeats, x.device.type)
    for name in t:
        if not name.startswith("own"):
            show(name, t[name] / t[f"own {name.split()[-1]}"], ">= 1")


def guided(repeats: int, batch: int, device: str) -> None:
    """The peer takes one image at a time."""
    from pytorch_grad_cam import GuidedBackpropReLUModel

    model = build("resnet50", device)
    x = torch.randn(batch, 3, 224, 224, device=device)
    layer = find_target_layer(model)
    split = run_split(model, x, [layer], False)
    aim = Aim.settle((TargetRule.parse("1"),), split.logits, None)
    scene = Scene(model, x, layer, split, aim)

    import copy

    peer = GuidedBackpropReLUModel(copy.deepcopy(model).requires_grad_(True), device=device)
    t = measure({"own": lambda: guidedbackprop(scene), "peer": lambda: peer(x[:1], 1)}, repeats, device)
    print("guided backpropagation, resnet50")
    show(f"per image, own batch {batch} against peer batch 1", t["peer"] / (t["own"] / batch))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=["own", "gradcam", "torchcam", "guided"])
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="CPU seconds of this process: for a busy machine, with --threads 1",
    )
    args = parser.parse_args()
    if args.cpu_time:
        CLOCK[0] = time.process_time
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, batch {args.batch} at 224, "
          f"{args.dtype or 'float32'}, medians of {args.repeats}")  # fmt: skip
    for name in args.models if args.only != "guided" else ():
        model = build(name, args.device)
        x = torch.randn(args.batch, 3, 224, 224, device=args.device)
        print(name)
        if args.only in (None, "own"):
            own(model, name, x, args.repeats, dtype)
        if args.only in (None, "gradcam"):
            versus_gradcam(model, x, max(1, args.repeats // 2))
        if args.only in (None, "torchcam"):
            versus_torchcam_and_captum(model, x, max(1, args.repeats // 2))
    if args.only in (None, "guided"):
        guided(2, args.batch, args.device)


if __name__ == "__main__":
    main()
