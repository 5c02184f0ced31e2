"""What holds for any explanation: independence, modes, one pass with many answers, nothing left behind.

Two runs of one program, in double precision: `SAME` is all that rounding may differ by.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from camray.cam import METHODS, TargetLayer, engine, explain, find_target_layer
from camray.cam.tail import make_tail
from tests.cam.cam_zoo import build, images, layer_and_gradient, relative, stir
from tests.cam.cases import ablation_gap
from tests.cam.tolerance import SAME

pytestmark = pytest.mark.usefixtures("double")
LAYER = TargetLayer("stages.2")
ELSEWHERE = ("cam", "refinecam", "captum", "rollout", "chefer", "legrad", "guidedbackprop", "guided-gradcam")
EVERY = [m for m in METHODS if m not in ELSEWHERE and m not in ("iscam", "sscam", "scorecam")]
EVERY += ["scorecam(channels=6)", "iscam(channels=2,samples=2)", "sscam(channels=2,samples=2)"]


@pytest.fixture
def model() -> nn.Module:
    return build("convnext", torch.float64).requires_grad_(True)


@pytest.fixture
def vit() -> nn.Module:
    return build("vit", torch.float64).requires_grad_(True)


def state(model: nn.Module) -> list[Any]:
    flags = [(p.requires_grad, p.grad is None, p._version) for p in model.parameters()]
    modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in m.__dict__)
               for m in model.modules()]  # fmt: skip
    return [flags, modules, torch.is_grad_enabled()]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(4)), size=st.integers(1, 4))
@pytest.mark.parametrize("name", ["convnext", pytest.param("convnext_tiny", marks=pytest.mark.slow)])
def test_no_map_depends_on_batch_order_or_neighbours(name: str, order: list[int], size: int) -> None:
    model, x = build(name, torch.float64), images(64, 4)
    whole = explain(model, x, LAYER, EVERY, "class:2")
    rows = order[:size]
    part = explain(model, x[rows], LAYER, EVERY, "class:2")
    gaps = {key[0]: relative(part.maps[key], maps[rows]) for key, maps in whole.maps.items()}
    assert max(gaps.values()) < SAME, gaps


def test_no_map_depends_on_the_other_methods_layers_or_targets(model: nn.Module) -> None:
    x = images(64, 2)
    other = find_target_layer(model, (3, 64, 64))
    many = explain(model, x, [LAYER, other], EVERY, ["class:2", "top:3"])
    for method in ("gradcam", "layercam", "finercam", "ablationcam", "eigencam", "shapleycam"):
        alone = explain(model, x, LAYER, method, "class:2" if METHODS[method].per_class else "predicted")
        both = many.maps[method, LAYER.name][:, :1]
        assert relative(both, alone.maps[method, LAYER.name]) < SAME, method


def test_threads_do_not_change_results(model: nn.Module) -> None:
    x, before = images(64, 2), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = explain(model, x, LAYER, ["gradcam", "eigencam"]).maps
        torch.set_num_threads(2)
        two = explain(model, x, LAYER, ["gradcam", "eigencam"]).maps
    finally:
        torch.set_num_threads(before)
    assert all(relative(two[k], one[k]) < SAME for k in one)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_callers_and_frozen_models(model: nn.Module, frozen: bool, caller: Any) -> None:
    truth = explain(model, images(64, 2), LAYER, "gradcam").maps["gradcam", LAYER.name]
    mine = copy.deepcopy(model).requires_grad_(not frozen)
    with caller():
        x = images(64, 2).clone()  # an inference tensor under inference_mode
        found = explain(mine, x, LAYER, EVERY)
    assert relative(found.maps["gradcam", LAYER.name], truth) < SAME
    assert not found.maps["gradcam", LAYER.name].requires_grad


def test_the_model_is_left_exactly_as_found(model: nn.Module) -> None:
    mine = copy.deepcopy(model).train()
    mine.stem.eval()
    next(mine.parameters()).requires_grad_(False)
    mine.head.register_forward_hook(lambda *_: None)
    before = state(mine)
    explain(mine, images(64, 2), LAYER, EVERY, "top:2")
    assert state(mine) == before
    with pytest.raises(RuntimeError):
        explain(mine, torch.randn(1, 5, 64, 64), LAYER, "gradcam")
    with pytest.raises(Exception, match="no 'nowhere'"):
        explain(mine, images(64, 2), TargetLayer("nowhere"), "gradcam")
    assert state(mine) == before


def test_training_mode_gives_the_results_of_evaluation() -> None:
    model, x = build("regnet", torch.float64), images(64, 3)
    truth = explain(model, x, "s3", "gradcam").maps["gradcam", "s3"]
    try:
        found = explain(model.train(), x, "s3", "gradcam").maps["gradcam", "s3"]
    finally:
        model.eval()
    assert torch.equal(found, truth)


def test_an_inplace_relu_behind_the_layer_does_not_reach_the_activations() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(4, 3)).eval()  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    a = model[0](x).detach().requires_grad_()
    score = model[4](a.relu().mean((2, 3)))[:, 1].sum()
    (g,) = torch.autograd.grad(score, a)
    truth = (g.mean((2, 3), keepdim=True) * a).sum(1).detach()
    found = explain(model, x, "0", ["gradcam", "eigencam"], "class:1").maps["gradcam", "0"][:, 0]
    assert relative(found, truth) < SAME
    assert float(truth.min()) < 0


def test_one_pass_equals_many(model: nn.Module, vit: nn.Module) -> None:
    for net, names in ((model, ["stages.1", "stages.3"]), (vit, ["blocks.0.norm1", "blocks.2.norm1"])):
        x = images(64, 2)
        both = explain(net, x, names, ["gradcam", "layercam"], ["top:3", "class:1"])
        for name in names:
            for k in range(4):
                one = explain(net, x, name, "gradcam", both.classes[:, k])
                assert relative(both.maps["gradcam", name][:, k], one.maps["gradcam", name][:, 0]) < SAME


def test_skipped_rows_change_no_gradient(vit: nn.Module) -> None:
    """The class token's backward leaves out tokens without gradient: compare with the plain one."""
    x = images(64, 2)
    found = explain(vit, x, "blocks.1.norm1", ["gradcam", "layercam"], "top:3")
    grid = lambda t: t[:, 1:].transpose(1, 2).reshape(2, -1, 4, 4)  # noqa: E731
    for k in range(3):
        ids = found.classes[:, k : k + 1]
        a, g, _ = layer_and_gradient(vit, x, "blocks.1.norm1", lambda z, ids=ids: z.gather(1, ids))
        truth = (grid(g).mean((2, 3), keepdim=True) * grid(a)).sum(1)
        assert relative(found.maps["gradcam", "blocks.1.norm1"][:, k], truth) < SAME


