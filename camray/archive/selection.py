"""A part of an archive: the first N images (`--limit`), or N drawn at random (`--sample`).

Members are counted by headers, directories and footers alone. A shard of which every image is chosen keeps
its identity (`selection` None), so that a later full run finds it done.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from camray.archive.listing import Listing
from camray.archive.members import read_members
from camray.archive.names import file_kind
from camray.archive.parquet import count_rows
from camray.config import ArchiveConfig
from camray.errors import ShardError
from camray.records import LooseFile, Shard, Status
from camray.storage import open_folder


def select(listing: Listing, config: ArchiveConfig) -> Listing:
    """Cut a listing down to what `limit` or `sample` asks for, in listing order: shards, then loose files.

    Only images count, not skipped members. A sample is exact: each set of N images is equally likely.
    A shard that cannot be read at all is kept, so that it becomes a record.
    """
    if config.limit is not None:
        return _limited(listing, config.limit, config)
    if config.sample is not None:
        return _sampled(listing, config.sample, config)
    return listing


def image_indices(shard: Shard, config: ArchiveConfig) -> Iterator[int]:
    """Yield the indices of a shard's images, reading as little as the format allows.

    Raises:
        ShardError: where the shard cannot be read on.
    """
    if shard.format == "parquet":
        try:
            with open_folder(shard.uri, "shard").open() as file:
                yield from range(count_rows(file, shard.size_bytes))
                return
        except OSError:
            pass  # the reader below says why
    for member in read_members(shard, config, wanted=lambda _: False):
        if member.status == Status.OK:
            yield member.index


def _limited(listing: Listing, limit: int, config: ArchiveConfig) -> Listing:
    shards: list[Shard] = []
    left, dropped = limit, Counter(listing.left_out)
    for shard in listing.shards:
        if left == 0:
            dropped["shard not selected"] += 1
            continue
        found, is_whole = _first(shard, left, config)
        shards.append(shard if is_whole else replace(shard, selection=tuple(found)))
        left -= len(found)
    images = [file for file in listing.files if file_kind(file.path) == "image"]
    return _with_files(listing, shards, images[:left], dropped)


def _first(shard: Shard, count: int, config: ArchiveConfig) -> tuple[list[int], bool]:
    """Give the first `count` image indices, and whether these are all (or all that can be read)."""
    found: list[int] = []
    try:
        for index in image_indices(shard, config):
            if len(found) == count:
                return found, False
            found.append(index)
    except ShardError:
        return found, True
    return found, True


def _sampled(listing: Listing, count: int, config: ArchiveConfig) -> Listing:
    dropped = Counter(listing.left_out)
    found = [_first(shard, 2**62, config)[0] for shard in listing.shards]
    images = [file for file in listing.files if file_kind(file.path) == "image"]
    total = sum(map(len, found)) + len(images)
    chosen = set(random.Random(config.seed).sample(range(total), min(count, total)))
    shards: list[Shard] = []
    start = 0
    for shard, indices in zip(listing.shards, found, strict=True):
        picked = tuple(index for place, index in enumerate(indices, start) if place in chosen)
        start += len(indices)
        if len(picked) == len(indices):  # all, or unreadable
            shards.append(shard)
        elif picked:
            shards.append(replace(shard, selection=picked))
        else:
            dropped["shard not selected"] += 1
    files = [file for place, file in enumerate(images, start) if place in chosen]
    return _with_files(listing, shards, files, dropped)


def _with_files(
    listing: Listing, shards: list[Shard], files: list[LooseFile], dropped: Counter[str]
) -> Listing:
    dropped["file not selected"] += len(listing.files) - len(files)
    return Listing(tuple(shards), listing.root, tuple(files), +dropped)
