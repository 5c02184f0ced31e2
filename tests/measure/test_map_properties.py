"""Sparsity, agreement, sensitivity to noise, class and parameters: numbers read off the maps alone."""

import copy

import numpy as np
import pytest
import timm
import torch
from scipy import stats
from torch import nn

from camray.measure.agreement import pair_agreement, rank_correlation, to_grid
from camray.measure.sanity import (
    complexity,
    complexity_rise,
    head_of,
    map_correlation,
    max_sensitivity,
    randomised,
)
from camray.measure.sparsity import entropy, gini
from tests.cam.tolerance import SAME
from tests.measure.measure_toys import Small, images, tie_free

pytestmark = pytest.mark.usefixtures("double")


def test_gini_and_entropy_by_hand_and_by_formula() -> None:
    one, even = torch.zeros(4, 4), torch.ones(4, 4)
    one[1, 2] = 5.0
    assert float(gini(one)) == pytest.approx(15 / 16)
    assert float(gini(even)) == pytest.approx(0)
    assert float(entropy(one)) == pytest.approx(0)
    assert float(entropy(even)) == pytest.approx(1)
    assert bool(gini(-even).isnan())
    assert bool(entropy(-even).isnan())
    v = tie_free(7, 9).double().numpy().ravel()
    pairs = np.abs(v[:, None] - v[None]).sum() / (2 * len(v) ** 2 * v.mean())  # half the mean difference
    assert float(gini(tie_free(7, 9))) == pytest.approx(pairs, abs=SAME)
    assert float(entropy(tie_free(7, 9))) == pytest.approx(stats.entropy(v) / np.log(63), abs=SAME)


def test_rank_correlation_is_scipys_with_ties() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (20, 49)).astype(float), rng.integers(0, 4, (20, 49)).astype(float)
    found = rank_correlation(torch.from_numpy(a), torch.from_numpy(b))
    truth = [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert found.tolist() == pytest.approx(truth, abs=1e-12)
    assert bool(rank_correlation(torch.ones(5), torch.arange(5.0)).isnan())


def test_pairs_in_plain_loops() -> None:
    maps = torch.randn(2, 3, 7, 6, generator=torch.Generator().manual_seed(0))
    found = pair_agreement(maps)
    for b in range(2):
        for j in range(3):
            for k in range(3):
                p, q = (maps[b, i].clamp(min=0).double().numpy().ravel() for i in (j, k))
                assert float(found["rank_correlation"][b, j, k]) == pytest.approx(
                    stats.spearmanr(p, q).statistic, abs=SAME
                )
                tops = [set(np.argsort(-v, kind="stable")[:4]) for v in (p, q)]
                share = len(tops[0] & tops[1]) / len(tops[0] | tops[1])
                assert float(found["top_overlap"][b, j, k]) == pytest.approx(share)
                assert float(found["same_peak"][b, j, k]) == float(p.argmax() == q.argmax())
                assert float(found["distance"][b, j, k]) == pytest.approx(
                    np.abs(p / p.max() - q / q.max()).max(),
                    abs=2e-7 / min(p.max(), q.max()),  # the guard of min-max
                )


def test_a_map_and_its_multiple_are_one_map() -> None:
    maps = torch.randn(1, 1, 7, 7, generator=torch.Generator().manual_seed(1))
    found = pair_agreement(torch.cat([maps, 3.7 * maps, maps.square()], 1))
    assert float(found["distance"][0, 0, 1]) < 1e-7 / float(maps.max())  # the guard of min-max
    assert float(found["distance"][0, 0, 2]) > 0.1


def test_to_grid_keeps_the_mean() -> None:
    fine = torch.rand(2, 3, 28, 28)
    assert torch.allclose(to_grid(fine, (7, 7)).mean((2, 3)), fine.mean((2, 3)))
    assert to_grid(fine, (28, 28)) is fine


def test_max_sensitivity_in_plain_loops_and_its_extremes() -> None:
    x = images(2, 8)

    def explain(batch: torch.Tensor) -> torch.Tensor:  # one map follows the image, one ignores it
        return torch.stack([batch.mean(1), torch.ones(8, 8).tril().expand(len(batch), -1, -1)], 1)

    found = max_sensitivity(x, explain(x), explain, samples=4, radius=0.2, seed=3)
    generator, worst = torch.Generator().manual_seed(3), np.zeros(2)

    def unit(m: torch.Tensor) -> np.ndarray:
        m = m.relu()
        return ((m - m.min()) / (m.max() - m.min() + 1e-7)).numpy()

    for _ in range(4):
        e = (torch.rand(3, 8, 8, generator=generator) * 2 - 1) * 0.2
        for b in range(2):
            h, moved = unit(x[b].mean(0)), unit((x[b] + e).mean(0))
            worst[b] = max(worst[b], np.linalg.norm(moved - h) / np.linalg.norm(h))
    assert found[:, 0].tolist() == pytest.approx(worst.tolist(), abs=SAME)
    assert found[:, 1].tolist() == [0, 0]
    blank = max_sensitivity(x, torch.zeros(2, 1, 8, 8), lambda b: torch.zeros(len(b), 1, 8, 8), 1)
    assert bool(blank.isnan().all())


def test_complexity_is_the_entropy_of_the_histogram() -> None:
    heat = tie_free(2, 2, 20, 20).square()
    for b in range(2):
        counts = np.histogram(heat[b, 0].double().numpy(), bins=100, range=(0, 1))[0]
        assert float(complexity(heat)[b, 0]) == pytest.approx(stats.entropy(counts), abs=SAME)
    even, flat = tie_free(1, 1, 20, 20), torch.zeros(1, 1, 20, 20)
    assert float(complexity_rise(heat[:1, :1], even)) > 0
    assert bool(complexity_rise(flat, even).isnan())


@pytest.mark.parametrize("name", ["small", "test_vit", "test_resnet"])
def test_randomising_forgets_everything_named_and_nothing_else(name: str) -> None:
    torch.manual_seed(0)
    model = Small() if name == "small" else timm.create_model(name, num_classes=6)
    model.eval()
    x = images(1, 32 if name == "small" else model.default_cfg["input_size"][1])
    before = copy.deepcopy(model.state_dict())
    head = head_of(model, x)
    assert head == ["fc" if name == "test_resnet" else "head"]
    with torch.no_grad():
        part, whole, again = randomised(model, head), randomised(model), randomised(model)
        answers = [m(x) for m in (model, part, whole, again)]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])  # the model itself is untouched
        changed = not torch.equal(part.state_dict()[key], value)
        assert not changed or key.startswith(f"{head[0]}.")
    for key, parameter in model.named_parameters():
        other = dict(whole.named_parameters())[key]
        assert torch.equal(other.flatten().sort().values, parameter.flatten().sort().values)
        if parameter.numel() > 4 and parameter.unique().numel() > 1:  # raw ones such as pos_embed as well
            assert not torch.equal(other, parameter), key
    assert torch.equal(answers[2], answers[3])
    assert not torch.allclose(answers[0], answers[1])


def test_a_head_alone_does_not_change_what_lies_before() -> None:
    model = Small().eval()
    copies = randomised(model, head_of(model, images(1, 16)))
    assert torch.equal(copies.last.weight, model.last.weight)
    assert isinstance(copies, nn.Module)


def test_map_correlation_keeps_signs() -> None:
    maps = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    assert float(map_correlation(maps, -maps)) == pytest.approx(-1)
    assert float(map_correlation(maps, maps)) == pytest.approx(1)
    assert bool(map_correlation(maps, torch.zeros_like(maps)).isnan())
