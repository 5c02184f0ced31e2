import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from camray.measure import imputation
from camray.measure.imputation import NOISE, TOLERANCE, blur, impute, noise_like
from tests.cam.tolerance import SAME, U32
from tests.measure.measure_toys import images

pytestmark = pytest.mark.usefixtures("double")


def smooth(count: int, side: int) -> torch.Tensor:
    x = sum(F.interpolate(images(count, k, seed=k), size=(side, side), mode="bicubic") for k in (4, 16, side))
    assert isinstance(x, torch.Tensor)
    return (x - x.mean()) / x.std()


def hottest(side: int, fraction: float, count: int = 2) -> torch.Tensor:
    heat = F.interpolate(images(count, 7, seed=3)[:, :1], size=(side, side), mode="bilinear").flatten(1)
    order = heat.argsort(1, descending=True)[:, : round(fraction * side * side)]
    return torch.zeros(count, side * side, dtype=torch.bool).scatter(1, order, True).view(count, side, side)


def plainly(image: np.ndarray, removed: np.ndarray) -> tuple[np.ndarray, float]:
    """Every removed pixel is the weighted mean of its neighbours: a dense system, pixel by pixel.

    And how far from it an answer may be whose residual is 1 of the right side: |1 / A| |b|.
    """
    channels, height, width = image.shape
    where = [tuple(p) for p in np.argwhere(removed)]
    number = {p: i for i, p in enumerate(where)}
    A, b = np.zeros((len(where), len(where))), np.zeros((len(where), channels))
    for (y, x), i in number.items():
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                v, u = y + dy, x + dx
                if (dy or dx) and 0 <= v < height and 0 <= u < width:
                    weight = 1 / 12 if dy and dx else 1 / 6
                    A[i, i] += weight
                    if (v, u) in number:
                        A[i, number[v, u]] -= weight
                    else:
                        b[i] += weight * image[:, v, u]
    out = image.copy()
    for p, value in zip(where, np.linalg.solve(A, b), strict=True):
        out[:, p[0], p[1]] = value
    return out, float(np.linalg.norm(np.linalg.inv(A), 2) * np.linalg.norm(b, axis=0).max())


@pytest.mark.parametrize("shape", [(12, 12), (9, 14), (5, 3)])
def test_solves_the_system_written_out_pixel_by_pixel(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 2, *shape, generator=generator)
    removed = torch.rand(3, *shape, generator=generator) < 0.6
    found = impute(x, removed)
    for i in range(3):
        truth, reach = plainly(x[i].numpy(), removed[i].numpy())
        assert np.abs(found[i].numpy() - truth).max() <= TOLERANCE * reach
    assert torch.equal(found[~removed[:, None].expand_as(x)], x[~removed[:, None].expand_as(x)])


@pytest.mark.parametrize(("side", "fraction"), [(64, 0.1), (64, 0.9), (65, 0.5), (224, 0.5)])
def test_equals_the_sparse_solver_of_the_reference(
    side: int, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Solved to the end. The smallest eigenvalue is above 1 / side^2, that of one hole as wide as the image;
    the reference rounds images to float32, before and after.
    """
    monkeypatch.setattr(imputation, "TOLERANCE", 1e-12)
    x, removed = smooth(2, side), hottest(side, fraction)
    reference = torch.stack(
        [
            NoisyLinearImputer(noise=0)(i, (~r).float())
            for i, r in zip(x.to(torch.float32), removed, strict=True)
        ]
    )
    bound = side**2 * 1e-12 * float(x.flatten(2).norm(dim=2).max()) + 2 * U32 * float(x.abs().max())
    assert float((impute(x, removed) - reference).abs().max()) <= bound


def test_an_even_image_stays_even_and_nothing_known_gives_zero() -> None:
    x = torch.full((2, 3, 20, 20), 0.7)
    removed = hottest(20, 0.6)
    removed[1] = True
    found = impute(x, removed)
    assert torch.allclose(found[0], x[0], rtol=0, atol=TOLERANCE * 20**2 * 0.7)  # 1 / eigenvalue, at most
    assert torch.equal(found[1], torch.zeros_like(x[1]))
    assert torch.equal(impute(x, torch.zeros_like(removed)), x)


def test_neighbours_in_the_batch_change_nothing() -> None:
    x, removed = smooth(6, 40), hottest(40, 0.5, 6)
    removed[3] = hottest(40, 0.05)[0]
    whole = impute(x, removed)
    for i in range(6):
        assert torch.allclose(impute(x[i : i + 1], removed[i : i + 1])[0], whole[i], rtol=0, atol=SAME)


def test_noise_is_one_draw_for_all() -> None:
    noise = noise_like(torch.zeros(5, 3, 64, 64))
    assert noise.shape == (1, 3, 64, 64)
    # 12288 draws: their deviation is off by 5 / sqrt(2 * 12288) = 3 % once in two million times
    assert float(noise.std()) == pytest.approx(NOISE, rel=0.032)
    assert torch.equal(noise, noise_like(torch.ones(1, 3, 64, 64)))


def test_blur_has_the_kernel_of_rise() -> None:
    unit = np.zeros((11, 11))
    unit[5, 5] = 1
    kernel = torch.from_numpy(gaussian_filter(unit, 5)).float()  # the authors' gkern(11, 5)
    x = images(2, 224)
    truth = F.conv2d(x, kernel.expand(3, 1, 11, 11), padding=5, groups=3)
    # weights that sum to 1, each the product of two that may have been rounded to float32
    assert float((blur(x) - truth).abs().max()) <= 2 * U32 * float(x.abs().max())
    assert blur(images(1, 448)).shape == (1, 3, 448, 448)
