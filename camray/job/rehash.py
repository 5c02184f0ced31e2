"""A look at content itself: which committed shards hold other images than their records say.

A listing tells size and time. Bytes that change under both are seen by reading alone: `--rehash` reads every
committed shard, and compares the checksum and the label of each member with its record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from camray.archive.members import read_members
from camray.config import ArchiveConfig
from camray.errors import PASSING_ERRORS, ShardError
from camray.ledger.committed import CommittedFiles
from camray.ledger.parts import read_rows
from camray.ledger.table import RECORDS
from camray.records import Shard, as_text
from camray.storage import Folder

Said = tuple[str | None, str | None]  # checksum and label of a member

_COLUMNS = ("index", "content_sha256", "label")


def rehashed(
    out: Folder, shards: Sequence[Shard], committed: CommittedFiles, archive: ArchiveConfig
) -> list[Shard]:
    """Read the shards that are committed; give all of them, those with other content marked as reread."""
    return [_looked_at(out, s, committed, archive) if committed.holds(s) else s for s in shards]


def _looked_at(out: Folder, shard: Shard, committed: CommittedFiles, archive: ArchiveConfig) -> Shard:
    now: dict[int, Said] = {}
    then = _recorded(out, shard, committed)
    try:
        for member in read_members(shard, archive):
            checksum = None if member.content is None else hashlib.sha256(member.content).hexdigest()
            if member.error_code in PASSING_ERRORS and member.index in then:  # nothing is known of it now
                now[member.index] = then[member.index]
                continue
            now[member.index] = checksum, None if member.label is None else as_text(member.label)
    except ShardError as error:
        if error.code in PASSING_ERRORS:  # nothing is known of it now
            return shard
    chosen = then if shard.selection is None else {i: then.get(i) for i in shard.selection}
    if now == chosen:
        return shard
    return shard.anew(repr(sorted(now.items())))


def _recorded(out: Folder, shard: Shard, committed: CommittedFiles) -> dict[int, Said]:
    """Give what the records say of each member of a shard; the row of the shard as a whole is none."""
    said: dict[int, Said] = {}
    for record_file in committed[shard.key]:
        rows = read_rows(out, RECORDS.folder, record_file, [*_COLUMNS, "member"]).to_pylist()
        said |= {
            row["index"]: (row["content_sha256"], row["label"]) for row in rows if row["member"] is not None
        }
    return said