def test_channels_last_and_compiled_models(model: nn.Module) -> None:
    x = images(64, 2)
    truth = explain(model, x, LAYER, "gradcam").maps["gradcam", LAYER.name]
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    found = explain(last, x.to(memory_format=torch.channels_last), LAYER, "gradcam").maps[
        "gradcam", LAYER.name
    ]
    assert relative(found, truth) < SAME
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    assert relative(explain(compiled, x, LAYER, "gradcam").maps["gradcam", LAYER.name], truth) < SAME


def test_no_graph_before_the_layer(model: nn.Module) -> None:
    kept: list[int] = []
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in weights:
            kept.append(t.nbytes)
        return t

    x, sizes = images(64, 2), {}
    places = {n: find_target_layer(model, (3, 64, 64), n) for n in ("stages.0", "stages.3")}
    for name, place in places.items():
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            explain(model, x, place, "gradcam")
        sizes[name] = sum(kept)
    A = layer_and_gradient(model, x, "stages.3", lambda z: z[:, 0])[0].requires_grad_()
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model.head(model.norm_pre(A))
    assert sizes["stages.3"] <= sum(kept)  # no more than the head alone
    assert sizes["stages.0"] > 10 * sizes["stages.3"]


def test_running_out_of_memory_halves_the_batch(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x, seen, inner = images(64, 5), [], engine._explain
    asked = ["gradcam", "eigencam"]
    truth = explain(model, x, LAYER, asked, torch.arange(5))

    def tight(*args: Any) -> Any:
        seen.append(len(args[1]))
        if len(args[1]) > 2:
            raise torch.OutOfMemoryError
        return inner(*args)

    monkeypatch.setattr(engine, "_explain", tight)
    found = explain(model, x, LAYER, asked, torch.arange(5))
    assert seen == [5, 2, 3, 1, 2]
    assert torch.equal(found.classes, truth.classes)
    assert all(relative(found.maps[k], truth.maps[k]) < SAME for k in truth.maps)
    monkeypatch.setattr(engine, "_explain", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError))
    with pytest.raises(torch.OutOfMemoryError):
        explain(model, x, LAYER, asked)


