"""Every formula against numbers worked out by hand on a network small enough for it, in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from camray.cam import TargetLayer, decompositions, explain, gradients
from camray.cam.layout import read_layout
from camray.errors import UsageError
from tests.cam.tolerance import SAME, gap, near

pytestmark = pytest.mark.usefixtures("double")

# one image, two channels of 1 x 2
A = torch.tensor([[[[1.0, 3.0]], [[2.0, 0.0]]]], dtype=torch.float64)
G = torch.tensor([[[[0.5, -0.1]], [[-1.0, 2.0]]]], dtype=torch.float64)


def test_gradcam_by_hand() -> None:
    # w = (0.2, 0.5): 0.2 * (1, 3) + 0.5 * (2, 0)
    assert near(gradients.gradcam(A, G), torch.tensor([[[1.2, 0.6]]]))


def test_hirescam_by_hand() -> None:
    assert near(gradients.hirescam(A, G), torch.tensor([[[0.5 - 2.0, -0.3 + 0.0]]]))


def test_elementwise_and_layercam_by_hand() -> None:
    assert near(gradients.gradcam_elementwise(A, G), torch.tensor([[[0.5, 0.0]]]))
    assert near(gradients.layercam(A, G), torch.tensor([[[0.5, 0.0]]]))
    assert near(gradients.layercam(-A, G), torch.tensor([[[-0.5, 0.0]]]))


def test_xgradcam_by_hand() -> None:
    w = ((0.5 - 0.3) / (4 + 1e-7), (-2.0 + 0.0) / (2 + 1e-7))  # (0.05, -1) but for the guard
    assert near(gradients.xgradcam(A, G), torch.tensor([[[w[0] + 2 * w[1], 3 * w[0]]]]))


def test_xgradcam_does_not_blow_up_on_a_sum_just_below_zero() -> None:
    signed = torch.tensor([[[[1.0, -1.0 - 1e-7]]]])
    assert bool((gradients.xgradcam(signed, torch.ones_like(signed)) * 1e-9).abs().max() < 1)


def test_gradcam_plus_plus_by_hand() -> None:
    # channel 0: sum A = 4; at 0: 0.25 / (0.5 + 4 * 0.125) = 0.25, times relu(0.5) = 0.125; at 1: relu = 0
    # channel 1: sum A = 2; at 1: 4 / (8 + 2 * 8) = 1/6, times 2 = 1/3
    w = (0.125 / (1 + 1e-6), 8 / (24 + 1e-6))  # 1/8 and 1/3 but for the guard
    truth = torch.tensor([[[w[0] * 1 + w[1] * 2, w[0] * 3 + w[1] * 0]]])
    assert near(gradients.gradcam_plus_plus(A, G), truth)


def test_cam_reads_the_weights_of_the_linear_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    x = torch.randn(2, 3, 8, 8)
    found = explain(model, x, "0", "cam", "class:3").maps["cam", "0"][:, 0]
    truth = torch.einsum("c,bchw->bhw", model[3].weight[3], model[0](x))
    assert near(found, truth)


def test_fem_by_hand() -> None:
    one = torch.zeros(1, 1, 1, 10)
    one[..., 0] = 10.0  # mean 1, std 3: the threshold is 7, one position in ten is above
    assert near(decompositions.fem(one)[0, 0], one[0, 0, 0] * 0.1)
    assert near(decompositions.fem(one, values=False)[0, 0], (one[0, 0, 0] > 7).float())


def test_eigencam_of_a_rank_one_layer_is_its_pattern_with_the_right_sign() -> None:
    pattern = torch.tensor([[0.0, 1.0], [2.0, 7.0]])
    for direction in ([3.0, 4.0], [-3.0, -4.0]):  # length 5; both signs of the channels
        layer = torch.tensor(direction)[None, :, None, None] * pattern
        assert near(decompositions.eigencam(layer)[0], (pattern - pattern.mean()) * 5)


@pytest.mark.parametrize("size", [(2, 30, 6, 6), (2, 300, 7, 7), (2, 8, 20, 20)])
def test_principal_component_equals_singular_vectors(size: tuple[int, ...]) -> None:
    X = torch.randn(size, generator=torch.Generator().manual_seed(0))
    found = decompositions.principal(X)
    rows = X.flatten(2).transpose(1, 2)
    rows = rows - rows.mean(1, keepdim=True)
    _, _, v = torch.linalg.svd(rows, full_matrices=False)
    truth = (rows @ v[:, 0, :, None]).view(found.shape)
    sign = (truth * found).sum((1, 2), keepdim=True).sign()
    assert near(found, truth * sign)


def test_a_component_of_many_positions_is_found_by_iteration() -> None:
    """More than 256 positions and channels: Lanczos, which stops at a residual of 1e-6 of the eigenvalue.

    So the vector is off by an angle of 1e-6 l1 / (l1 - l2), and as much of the projection's length.
    """
    X = torch.randn(1, 300, 18, 18, generator=torch.Generator().manual_seed(0))
    X[:, :, :9] += 0.5  # something that stands out, as in a network's layer
    rows = X[0].flatten(1).T
    rows = rows - rows.mean(0)
    _, s, v = torch.linalg.svd(rows, full_matrices=False)
    truth = (rows @ v[0]).view(18, 18)
    found = decompositions.principal(X)[0]
    angle = 1e-6 * s[0] ** 2 / (s[0] ** 2 - s[1] ** 2)
    assert float((found * (truth * found).sum().sign() - truth).norm()) <= 2 * angle * truth.norm()


def test_one_image_with_nan_leaves_its_neighbours() -> None:
    X = torch.rand(3, 60, 7, 7)
    clean = decompositions.eigencam(X)
    X[1, 0, 0, 0] = torch.nan
    found = decompositions.eigencam(X)
    assert torch.equal(found[[0, 2]], clean[[0, 2]])
    assert bool(found[1].isnan().all())


def dff_gap(run: Callable[..., Tensor]) -> float:
    """Two disjoint halves: the factorisation is exact, and the concept of more energy comes first.

    The guard 1e-9 of each update shifts a fixed point by 1e-9 over its denominator (at least 1).
    """
    parts = torch.zeros(1, 2, 4, 4)
    parts[0, 0, :2], parts[0, 1, 2:] = 2.0, 1.0
    mix = torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.0, 3.0]])
    maps = run(torch.einsum("ck,bkhw->bchw", mix, parts), concepts=2)[0]
    truth = torch.stack([3 * parts[0, 1], parts[0, 0]])  # times the largest share of each in a channel
    return gap(maps, truth, 1e-8)


def test_factorisation_rebuilds_a_sum_of_two_parts() -> None:
    assert dff_gap(decompositions.dff) <= 1


def test_factorisation_is_as_good_as_a_reference() -> None:
    nmf = pytest.importorskip("sklearn.decomposition", reason="scikit-learn comes with grad-cam")
    X = torch.rand(1, 24, 6, 6, generator=torch.Generator().manual_seed(0))
    rows = (X - X.amin((2, 3), keepdim=True)).flatten(2)[0].T.numpy()
    theirs = nmf.NMF(4, init="random", random_state=0, max_iter=500)
    theirs.fit_transform(rows)
    W = decompositions.dff(X, concepts=4)[0].flatten(1).T.double().numpy()
    from scipy.optimize import nnls

    error = sum(nnls(W, column)[1] ** 2 for column in rows.T) ** 0.5
    assert error <= 1.1 * theirs.reconstruction_err_


class OneBlock(nn.Module):
    """A class token, four patches, one head; the head reads the class token."""

    num_prefix_tokens = 1

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.norm1 = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8, 3)

    def attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, 2)
        return (q @ k.transpose(1, 2) / math.sqrt(8)).softmax(2), v

    def tokens(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)
        return torch.cat([self.cls.expand(len(x), -1, -1), patches], 1)

    def forward(self, x: Tensor) -> Tensor:
        t = self.tokens(x)
        q, k, v = self.qkv(self.norm1(t)).chunk(3, 2)
        out = nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return self.head((t + out)[:, 0])


def by_hand(model: OneBlock, x: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Attention of the one block and the gradient of the score in it."""
    t = model.tokens(x)
    p, v = model.attention(model.norm1(t))
    p = p.detach().requires_grad_()
    score = model.head((t + p @ v)[:, 0])[:, target].sum()
    return p.detach(), torch.autograd.grad(score, p)[0]


