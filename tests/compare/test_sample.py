"""A sample is drawn in proportion, kept, and refused once its archive is another."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from camray.compare.sample import draw, freeze, read_sample, sample_id
from camray.errors import UsageError
from camray.records import Shard
from camray.storage import Folder, open_folder

ASKED = {"archive": "a", "count": 10, "seed": 0}


def images(count: int = 1000) -> pa.Table:
    """Three classes of 70, 20 and 10 %, any confidence."""
    rng = np.random.default_rng(1)
    return pa.table(
        {
            "key": [f"s{i % 4}" for i in range(count)],
            "index": pa.array([i // 4 for i in range(count)], pa.int32()),
            "predicted_class": pa.array(rng.choice(3, count, p=[0.7, 0.2, 0.1]), pa.int32()),
            "confidence": pa.array(rng.random(count), pa.float32()),
        }
    )


def test_each_class_and_level_of_confidence_has_its_share() -> None:
    table = images()
    rows = {(r["key"], r["index"]): r for r in table.to_pylist()}
    places = draw(table, 100, ["predicted_class", "confidence"], seed=3)
    assert len(set(places)) == 100
    drawn = Counter(rows[p]["predicted_class"] for p in places)
    whole = Counter(r["predicted_class"] for r in rows.values())
    for class_id, count in whole.items():
        assert abs(drawn[class_id] - count / 10) <= 1
        own = [r["confidence"] for r in rows.values() if r["predicted_class"] == class_id]
        mean = np.mean([rows[p]["confidence"] for p in places if rows[p]["predicted_class"] == class_id])
        assert abs(mean - np.mean(own)) < 0.06  # a plain sample of 10 has a standard error of 0.09


def test_a_draw_repeats_and_the_seed_moves_it() -> None:
    table = images()
    one, same, other = (draw(table, 50, ["confidence"], seed) for seed in (0, 0, 1))
    assert one == same != other
    assert draw(table, 5000, ["confidence"], 0) != []
    assert len(draw(table, 5000, ["confidence"], 0)) == 1000


def shard(key: str, version: str = "1") -> Shard:
    return Shard(uri=f"/a/{key}.tar", format="tar", size_bytes=1, version=version)


def test_a_frozen_sample_survives_and_cuts_the_shards(tmp_path) -> None:
    out: Folder = open_folder(str(tmp_path), "OUT")
    shards = [shard("one"), shard("two"), shard("three")]
    places = [(shards[0].key, 4), (shards[2].key, 0), (shards[0].key, 1)]
    sample = freeze(ASKED, ("confidence",), 99, places, shards)
    assert (sample.size, sample.id) == (3, sample_id(ASKED))
    sample.write(out)
    again = read_sample(out, sample_id(ASKED))
    assert again == replace(sample, asked=again.asked)
    assert [s.selection for s in again.shards(shards)] == [(1, 4), (0,)]
    assert sum(map(len, sample.pictured.values())) == 3
    assert read_sample(out, "nothing") is None


def test_a_changed_archive_is_refused(tmp_path) -> None:
    shards = [shard("one"), shard("two")]
    sample = freeze(ASKED, (), 0, [(s.key, 0) for s in shards], shards)
    sample.shards([*shards, shard("new")])  # growing is fine
    for now in ([shards[0]], [shards[0], shard("two", "2")]):
        with pytest.raises(UsageError, match="1 of 2 shards of the sample changed or are gone"):
            sample.shards(now)
