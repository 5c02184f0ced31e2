"""The recommendation follows its rules: controls first, then the class, then ranks, then cost."""

from typing import Any

import pytest

from camray.compare.advice import advise

METHODS = ["good", "dear", "blind", "weak", "random", "center", "sobel"]


def tree(**change: Any) -> dict[str, Any]:
    def line(method: str, metric: str, above: bool | None, mean: float = 0.5) -> dict[str, Any]:
        return {
            "method": method,
            "metric": metric,
            "above_controls": above,
            "mean": mean,
            "low": 0.4,
            "high": 0.6,
        }

    lines = [
        line(m, metric, None if m in METHODS[4:] else m != "weak")
        for m in METHODS
        for metric in ("road", "insertion")
    ]
    lines += [line(m, "class_sensitivity", None, 1.0 if m == "blind" else 0.1) for m in METHODS]
    ranks = {"mean": [2.0, 1.5, 1.0, 4.0, 6.0, 5.0, 6.0], "critical_difference": 1.0}
    return {
        "images": 100, "methods": METHODS, "controls": METHODS[4:], "groups": [], "lines": lines,
        "overall": dict(zip(METHODS, ranks["mean"], strict=True)),
        "ranks": {"road": ranks, "insertion": ranks},
        "cost": {m: {"work": 50.0 if m == "dear" else 2.0} for m in METHODS},
    } | change  # fmt: skip


def test_the_cheaper_of_two_equals_is_recommended_and_the_others_told_why() -> None:
    found = advise(tree())
    assert found["method"] == "good"
    assert set(found["rejected"]) == {"blind", "weak"}
    assert "does not see the class" in found["rejected"]["blind"]
    text = " ".join(found["sentences"])
    assert "dear has the best mean rank (1.50 against 2.00)" in text
    assert "50.0 forwards against 2.0" in text


def test_a_clear_winner_is_worth_its_price() -> None:
    ranks = {"mean": [3.5, 1.0, 2.0, 4.0, 6.0, 5.0, 6.0], "critical_difference": 1.0}
    assert advise(tree(ranks={"road": ranks, "insertion": ranks}))["method"] == "dear"


def test_twins_are_named_and_not_ranked() -> None:
    found = advise(tree(groups=[["good", "dear"]]))
    assert found["method"] == "good"
    assert "(dear give the same map here)" in found["sentences"][0]


@pytest.mark.parametrize(("images", "says"), [(100, "None of the 1 methods"), (12, "12 images are too few")])
def test_nothing_is_recommended_where_nothing_beats_the_controls(images: int, says: str) -> None:
    some = [m for m in METHODS if m not in ("good", "dear", "blind")]
    found = advise(tree(methods=some, images=images))
    assert found["method"] is None
    assert says in found["sentences"][0]
