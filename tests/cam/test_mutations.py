"""The comparisons of these tests reject every wrong method: a sign, an axis, a term, a neighbour.

Each method is replaced by a wrong one in the registry, and the comparison with its peer, its definition or
its loop must miss by at least a hundred times the tolerance under which the right one passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

from camray.cam import METHODS, controls, registry
from camray.cam.gradients import weigh
from tests.cam import test_controls, test_formulas, test_golden
from tests.cam.cases import SPACE, ablation_gap, case, few_relus
from tests.cam.tolerance import double_precision

pytest.importorskip("pytorch_grad_cam", reason="grad-cam is a development extra")
pytest.importorskip("torchcam", reason="torch-cam is a development extra")
from tests.cam import peers, test_torchcam

Run = Callable[..., Tensor]

COMPARISONS: Mapping[str, Callable[[], float]] = {
    **{m: (lambda m=m: peers.gradient_gap(m, case("resnet", "middle"))) for m in peers.GRADIENT},
    **{m: (lambda m=m: peers.decomposed_gap(m, "resnet", "middle")) for m in peers.DECOMPOSED},
    "kpcacam": lambda: peers.kernel_gap("resnet", "middle"),
    "cam": test_torchcam.cam_gap,
    "scorecam": lambda: peers.score_gap("regnet", "middle"),
    "ablationcam": lambda: ablation_gap("regnet", "middle"),
    "fullgrad": lambda: peers.full_gap(few_relus()),
    "guidedbackprop": lambda: peers.guided_gap(few_relus()),
    "shapleycam": lambda: peers.shapley_gap("efficientnet", "middle"),
    "finercam": lambda: peers.finer_gap("regnet", "middle"),
    "refinecam": test_torchcam.refine_gap,
    "legrad": test_torchcam.legrad_gap,
    "rollout": test_formulas.rollout_gap,
    "chefer": test_formulas.chefer_gap,
    "dff": lambda: test_formulas.dff_gap(registry.METHODS["dff"].run),
    "random": lambda: test_controls.random_gap(registry.METHODS["random"].run),
    "center": lambda: test_controls.center_gap(registry.METHODS["center"].run),
    "sobel": test_controls.sobel_gap,
    **{m: (lambda m=m: test_golden.golden_gap(m)) for m in test_golden.GOLDEN},
}
"""A comparison of every method but captum's, whose numbers are captum's own."""

# wrong in the same way for every method
ANY: Mapping[str, Callable[[Run], Run]] = {
    "sign flipped": lambda run: lambda *a, **k: -run(*a, **k),
    "rows taken for columns": lambda run: lambda *a, **k: run(*a, **k).transpose(-1, -2),
    "a neighbour's map": lambda run: lambda *a, **k: run(*a, **k).roll(1, 0),
    "a hundredth too much": lambda run: lambda *a, **k: 1.01 * run(*a, **k),
}
ALIKE = ("center", "dff", *test_golden.GOLDEN)  # one image in its comparison, or the same map for all
BLIND = {("center", "rows taken for columns"), *((m, "a neighbour's map") for m in ALIKE)}


def over(weights: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Run], Run]:
    return lambda run: lambda A, G, **_: weigh(weights(A, G), A)


def scene(change: Callable[..., Tensor]) -> Callable[[Run], Run]:
    """A method of the scene, changed: `change` gets the method, the scene and its options."""
    return lambda run: lambda s, **k: change(run, s, **k)


def input_gradient(s: Any) -> Tensor:
    x = s.inputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad(s.aim.scores(s.model(x)).sum(), x)
    return slope


def input_term(s: Any) -> Tensor:
    """FullGrad without biases: |x * dS/dx|, each channel in [0, 1], summed."""
    product = (s.inputs * input_gradient(s)).abs()
    low, high = product.amin(SPACE, keepdim=True), product.amax(SPACE, keepdim=True)
    return ((product - low) / (high - low + 1e-7)).sum(1, keepdim=True)


def first_order(s: Any) -> Tensor:
    return torch.stack([METHODS["gradcam"].run(s.A, s.gradient(score)) for score in s.scores.unbind(1)], 1)


def plus_plus(A: Tensor, G: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    below = 2 * second + A.sum(SPACE, keepdim=True) * third + 1e-6
    return (first * second / below).sum(SPACE)


OWN: Mapping[str, Mapping[str, Callable[[Run], Run]]] = {
    "gradcam": {
        "sum for mean": over(lambda A, G: G.sum(SPACE)),
        "mean over channels": over(lambda A, G: G.mean(1, keepdim=True).expand_as(G)),
        "relu of the gradient": over(lambda A, G: G.relu().mean(SPACE)),
        "mean over rows only": over(lambda A, G: G.mean(2, keepdim=True).expand_as(G)),
    },
    "cam": {"mean for sum": over(lambda A, G: G.mean(SPACE))},
    "gradcam++": {
        "relu left out": over(lambda A, G: plus_plus(A, G, G, G * G, G**3)),
        "sum(A) G^3 dropped": over(lambda A, G: plus_plus(A, G, G.relu(), G * G, 0 * G)),
        "G^2 once": over(lambda A, G: plus_plus(A, G, G.relu(), G * G / 2, G**3 / 2) * 2),
        "mean of A for its sum": over(lambda A, G: plus_plus(A / A[0, 0].numel(), G, G.relu(), G * G, G**3)),
        "not divided": over(lambda A, G: (G * G * G.relu()).sum(SPACE)),
    },
    "xgradcam": {
        "not divided": over(lambda A, G: (G * A).sum(SPACE)),
        "divided by the mean": over(lambda A, G: (G * A).sum(SPACE) / (A.mean(SPACE) + 1e-7)),
        "a guard of 1e-4": over(lambda A, G: (G * A).sum(SPACE) / (A.sum(SPACE) + 1e-4)),
    },
    "hirescam": {
        "relu of the gradient": over(lambda A, G: G.relu()),
        "mean": over(lambda A, G: G.mean(SPACE)),
    },
    "gradcam-elementwise": {"relu left out": over(lambda A, G: G)},
    "layercam": {
        "relu left out": over(lambda A, G: G),
        "relu of the sum": lambda run: lambda A, G: weigh(G, A).relu(),
    },
    "fem": {
        "1 std": lambda run: lambda A: run(A, k=1.0),
        "masks for values": lambda run: lambda A: run(A, values=False),
    },
    "eigencam": {
        "a thousandth of A^2 added": lambda run: lambda A: run(A + 1e-3 * A.square()),
        "of the square root": lambda run: lambda A: run(A.sqrt()),
    },
    "eigengradcam": {
        "A alone": lambda run: lambda A, G: run(A, torch.ones_like(G)),
        "of |G|": lambda run: lambda A, G: run(A, G.abs()),
    },
    "segeigencam": {
        "of G": lambda run: lambda A, G: run(A, G.relu()),
        "A alone": lambda run: lambda A, G: run(A, torch.ones_like(G)),
    },
    "kpcacam": {"not divided by C": lambda run: lambda A: run(A * A.shape[1] ** 0.5)},
    "scorecam": {
        "four channels": scene(lambda run, s: run(s, channels=4)),
        "another enlarging": scene(lambda run, s: run(s, normalise_first=True)),
    },
    "ablationcam": {
        "not divided": scene(lambda run, s: run(s) * s.scores[..., None, None]),
        "score without for drop": scene(lambda run, s: s.A.sum(1, keepdim=True) - run(s)),
    },
    "shapleycam": {
        "second order dropped": scene(lambda run, s: first_order(s)),
        "second order added": scene(lambda run, s: 2 * first_order(s) - run(s)),
        "second order doubled": scene(lambda run, s: 2 * run(s) - first_order(s)),
    },
    "finercam": {
        "contrast dropped": scene(lambda run, s: run(s, alpha=0.0)),
        "one class less": scene(lambda run, s: run(s, comparisons=2)),
        "equal weights": scene(lambda run, s: run(s, weighting="mean")),
        "weights not differentiated": scene(lambda run, s: run(s, detach=True)),
    },
    "fullgrad": {"biases dropped": scene(lambda run, s: input_term(s))},
    "guidedbackprop": {
        "plain gradients": scene(lambda run, s: input_gradient(s).abs().amax(1, keepdim=True))
    },
    "dff": {"of the square": lambda run: lambda A, concepts: run(A.square(), concepts)},
    "smoothgradcam++": {
        "another draw": scene(lambda run, s, **k: run(s, **k, seed=1)),
        "a sample less": scene(lambda run, s, samples, std: run(s, samples - 1, std)),
    },
    "sscam": {
        "another draw": scene(lambda run, s, **k: run(s, **k, seed=1)),
        "no noise": scene(lambda run, s, samples, std: run(s, samples, 0.0)),
    },
    "iscam": {"a step less": scene(lambda run, s, samples: run(s, samples - 1))},
    "random": {"another draw": lambda run: lambda A: controls.random(A, seed=1)},
}
CASES = [
    pytest.param(method, how, change, id=f"{method}-{how}")
    for method in COMPARISONS
    for how, change in (ANY | dict(OWN.get(method, {}))).items()
    if (method, how) not in BLIND
]


def test_every_method_is_compared() -> None:
    assert set(COMPARISONS) == set(METHODS) - {"captum"}


@pytest.mark.parametrize("method", COMPARISONS)
def test_the_right_method_passes(method: str) -> None:
    with double_precision():
        assert COMPARISONS[method]() <= 1


@pytest.mark.parametrize(("method", "how", "change"), CASES)
def test_a_wrong_method_is_rejected(
    monkeypatch: pytest.MonkeyPatch, method: str, how: str, change: Callable[[Run], Run]
) -> None:
    entry: Any = METHODS[method]
    wrong = replace(entry, run=change(entry.run), graph=entry.needs == "scene")
    monkeypatch.setattr(registry, "METHODS", MappingProxyType({**METHODS, method: wrong}))
    monkeypatch.setattr(registry, "_check_options", lambda *_: None)  # reads the options off the function
    with double_precision():
        assert COMPARISONS[method]() >= 100
