"""Images put together are given the causes, and tell of fragile answers, as each of them alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from camray.audit.alike import Alike, table_of_images
from camray.audit.causes import BOTH, Excess, Seen, causes, fragile_of
from camray.audit.history import Key, Span

LOOKS = (
    "fill", "carry", "thing", "carry_rim", "carry_surround", "surround", "border", "frame", "detail", "noise",
    "levels", "carry_levels",
)  # fmt: skip


def drawn(seed: int) -> tuple[dict[Key, Seen], list[Excess]]:
    """Draw images of five answers, looked at in some ways, and what three of the answers are named for."""
    chance = np.random.default_rng(seed)
    images: dict[Key, Seen] = {}
    for i in range(600):
        looks = [name for name in LOOKS if chance.random() < 0.7]
        drops = {name: float(np.float32(chance.choice([0.05, 0.2, 0.35, 0.6]))) for name in looks}
        same, night = float(np.float32(chance.choice([0.5, 0.95]))), int(chance.integers(0, 9))
        images["s", i, f"{i % 500}"] = Seen(int(chance.integers(5)), False, night, same, 0.25, drops)
        one = images["s", i, f"{i % 500}"]
        one.is_blurred = bool(chance.random() < 0.2)
        if "thing" in looks:
            one.thing_of, one.is_flipped = int(chance.integers(5)), bool(chance.random() < 0.2)
    tests = ["carry", "repeat", "border", "carry_surround", "frame", "detail", "levels"]
    named = [(c, str(name)) for c in range(3) for name in chance.choice(tests, 2, replace=False)]
    return images, [Excess(c, name, 100, 60, BOTH, 9.0, 0.0, True) for c, name in named]


@pytest.mark.parametrize("seed", range(12))
def test_one_that_stands_for_many_is_given_what_each_is_given(seed: int) -> None:
    images, found = drawn(seed)
    blurred = {key for key, image in images.items() if image.is_blurred}
    alike = Alike(table_of_images(images), blurred, 0.3)
    span = Span(2, 6)
    inside = {key: image for key, image in images.items() if span.holds(image.night)}
    ones, many = alike.within(span)
    assert sum(many.values()) == len(inside)
    assert fragile_of(ones.values(), 0.3, many.values()) == fragile_of(inside.values(), 0.3)
    given = {}
    answers = Counter(image.answer for image in inside.values())
    for one, (cause, by) in causes(ones, found, 0.3, answers, many).items():
        for key, drop, night in alike.behind(one, span, 3, by, take=True):
            assert (drop, night) == (images[key].drops[by], images[key].night)
            given[key] = cause, by
        assert {night for *_, night in alike.behind(one, span, 0, by, take=False)} <= {2}
    alone = causes(inside, found, 0.3, answers)
    assert alone
    assert given == {key: cause for key, cause in alone.items() if images[key].night >= 3}
    assert alike.blurred.keys() == blurred
