"""Causes of classes and of images, against cases worked by hand."""

from __future__ import annotations

from collections import Counter

import pytest
from scipy.stats import false_discovery_control, norm

from camray.audit.causes import Seen, causes, compared, decided, excesses
from camray.audit.looks import allowed


def test_a_class_stands_out_by_binomial_error_and_the_spread_of_the_classes() -> None:
    """Rates .05 .10 .10 .15 .50 of 40: the median is .10, the MAD .05."""
    classes = {c: Counter({True: n, False: 40 - n}) for c, n in enumerate((2, 4, 4, 6, 20))}
    found = decided(compared("cast", classes))
    share = 21 / 42
    by_hand = (0.5 - 0.1) / (share * (1 - share) / 40 + (1.4826 * 0.05) ** 2) ** 0.5
    assert found[4].z == pytest.approx(by_hand)
    assert [one.named for one in found] == [False] * 4 + [True]
    assert [one.q for one in found] == pytest.approx(false_discovery_control([norm.sf(o.z) for o in found]))
    assert not any(one.named for one in decided(compared("carry", classes)))  # objects are carried too


def test_too_few_classes_or_images_name_nobody() -> None:
    classes = {c: Counter({True: 30 * (c == 0), False: 10}) for c in range(3)}
    assert compared("cast", classes) == []
    few = {c: Counter({True: 15 * (c == 0), False: 15 * (c > 0)}) for c in range(5)}
    assert compared("cast", few) == []


def world(count: int = 40) -> dict[tuple[str, int, str], Seen]:
    """Four answers; half of answer 0 wears a sticker, a third of answer 1 has a tint."""
    images = {}
    for i in range(4 * count):
        answer, place = divmod(i, count)
        drops = dict.fromkeys(("carry", "cast", "detail", "noise", "frame", "grey"), 0.0)
        seen = Seen(answer, is_sampled=True, same=0.5, other=0.5, drops=drops)
        if answer == 0 and place % 2:
            seen.same, seen.other = 0.95, 0.4
            drops |= {"fill": 0.8, "cast": 0.6, "grey": 0.6}  # a sticker makes everything fragile
        if answer == 1 and place % 3 == 0:
            drops["cast"] = 0.5
        if answer == 2 and place == 0:  # alone in its class
            drops |= {"cast": 0.9, "fill": 0.9}
            seen.same, seen.other = 0.9, 0.3
        images["shard", i, "sha"] = seen
    return images


def test_images_of_a_class_that_stands_out_have_its_cause_and_nobody_else() -> None:
    images = world()
    found = excesses(images.values())
    assert {(one.class_id, one.intervention) for one in found if one.named} == {(0, "repeat"), (1, "cast")}
    given = causes(images, found)
    expected = {i: ("repeated thing", "fill") for i in range(40) if i % 2}
    expected |= {40 + i: ("colour", "cast") for i in range(40) if i % 3 == 0}
    assert {key[1]: cause for key, cause in given.items()} == expected


def test_with_two_answers_an_image_needs_both_necessity_and_sufficiency() -> None:
    images = {
        ("s", 0, "a"): Seen(0, drops={"fill": 0.9, "carry": 0.8}),
        ("s", 1, "b"): Seen(0, drops={"fill": 0.9, "carry": 0.1}),
        ("s", 2, "c"): Seen(1, drops={"cast": 0.9}),
        ("s", 3, "d"): Seen(1, same=0.95, other=0.2, drops={"fill": 0.9}),
    }
    assert {key[1]: cause for key, (cause, _) in causes(images, []).items()} == {0: "place"}


def test_the_budget_is_a_quarter_of_a_large_night_and_bounded_in_a_small_one() -> None:
    assert allowed(100_000, 0.25) == 25_000
    assert allowed(1_000, 0.25) == 4_000
    assert allowed(100, 0.25) == 600
    assert allowed(100_000, 0.0) == 0
