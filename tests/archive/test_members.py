"""What holds for every format: the same rows, changed shards, missing shards, every call a fresh start."""

import dataclasses
import os

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from camray.archive.members import read_members
from camray.errors import ErrorCode, ShardError
from camray.records import LooseFile, Shard
from tests.archive.makers import CONFIG, png, shard_of, tar_of
from tests.archive.test_zipped import zip_of

DATA = [(f"{i}.png", png(i)) for i in range(5)]


@pytest.fixture
def shards(tmp_path):
    (tmp_path / "s.tar").write_bytes(tar_of(DATA))
    (tmp_path / "s.zip").write_bytes(zip_of(DATA))
    pq.write_table(pa.table({"image": [{"path": n, "bytes": d} for n, d in DATA]}), tmp_path / "s.parquet")
    for name, data in DATA:
        (tmp_path / name).write_bytes(data)
    files = tuple(LooseFile(n, len(d), "1") for n, d in DATA)
    loose = Shard("files", "files", 0, "", files, str(tmp_path))
    return [*(shard_of(tmp_path / f"s.{fmt}", fmt) for fmt in ("tar", "zip", "parquet")), loose]


def test_the_same_images_give_the_same_members(shards):
    for shard in shards:
        for _ in range(2):
            assert [(m.name, m.content) for m in read_members(shard, CONFIG)] == DATA
        part = dataclasses.replace(shard, selection=(1, 3))
        assert [(m.index, m.content) for m in read_members(part, CONFIG, lambda i: i == 3)] == [
            (1, None),
            (3, png(3)),
        ]


def code_of(shard):
    with pytest.raises(ShardError) as caught:
        list(read_members(shard, CONFIG))
    return caught.value.code


def test_changed_since_the_listing(shards):
    for shard in shards[:3]:
        assert code_of(dataclasses.replace(shard, size_bytes=shard.size_bytes + 1)) == ErrorCode.SHARD_CHANGED
        os.utime(shard.uri, ns=(5, 5))
        assert code_of(shard) == ErrorCode.SHARD_CHANGED


def test_missing(shards):
    for shard in shards[:3]:
        os.unlink(shard.uri)
        assert code_of(shard) == ErrorCode.SHARD_READ_FAILED


def test_a_reader_left_early_closes_its_file(shards):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for shard in shards:
        reader = read_members(shard, CONFIG)
        next(reader)
        reader.close()
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before