def rollout_gap() -> float:
    model, x = OneBlock().eval(), torch.randn(2, 3, 8, 8)
    p, _ = by_hand(model, x, 0)
    truth = ((p + torch.eye(5)) / 2)[:, 0, 1:].view(2, 2, 2)
    return gap(explain(model, x, "norm1", "rollout").maps["rollout", "norm1"][:, 0], truth, SAME)


def test_rollout_by_hand() -> None:
    assert rollout_gap() <= 1


def chefer_gap() -> float:
    model, x = OneBlock().eval(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    p, g = by_hand(model, x, 1)
    truth = (p * g).relu()[:, 0, 1:].view(2, 2, 2)
    found = explain(model, x, "norm1", "chefer", "class:1").maps["chefer", "norm1"][:, 0]
    return gap(found, truth, SAME * truth.amax((1, 2), keepdim=True))


def test_gradient_attention_by_hand() -> None:
    assert chefer_gap() <= 1


@pytest.mark.parametrize("method", ["rollout", "chefer", "legrad", "fullgrad", "gradcam(speed=1)", "gradcm"])
def test_what_cannot_be_done_is_refused_by_name(method: str) -> None:
    body = [nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3, bias=False)]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    with pytest.raises(UsageError) as refused:
        explain(model, torch.randn(1, 3, 8, 8), "2", method)
    assert refused.value.fix
    assert method[:5] in str(refused.value)


def test_layout_of_a_swin_output_is_not_taken_for_channels_first() -> None:
    layer = read_layout("norm", (2, 7, 7, 768), (224, 224))
    assert layer == TargetLayer("norm", "nhwc")
    assert layer.to_maps(torch.zeros(2, 7, 7, 768)).shape == (2, 768, 7, 7)


def test_layouts_of_token_sequences() -> None:
    for length, prefix, grid in ((196, 0, (14, 14)), (197, 1, (14, 14)), (201, 5, (14, 14))):
        layer = read_layout("x", (1, length, 8), (224, 224), prefix)
        assert layer is not None
        assert (layer.prefix, layer.grid) == (prefix, grid)
    wide = read_layout("x", (1, 129, 8), (128, 256), 1)
    assert wide is not None
    assert wide.grid == (8, 16)
    assert read_layout("x", (1, 1, 8), (224, 224)) is None
    assert read_layout("x", (1, 64, 1, 1), (224, 224)) is None
