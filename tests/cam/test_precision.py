"""As the package runs: float32 and half precision beside the same run in double precision."""

from __future__ import annotations

import pytest
import torch

from camray.cam import explain, find_target_layer
from camray.cam.ablation import is_affine, sees_only_mean
from camray.cam.tail import make_tail
from tests.cam.cam_zoo import NARROW, build, images
from tests.cam.cases import FORMULAS, TARGETS, case, ours
from tests.cam.tolerance import U32, condition, gap, roundings


@pytest.mark.parametrize("name", [a.name for a in NARROW])
def test_single_precision(name: str) -> None:
    """Errors have either sign: a sum of n products is off by more than 8 sqrt(n) u of its size once in
    exp(8^2 / 2) / 2 = 4e13 times (Higham and Mary, 2019), so the false alarms here are below 1e-10.
    """
    c = case(name, "middle")
    x = images(c.arch.side)
    found = explain(build(name), x, c.layer, ["gradcam", "layercam"], torch.tensor(TARGETS))
    assert found.logits.dtype == found.scores.dtype == torch.float32
    n = roundings(c.model) + c.A[0].numel()
    for method in ("gradcam", "layercam"):
        single = found.maps[method, c.layer.name][:, 0]
        assert single.dtype == torch.float32
        bound = 2 * 8 * n**0.5 * U32 * condition(FORMULAS[method], c.A, c.G)
        assert gap(single.double(), ours(c, method), bound, share=0.1) <= 1, method


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["convnext", "vit"])
def test_autocast_is_near_full_precision(name: str, dtype: torch.dtype) -> None:
    """A map off by a share r turns by 1 - cos = r^2 / 2: 0.99 lets r be 0.14, 36 roundings of bfloat16 all of
    one sign. A lost sign or axis turns it by 0.5 and more.
    """
    c = case(name, "last")
    x = images(c.arch.side)
    found = explain(
        build(name), x, c.layer, ["gradcam", "ablationcam"], torch.tensor(TARGETS), autocast=dtype
    )
    maps = found.maps["gradcam", c.layer.name]
    assert maps.dtype == found.logits.dtype == torch.float32
    assert bool(maps.isfinite().all())
    cosine = torch.cosine_similarity(maps[:, 0].double().flatten(1), ours(c, "gradcam").flatten(1))
    assert float(cosine.min()) > 0.99


@pytest.mark.parametrize(
    ("name", "place", "affine", "mean_only"),
    [("regnet", "last", True, True), ("convnext", "last", False, True), ("mobilenetv3", "last", False, True),
     ("vgg", "last", False, False), ("regnet", "middle", False, False), ("vit", "last", False, False)]
    + [pytest.param(n, "last", *kind, marks=pytest.mark.slow)
       for n, *kind in (("regnety_002", True, True), ("convnext_tiny", False, True),
                        ("mobilenetv3_small_100", False, True), ("vgg16_bn", False, False),
                        ("vit_small_patch16_224", False, False))],
)  # fmt: skip
def test_heads_are_recognised(name: str, place: str, affine: bool, mean_only: bool) -> None:
    net, arch = build(name), case(name, place).arch
    tail = make_tail(net, images(64, 2), find_target_layer(net, (3, 64, 64), getattr(arch, place)))
    assert (is_affine(tail), sees_only_mean(tail)) == (affine, mean_only)
