"""A comparison beside its peers: one process, one run, the same maps and the same things to find out.

    python bench/compare.py                       MobileNetV2, 2 images of 224 pixels, about 10 minutes
    python bench/compare.py --images 4 --model resnet18

Own: `score_batch`, everything from one call. Peers: pytorch-grad-cam for maps and ROAD, torch-cam for
insertion, deletion, average drop and increase, and loops over pytorch-grad-cam for what neither has (class
sensitivity, max-sensitivity of 3 draws, two randomised copies), which share nothing between methods.
Random weights and smooth random images: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
from pytorch_grad_cam import (
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from pytorch_grad_cam.metrics.road import NoisyLinearImputer, ROADCombined
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from torch import Tensor, nn
from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

from camray.cam import find_target_layer
from camray.measure.cost import count_passes
from camray.measure.imputation import blur, impute
from camray.measure.removal import Ranking
from camray.measure.scores import Batch, Copies, Settings, score_batch

PEERS: dict[str, Any] = {
    "gradcam": GradCAM, "gradcam++": GradCAMPlusPlus, "xgradcam": XGradCAM, "hirescam": HiResCAM,
    "layercam": LayerCAM, "gradcam-elementwise": GradCAMElementWise, "eigencam": EigenCAM,
    "eigengradcam": EigenGradCAM,
}  # fmt: skip
FRACTIONS = (20, 40, 60, 80)
STEPS, SAMPLES, RADIUS = 10, 3, 0.2


class Extractor:
    """What torch-cam's metrics want of an extractor: it hands out maps that were made before."""

    def __init__(self, model: nn.Module, maps: Tensor) -> None:
        self.model, self.maps = model, maps

    def __call__(self, *_: object, **__: object) -> list[Tensor]:
        return [self.maps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    def _hooks_off(self) -> torch.no_grad:
        return torch.no_grad()


def smooth_images(count: int, side: int) -> Tensor:
    small = torch.randn(count, 3, side // 16, side // 16, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(small, (side, side), mode="bicubic")


def peers(model: nn.Module, layer: str, copies: Copies, x: Tensor) -> dict[str, float]:
    """Judge every method by the peers' means; give what a reader would see, mean ROAD by method."""
    order = model(x).argsort(1, descending=True)
    best, least = order[:, 0].tolist(), order[:, -1].tolist()
    noise = (torch.rand(SAMPLES, *x.shape[1:]) * 2 - 1) * RADIUS
    found = {}
    for name, method in PEERS.items():

        def maps(net: nn.Module, images: Tensor, classes: list[int], method: Any = method) -> np.ndarray:
            cam = method(model=net, target_layers=[net.get_submodule(layer)])
            made = cam(images, targets=[ClassifierOutputTarget(c) for c in classes])
            cam.activations_and_grads.release()
            return made

        heat = maps(model, x, best)
        maps(model, x, least)
        for draw in noise:
            maps(model, x + draw, best)
        for copy in (copies.head, copies.whole):
            maps(copy, x, best)
        found[name] = float(np.mean(road(model, x, heat, best)))
        extractor = Extractor(model, torch.from_numpy(heat))
        for metric in (
            DeletionInsertionMetric(extractor, partial(torch.softmax, dim=1), steps=STEPS, baseline=blur),
            ClassificationMetric(extractor, partial(torch.softmax, dim=1)),
        ):
            metric.update(x, best)
    return found


def road(model: nn.Module, x: Tensor, heat: np.ndarray, classes: list[int]) -> np.ndarray:
    targets = [ClassifierOutputSoftmaxTarget(c) for c in classes]
    cam = GradCAM(model=model, target_layers=[list(model.modules())[-1]])
    scores: np.ndarray = ROADCombined(percentiles=list(FRACTIONS))(x, heat, targets, model)
    cam.activations_and_grads.release()
    return scores


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def imputation(x: Tensor, repeats: int) -> None:
    """Impute the same pixels of the same images, by fraction."""
    heat = torch.rand(len(x), 1, *x.shape[2:], generator=torch.Generator().manual_seed(1))
    heat = torch.nn.functional.interpolate(
        torch.nn.functional.avg_pool2d(heat, 32), x.shape[2:], mode="bilinear"
    )
    ranking = Ranking.of(heat)
    print("\nROAD imputation alone, ms per image and fraction")
    imputer = NoisyLinearImputer(noise=0)
    for percent in (10, 50, 90):
        removed = (ranking.ranks[:, 0] < ranking.count(percent / 100)).reshape(len(x), *x.shape[2:])
        own = min(timed(lambda r=removed: impute(x, r))[0] for _ in range(repeats))
        masks = (~removed).float()
        peer = min(
            timed(lambda m=masks: [imputer(i, k) for i, k in zip(x, m, strict=True)])[0]
            for _ in range(repeats)
        )
        theirs = torch.stack([imputer(i, k) for i, k in zip(x, masks, strict=True)])
        apart = float((impute(x, removed) - theirs).abs().max() / x.std())
        print(
            f"  {percent:2d} %   own {1e3 * own / len(x):7.1f}   pytorch-grad-cam {1e3 * peer / len(x):7.1f}"
            f"   ratio {peer / own:6.1f}   largest difference {apart:.1e}"
        )


def main() -> None:
    """Run both, print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mobilenetv2_100")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model(args.model).eval()  # the peers want parameters with gradients
    with torch.no_grad():
        nn.init.normal_(model.get_classifier().weight, std=0.05)
    x = smooth_images(args.images, args.side)
    layer = find_target_layer(model, (3, args.side, args.side))
    copies = Copies.of(model, x)
    for copy in (copies.head, copies.whole):
        copy.requires_grad_(True)
    batch = Batch(x)
    settings = Settings(chunk=4)  # as an actor on a CPU does
    score = partial(score_batch, model, batch, layer, list(PEERS), copies=copies, settings=settings)
    theirs = partial(peers, model, layer.name, copies, x)
    seconds: dict[str, list[float]] = {"own": [], "peers": []}
    with count_passes(model) as passes:
        scores = score()
    used = passes.forwards
    for _ in range(args.repeats):
        seconds["own"].append(timed(score)[0])
        seconds["peers"].append(timed(theirs)[0])
    best = {name: min(values) for name, values in seconds.items()}
    maps = len(scores.maps.keys)
    print(f"{args.model}, {len(x)} images of {args.side} pixels, {torch.get_num_threads()} threads")
    own = f"{maps} maps with the controls, {len(scores.values)} metrics"
    print(f"  own, {own}   {best['own'] / len(x):8.2f} s an image")
    print(
        f"  peers, {len(PEERS)} maps, 12 metrics                    {best['peers'] / len(x):8.2f} s an image"
    )
    ratio = best["peers"] / best["own"]
    print(f"  ratio {ratio:.1f}, for each map {ratio * maps / len(PEERS):.1f}")
    alone = maps * (2 * STEPS - 1 + 2 * len(FRACTIONS) + 1) * len(x)
    print(f"  altered images run {scores.forwards}, without sharing {alone}; forwards in all {used}")
    imputation(x, args.repeats)


if __name__ == "__main__":
    main()
