"""Which record files the table holds, by shard: names in, lookups out.

A file's name tells the shard, its content and the chunk, so that nothing has to be opened. A million files
take about 200 MB: columns sorted by name, searched by halving; a dictionary of objects took 1.6 GB.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from camray.errors import UsageError, printable
from camray.records import Shard

PARTITION = "explainer"
PACK = "pack-"  # begins the name of a file of many shards
AGAIN = ".again"  # ends the name of a file in which a member failed for a cause that may pass
_NAME = r"(?:^|/)(?P<id>[^-/]+-[^-/]+)-[0-9]+-[^-/]+[.]parquet$"  # the whole name, not the end of one


@dataclass(frozen=True, slots=True)
class RecordFile:
    """One committed record file, whose name tells shard, content and chunk; or a shard's part of a pack."""

    path: str  # relative to the table
    size_bytes: int
    rows: int
    first: int = 0  # row of the file
    id: str = ""  # of the shard as it is there; "": the name tells it

    @property
    def is_packed(self) -> bool:
        """Whether it is a part of a pack."""
        return is_pack(self.path)

    @property
    def content_key(self) -> str:
        """The shard's content, the second part of the name."""
        return self.id.partition("-")[2] if self.id else parse_name(self.path)[1]

    @property
    def checksum(self) -> str:
        """The checksum of its bytes, the last part of the name."""
        return self.path.removesuffix(".parquet").removesuffix(AGAIN).rpartition("-")[2]

    @property
    def to_try_again(self) -> bool:
        """Whether members of it failed for a cause that may pass."""
        return self.path.endswith(f"{AGAIN}.parquet")


def checksum(data: Any) -> str:
    """Give 16 hex digits of the SHA-256 of a file's bytes: the last part of its name."""
    return hashlib.sha256(data).hexdigest()[:16]


def file_name(
    owner: str, shard_id: str, chunk: int, digest: str, partition: str = PARTITION, *, again: bool = False
) -> str:
    """Name a record file: ``explainer=<id>/<shard key>-<content key>-<chunk>-<checksum>.parquet``.

    `again`: a member in it failed for a cause that may pass; `.again` stands before the ending.
    """
    return f"{partition}={owner}/{shard_id}-{chunk:06d}-{digest}{AGAIN * again}.parquet"


def is_pack(path: str) -> bool:
    """Tell whether a file holds the rows of many shards: `camray prune --compact` made it."""
    return path.rpartition("/")[2].startswith(PACK)


def owner_of(path: str) -> str:
    """Read the explainer, or panel, back from a file's path."""
    return path.partition("=")[2].partition("/")[0]


def parse_name(path: str) -> tuple[str, str, int]:
    """Read (shard key, content key, chunk) back from a file's path.

    Raises:
        ValueError: the name is not one of ours.
    """
    name = path.rpartition("/")[2]
    if not name.endswith(".parquet"):
        raise ValueError(f"{name} is no record file")
    key, content, chunk, _digest = name.removesuffix(".parquet").split("-")
    return key, content, int(chunk)


def _parts(path: str, size_bytes: int, parts: Sequence[Part], schema: pa.Schema) -> pa.Table:
    """Give a line for each part of a pack."""
    rows = [part.rows for part in parts]
    columns = {
        "path": [path] * len(parts), "size_bytes": [size_bytes] * len(parts), "num_records": rows,
        "first": list(accumulate(rows, initial=0))[:-1], "id": [part.id for part in parts],
    }  # fmt: skip
    return pa.table(columns, schema=schema)


def is_committed(shard: Shard, files: Sequence[RecordFile], paths: Set[str] = frozenset()) -> bool:
    """Tell whether `files` of the shard are of its content, or of all of it where a part is asked for.

    Files of which members are to be tried again stand only until others are there: `paths` are these others.
    """
    if any(f.to_try_again for f in files) and paths:
        return {f.path for f in files} == paths
    contents = _sufficient(shard)
    return any(_listed_key(f.content_key, shard) in contents for f in files)


