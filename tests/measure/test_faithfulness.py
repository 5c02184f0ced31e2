from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence
from pytorch_grad_cam.metrics.perturbation_confidence import (
    PerturbationConfidenceMetric,
    RemoveLeastRelevantFirst,
    RemoveMostRelevantFirst,
)
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from torch import Tensor
from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

from camray.measure import faithfulness, imputation
from camray.measure.faithfulness import area
from camray.measure.imputation import blur
from camray.measure.removal import Judge, class_probability
from tests.cam.tolerance import SAME, U32
from tests.measure.measure_toys import Looker, Small, images, masking_metrics, removal_metrics, tie_free

pytestmark = pytest.mark.usefixtures("double")

SIDE = 16


@pytest.fixture
def scene() -> SimpleNamespace:
    """Four images, two tie-free maps each, a small network in evaluation mode without gradients."""
    model = Small().eval().requires_grad_(False)
    x = images(4, SIDE)
    classes = model(x).argmax(1)
    p = class_probability(model(x), classes, "softmax")
    return SimpleNamespace(
        model=model, x=x, heat=tie_free(4, 2, SIDE, SIDE), p=p, judge=Judge(model, classes)
    )


def region_of_quarter() -> Tensor:
    region = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    region[:8, :8] = True
    return region


def test_a_linear_model_has_the_area_of_the_formula() -> None:
    """p falls by the same amount for each pixel of the region taken away, and not at all for others."""
    region = region_of_quarter()
    model, x = Looker(region).eval(), torch.ones(1, 3, SIDE, SIDE)
    outside = torch.where(region, torch.zeros(()), 1.0)
    heat = torch.stack([region.float(), outside])[None]  # the oracle and its opposite
    judge = Judge(model, torch.zeros(1, dtype=torch.int64))
    found = removal_metrics(judge, x, heat, torch.tensor([0.95]), steps=16, baseline="zero")
    # oracle: .95 falls to .05 over the first quarter, then stays; its opposite stays until the last quarter
    low, high = 0.05, 0.95
    oracle = 0.25 * (low + high) / 2 + 0.75 * low
    opposite = 0.75 * high + 0.25 * (low + high) / 2
    assert found.values["deletion"][0].tolist() == pytest.approx([oracle, opposite], abs=SAME)
    assert found.values["insertion"][0].tolist() == pytest.approx([opposite, oracle], abs=SAME)