def test_threads_may_share_a_frozen_model(model: nn.Module) -> None:
    mine = copy.deepcopy(model).requires_grad_(False)
    batches = [images(64, 2, seed=s) for s in range(4)]
    truth = [explain(mine, x, LAYER, "gradcam").maps["gradcam", LAYER.name] for x in batches]
    found: dict[int, Tensor] = {}

    def work(i: int) -> None:
        found[i] = explain(mine, batches[i], LAYER, "gradcam").maps["gradcam", LAYER.name]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert all(torch.equal(found[i], truth[i]) for i in range(4))


def test_the_tail_runs_alone_in_front_of_a_relu_in_place() -> None:
    """torchvision's DenseNet overwrites the layer's output; its 32 channels must not cost 32 forwards."""
    torch.manual_seed(0)
    net = stir(torchvision.models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=5)).eval()
    place, x = find_target_layer(net, (3, 64, 64), "features.norm5"), images(64, 2)
    with FlopCounterMode(display=False) as forward:
        A = net.features(x).detach()
    with FlopCounterMode(display=False) as whole:
        found = explain(net, x, place, "ablationcam", "class:1").maps["ablationcam", place.name][:, 0]
    assert A.shape[1] == 32
    assert whole.get_total_flops() < 3 * forward.get_total_flops()  # shared forward; one image to learn from
    share = A.relu().mean((2, 3)) * net.classifier.weight[1]  # (2, C), what each channel adds to the logit
    truth = torch.einsum("bc,bchw->bhw", share / net(x)[:, 1:2], A).detach()
    assert relative(found, truth) < SAME


@pytest.mark.parametrize(
    ("name", "layer"),
    [("regnet", "last"), ("convnext", "last"), ("vgg", "last"), ("regnet", "s3.b1.conv3"), ("vit", "last"),
     ("swin", "layers.3.blocks.0")]
    + [pytest.param(n, "last", marks=pytest.mark.slow)
       for n in ("regnety_002", "convnext_tiny", "vgg16_bn", "vit_small_patch16_224")],
)  # fmt: skip
def test_ablation_equals_running_the_whole_model(name: str, layer: str) -> None:
    """Closed form, mean, tail and class token against a hook that blanks a channel in a full forward."""
    assert ablation_gap(name, layer) <= 1


def test_a_replay_leaves_out_what_comes_before() -> None:
    net = build("regnet", torch.float64)
    tail = make_tail(net, images(64, 3), find_target_layer(net, (3, 64, 64), "s4"))
    assert not tail.needed
    assert not tail.needs_inputs
    assert {"stem", "s1", "s2", "s3"} <= set(tail.outputs)
    inner = make_tail(net, images(64, 3), find_target_layer(net, (3, 64, 64), "s3.b2.conv1"))
    assert inner.needed  # the shortcut around the layer
    raw = net.s4(net.s3(net.s2(net.s1(net.stem(images(64, 3))))))
    rows = torch.tensor([2, 0, 2, 1])
    assert relative(tail.replay(raw[rows], rows)[None], net(images(64, 3))[rows][None]) < SAME
