"""`--limit` and `--sample`: exact numbers, whole shards untouched, damage not hidden."""

import dataclasses
from collections import Counter

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from camray.archive.listing import list_archive
from camray.archive.members import read_members, select
from camray.config import ArchiveConfig
from camray.errors import ShardError
from tests.archive.makers import png, tar_of
from tests.archive.test_zipped import zip_of


@pytest.fixture
def archive(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of([("x.pkl", b"-"), *((f"a{i}.png", png(i)) for i in range(6))]))
    (tmp_path / "b.zip").write_bytes(zip_of([(f"b{i}.png", png(i)) for i in range(5)]))
    pq.write_table(pa.table({"image": [png(i) for i in range(4)]}), tmp_path / "c.parquet")
    for i in range(3):
        (tmp_path / f"d{i}.png").write_bytes(png(i))
    (tmp_path / "z.csv").write_bytes(b"no image")
    return ArchiveConfig(path=str(tmp_path))


def chosen(config):
    """The images a run would see: (file, index)."""
    listing = select(list_archive(config), config)
    found = []
    for shard in listing.shards:
        found += [(shard.uri[-5:], m.index) for m in read_members(shard, config) if m.error_code is None]
    return found + [(f.path, 0) for f in listing.files if f.path.endswith("png")]


ALL = (
    [("a.tar", i) for i in range(1, 7)]
    + [("b.zip", i) for i in range(5)]
    + [("rquet", i) for i in range(4)]
    + [(f"d{i}.png", 0) for i in range(3)]
)


@pytest.mark.parametrize("limit", [1, 5, 6, 7, 11, 13, 15, 16, 18, 99])
def test_limit_takes_the_first(archive, limit):
    assert chosen(dataclasses.replace(archive, limit=limit)) == ALL[:limit]


@pytest.mark.parametrize("sample", [1, 4, 17, 18, 99])
def test_sample_is_exact_and_repeatable(archive, sample):
    config = dataclasses.replace(archive, sample=sample, seed=3)
    found = chosen(config)
    assert len(found) == min(sample, 18)
    assert len(set(found)) == len(found)
    assert set(found) <= set(ALL)
    assert chosen(config) == found


def test_sample_is_uniform(archive):
    listing = list_archive(archive)
    hits = Counter()
    for seed in range(300):
        part = select(listing, dataclasses.replace(archive, sample=6, seed=seed))
        for shard in part.shards:
            hits.update((shard.uri[-5:], i) for i in shard.selection or ())
        hits.update((f.path, 0) for f in part.files)
    counts = [hits[place] for place in ALL]
    assert sum((n - 100) ** 2 / 100 for n in counts) < 45  # chi-square, 17 degrees: 1 in 4000 by chance


def test_a_whole_shard_keeps_its_identity(archive):
    listing = list_archive(archive)
    part = select(listing, dataclasses.replace(archive, limit=6))
    assert part.shards == listing.shards[:1]
    assert part.left_out == {"shard not selected": 2, "file not selected": 4}
    assert select(listing, archive) is listing


def test_limit_opens_no_shard_it_does_not_need(archive, tmp_path):
    (tmp_path / "b.zip").write_bytes(b"junk")
    assert chosen(dataclasses.replace(archive, limit=6)) == ALL[:6]


def test_an_unreadable_shard_stays_to_be_told(archive, tmp_path):
    (tmp_path / "a.tar").write_bytes(b"junk")
    for settings in ({"limit": 2}, {"sample": 2}):
        config = dataclasses.replace(archive, **settings)
        part = select(list_archive(config), config)
        assert part.shards[0].uri.endswith("a.tar")
        with pytest.raises(ShardError):
            list(read_members(part.shards[0], config))
