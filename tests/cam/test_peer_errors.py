"""Where a peer is wrong: the truth by hand, the peer missing it, the engine meeting it; in doubles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from camray.cam import blend, explain, find_target_layer
from camray.errors import UsageError
from tests.cam.cam_zoo import build, images, relative
from tests.cam.tolerance import SAME

DOUBLE = pytest.mark.usefixtures("double")
pgc = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is a development extra")
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402

from tests.cam.peers import doubled  # noqa: E402


class Gelu(nn.Module):
    """A layer with negative values in front of a head that averages."""

    def __init__(self, inplace_relu: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3)
        self.act = nn.ReLU(inplace=True) if inplace_relu else nn.Tanh()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.conv(x)).mean((2, 3)))


def raw(cam: object, x: Tensor, targets: list[int], **options: object) -> Tensor:
    made: list[object] = []
    inner = cam.get_cam_image
    cam.get_cam_image = lambda *a, **k: made.append(inner(*a, **k)) or made[-1]
    with doubled():
        cam(x, [ClassifierOutputTarget(c) for c in targets], **options)
    cam.activations_and_grads.release()
    return torch.as_tensor(made[0])


@DOUBLE
def test_ablation_of_a_layer_with_negative_values() -> None:
    """grad-cam's value for an ablated channel grows with its place in the chunk."""
    model, x = Gelu().eval(), images(16, 1)
    A = model.conv(x)

    def score(a: Tensor) -> Tensor:
        return model.head(model.act(a).mean((2, 3)))[:, 2]

    blanked = torch.stack([A[0] * (torch.arange(6) != c)[:, None, None] for c in range(6)])
    weights = (score(A) - score(blanked)) / score(A)
    truth = (weights[:, None, None] * A[0]).sum(0).detach()
    found = explain(model, x, "conv", "ablationcam", "class:2").maps["ablationcam", "conv"][0, 0]
    assert relative(found[None], truth[None]) < SAME
    theirs = []
    for chunk in (1, 6):
        cam = pgc.AblationCAM(model, [model.conv])
        cam.batch_size = chunk
        theirs.append(raw(cam, x, [2])[0])
    # tanh saturates the absurd value; in front of a linear head the two runs differ by factors
    assert min(relative(t[None], truth[None]) for t in theirs) > 0.05


@DOUBLE
def test_ablation_in_chunks_of_any_size_is_the_same() -> None:
    class Linear(Gelu):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).mean((2, 3)))

    model, x = Linear().eval(), images(16, 1)
    theirs = []
    for chunk in (1, 6):
        cam = pgc.AblationCAM(model, [model.conv])
        cam.batch_size = chunk
        theirs.append(raw(cam, x, [2]))
    assert relative(*theirs) > 0.5
    found = explain(model, x, "conv", "ablationcam", "class:2").maps["ablationcam", "conv"]
    again = explain(model, x.repeat(5, 1, 1, 1), "conv", "ablationcam", "class:2").maps["ablationcam", "conv"]
    assert relative(again, found.expand_as(again)) < SAME


@DOUBLE
def test_a_short_list_of_targets() -> None:
    model, x = build("regnet", torch.float64).requires_grad_(True), images(64, 3)
    cam = pgc.GradCAM(model, [model.s4])
    assert float(np.abs(cam(x, [ClassifierOutputTarget(1)])[2]).max()) == 0  # an all-zero map, silently
    cam.activations_and_grads.release()
    with pytest.raises(Exception, match="1 targets for 3 images"):
        explain(model, x, "s4", "gradcam", torch.tensor([1]))


@DOUBLE
def test_an_inplace_relu_behind_the_layer() -> None:
    model, x = Gelu(inplace_relu=True).eval(), images(16, 2)
    A = model.conv(x).detach().requires_grad_()
    (G,) = torch.autograd.grad(model.head(A.relu().mean((2, 3)))[:, 1].sum(), A)
    truth = (G.mean((2, 3), keepdim=True) * A).sum(1).detach()
    found = explain(model, x, "conv", "gradcam", "class:1").maps["gradcam", "conv"][:, 0]
    assert relative(found, truth) < SAME
    assert relative(raw(pgc.GradCAM(model, [model.conv]), x, [1, 1]), truth) > 0.05


@pytest.mark.parametrize("how", ["frozen", "no_grad", "autocast"])
def test_deployment_modes_the_peer_refuses(how: str) -> None:
    model, x = Gelu().eval(), images(16, 2)
    truth = explain(model, x, "conv", "gradcam", "class:1").maps["gradcam", "conv"]
    cam = pgc.GradCAM(model, [model.conv])
    aims = [ClassifierOutputTarget(1)] * 2
    context = {"no_grad": torch.no_grad(), "autocast": torch.autocast("cpu", torch.bfloat16)}.get(
        how, torch.enable_grad()
    )
    model.requires_grad_(how != "frozen")
    with pytest.raises((RuntimeError, TypeError)), context:
        cam(x, aims)
    cam.activations_and_grads.release()
    with context:
        found = explain(model, x, "conv", "gradcam", "class:1").maps["gradcam", "conv"]
    assert float(torch.cosine_similarity(found.flatten(1), truth.flatten(1)).min()) > 0.999


