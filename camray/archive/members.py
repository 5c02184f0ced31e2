"""A shard's members, whatever its format: opened anew at each call, no state between calls.

    Shard ──Reader of its format, or files──> Member 0, 1, 2 ... and either the end, or a ShardError

And a part of an archive: the first N images (`--limit`), or N drawn at random (`--sample`). Members are
counted by headers, directories and footers alone. A shard of which every image is chosen keeps its identity
(`selection` None), so that a later full run finds it done.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import unquote

from camray.archive.annotations import Annotation, label_columns, label_of
from camray.archive.files import read_files, read_named
from camray.archive.frames import version_mark
from camray.archive.listing import Listing
from camray.archive.names import file_kind
from camray.archive.places import base_of, entry_now
from camray.archive.readers import IsNeeded, readers
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ShardError, UsageError, printable
from camray.records import LooseFile, Member, Shard, Status
from camray.storage import Folder, has_empty_part, open_folder

_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def _every(_: int) -> bool:
    return True


def read_members(shard: Shard, config: ArchiveConfig, is_needed: IsNeeded = _every) -> Iterator[Member]:
    """Yield the shard's members with consecutive indices, images and skipped members alike.

    With `shard.selection`, only those members are yielded, and reading stops behind the last of them.
    `content` is None, and mostly not even read, where `is_needed(index)` is false.
    A normal end means that the end of the shard was seen (or of its selection).

    Raises:
        ShardError: the shard cannot be read to its end; every good member before was yielded.
    """
    chosen = None if shard.selection is None else frozenset(shard.selection)
    last = max(chosen, default=-1) if chosen is not None else None
    seen = 0

    def is_chosen(index: int) -> bool:
        return (chosen is None or index in chosen) and is_needed(index)

    try:
        for member in _members(shard, config, is_chosen):
            seen = member.index + 1
            if chosen is None or member.index in chosen:
                yield member
            if member.index == last:
                return
    except ShardError as error:
        raise ShardError(error.code, f"{error.message}; {_members_kept(seen)}") from None
    except (OSError, UsageError) as error:
        reason = printable(str(error))
        raise ShardError(ErrorCode.SHARD_READ_FAILED, f"{reason}; {_members_kept(seen)}") from None
    if last is not None and last >= seen:
        raise ShardError(ErrorCode.SHARD_CHANGED, f"member {last} was selected, but there are only {seen}")
    if not seen:
        raise ShardError(ErrorCode.SHARD_EMPTY, "no member at all")


def _members_kept(seen: int) -> str:
    return f"{seen:,} members before it were kept" if seen else "no member could be read"


def _members(shard: Shard, config: ArchiveConfig, is_needed: IsNeeded) -> Iterator[Member]:
    if shard.format == "files":
        yield from read_files(shard, config, is_needed)
        return
    uri = shard.place or shard.uri
    if has_empty_part(uri):
        said = "its key has a part that is empty, . or .., which cannot be opened"
        raise ShardError(ErrorCode.SHARD_UNREADABLE, said)
    place = open_folder(uri, "shard")
    size = _check_unchanged(place, shard, version_mark(config.frames))
    if size == 0:
        raise ShardError(ErrorCode.SHARD_UNREADABLE, "an empty file: 0 bytes")
    told = _of_partition(uri, config) if shard.format == "parquet" else Annotation()
    with place.open() as file:
        try:
            for member in readers()[shard.format].read(file, size, config, is_needed):
                is_named = member.file is not None or member.mask_file is not None
                whole = read_named(base_of(uri), member, config.max_member_bytes) if is_named else member
                is_bare = whole.label is None and whole.label_class is None
                yield replace(whole, label=told.label, label_class=told.label_class) if is_bare else whole
        except UsageError as error:  # of this file alone: `check_shards` found one that is as it should be
            raise ShardError(ErrorCode.SHARD_UNREADABLE, printable(error.problem)) from None


def _of_partition(uri: str, config: ArchiveConfig) -> Annotation:
    """Read the label that a folder of a partitioned table names: `label=cat/part-0.parquet`."""
    pairs = [folder.partition("=") for folder in uri.split("/")[:-1]]
    row = {key.lower(): unquote(value) for key, _, value in pairs if value not in ("", _NO_VALUE)}
    found = Annotation()
    for key in label_columns(row, config.label_column):
        found = found.or_else(label_of(row[key]))
    return found


def _check_unchanged(place: Folder, shard: Shard, mark: str) -> int:
    """Compare size and version with the listing; return the size."""
    try:
        now = entry_now(place)
    except OSError as error:
        if not place.is_local:
            raise
        raise ShardError(ErrorCode.SHARD_READ_FAILED, f"{error.strerror}") from None
    if now is None:
        raise ShardError(ErrorCode.SHARD_READ_FAILED, "no longer there")
    if shard.version and (now.size_bytes, now.version + mark) != (shard.size_bytes, shard.version):
        raise ShardError(
            ErrorCode.SHARD_CHANGED,
            f"{now.size_bytes:,} bytes now, {shard.size_bytes:,} when listed, or rewritten since",
        )
    return now.size_bytes


# ── a part of an archive ─────────────────────────────────────────────────────────────────────────


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
    reader = readers().get(shard.format)
    if reader is not None and reader.count is not None:
        try:
            with open_folder(shard.place or shard.uri, "shard").open() as file:
                count = reader.count(file, shard.size_bytes)
            if count is not None:
                yield from range(count)
                return
        except OSError:
            pass  # the reader below says why
    for member in read_members(shard, config, lambda _: False):
        if member.status == Status.OK:
            yield member.index


def _limited(listing: Listing, limit: int, config: ArchiveConfig) -> Listing:
    shards: list[Shard] = []
    left, dropped = limit, Counter(listing.left_out)
    for shard in listing.shards:
        if left == 0:
            dropped["shard not selected"] += 1
            continue
        indices, is_whole = _first(shard, left, config)
        shards.append(shard if is_whole else replace(shard, selection=tuple(indices)))
        left -= len(indices)
    images = [file for file in listing.files if file_kind(file.path, config.reads_arrays) == "image"]
    return _with_files(listing, shards, images[:left], dropped)


def _first(shard: Shard, count: int, config: ArchiveConfig) -> tuple[list[int], bool]:
    """Give the first `count` image indices, and whether these are all (or all that can be read)."""
    indices: list[int] = []
    try:
        for index in image_indices(shard, config):
            if len(indices) == count:
                return indices, False
            indices.append(index)
    except ShardError:
        pass
    return indices, True


def _sampled(listing: Listing, count: int, config: ArchiveConfig) -> Listing:
    dropped = Counter(listing.left_out)
    by_shard = [_first(shard, 2**62, config)[0] for shard in listing.shards]
    images = [file for file in listing.files if file_kind(file.path, config.reads_arrays) == "image"]
    total = sum(map(len, by_shard)) + len(images)
    chosen = set(random.Random(config.seed).sample(range(total), min(count, total)))
    shards: list[Shard] = []
    start = 0
    for shard, indices in zip(listing.shards, by_shard, strict=True):
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
    return replace(listing, shards=tuple(shards), files=tuple(files), left_out=+dropped)
