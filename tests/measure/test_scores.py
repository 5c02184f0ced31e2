import math
from collections import Counter
from dataclasses import replace

import pytest
import timm
import torch
from torch import Tensor, nn

from camray.cam import TargetLayer, find_target_layer
from camray.errors import UsageError
from camray.measure.agreement import pair_agreement
from camray.measure.catalogue import METRICS
from camray.measure.cost import count_passes, measure_cost
from camray.measure.maps import make_maps
from camray.measure.registry import CONTROLS, ScoreStatus
from camray.measure.scores import Batch, Copies, Scores, Settings, score_batch
from tests.cam.tolerance import SAME
from tests.measure.measure_toys import Small, images, rows

DOUBLE = pytest.mark.usefixtures("double")

METHODS = ["gradcam", "hirescam", "layercam", "eigencam"]
METHOD_OF = {name: j for j, name in enumerate([*METHODS, *CONTROLS])}
FAST = Settings(steps=4, fractions=(0.3,), samples=1)
SIDE = 32
Table = dict[tuple[str, str, str], tuple[float | None, str]]


def model_and_layer(seed: int = 0) -> tuple[nn.Module, TargetLayer]:
    model = Small(seed).eval()
    return model, find_target_layer(model, (3, SIDE, SIDE), "maps")


def batch(count: int = 4, marked: bool = True) -> Batch:
    boxes = [torch.tensor([[4.0, 4, 20, 24]])] * (count - 1) + [torch.zeros(0, 4)]
    return Batch(images(count, SIDE), boxes=boxes if marked else None)


IDS = ["i0", "i1", "i2", "i3"]


def table(scores: Scores, ids: list[str] | None = None) -> Table:
    made = rows(scores, ids or IDS[: len(scores.classes)])
    return {(r.image, r.method, r.metric): (r.value, r.status) for r in made}


def test_every_image_method_and_metric_has_a_row() -> None:
    model, layer = model_and_layer()
    x = batch()
    scores = score_batch(model, x, layer, METHODS, copies=Copies.of(model, x.images), settings=FAST)
    found = rows(scores, IDS)
    assert len(found) == 4 * 7 * len(METRICS)
    assert {r.method for r in found} == {*METHODS, *CONTROLS}  # controls are always there
    assert {r.metric for r in found} == set(METRICS)
    for row in found:
        assert row.value is None or math.isfinite(row.value)
        assert math.isnan(scores.values[row.metric][int(row.image[1]), METHOD_OF[row.method]]) == (
            row.status != ScoreStatus.OK
        ), row
        needs = METRICS[row.metric].needs
        assert (row.status == ScoreStatus.NO_REGION) == (row.image == "i3" and needs in ("region", "box"))
    assert [None if hits is None else len(hits) for hits in scores.hits] == [7, 7, 7, None]


def test_without_marks_and_copies_their_metrics_have_no_rows() -> None:
    model, layer = model_and_layer()
    found = score_batch(model, batch(marked=False), layer, ["gradcam"], settings=replace(FAST, samples=0))
    left_out = {n for n, m in METRICS.items() if m.needs} | {"max_sensitivity"}
    assert set(found.values) == set(METRICS) - left_out
    assert found.hits == [None] * 4


def close(one: Table, other: Table) -> None:
    assert one.keys() == other.keys()
    for key, (value, status) in one.items():
        assert other[key][1] == status, key
        if value is not None:
            assert other[key][0] == pytest.approx(value, abs=SAME), key


@DOUBLE
def test_rows_depend_on_neither_batch_nor_order_nor_other_methods() -> None:
    model, layer = model_and_layer()
    x = batch()
    copies = Copies.of(model, x.images)

    def run(places: list[int], methods: list[str] = METHODS) -> Table:
        assert x.boxes is not None
        part = Batch(x.images[places], boxes=[x.boxes[i] for i in places])
        scores = score_batch(model, part, layer, methods, copies=copies, settings=FAST)
        return table(scores, [IDS[i] for i in places])

    whole = run([0, 1, 2, 3])
    close(whole, run([2, 3]) | run([1]) | run([0]))
    close(whole, run([3, 1, 0, 2]))
    alone = run([0, 1, 2, 3], ["eigencam"])
    close({k: v for k, v in whole.items() if k in alone}, alone)
    assert run([0, 1, 2, 3]) == whole  # the same to the last bit


@DOUBLE
def test_the_same_map_by_two_names_costs_nothing_more() -> None:
    model, layer = model_and_layer()
    x = batch(marked=False)
    one = score_batch(model, x, layer, ["gradcam"], settings=FAST)
    two = score_batch(model, x, layer, ["gradcam", "hirescam"], settings=FAST)
    assert two.forwards - one.forwards <= 4 * (1 + 1)  # the product with the map, and a rounding or so
    assert [method for method, _ in two.maps.keys[:2]] == ["gradcam", "hirescam"]
    assert pair_agreement(two.maps.shown)["distance"][:, 0, 1].max() < SAME