@DOUBLE
def test_channels_last_layers_are_not_read_as_channels_first() -> None:
    """grad-cam without a transform takes rows of a Swin map for channels: a plausible, wrong map."""
    model, x = build("swin", torch.float64).requires_grad_(True), images(64, 2)
    layer = find_target_layer(model, (3, 64, 64))
    assert layer.layout == "nhwc"
    theirs = raw(pgc.GradCAM(model, [model.norm]), x, [1, 1])
    found = explain(model, x, layer, "gradcam", "class:1").maps["gradcam", layer.name]
    assert found.shape == (2, 1, 2, 2)
    assert theirs.shape == (2, 2, 96)


@DOUBLE
def test_an_overlay_depends_on_its_own_pixels_only() -> None:
    from pytorch_grad_cam.utils.image import show_cam_on_image

    dark, bright = np.full((2, 2, 3), 0.2, np.float32), np.full((2, 2, 3), 0.2, np.float32)
    bright[0, 0] = 1.0
    mask = np.zeros((2, 2), np.float32)
    assert not np.array_equal(show_cam_on_image(dark, mask)[1, 1], show_cam_on_image(bright, mask)[1, 1])
    ours = [
        blend(torch.from_numpy((i * 255).astype(np.uint8)), torch.from_numpy(mask)) for i in (dark, bright)
    ]
    assert torch.equal(ours[0][1, 1], ours[1][1, 1])


@DOUBLE
def test_torchcam_gradcam_plus_plus_does_not_divide() -> None:
    methods = pytest.importorskip("torchcam.methods", reason="torch-cam is a development extra")
    model, x = Gelu().eval(), images(16, 1)
    A = model.conv(x).detach().requires_grad_()
    (G,) = torch.autograd.grad(model.head(model.act(A).mean((2, 3)))[:, 1].sum(), A)
    A = A.detach()
    alpha = G**2 / (2 * G**2 + A.sum((2, 3), keepdim=True) * G**3 + 1e-6)
    truth = ((alpha * G.relu()).sum((2, 3), keepdim=True) * A).sum(1)
    undivided = ((G**2 * G.relu()).sum((2, 3), keepdim=True) * A).sum(1)
    with methods.GradCAMpp(model, "conv") as cam:
        theirs = cam.compute_cams(1, model(x), normalized=False)[0]
    assert relative(theirs, undivided.relu()) < SAME
    assert relative(theirs, truth.relu()) > 0.1
    found = explain(model, x, "conv", "gradcam++", "class:1").maps["gradcam++", "conv"][:, 0]
    assert relative(found, truth) < SAME


@DOUBLE
def test_ablation_of_more_than_half_the_channels() -> None:
    """grad-cam takes the strongest and the weakest channels; above one half the two overlap."""

    class Rectified(Gelu):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.act(self.conv(x)).mean((2, 3)))

    model, x = Rectified().eval(), images(16, 1)
    model.act = nn.ReLU()
    A = model.act(model.conv(x))
    score = model.head(A.mean((2, 3)))[0, 1]
    drops = torch.stack([model.head.weight[1, c] * A[0, c].mean() for c in range(6)]) / score
    truth = torch.einsum("c,chw->hw", drops, A[0]).detach()[None]
    cam = pgc.AblationCAM(model, [model.act], ratio_channels_to_ablate=0.75)
    assert relative(raw(cam, x, [1]), truth) > 0.05
    cam = pgc.AblationCAM(model, [model.act], ratio_channels_to_ablate=1.0)
    assert relative(raw(cam, x, [1]), truth) < SAME
    found = explain(model, x, "act", "ablationcam", "class:1").maps["ablationcam", "act"][:, 0]
    assert relative(found, truth) < SAME
    with pytest.raises(UsageError, match="no option 'ratio'"):
        explain(model, x, "act", "ablationcam(ratio=0.75)")


@DOUBLE
def test_refinecam_takes_one_option_for_another() -> None:
    """grad-cam passes eigen_smooth in the place of aug_smooth; here it is refused."""
    model, x = build("regnet", torch.float64).requires_grad_(True), images(64, 1)
    aims = [ClassifierOutputTarget(1)]

    layers = [model.s3, model.s4]

    def product(**options: bool) -> Tensor:
        maps = [pgc.GradCAMPlusPlus(model, [layer])(x, aims, **options) for layer in layers]
        whole = torch.from_numpy(maps[0] * maps[1])
        return (whole - whole.amin()) / (whole.amax() - whole.amin())

    with doubled():
        theirs = torch.from_numpy(pgc.RefineCAM(model, layers)(x, aims, eigen_smooth=True))
        # the peer's min-max has a guard of 1e-7, on a product that reaches a tenth at least
        assert relative(theirs, product(aug_smooth=True)) < 1e-6
        assert relative(theirs, product(eigen_smooth=True)) > 0.05
    with pytest.raises(UsageError, match="no option 'eigen_smooth'"):
        explain(model, x, ["s3", "s4"], "refinecam(eigen_smooth=True)")
