"""The canary: the same images explained anew; what differs is the stack."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camray.audit.night import stack_changed
from camray.flow.actor import network_of
from camray.flow.flow import Pool
from camray.job.canary import choose, difference, explain_again, first_answers
from camray.job.prepare import Prepared, prepare
from camray.ledger.table import Table
from demo import hans64
from tests.audit.night_world import explain, settings_for, write_archive

POOL = Pool(actors=1, max_actors=1, device="cpu", cpus=0.5, gpus=0, threads=1, batch_size=8)
IMAGES = 12


@pytest.fixture
def night(tmp_path: Path) -> Prepared:
    """Two shards of twelve images, explained and committed."""
    samples = [hans64.render(0, "audit", i) for i in range(24)]
    settings = settings_for(write_archive(tmp_path / "archive", samples, 12), tmp_path / "out")
    explain(settings, "r1")
    return prepare(settings)


def again(ready: Prepared, **changes: Any) -> dict[str, Any]:
    """Explain the canary images, with some weights multiplied; say what differs."""
    own = network_of(ready.model)
    network = replace(own, arrays={n: np.asarray(a * changes.get(n, 1)) for n, a in own.arrays.items()})
    first = choose(Table(ready.out), ready.explainer.id, IMAGES)
    assert len(first) == IMAGES
    shards = ready.listing.shards
    places = {s.uri: tuple(sorted(a["index"] for a in first if a["shard"] == s.uri)) for s in shards}
    wanted = [replace(s, selection=places[s.uri]) for s in shards if places[s.uri]]
    return difference(first, explain_again(POOL, lambda: network, wanted, ready.config, ready.explainer))


def test_the_same_stack_gives_the_same_answers(night: Prepared) -> None:
    found = again(night)
    assert (found["images"], found["gone"], found["changed"]) == (IMAGES, 0, 0)
    assert found["confidence_distance"] < 1e-5
    assert found["heat_cosine"] > 0.9999
    assert not stack_changed(found)


def test_another_stack_is_noticed(night: Prepared) -> None:
    """A head of the opposite sign: what was least likely is now most likely."""
    found = again(night, **{"fc.weight": -1})
    assert found["changed"] > IMAGES / 2
    assert stack_changed(found)


def test_an_image_whose_bytes_changed_is_left_out(night: Prepared, tmp_path: Path) -> None:
    first = choose(Table(night.out), night.explainer.id, IMAGES)
    assert difference(first, first)["gone"] == 0
    other = [a | ({"content_sha256": "0" * 64} if i == 0 else {}) for i, a in enumerate(first)]
    assert (difference(first, other)["images"], difference(first, other)["gone"]) == (IMAGES - 1, 1)


def test_images_are_chosen_again_while_there_are_too_few(night: Prepared) -> None:
    """A first night without one good image must not leave an empty canary for ever."""
    night.out.write(f"canary/{night.explainer.id}.json", b"[]")
    chosen = first_answers(night.out, night.explainer.id, IMAGES)
    assert len(chosen) == IMAGES
    night.out.write(f"canary/{night.explainer.id}.json", json.dumps(chosen[::-1]).encode())
    assert first_answers(night.out, night.explainer.id, IMAGES) == chosen[::-1]  # enough: kept as they are


def test_the_choice_does_not_depend_on_the_order_of_rows(night: Prepared) -> None:
    chosen = [a["content_sha256"] for a in choose(Table(night.out), night.explainer.id, IMAGES)]
    every = Table(night.out).dataset().to_table(columns=["content_sha256"]).column(0).to_pylist()
    assert chosen == sorted(every)[:IMAGES]
