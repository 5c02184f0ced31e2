import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from camray.compare.standing import arrange, class_means, overall_rank, reliability, same_maps, standings
from camray.measure.catalogue import METRICS, ScoreStatus
from camray.measure.rows import PairRow, Row


def rows(count: int = 120, seed: int = 0) -> list[Row]:
    """A good method, a twin of it, one that knows nothing, and controls; every tenth good map is dead."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        common = rng.normal(0.5, 0.3)
        made = {"good": 0.3, "idle": 0.0, "random": 0.0, "center": 0.05, "sobel": 0.02}
        for method, gain in made.items():
            for metric, sign in (("road", 1), ("deletion", -1), ("entropy", 1)):
                dead = method == "good" and i % 10 == 0
                value = None if dead else common + sign * (gain + rng.normal(0, 0.1))
                status = ScoreStatus.DEAD if dead else ScoreStatus.OK
                found.append(Row(f"i{i:03}", method, "maps", i % 4, metric, value, status, 1))
    return found


def test_lines_count_what_has_no_value_and_mark_what_is_above_the_controls() -> None:
    sample = arrange(rows())
    lines = {(line.method, line.metric): line for line in standings(sample, 200)}
    good = lines["good", "road"]
    assert (good.images, good.dead, good.nonfinite) == (108, 12, 0)
    assert good.low < good.mean < good.high
    assert good.above_controls
    assert lines["good", "deletion"].above_controls  # low is good there
    assert lines["idle", "road"].above_controls is False
    assert lines["center", "road"].above_controls is None
    assert lines["good", "entropy"].above_controls is None
    values = sample.values["road"][:, 0]
    by_class = [np.nanmean(values[sample.classes == c]) for c in range(4)]
    assert good.class_mean == pytest.approx(np.mean(by_class))
    assert class_means(sample, "road").shape == (4, 5)


def test_order_of_rows_changes_nothing() -> None:
    some = rows(30)
    one = standings(arrange(some), 50)
    other = standings(arrange(sorted(some, key=lambda r: (r.metric, r.image), reverse=True)), 50)
    key = {(line.method, line.metric): line for line in other}
    for line in one:
        twin = key[line.method, line.metric]
        assert (line.images, line.above_controls) == (twin.images, twin.above_controls)
        assert (line.mean, line.low, line.high) == pytest.approx((twin.mean, twin.low, twin.high))


def test_overall_rank_and_reliability() -> None:
    sample = arrange(rows())
    ranks = overall_rank(sample)
    assert min(ranks, key=lambda m: ranks[m]) == "good"
    assert reliability(sample)["road"] > 0.3


def test_one_map_under_several_names_is_one_group() -> None:
    def pair(a: str, b: str, value: float | None, image: str = "x") -> PairRow:
        return PairRow(image, a, "maps", b, "maps", "distance", value)

    pairs = [
        pair("cam", "gradcam", 1e-6), pair("cam", "hirescam", 2e-6), pair("gradcam", "hirescam", 1e-6),
        pair("cam", "eigencam", 1e-6), pair("cam", "eigencam", 0.4, "y"), pair("gradcam", "eigencam", 1e-6),
        pair("cam", "dead", None),
    ]  # fmt: skip
    assert same_maps(pairs, ["cam", "gradcam", "eigencam", "hirescam", "dead"]) == [
        ("cam", "gradcam", "hirescam")
    ]


def test_two_layers_are_told_apart() -> None:
    some = rows(8)
    both = some + [
        Row(r.image, r.method, "early", r.target_class, r.metric, r.value, r.status, 1) for r in some
    ]
    assert set(arrange(both).methods) >= {"good @ maps", "good @ early"}
    assert len(standings(arrange(both), 20)) == 2 * len(standings(arrange(some), 20))


def test_a_table_can_be_read_without_torch() -> None:
    code = "import sys, camray.compare.standing; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_names_every_metric_and_status() -> None:
    page = (Path(__file__).parents[2] / "docs" / "comparison.md").read_text()
    for name in [*METRICS, *ScoreStatus]:
        assert f"`{name}`" in page, name
