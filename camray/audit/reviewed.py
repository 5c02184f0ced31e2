"""What people decided: files that the report saved, kept in the `qa` table, read back by the next audit.

Flows in: OUT/qa-inbox/*.json, or files named by --reviewed. Flows out: OUT/qa, one row a decision, and for
an image and verdict the latest decision. An image whose content changed, or another verdict, is asked anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import write_deltalake

from camray.errors import UsageError, printable
from camray.ledger import log
from camray.ledger.out import INBOX, QA
from camray.storage import Folder

DECISIONS = ("accepted", "problem")
_COLUMNS = (
    "explainer", "shard", "member", "index", "content_sha256", "verdict", "decision", "decided_at",
)  # fmt: skip
QA_SCHEMA = pa.schema([(name, pa.int32() if name == "index" else pa.string()) for name in _COLUMNS])
LARGEST_FILE = 256 * 2**20
Key = tuple[str, int, str | None, str]  # shard, index, content, verdict


def take_in(out: Folder, files: Sequence[str] = ()) -> int:
    """Add new decisions to the table and give their number; a decision that is there is not added again.

    Raises:
        UsageError: a file that is no review.
    """
    contents = {name: _read(name) for name in files}
    inbox = [e.path for e in out.entries(INBOX) if e.path.endswith(".json")]
    contents |= {path: out.read(f"{INBOX}/{path}") for path in inbox}
    rows = {tuple(row.values()): row for name, content in contents.items() for row in _rows_of(name, content)}
    known = {tuple(row.values()) for row in _table_rows(out)}
    fresh = [row for key, row in rows.items() if key not in known]
    if fresh:
        table = pa.Table.from_pylist(fresh, QA_SCHEMA)
        write_deltalake(
            out.child_uri(QA), table, mode="append", name="camray qa", configuration=log.NO_STATISTICS
        )
    return len(fresh)


def check_reviews(files: Sequence[str]) -> None:
    """Refuse files that are no reviews, before anything runs.

    Raises:
        UsageError: with the name of the file.
    """
    for name in files:
        _rows_of(name, _read(name))


def decisions(out: Folder, explainer: str) -> dict[Key, str]:
    """Give the latest decision of each image and verdict."""
    mine = [row for row in _table_rows(out) if row["explainer"] == explainer]
    mine.sort(key=lambda row: row["decided_at"])
    return {(r["shard"], r["index"], r["content_sha256"], r["verdict"]): r["decision"] for r in mine}


def _table_rows(out: Folder) -> list[dict[str, Any]]:
    if not log.exists(out, QA):
        return []
    return list(log.dataset(out, QA, log.opened(out, QA)).to_table(columns=QA_SCHEMA.names).to_pylist())


def _read(name: str) -> bytes:
    try:
        with Path(name).open("rb") as file:
            return file.read(LARGEST_FILE)
    except OSError as error:
        said = printable(f"{name}: {error.strerror}")
        raise UsageError("--reviewed", said, "give the saved file") from None


def _rows_of(name: str, content: bytes) -> list[dict[str, Any]]:
    """Read the decisions of a file, the columns of the table alone."""
    try:
        review = json.loads(content)
        rows = review["decisions"] if review["camray_review"] == 1 else None
    except (ValueError, KeyError, TypeError, RecursionError):
        rows = None
    fix = "give a file that the report saved"
    if not isinstance(rows, list):
        raise UsageError("--reviewed", printable(f"{name} is no review of camray"), fix)
    for number, row in enumerate(rows):
        if not _is_decision(row):
            raise UsageError("--reviewed", printable(f"{name}: decision {number} cannot be read"), fix)
    return [{column: row.get(column) for column in QA_SCHEMA.names} for row in rows]


def _is_decision(row: Any) -> bool:
    if not isinstance(row, Mapping) or row.get("decision") not in DECISIONS:
        return False
    texts = ("explainer", "shard", "verdict", "decided_at")
    return isinstance(row.get("index"), int) and all(isinstance(row.get(name), str) for name in texts)