def _sufficient(shard: Shard) -> set[str]:
    """Give the content keys that make a shard done."""
    if shard.reread:
        return {shard.content_key}
    whole = () if shard.selection is None else (replace(shard, selection=None),)
    return {key for s in (shard, *whole) for key in (s.content_key, s.former_content_key)}


def _listed_key(content_key: str, shard: Shard) -> str:
    """Give what a listing can know of a content: all of it, but for what a reading once told besides."""
    return content_key if shard.reread else content_key.partition("r")[0]


class Part(NamedTuple):
    """The rows of a pack that were one record file."""

    id: str
    chunk: int
    rows: int
    chunk_size: int


class CommittedFiles(Mapping[str, list[RecordFile]]):
    """The committed record files of one explainer: shard key -> its files, in the order of the chunks."""

    def __init__(self, files: pa.Table, packs: Mapping[str, Sequence[Part]] | None = None) -> None:
        """Sort `files`: path, size_bytes, num_records; `packs`: what is in those that hold many shards.

        Raises:
            UsageError: the table holds files that camray did not write, a compaction's for example.
        """
        packs = packs or {}
        plain = files.filter(pc.invert(pc.is_in(files["path"], pa.array(list(packs), pa.string()))))
        ids = pc.struct_field(pc.extract_regex(plain["path"], _NAME), "id")
        if ids.null_count:
            odd = plain["path"].filter(pc.is_null(ids))[0].as_py()
            problem = (
                f"its table holds {printable(odd)}, which camray did not write (a compaction? rows deleted?)"
            )
            fix = "restore the version before that; `camray forget OUT --member NAME` takes an image out"
            raise UsageError("OUT", problem, fix)
        plain = plain.append_column("first", pa.repeat(pa.scalar(0, pa.int64()), len(plain)))
        each = [plain.append_column("id", ids.cast(pa.string()))]
        sizes = files.filter(pc.is_in(files["path"], pa.array(list(packs), pa.string())))
        for path, size, _rows in zip(*(column.to_pylist() for column in sizes.columns), strict=True):
            each.append(_parts(path, size, packs[path], each[0].schema))
        order = [("id", "ascending"), ("path", "ascending"), ("first", "ascending")]
        self._files = pa.concat_tables(each).sort_by(order).combine_chunks()
        self._ids: list[str] = self._files["id"].to_pylist()  # of the shards

    def holds(self, shard: Shard) -> bool:
        """Tell whether the shard is committed, as `is_committed` does, without making objects of files."""
        return any(
            _listed_key(self._ids[i].partition("-")[2], shard) == content
            for content in _sufficient(shard)
            for i in self._span(f"{shard.key}-{content}")
        )

    def to_try_again(self, shard: Shard) -> list[RecordFile]:
        """Give the files of a committed shard of which members failed for a cause that may pass."""
        spans = (self._span(f"{shard.key}-{content}") for content in sorted(_sufficient(shard)))
        paths = self._files["path"]
        marked = any(paths[i].as_py().endswith(f"{AGAIN}.parquet") for span in spans for i in span)
        return [f for f in self[shard.key] if f.to_try_again] if marked else []

    def __getitem__(self, key: str) -> list[RecordFile]:
        span = self._span(f"{key}-")
        if not span:
            raise KeyError(key)
        columns = self._files.slice(span.start, len(span)).columns
        return list(map(RecordFile, *(column.to_pylist() for column in columns)))

    def __iter__(self) -> Iterator[str]:
        return (key for key, _ in groupby(id.partition("-")[0] for id in self._ids))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _span(self, start_of_id: str) -> range:
        start = end = bisect_left(self._ids, start_of_id)
        while end < len(self._ids) and self._ids[end].startswith(start_of_id):
            end += 1
        return range(start, end)
