"""What a metric says of itself is true: its range, what it reads, its place in the list."""

import subprocess
import sys

import numpy as np
import pytest

from camray.cam import find_target_layer
from camray.measure.catalogue import METRICS
from camray.measure.registry import metric
from camray.measure.scores import Batch, Copies, Settings, score_batch
from camray.measure.sparsity import gini
from tests.measure.measure_toys import Small, box, images


def test_values_lie_within_the_range_that_is_told() -> None:
    model, x = Small().eval(), images(6, 32)
    layer = find_target_layer(model, (3, 32, 32), "maps")
    batch = Batch(x, boxes=[box(2 * i, i, 20 + i, 24) for i in range(6)])
    scores = score_batch(
        model, batch, layer, ["gradcam", "layercam"], copies=Copies.of(model, x), settings=Settings(steps=4)
    )
    assert set(scores.values) == set(METRICS)
    for name, values in scores.values.items():
        low, high = METRICS[name].range
        assert np.nanmin(values) >= low - 1e-9, name
        assert np.nanmax(values) <= high + 1e-9, name


def test_a_metric_is_left_out_where_what_it_needs_is_not_there() -> None:
    model, x = Small().eval(), images(2, 32)
    layer = find_target_layer(model, (3, 32, 32), "maps")
    found = score_batch(model, Batch(x), layer, ["gradcam"], settings=Settings(steps=2, samples=0))
    assert set(found.values) == {name for name, m in METRICS.items() if not m.needs}


def test_the_price_follows_the_settings() -> None:
    few = Settings(steps=4, fractions=(0.3,), samples=1)
    prices = {name: METRICS[name].cost(few) for name in ("insertion", "road", "road_morf", "max_sensitivity")}
    assert prices == {"insertion": 4, "road": 2, "road_morf": 1, "max_sensitivity": 1}
    assert (METRICS["average_drop"].cost(few), METRICS["gini"].cost(few)) == (1, 0)


def test_a_name_is_given_once() -> None:
    about = METRICS["gini"]
    facts = {name: getattr(about, name) for name in ("group", "doc", "weakness", "formula", "reads", "range")}
    with pytest.raises(ValueError, match="two metrics gini"):
        metric("gini", **facts)(gini)


def test_the_order_does_not_depend_on_what_is_imported_first() -> None:
    code = "import camray.measure.sparsity, camray.measure.catalogue as c; print(*c.METRICS)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(METRICS)
