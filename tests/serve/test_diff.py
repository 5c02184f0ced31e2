"""`camray diff`: counts are those of a plain loop, tests the textbook's, chance is called no change."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

import camray
from camray.cli.main import main
from camray.errors import ExitCode, UsageError
from camray.serve.diff import Difference, cosine, differ, parse_gate, worst


def pair(label: str, a: str, b: str, sure: float = 0.9) -> dict[str, Any]:
    """An image of both models, answered `a` and `b`."""
    said: dict[str, Any] = {"shard": "s", "index": 0, "content_sha256": "c"}
    for side, answer in (("a", a), ("b", b)):
        said |= {f"member_{side}": "m", f"label_{side}": label, f"correct_{side}": answer == label,
                 f"predicted_class_{side}": "xyz".index(answer), f"predicted_label_{side}": answer,
                 f"confidence_{side}": sure, f"heat_in_box_{side}": None}  # fmt: skip
    return said


def world(seed: int, broken: float = 0.0, fixed: float = 0.0) -> list[dict[str, Any]]:
    """600 images of three classes; both models miss 10 % of their own; of class x more is broken or fixed."""
    rng, pairs = random.Random(seed), []
    for i in range(600):
        label = "xyz"[i % 3]
        other = "yzx"[i % 3]
        a, b = (other if rng.random() < 0.1 else label for _ in "ab")
        if label == "x" and rng.random() < broken:
            b = other
        if label == "x" and rng.random() < fixed:
            b = label
        pairs.append(pair(label, a, b))
    return pairs


def found(pairs: list[dict[str, Any]]) -> Difference:
    return differ("a", "b", pairs, {})


def test_numbers_are_those_of_the_textbook() -> None:
    """14 broken and 3 fixed of 100: McNemar's exact p, and Clopper and Pearson's interval."""
    pairs = [pair("x", "x", "y")] * 14 + [pair("x", "y", "x")] * 3 + [pair("x", "x", "x")] * 83
    everything, of_x = found(pairs).changes
    p = 2 * sum(math.comb(17, k) for k in range(4)) / 2**17
    assert of_x.p == pytest.approx(2 * p)  # Holm: two tests
    assert everything.verdict == of_x.verdict == ""
    low, high = beta.ppf(0.025, 14, 4), beta.ppf(0.975, 15, 3)
    assert (everything.low, everything.high) == pytest.approx((0.17 * (1 - 2 * high), 0.17 * (1 - 2 * low)))
    assert (everything.right_a, everything.right_b) == pytest.approx((0.97, 0.86))


def test_a_class_that_got_worse_is_named_and_no_other() -> None:
    for seed in range(10):
        told = {change.label: change.verdict for change in found(world(seed, broken=0.25)).changes}
        assert told["x"] == "worse"
        assert (told["y"], told["z"]) == ("", "")


def test_a_class_that_got_better_is_no_alarm() -> None:
    told = found(world(1, fixed=1.0))
    assert {c.label: c.verdict for c in told.changes}["x"] == "better"
    assert not told.is_worse


def test_two_equally_good_models_differ_by_chance_alone() -> None:
    """Of 100 pairs of models that err independently, at most two are told better or worse."""
    alarms = sum(any(change.verdict for change in found(world(seed)).changes) for seed in range(100))
    assert alarms <= 2


def test_without_labels_nothing_is_judged() -> None:
    pairs = [{**p, "correct_a": None, "correct_b": None, "label_a": None} for p in world(0)]
    told = found(pairs)
    assert told.changes == []
    assert not told.is_worse
    assert told.rates["flip_rate"] > 0.1


def test_heat_in_boxes_is_compared_by_image() -> None:
    shares = [(0.5, 0.6), (0.2, 0.5), (0.9, 0.8), (0.4, None)]
    pairs = [pair("x", "x", "x") | {"heat_in_box_a": a, "heat_in_box_b": b} for a, b in shares]
    images, mean, low, high, p = found(pairs).on_object
    assert (images, mean) == (3, pytest.approx(0.1))
    half = 1.96 * np.std([0.1, 0.3, -0.1]) / math.sqrt(3)
    assert (low, high) == pytest.approx((0.1 - half, 0.1 + half))
    assert p == pytest.approx(0.75)  # ranks 1.5, 3 and -1.5: of the 8 signs 6 are as far out


def test_cosine_by_hand() -> None:
    a = np.array([[1.0, 0, -5], [0, 0, 0]])
    assert cosine(a, np.array([[2.0, 0, 0], [0, 0, 0]])) == pytest.approx(1)
    assert cosine(a, np.array([[3.0, 0, 4], [0, 0, 0]])) == pytest.approx(0.6)
    fine = np.kron(a, np.ones((2, 2)))
    assert cosine(fine, a) == pytest.approx(1)
    assert math.isnan(cosine(-np.ones((2, 2)), a))


def test_newly_wrong_and_sure_comes_first() -> None:
    pairs = [pair("x", "x", "x"), pair("x", "y", "x"), pair("x", "x", "y", 0.6), pair("x", "x", "z", 0.8)]
    shown = [p["predicted_label_b"] for p in worst(pairs, {0: 0.2})]
    assert shown == ["z", "y", "x", "x"]


def test_conditions() -> None:
    told = found(world(0, broken=0.5))
    assert parse_gate("worse, flip_rate>5%")(told) == ["worse", "flip_rate>5%"]
    assert parse_gate("moved_rate>0.1")(told) == []
    with pytest.raises(UsageError, match="no condition"):
        parse_gate("better")
    with pytest.raises(UsageError, match="a share above 1"):
        parse_gate("flip_rate>5")  # meant are five of a hundred: it could never fire


def test_two_models_of_the_demonstration(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted again with a plain loop over the records; the page is one file that fetches nothing."""
    out, tar = tmp_path / "out", str(demo / "archive" / "hans64-00000.tar")
    with pytest.raises(SystemExit):
        main(["diff"])
    for model in ("clean", "poisoned"):
        words = ["explain", tar, str(out), "--engine", "here", "--overlays", "none"]
        assert main([*words, "--model", str(demo / "models" / f"hans64-{model}")]) == ExitCode.DONE
        if model == "clean":
            assert main(["diff", str(out)]) == ExitCode.USAGE
    rows = camray.open_records(str(out), "all").to_table().to_pylist()
    new = camray.open_records(str(out)).to_table().to_pylist()[0]["weights_sha256"]
    sides: dict[bool, dict[Any, Any]] = {True: {}, False: {}}
    for row in rows:
        sides[row["weights_sha256"] == new][row["member"]] = row
    flips = sum(
        sides[False][m]["predicted_class"] != row["predicted_class"] for m, row in sides[True].items()
    )
    broken = sum(sides[False][m]["correct"] and not row["correct"] for m, row in sides[True].items())
    capsys.readouterr()
    page = tmp_path / "diff.html"
    asked = ["diff", str(out), "--to", str(page), "--fail-on", f"flip_rate>{(flips - 1) / 60}"]
    assert main(asked) == (ExitCode.GATE if flips else ExitCode.DONE)
    said = capsys.readouterr().out
    assert "60 images have an answer of both; 0 only of" in said
    assert f"{broken} broken" in said
    assert f"{flips / 60:.2%} of the answers differ" in said
    text = page.read_text()
    assert text.count('class="worse">broken<') == broken
    assert text.count("data:image/jpeg") >= 2 * flips
    assert "http" not in text.replace('http-equiv="', "")
