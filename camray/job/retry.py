"""`--retry CODE,...`: which committed shards hold images that failed so, and are to be done again.

An error of an image's own bytes is sealed with it. After an upgrade, a larger machine or another time limit
it may be worth another try: its whole shard is done anew, and replaced in one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from camray.errors import ErrorCode, UsageError
from camray.ledger.committed import CommittedFiles
from camray.ledger.table import Table
from camray.records import Shard

ANY = "failed"


def check_codes(codes: Sequence[str]) -> None:
    """Refuse what is no error code, nor `failed`.

    Raises:
        UsageError: with the codes there are.
    """
    known = {ANY, *map(str, ErrorCode)}
    if wrong := sorted(set(codes) - known):
        raise UsageError("--retry", f"{wrong[0]!r} is no error code", f"{ANY}, or of {', '.join(ErrorCode)}")


def retried(
    table: Table, owner: str, shards: Sequence[Shard], committed: CommittedFiles, codes: Sequence[str]
) -> list[Shard]:
    """Give all shards; those that hold failures of these codes are marked to be done again, as a whole."""
    latest: dict[str, dict[str, Any]] = {
        str(said["key"]): said for said in table.statements() if said["explainer"] == owner
    }
    asked = set(codes)

    def is_due(shard: Shard) -> bool:
        said = latest.get(shard.key)
        if said is None or shard.reread or not committed.holds(shard):
            return False
        found = {*said["failed"], *said["shard_errors"]}
        return bool(found if ANY in asked else found & asked)

    return [_anew(s, committed) if is_due(s) else s for s in shards]


def _anew(shard: Shard, committed: CommittedFiles) -> Shard:
    """Mark a shard by the files to be replaced: a run that is killed goes on with the chunks it made."""
    return shard.anew("|".join(sorted(f.path for f in committed[shard.key])))
