"""Images put together are given the causes, and tell of fragile answers, as each of them alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from camray.audit.alike import Alike, table_of_images
from camray.audit.causes import Excess, Seen, causes, fragile_of
from camray.audit.history import Key, Span

LOOKS = (  # so few at once that many images say the same, and what the answers are named for
    (("fill", "carry", "carry_rim"), ("carry", "repeat")),
    (("fill", "thing"), ("repeat",)),
    (("border", "carry_rim"), ("border",)),
    (("border",), ("border",)),
    (("surround", "carry_surround", "frame"), ("carry_surround", "frame")),
    (("levels", "carry_levels", "detail"), ("levels", "detail")),
)


def drawn(seed: int) -> tuple[dict[Key, Seen], list[Excess]]:
    """Draw images of five answers, looked at in some ways, and what three of the answers are named for."""
    chance = np.random.default_rng(seed)
    looks, tests = LOOKS[seed % len(LOOKS)]
    images: dict[Key, Seen] = {}
    for i in range(2000):
        drops = {
            n: float(np.float32(chance.choice([0.05, 0.2, 0.35, 0.6])))
            for n in looks
            if chance.random() < 0.7
        }
        same, night = float(np.float32(chance.choice([0.5, 0.95]))), int(chance.integers(0, 9))
        images["s", i, f"{i % 1500}"] = Seen(int(chance.integers(5)), False, night, same, 0.25, drops)
        one = images["s", i, f"{i % 1500}"]
        one.is_blurred = bool(chance.random() < 0.4)
        if "thing" in drops:
            one.thing_of, one.is_flipped = int(chance.integers(5)), bool(chance.random() < 0.2)
    named = [(c, name) for c in range(3) for name in tests]
    return images, [Excess(c, name, 100, 60, 0.1, 9.0, 0.0, True) for c, name in named]


def told(image: Seen) -> tuple[object, ...]:
    """Give all that the rules ask of an image."""
    fell = {name: drop > 0.3 for name, drop in image.drops.items()}
    tells = image.border_tells(image.drops.get("border", 0.0), 0.3)
    thing = image.blamed("thing"), image.is_flipped
    return image.answer, image.repeats, image.is_blurred, fell, image.moves("levels", 0.3), tells, thing


@pytest.mark.parametrize("seed", range(12))
def test_one_that_stands_for_many_is_given_what_each_is_given(seed: int) -> None:
    images, found = drawn(seed)
    blurred = {key for key, image in images.items() if image.is_blurred}
    alike, span = Alike(table_of_images(images), blurred, 0.3), Span(2, 6)
    inside = {key: image for key, image in images.items() if span.holds(image.night)}
    ones, many = alike.within(span)
    assert sum(many.values()) == len(inside) > len(ones)
    for one, count in many.items():
        behind = [key for key, *_ in alike.behind(one, span, 0, LOOKS[seed % len(LOOKS)][0][0], take=False)]
        assert len(behind) == count
        assert all(told(images[key]) == told(ones[one]) for key in behind)
    assert fragile_of(ones.values(), 0.3, many.values()) == fragile_of(inside.values(), 0.3)
    given: dict[Key, tuple[str, str]] = {}
    answers = Counter(image.answer for image in inside.values())
    for one, (cause, by) in causes(ones, found, 0.3, answers, many).items():
        for key, drop, night in alike.behind(one, span, 3, by, take=True):
            assert (drop, night) == (images[key].drops[by], images[key].night)
            given[key] = cause, by
        assert {night for *_, night in alike.behind(one, span, 0, by, take=False)} <= {2}
    alone = causes(inside, found, 0.3, answers)
    assert given == {key: cause for key, cause in alone.items() if images[key].night >= 3}
    assert alike.blurred.keys() == blurred
