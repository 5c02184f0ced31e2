"""Parts of shards (`--limit`, `--sample`, files that are gone): they grow in the table, and never shrink.

Asked for less than is there, a run has nothing to do; for other members, it does these and those that are
there, and replaces the part by the larger one in one transaction. So the table holds of every shard the
whole, or all that commands asked for so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pyarrow as pa

from camray.ledger.committed import CommittedFiles
from camray.ledger.parts import read_rows
from camray.ledger.table import RECORDS
from camray.records import Shard
from camray.storage import Folder

PlaceOf = Callable[[int], int]
"""The place among the shard's files of the member with this index."""


def grown(
    out: Folder,
    shards: Sequence[Shard],
    committed: CommittedFiles,
    place_of: PlaceOf,
    is_there: Callable[[Shard, int], bool],
) -> list[Shard]:
    """Give the shards; a part that is asked for, with the part of the same content that the table holds.

    `is_there(shard, place)`: whether a file can be read that another selection took.
    """
    return [s if s.selection is None else _grown(out, s, committed, place_of, is_there) for s in shards]


def _grown(
    out: Folder,
    shard: Shard,
    committed: CommittedFiles,
    place_of: PlaceOf,
    is_there: Callable[[Shard, int], bool],
) -> Shard:
    whole = replace(shard, selection=None)
    if committed.holds(whole):
        return whole
    if committed.holds(shard) or not (there := _committed_part(out, shard, committed, place_of)):
        return shard
    asked = set(shard.selection or ())
    if asked <= there:
        return replace(shard, selection=tuple(sorted(there)))
    both = asked | {place for place in there if is_there(shard, place)}
    is_whole = shard.format == "files" and len(both) == len(shard.files)
    return replace(shard, selection=None if is_whole else tuple(sorted(both)))


def _committed_part(out: Folder, shard: Shard, committed: CommittedFiles, place_of: PlaceOf) -> set[int]:
    """Give the places of which the table has rows; none where these are of another content."""
    indices: set[int] = set()
    for file in committed.get(shard.key, []):
        try:
            indices |= set(read_rows(out, RECORDS.folder, file, ["index"])["index"].to_pylist())
        except (pa.ArrowInvalid, FileNotFoundError):
            return set()  # `verify` names it
    places = {place_of(index) for index in indices - {None}}
    return places if committed.holds(replace(shard, selection=tuple(sorted(places)))) else set()