def test_the_oracle_beats_random_and_its_opposite_loses() -> None:
    """On noise, so that imputation cannot guess the region from outside."""
    region = region_of_quarter()
    model = Looker(region).eval()
    x = torch.rand(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    x[:, :, region] = 0.7 + 0.3 * x[:, :, region]
    x[:, :, ~region] *= 0.3
    random = tie_free(6, 1, SIDE, SIDE)
    oracle = (region + 0.01 * random).clamp(max=1)
    heat = torch.cat([oracle, random, 1 - oracle], 1)
    judge = Judge(model, torch.zeros(6, dtype=torch.int64))
    p = class_probability(model(x), judge.classes, "softmax")
    values = removal_metrics(judge, x, heat, p, baseline="zero").values
    for name, sign in (("insertion", 1), ("deletion", -1), ("road", 1), ("road_morf", -1), ("road_lerf", 1)):
        best, middle, worst = (sign * values[name]).unbind(1)
        assert bool((best > middle).all()), name
        assert bool((middle > worst).all()), name
    masked = masking_metrics(judge, x, heat, p)
    assert bool((masked["average_drop"][:, 0] < masked["average_drop"][:, 1]).all())
    assert bool((masked["average_drop"][:, 1] < masked["average_drop"][:, 2]).all())


def test_curves_of_rise_in_plain_loops(scene: SimpleNamespace) -> None:
    """RISE's CausalMetric, image by image and step by step; 256 pixels in steps of 32."""
    found = removal_metrics(scene.judge, scene.x, scene.heat, scene.p, steps=8)
    blurred = blur(scene.x)
    for b in range(4):
        for m in range(2):
            order = np.flip(np.argsort(scene.heat[b, m].flatten().numpy()))
            for name, start, end in (
                ("deletion", scene.x, blurred),
                ("insertion", blurred, scene.x),
            ):
                now, y = start[b].clone().flatten(1), []
                for step in range(9):
                    y.append(
                        float(scene.model(now.view(1, 3, SIDE, SIDE)).softmax(1)[0, scene.judge.classes[b]])
                    )
                    pixels = order[32 * step : 32 * (step + 1)].copy()
                    now[:, pixels] = end[b].flatten(1)[:, pixels]
                auc = (sum(y) - y[0] / 2 - y[-1] / 2) / 8
                assert float(found.values[name][b, m]) == pytest.approx(auc, abs=SAME)


class Extractor:
    """What torch-cam's metrics want of an extractor: it hands out maps."""

    def __init__(self, model: torch.nn.Module, maps: Tensor) -> None:
        self.model, self.maps = model, maps

    def __call__(self, *_: object, **__: object) -> list[Tensor]:
        return [self.maps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    def _hooks_off(self) -> torch.no_grad:
        return torch.no_grad()


def test_areas_and_drops_equal_those_of_torchcam(scene: SimpleNamespace) -> None:
    ours = removal_metrics(scene.judge, scene.x, scene.heat, scene.p, steps=8, baseline="zero").values
    masked = masking_metrics(scene.judge, scene.x, scene.heat, scene.p)
    least = float(scene.p.min())  # beside a guard of 1e-7 in their division
    for m in range(2):
        extractor = Extractor(scene.model, scene.heat[:, m])
        theirs = DeletionInsertionMetric(extractor, lambda z: z.softmax(1), steps=8)  # type: ignore[arg-type]
        theirs.update(scene.x)
        areas = theirs.summary()
        for name, key in (("insertion", "insertion_auc"), ("deletion", "deletion_auc")):
            assert float(ours[name][:, m].mean()) == pytest.approx(
                areas[key], abs=4 * U32
            )  # its sums are float32
        drop = ClassificationMetric(extractor, lambda z: z.softmax(1))  # type: ignore[arg-type]
        drop.update(scene.x)
        summary = drop.summary()
        assert float(masked["average_drop"][:, m].mean()) == pytest.approx(
            summary["avg_drop"], abs=1e-7 / least
        )
        assert float(masked["increase"][:, m].mean()) == summary["conf_increase"]


def single_imputer(image: Tensor, keep: Tensor) -> Tensor:
    """The reference, which knows float32 only."""
    return NoisyLinearImputer(noise=0)(image.to(torch.float32), keep).double()


def their_road(scene: SimpleNamespace, m: int, percentiles: range) -> np.ndarray:
    targets = [ClassifierOutputSoftmaxTarget(int(c)) for c in scene.judge.classes]
    cams, found = scene.heat[:, m].numpy(), []
    for percentile in percentiles:
        lerf, morf = (
            PerturbationConfidenceMetric(kind(percentile, single_imputer))(
                scene.x, cams, targets, scene.model
            )
            for kind in (RemoveLeastRelevantFirst, RemoveMostRelevantFirst)
        )
        found.append((lerf - morf) / 2)
    return np.mean(found, axis=0)


def test_road_equals_the_reference_where_no_pixels_are_equal(
    scene: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system solved to the end, as the reference does, which then rounds the image to float32."""
    monkeypatch.setattr(faithfulness, "noise_like", lambda images, seed: torch.zeros_like(images[:1]))
    monkeypatch.setattr(imputation, "TOLERANCE", 1e-12)
    fractions = [0.1, 0.3, 0.5, 0.7, 0.9]  # of 256 pixels: where percentile and rounding are the same count
    x = scene.x.clone().requires_grad_()
    p = scene.model(x).softmax(1).gather(1, scene.judge.classes[:, None])
    (slope,) = torch.autograd.grad(p.sum(), x)
    steepest = float(slope.abs().flatten(1).sum(1).max())
    bound = (
        10 * steepest * float(scene.x.abs().max()) * U32 + 4 * U32
    )  # altered images may be ten times steeper
    ours = removal_metrics(scene.judge, scene.x, scene.heat, scene.p, fractions=fractions).values["road"]
    for m in range(2):
        assert np.abs(ours[:, m].numpy() - their_road(scene, m, range(10, 100, 20))).max() <= bound


def test_on_equal_pixels_the_reference_removes_everything_and_we_what_was_asked() -> None:
    """A hot spot on zeros: below the share of zeros each percentile is 0, and `mask < 0` keeps nothing."""
    heat = torch.zeros(1, 1, SIDE, SIDE)
    heat[..., 4:7, 4:7] = tie_free(1, 1, 3, 3) + 0.5
    removed = []

    def note(image: Tensor, keep: Tensor) -> Tensor:
        removed.append(float((keep == 0).float().mean()))
        return image

    for percentile in (10, 50, 90):
        RemoveMostRelevantFirst(percentile, note)(images(1, SIDE)[0], heat[0, 0])
    assert removed == [1.0, 1.0, 1.0]
    ranking = faithfulness.Ranking.of(heat)
    assert [ranking.count(f) / ranking.pixels for f in (0.1, 0.5, 0.9)] == pytest.approx(
        [0.1, 0.5, 0.9], abs=0.002
    )


def test_drop_is_relative_here_and_absolute_in_grad_cams_metric(scene: SimpleNamespace) -> None:
    targets = [ClassifierOutputSoftmaxTarget(int(c)) for c in scene.judge.classes]
    theirs = DropInConfidence()(scene.x, scene.heat[:, 0].numpy(), targets, scene.model)
    ours = masking_metrics(scene.judge, scene.x, scene.heat, scene.p)["average_drop"][:, 0]
    assert theirs.max() > 0.01
    assert (ours * scene.p).tolist() == pytest.approx(theirs.tolist(), abs=2 * U32)  # the peer's are float32


def test_a_map_of_ones_drops_nothing_and_gains_nothing(scene: SimpleNamespace) -> None:
    values = masking_metrics(scene.judge, scene.x, torch.ones(4, 1, SIDE, SIDE), scene.p)
    assert values["average_drop"].abs().max() < SAME
    assert values["average_gain"].abs().max() < SAME


def test_batch_size_and_order_do_not_matter(scene: SimpleNamespace) -> None:
    whole = removal_metrics(scene.judge, scene.x, scene.heat, scene.p).values
    turned = torch.tensor([2, 0, 3, 1])
    judge = Judge(scene.model, scene.judge.classes[turned], chunk=3)
    other = removal_metrics(judge, scene.x[turned], scene.heat[turned], scene.p[turned]).values
    for name, value in whole.items():
        assert torch.allclose(value[turned], other[name], atol=SAME), name


def test_few_steps_come_near_to_many(scene: SimpleNamespace) -> None:
    few, many = (
        removal_metrics(scene.judge, scene.x, scene.heat, scene.p, steps=s).values["deletion"]
        for s in (10, 64)
    )
    assert float((few - many).abs().mean()) < 0.03


def test_area_of_uneven_counts() -> None:
    curve = torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64)
    assert float(area(curve, [0, 1, 4])) == pytest.approx(0.25 * 0.75 + 0.75 * 0.25)
