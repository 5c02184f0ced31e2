"""On shapes whose truth is known, by a network that was never poisoned: known orderings must hold.

The images, the weights and all draws are fixed and the sums run in double precision, so that no ordering
changes from machine to machine. Eight images show the means; the long run adds that they differ by no chance.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from scipy import stats

from camray.cam import find_target_layer
from camray.measure.agreement import pair_agreement
from camray.measure.localisation import max_box_acc_v2
from camray.measure.scores import Batch, Copies, Scores, score_batch
from camray.measure.statistics import kendall_w, win_rate
from demo import hans64, train
from tests.cam.tolerance import SAME, double_precision

METHODS = ["gradcam", "hirescam", "layercam", "eigencam"]
ORDER = [*METHODS, "random", "center", "sobel"]
Values = dict[str, dict[str, np.ndarray]]


@pytest.fixture(scope="module", params=[8, pytest.param(24, marks=pytest.mark.slow)])
def count(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def found(count: int) -> Scores:
    with double_precision():
        return scored(count)


def scored(count: int) -> Scores:
    folder = Path(hans64.__file__).parent / "models" / "hans64-clean"
    about = json.loads((folder / "config.json").read_text())
    model = timm.create_model(about["architecture"], num_classes=6, **about["model_args"]).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.double()
    samples = [hans64.render(0, "test", i, tagged=False, decoy=False) for i in range(count)]
    x = train.normalise(torch.stack([torch.from_numpy(s.image).permute(2, 0, 1) for s in samples])).double()
    layer = find_target_layer(model, (3, 64, 64))
    boxes = [torch.tensor([s.box], dtype=torch.float64) for s in samples]
    regions = torch.stack([torch.from_numpy(s.mask) for s in samples])
    batch = Batch(x, regions=regions, boxes=boxes)
    return score_batch(model, batch, layer, METHODS, copies=Copies.of(model, x))


@pytest.fixture(scope="module")
def values(found: Scores) -> Values:
    """metric -> method -> one value an image, nan where there is none."""
    methods = [method for method, _ in found.maps.keys]
    return {metric: dict(zip(methods, v.T, strict=True)) for metric, v in found.values.items()}


def mean(values: Values, metric: str, method: str) -> float:
    return float(np.nanmean(values[metric][method]))


@pytest.mark.parametrize("metric", ["insertion", "road", "energy_pointing", "pxap"])
@pytest.mark.parametrize("control", ["random", "center", "sobel"])
def test_grad_cam_is_above_every_control(values: Values, count: int, metric: str, control: str) -> None:
    ours, theirs = values[metric]["gradcam"], values[metric][control]
    assert mean(values, metric, "gradcam") > mean(values, metric, control)
    assert win_rate(ours, theirs) > 0.5
    if count >= 24:  # two methods as good as each other would pass once in twenty times
        both = np.isfinite(ours) & np.isfinite(theirs)
        assert stats.wilcoxon(ours[both], theirs[both], alternative="greater").pvalue < 0.05


def test_center_is_a_strong_control_and_sobel_beats_random(values: Values) -> None:
    for metric in ("insertion", "road"):
        ordered = [mean(values, metric, m) for m in ("gradcam", "center", "sobel", "random")]
        assert ordered == sorted(ordered, reverse=True), metric


def test_enrichment_is_far_above_even_heat(values: Values, count: int) -> None:
    assert mean(values, "enrichment", "gradcam") >= 2
    above = mean(values, "pointing", "gradcam") - mean(values, "pointing", "center")
    assert above > 0 or (above == 0 and count < 24)  # of few images both hit all


def test_methods_that_do_not_see_the_class_are_found_out(values: Values) -> None:
    assert mean(values, "class_sensitivity", "eigencam") == pytest.approx(1)
    assert mean(values, "class_sensitivity", "gradcam") <= 0.2
    assert mean(values, "mprt_head", "eigencam") == pytest.approx(1)  # nothing of the head is in it
    assert mean(values, "mprt_head", "gradcam") <= 0.2
    assert mean(values, "mprt_head", "layercam") >= 0.5  # passes localisation, hardly notices the head


def test_a_map_that_ignores_the_image_is_perfectly_stable(values: Values) -> None:
    assert mean(values, "max_sensitivity", "center") == 0
    assert mean(values, "max_sensitivity", "gradcam") < mean(values, "max_sensitivity", "random")


def test_some_metrics_tell_methods_apart_better_than_others(values: Values) -> None:
    def reliability(metric: str) -> float:
        return kendall_w(
            np.stack([values[metric][m] for m in ("gradcam", "layercam", "random", "center", "sobel")], 1)
        )

    assert reliability("road") > 0.4
    assert reliability("deletion") > 0.4
    assert reliability("increase") < 0.3


def test_dead_maps_are_counted(found: Scores, count: int) -> None:
    dead = (found.states["road"] == "dead").sum(0)
    assert dead[ORDER.index("random")] > 0  # a negative sum of channels is nowhere hot
    assert dead.sum() == dead[ORDER.index("random")]
    assert all(v.shape == (count, 7) for v in found.values.values())


def test_twins_share_their_altered_images(found: Scores, values: Values, count: int) -> None:
    assert pair_agreement(found.maps.shown)["distance"][:, 0, 1].max() < SAME
    assert np.allclose(values["road"]["gradcam"], values["road"]["hirescam"], rtol=0, atol=SAME)
    alone = count * (2 * 10 - 1 + 2 * 4 + 1)  # per map: two curves, sharing the end; ROAD; the product
    assert found.forwards < 6.3 * alone  # seven maps, one of them free


def test_box_accuracy_is_above_the_controls(found: Scores) -> None:
    share = np.mean([hits for hits in found.hits if hits is not None], axis=0)
    score = dict(zip(ORDER, max_box_acc_v2(share), strict=True))
    assert score["gradcam"] > 1.5 * max(score[c] for c in ("random", "center", "sobel"))
