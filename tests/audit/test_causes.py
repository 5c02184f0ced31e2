"""Causes of classes and of images, against cases worked by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import false_discovery_control, norm

from camray.audit.cause_book import CauseBook
from camray.audit.causes import Seen, causes, compared, decided, excesses, fragile_of, named_of
from camray.audit.judge import _score
from camray.audit.looks import BATTERY, allowed


def test_a_class_stands_out_by_binomial_error_and_the_spread_of_the_classes() -> None:
    """Rates .05 .10 .10 .15 .50 of 40: the median is .10, the MAD .05."""
    classes = {c: Counter({True: n, False: 40 - n}) for c, n in enumerate((2, 4, 4, 6, 20))}
    found = decided(compared("detail", classes))
    share = 21 / 42
    by_hand = (0.5 - 0.1) / (share * (1 - share) / 40 + (1.4826 * 0.05) ** 2) ** 0.5
    assert found[4].z == pytest.approx(by_hand)
    assert [one.named for one in found] == [False] * 4 + [True]
    assert [one.q for one in found] == pytest.approx(false_discovery_control([norm.sf(o.z) for o in found]))
    assert not any(one.named for one in decided(compared("carry", classes)))  # objects are carried too


def test_too_few_classes_or_images_name_nobody() -> None:
    classes = {c: Counter({True: 30 * (c == 0), False: 10}) for c in range(3)}
    assert compared("detail", classes) == []
    few = {c: Counter({True: 15 * (c == 0), False: 15 * (c > 0)}) for c in range(5)}
    assert compared("detail", few) == []


def world(count: int = 40) -> dict[tuple[str, int, str], Seen]:
    """Four answers; half of answer 0 wears a sticker, half of answer 1 has a tint."""
    images = {}
    for i in range(4 * count):
        answer, place = divmod(i, count)
        drops = dict.fromkeys(BATTERY, 0.0)
        seen = Seen(answer, is_sampled=True, same=0.5, other=0.5, drops=drops)
        if answer == 0 and place % 2:
            seen.same, seen.other = 0.95, 0.4
            drops |= {
                "fill": 0.8,
                "carry": 0.7,
                "levels": 0.6,
                "carry_levels": 0.6,
            }  # a sticker makes all fragile
        if answer == 1 and place % 2 == 0:
            drops |= {"levels": 0.5, "carry_levels": 0.2}
        if answer == 3 and place % 2:  # pale by nature: their levels do nothing for others
            drops["levels"] = 0.5
        if answer == 2 and place == 0:  # alone in its class
            drops |= {"levels": 0.9, "carry_levels": 0.9, "fill": 0.9}
            seen.same, seen.other = 0.9, 0.3
        images["shard", i, "sha"] = seen
    return images


def test_images_of_a_class_that_stands_out_have_its_cause_and_nobody_else() -> None:
    images = world()
    found = excesses(images.values())
    named = {(one.class_id, one.intervention) for one in found if one.named}
    assert named == {(0, "repeat"), (0, "carry"), (1, "levels")}
    given = causes(images, found)
    expected = {i: ("repeated thing", "fill") for i in range(40) if i % 2}
    assert {key[1]: cause for key, cause in given.items()} == expected


def test_images_of_any_answer_that_need_the_thing_have_its_cause() -> None:
    """A sticker of answer 0 away from the heat, in answers that it changes: by a fall, or another class."""
    images = world()
    cases = {(0, 0.6, False): True, (2, 0.5, False): True, (3, 0.1, True): True, (2, 0.1, False): False}
    keys = []
    for i, (answer, drop, flip) in enumerate(cases):
        keys.append(("shard", 1000 + i, "sha"))
        images[keys[-1]] = Seen(answer, drops={"thing": drop}, thing_of=0, is_flipped=flip)
    images["shard", 2000, "sha"] = Seen(2, drops={"thing": 0.9}, thing_of=1)  # of an answer that is not named
    given = causes(images, excesses(images.values()))
    found = {key: given.get(key) == ("repeated thing", "thing") for key in keys}
    assert list(found.values()) == list(cases.values())
    assert ("shard", 2000, "sha") not in given
    assert {images[key].blamed("thing") for key in keys} == {0}


def test_of_a_tint_the_class_is_told_and_no_image_condemned() -> None:
    looks = []
    for (shard, index, sha), seen in world().items():
        same = {"shard": shard, "index": index, "content_sha256": sha, "predicted_class": seen.answer}
        same |= {"sampled": True, "same": seen.same, "other": seen.other}
        looks += [same | {"intervention": name, "drop": drop} for name, drop in seen.drops.items()]
    there = [
        {name: look[name] for name in ("shard", "index", "content_sha256", "predicted_class")}
        for look in looks
    ]
    book = CauseBook(looks, 0.3)
    batch = pa.RecordBatch.from_pylist([row | {"confirm_drop": None, "run_id": "night"} for row in there])
    book.add(batch.set_column(4, "confirm_drop", pa.nulls(len(there), pa.float32())))
    cards = {(c.class_id, c.cause): c for c in book.cards(["a", "b", "c", "d"])}
    assert set(cards) == {(0, "repeated thing"), (1, "colour or contrast")}
    assert (cards[1, "colour or contrast"].images, cards[1, "colour or contrast"].looked) == (20, 40)


def test_the_queue_gives_each_cause_its_turn() -> None:
    """Sixty frames that all fall further than thirty textures: of the first fifty 25 are of each."""
    rows = []
    for i in range(500):
        answer, place = divmod(i, 100)
        drops = dict.fromkeys(BATTERY, 0.0) | {
            "frame": 0.8 * (answer == 0 and place < 60), "detail": 0.5 * (answer == 1 and place < 30),
        }  # fmt: skip
        row = {
            "shard": "s",
            "index": i,
            "content_sha256": f"{i}",
            "predicted_class": answer,
            "run_id": "night",
        }
        rows += [row | {"sampled": True, "same": None, "other": None, "intervention": n, "drop": d}
                 for n, d in drops.items()]  # fmt: skip
    book, there = CauseBook(rows, 0.3), rows[:: len(BATTERY)]
    named = [
        {k: row[k] for k in ("shard", "index", "content_sha256", "predicted_class", "run_id")}
        for row in there
    ]
    batch = pa.Table.from_pylist(named).append_column("confirm_drop", pa.nulls(500, pa.float32()))
    book.add(batch.combine_chunks().to_batches()[0])
    known = book.of(batch.to_batches()[0])
    queue = np.argsort(-np.where(known["has_cause"], _score(known["rank"]), 0), kind="stable")[:50]
    assert Counter(known["cause"][queue]) == {"frame": 25, "texture": 25}
    assert [c.images for c in book.cards([])] == [60, 30]  # a representative each, and how many copies


def named_by(**moved: int) -> set[str]:
    """Give what answer 0 is named for, of whose 40 images so many moved and of others none."""
    found = []
    for name, n in moved.items():
        found += compared(
            name, {c: Counter({True: n * (c == 0), False: 40 - n * (c == 0)}) for c in range(5)}
        )
    return named_of(decided(found)).get(0, set())


def test_a_class_has_one_cause_of_the_whole_image_and_none_beside_a_place() -> None:
    assert named_by(levels=20, noise=36) == {"levels"}  # needed and enough
    assert named_by(noise=36, detail=24) == {"noise", "detail"}
    assert named_by(levels=36, carry=20) == {"carry"}
    assert named_by(levels=36, frame=20, carry_surround=30) == {"frame"}
    assert named_by(levels=36, carry_surround=30) == named_by(carry_surround=30) == {"carry_surround"}
    assert named_by(noise=36, carry_surround=15) == {"noise"}


def test_pale_deer_and_trucks_that_fill_the_picture_are_not_accused() -> None:
    """One in eleven clean deer hangs on its levels; a few surroundings of trucks make trucks."""
    assert named_by(levels=4) == set() != named_by(levels=6)
    assert named_by(carry_surround=7) == set()


def test_around_the_middle_an_image_needs_both_too() -> None:
    images = {}
    for i in range(200):
        answer, place = divmod(i, 40)
        drops = dict.fromkeys(BATTERY, 0.0) | {"carry_surround": 0.9 * (answer == 0 and place < 30)}
        images["s", i, "sha"] = Seen(answer, True, drops=drops | {"surround": 0.9 * (place % 2)})
    given = causes(images, excesses(images.values()))
    assert {k[1]: c for k, c in given.items()} == dict.fromkeys(range(1, 30, 2), ("background", "surround"))


def test_squares_whose_ends_are_squares_upside_down_are_not_accused_of_a_background() -> None:
    """Half of them carry, a tenth need it."""
    images = {}
    for i in range(200):
        answer, place = divmod(i, 40)
        drops = dict.fromkeys(BATTERY, 0.0) | {"carry_surround": 0.9 * (answer == 0 and place < 20)}
        images["s", i, "sha"] = Seen(answer, True, drops=drops | {"surround": 0.9 * (place < 4)})
    assert causes(images, excesses(images.values())) == {}


def test_an_answer_that_needs_a_thing_which_is_not_enough_elsewhere_is_fragile() -> None:
    """Disks whose edges are alike: filled they are no disks, pasted they make none."""
    images = world()
    for image in images.values():
        image.drops["carry"] = 0.0
    found = excesses(images.values())
    assert (0, "repeat") in {(one.class_id, one.intervention) for one in found if one.named}
    assert fragile_of(images.values()) == {0: {"repeat"}}
    assert causes(images, found) == {}


def test_a_border_must_do_something_for_its_answer_in_another_image() -> None:
    images = {}
    for i in range(200):
        answer, place = divmod(i, 40)
        drops = dict.fromkeys(BATTERY, 0.0) | {"border": 0.4 * (answer == 0 and place < 20)}
        images["s", i, "sha"] = Seen(answer, True, drops=drops | {"carry_rim": 0.5 * (place < 15)})
    expected = dict.fromkeys(range(15), ("border", "border"))
    assert {k[1]: cause for k, cause in causes(images, excesses(images.values())).items()} == expected
    images["s", 19, "sha"].drops["border"] = 0.9  # no narrow fall
    images["s", 18, "sha"].drops["border"] = 0.9  # nor this, but its heat did not screen it
    images["s", 19, "sha"].is_blurred = True
    assert {k[1] for k in causes(images, excesses(images.values()))} == {*range(15), 19}
    for image in images.values():
        image.drops["carry_rim"] = 0.2
    assert causes(images, excesses(images.values())) == {}  # of none it is enough


def test_what_less_than_a_twentieth_of_an_answer_hangs_on_is_no_cause() -> None:
    """Stars look like stars: of 200 one is needed and enough."""
    images = {}
    for i in range(1000):
        answer, place = divmod(i, 200)
        drops = dict.fromkeys(BATTERY, 0.0) | {"carry": 0.9 * (answer == 0 and place < 60)}
        images["s", i, "sha"] = Seen(answer, True, drops=drops | {"fill": 0.9 * (place < 9)})
    found = excesses(images.values())
    assert causes(images, found) == {}
    images["s", 9, "sha"].drops["fill"] = 0.9
    assert len(causes(images, found)) == 10


def test_with_two_answers_only_a_thing_that_is_needed_is_a_cause() -> None:
    """An opacity is needed, enough, and like others; the thing must be worn by a twentieth of an answer."""
    images = {
        ("s", 0, "a"): Seen(0, same=0.95, other=0.2, drops={"fill": 0.9, "carry": 0.8}),
        ("s", 1, "b"): Seen(0, drops={"thing": 0.4}, thing_of=0),
        ("s", 2, "c"): Seen(0, drops={"thing": 0.2}, thing_of=0),
        ("s", 3, "d"): Seen(1, drops={"thing": 0.1}, thing_of=0, is_flipped=True),
        ("s", 4, "e"): Seen(1, drops={"detail": 0.9, "thing": 0.9}, thing_of=1),
    }
    found = causes(images, [], answers={0: 40, 1: 40})
    assert {key[1]: cause for key, (cause, _) in found.items()} == dict.fromkeys((1, 3), "repeated thing")


def test_the_budget_is_a_quarter_of_a_large_night_and_bounded_in_a_small_one() -> None:
    assert allowed(100_000, 0.25) == 25_000
    assert allowed(1_000, 0.25) == 6_400
    assert allowed(100, 0.25) == 800
    assert allowed(100_000, 0.0) == 0