class Strange(nn.Module):
    """Ordinary, but an image whose first pixel is 100 gets no positive activation, and at 200 a NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Small()
        self.spot = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        mark = x[:, 0, 0, 0]
        A = self.inner.last(self.inner.first(x).relu()).relu()
        A = torch.where((mark > 50)[:, None, None, None], 0.0, A)
        A = torch.where((mark > 150)[:, None, None, None], torch.nan, A)
        return self.inner.head(self.spot(A).mean((2, 3)))


@DOUBLE
def test_dead_and_nonfinite_maps_are_rows_and_leave_their_neighbours_alone() -> None:
    model = Strange().eval()
    layer = TargetLayer("spot", "nchw")
    x = batch(3, marked=False)
    good = table(score_batch(model, x, layer, ["gradcam"], settings=FAST))
    spoilt = x.images.clone()
    spoilt[1, 0, 0, 0], spoilt[2, 0, 0, 0] = 100, 200
    found = table(score_batch(model, replace(x, images=spoilt), layer, ["gradcam"], settings=FAST))
    assert found.keys() == good.keys()
    for (image, method, metric), (value, status) in found.items():
        if image == "i0":
            assert value == pytest.approx(good[image, method, metric][0], abs=SAME)
        elif image == "i1":
            assert status == ("ok" if method in ("center", "sobel") else "dead"), (method, metric)
        else:
            assert status == "nonfinite"
            assert value is None


def test_an_image_without_its_target_is_a_row_too() -> None:
    model, layer = model_and_layer()
    x = replace(batch(3, marked=False), labels=torch.tensor([1, -1, 2]))
    found = score_batch(model, x, layer, ["gradcam"], target="label", settings=FAST)
    made = rows(found, IDS[:3])
    states = {image: Counter(r.status for r in made if r.image == image) for image in IDS[:3]}
    assert set(states["i1"]) == {ScoreStatus.NO_TARGET}
    assert ScoreStatus.NO_TARGET not in states["i0"]
    assert {r.target_class for r in made if r.image == "i2"} == {2}


def test_two_layers_are_two_lines_each() -> None:
    model, layer = model_and_layer()
    first = find_target_layer(model, (3, SIDE, SIDE), "first")
    found = score_batch(model, batch(2, False), [first, layer], ["gradcam"], settings=FAST)
    assert {key for key in found.maps.keys if key[0] == "gradcam"} == {
        ("gradcam", "first"),
        ("gradcam", "maps"),
    }


@pytest.mark.parametrize(
    ("target", "method"), [("top:3", "gradcam"), ("above:0.5", "gradcam"), ("predicted", "dff")]
)
def test_what_is_not_one_map_of_one_class_is_refused(target: str, method: str) -> None:
    model, layer = model_and_layer()
    with pytest.raises(UsageError):
        score_batch(model, batch(2), layer, [method], target=target)


@DOUBLE
def test_a_class_blind_method_is_found_out() -> None:
    model, layer = model_and_layer()
    found = table(score_batch(model, batch(4, False), layer, METHODS, settings=FAST))
    blind = [
        found[f"i{i}", m, "class_sensitivity"][0] for i in range(4) for m in ("eigencam", "center", "sobel")
    ]
    assert blind == pytest.approx([1.0] * 12)
    sees = [found[f"i{i}", "gradcam", "class_sensitivity"][0] for i in range(4)]
    assert max(v for v in sees if v is not None) < 0.9


def test_the_model_is_left_as_found() -> None:
    model, layer = model_and_layer()
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    score_batch(model, batch(2), layer, ["gradcam"], copies=Copies.of(model, images(1, SIDE)), settings=FAST)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_passes_are_counted_and_work_is_measured_in_forwards() -> None:
    model, layer = model_and_layer()
    x = images(3, SIDE)
    classes = torch.zeros(3, 1, dtype=torch.int64)

    def explain(method: str) -> None:
        make_maps(model, x, [layer], [method], classes)

    costs = {m: measure_cost(model, x, lambda m=m: explain(m)) for m in ("center", "gradcam", "scorecam")}
    assert (costs["center"].forwards, costs["center"].backwards) == (1, 0)
    assert (costs["gradcam"].forwards, costs["gradcam"].backwards) == (1, 1)
    assert 1 < costs["scorecam"].forwards <= 1 + 12  # one per channel, equal masks once
    assert costs["center"].work == pytest.approx(1, abs=0.05)
    assert costs["scorecam"].work == pytest.approx(costs["scorecam"].forwards, rel=0.05)
    assert all(c.seconds > 0 and c.peak_bytes is None for c in costs.values())
    with count_passes(model) as passes:
        model(x).sum().backward()
        model(x[:1])
    assert (passes.forwards, passes.backwards) == (4, 3)


class OneLogit(Small):
    def __init__(self) -> None:
        super().__init__(classes=1)


@pytest.mark.parametrize("name", ["test_vit", "one logit"])
def test_tokens_and_a_single_logit(name: str) -> None:
    torch.manual_seed(0)
    model = OneLogit().eval() if name == "one logit" else timm.create_model(name, num_classes=4).eval()
    side = SIDE if name == "one logit" else model.default_cfg["input_size"][1]
    x = Batch(images(2, side))
    layer = find_target_layer(model, (3, side, side), "maps" if name == "one logit" else None)
    found = score_batch(model, x, layer, ["gradcam"], copies=Copies.of(model, x.images), settings=FAST)
    assert set(found.values) == {n for n, m in METRICS.items() if m.needs not in ("region", "box")}
    center = [method for method, _ in found.maps.keys].index("center")
    assert set(found.states["road"][:, center]) == {ScoreStatus.OK}


def test_altered_images_may_run_in_half_precision() -> None:
    model, layer = model_and_layer()
    x = batch(2, False)
    full, half = (
        table(score_batch(model, x, layer, ["gradcam"], settings=replace(FAST, autocast=kind)))
        for kind in (None, torch.bfloat16)
    )
    for key, (value, status) in full.items():
        assert half[key][1] == status
        if value is not None and key[2] in ("insertion", "road", "average_drop"):
            # a probability is off by five roundings of bfloat16 (2^-8 each) at most, one for each layer
            assert half[key][0] == pytest.approx(value, abs=5 * 2**-8)
            assert half[key][0] != value
        elif value is not None and not METRICS[key[2]].needs and key[2] in ("gini", "class_sensitivity"):
            assert half[key][0] == value
