"""Where the tolerances of these tests come from: from the arithmetic, not from a machine.

Two correct programs differ by rounding alone, and rounding depends on the order of sums, which a processor
chooses. So the tests do two things.

**Compare in double precision.** `double_precision` turns the package and its peers, which convert to
float32 as they go, into double programs, by letting `Tensor.float()` make doubles.

**Bound what is left.** A map is a function c(A, G) of a layer and a gradient. A number that is the end of
n sums of products carries an error of at most n u times the size of the terms (Higham, Accuracy and
Stability of Numerical Algorithms, section 3.1; u is half the spacing of floats at 1). So with

    n = `roundings(model)`    products summed on the longest way to the score and back
    k = `condition(c, A, G)`  sum over all entries of |dc/dA| max|A| + |dc/dG| max|G|

both programs are within n u k of the truth and within 2 n u k of each other. k is large exactly where the
formula subtracts what is nearly equal: a denominator of Grad-CAM++ (2 G^2 + sum(A) G^3) or XGrad-CAM
(sum(A)) near zero, a HiResCAM in front of a LayerNorm. In double precision 2 n u k stays below a thousandth
of the map's height (`gap` refuses more), mostly below 1e-9; a wrong sign, axis or term is of its height:
tests/cam/test_mutations.py does each of these to each method.

`gap` is the difference in units of the bound: at most 1 for equal, at least 100 for a mutation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType

import pytest
import torch
from torch import Tensor, nn

U32, U64 = 2.0**-24, 2.0**-53

# The same program twice in double precision, on batches in another order or with other kernels. Of the
# 1e-9, 1e-16 are the rounding of one number, 1e4 the roundings on the way through a narrow network and
# 1e3 the cancellation of the worst formula on it. A neighbour that leaks or a wrong row is of order 1.
SAME = 1e-9


def near(found: Tensor, truth: Tensor, share: float = SAME) -> bool:
    """Whether no number differs by more than a share of the largest."""
    assert found.shape == truth.shape, (found.shape, truth.shape)
    return float((found - truth).abs().max()) <= share * float(truth.abs().max())


@contextmanager
def double_precision() -> Iterator[None]:
    """New tensors are doubles, and `Tensor.float()` makes doubles: nothing in the body rounds to float32.

    Random draws stay the numbers they are outside: float32, widened.
    """

    def widened(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: draw(*args, **{"dtype": torch.float32} | kwargs).double()

    before = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        for name in ("rand", "randn"):
            if not isinstance(getattr(torch, name), FunctionType):  # not within a body already
                patch.setattr(torch, name, widened(getattr(torch, name)))
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def roundings(model: nn.Module) -> int:
    """Products summed on the way from the image to the score and back: twice the sum of all fan-ins."""
    return 2 * sum(p[0].numel() for p in model.parameters() if p.ndim > 1)


def condition(formula: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Largest change of each number of a map (B, ...), relative to how much every input entry moves.

    An entry moves by the largest size its input (B, ...) has in the same image; first order.
    """
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    maps = formula(*leaves).flatten(1)
    sizes = [t.abs().flatten(1).amax(1) for t in inputs]
    moves = torch.zeros_like(maps)
    for i in range(maps.shape[1]):
        slopes = torch.autograd.grad(maps[:, i].sum(), leaves, retain_graph=True, allow_unused=True)
        for slope, size in zip(slopes, sizes, strict=True):
            if slope is not None:
                moves[:, i] += slope.abs().flatten(1).sum(1) * size
    return moves.detach().view(formula(*inputs).shape)


def component_condition(X: Tensor) -> Tensor:
    """As `condition`, of the first principal component of X (B, C, h, w): (B, 1, 1).

    Every entry moving by max|X| moves the matrix X by d = sqrt(C h w) max|X|, its first singular vector by
    an angle of 2 |X| d / (l1 - l2) (Davis and Kahan; l are the squared singular values), and the projection
    by d + |X| times the angle.
    """
    rows = X.flatten(2).transpose(1, 2)
    values = torch.linalg.svdvals(rows - rows.mean(1, keepdim=True)).square()
    moved = rows[0].numel() ** 0.5 * X.abs().flatten(1).amax(1)
    return (moved * (1 + 2 * values[:, 0] / (values[:, 0] - values[:, 1])))[:, None, None]


def kernel_condition(X: Tensor) -> Tensor:
    """As `condition`, of the first component of KPCA-CAM, whose kernel is tanh(X X^T / C + 1): (B, 1, 1).

    tanh is no steeper than 1, so the kernel moves by 4 h w max|X|^2 at most (X is centred, twice max|X|), its
    first vector by that over l1 - l2, and the component, vector times sqrt(l1), by sqrt(l1) of both.
    """
    rows = X.flatten(2).transpose(1, 2)
    rows = rows - rows.mean(1, keepdim=True)
    kernel = torch.tanh(rows @ rows.transpose(1, 2) / X.shape[1] + 1)
    kernel = kernel - kernel.mean(1, keepdim=True) - kernel.mean(2, keepdim=True) + kernel.mean((1, 2), True)
    values = torch.linalg.eigvalsh(kernel)
    moved = 4 * rows.shape[1] * X.abs().flatten(1).amax(1).square()
    first, second = values[:, -1], values[:, -2]
    return (first.sqrt() * (moved / (first - second) + moved / first))[:, None, None]


def mask_condition(A: Tensor, logits: Tensor) -> Tensor:
    """As `condition`, of Score-CAM on A (B, C, h, w): (B, 1, 1).

    A mask (A_c - min) / range moves by max|A| / range, a score by its share of 2 max|z|, a softmax weight by
    twice that, and the weights sum to 1.
    """
    size = A.abs().flatten(1).amax(1)
    reach = A.flatten(2).amax(2) - A.flatten(2).amin(2)  # (B, C)
    steepest = (size[:, None] / reach.masked_fill(reach == 0, torch.inf)).amax(1)
    return (size * (1 + 4 * logits.abs().amax(1) * (1 + steepest)))[:, None, None]


def ablation_condition(A: Tensor, scores: Tensor, ablated: Tensor) -> Tensor:
    """As `condition`, of Ablation-CAM, w_c = (S - S_c) / S with S (B,) and S_c (B, C): (B, h, w).

    Each weight moves by |S| + |S_c| over |S|, twice.
    """
    weights = 2 * (1 + ablated.abs() / scores.abs()[:, None])
    return torch.einsum("bc,bchw->bhw", weights, A.abs())


def gap(
    found: Tensor, truth: Tensor, bound: Tensor | float, share: float = 1e-3, whole: Tensor | None = None
) -> float:
    """Largest difference, in units of the bound, which is refused beyond a share of the map's height.

    The height is that of `whole`, where the truth is a map with its negative part cut off.
    """
    assert found.shape == truth.shape, (found.shape, truth.shape)
    tiny = torch.finfo(truth.dtype).tiny  # where the bound is zero, nothing may differ
    whole = truth if whole is None else whole
    height = whole.abs().amax((-2, -1), keepdim=True).clamp(min=tiny)
    bound = torch.as_tensor(bound, dtype=truth.dtype).expand_as(truth)
    worst = float((bound / height).max())
    assert worst < share, f"the formula cancels: a bound of {worst:.1e} of the map's height"
    return float(((found - truth).abs() / bound.clamp(min=tiny)).max())
