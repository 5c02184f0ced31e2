"""What people decided: files that the report saved, kept in the `qa` table, read back by the next audit.

Flows in: OUT/qa-inbox/*.json, or files named by --reviewed. Flows out: OUT/qa, one row a decision, and
the latest decision on an image and its verdict, or on a cause with all its images. An image whose content
changed, or another verdict, is asked anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from deltalake import write_deltalake

from camray.errors import UsageError, printable
from camray.ledger import log
from camray.ledger.out import INBOX, QA
from camray.ledger.side import LARGEST_BYTES, DamagedError, read_side, recovered
from camray.storage import Folder

WITHDRAWN = "open"  # undoes what the same reviewer said before
DECISIONS = ("accepted", "problem", WITHDRAWN)
_COLUMNS = (
    "explainer", "shard", "member", "index", "content_sha256", "verdict", "decision", "decided_at", "cause",
    "reviewer",
)  # fmt: skip
QA_SCHEMA = pa.schema([(name, pa.int32() if name == "index" else pa.string()) for name in _COLUMNS])
Key = tuple[str, int, str | None, str]  # shard, index, content, verdict


class Decisions(NamedTuple):
    """The latest decisions: of images with a verdict, and of causes by their names."""

    images: Mapping[Key, str]
    causes: Mapping[str, str]


def take_in(out: Folder, files: Sequence[str] = ()) -> int:
    """Add new decisions to the table and give their number; a decision that is there is not added again.

    A damaged file of the inbox is named and set aside; the others count.

    Raises:
        UsageError: one of `files` is no review.
    """
    reviews = [_rows_of(name, _read(name)) for name in files]
    inbox = [f"{INBOX}/{e.path}" for e in out.entries(INBOX) if e.path.endswith(".json")]
    reviews += [recovered(out, path, decisions_in) or [] for path in inbox]
    rows = {tuple(row.values()): row for review in reviews for row in review}
    known = {tuple(row.values()) for row in _table_rows(out)}
    fresh = [row for key, row in rows.items() if key not in known]
    if fresh:
        table = pa.Table.from_pylist(fresh, QA_SCHEMA)
        place = out.child_uri(QA)
        write_deltalake(
            place, table, mode="append", name="camray qa", configuration=log.BESIDE, schema_mode="merge"
        )
    return len(fresh)


def check_reviews(files: Sequence[str]) -> None:
    """Refuse files that are no reviews, before anything runs.

    Raises:
        UsageError: with the name of the file.
    """
    for name in files:
        _rows_of(name, _read(name))


def decisions(out: Folder, explainer: str) -> Decisions:
    """Give the latest decision of each image and verdict, and of each cause."""
    said = standing([row for row in _table_rows(out) if row["explainer"] == explainer])
    latest = {key: list(rows.values())[-1] for key, rows in said.items()}
    images = {key: row["decision"] for key, row in latest.items() if not row["cause"]}
    return Decisions(
        {
            (shard, index, content, verdict): said
            for (_, shard, index, content, verdict), said in images.items()
        },
        {row["cause"]: row["decision"] for row in latest.values() if row["cause"]},
    )


def what_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Name what a decision is on: (explainer, cause), or (explainer, shard, index, content, verdict)."""
    names = ("cause",) if row.get("cause") else ("shard", "index", "content_sha256", "verdict")
    return row["explainer"], *(row[name] for name in names)


def standing(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], dict[str, Mapping[str, Any]]]:
    """Give what stands of decisions: by what each is on, the last of each reviewer, the latest at the end."""
    found: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["decided_at"]):
        said = found.setdefault(what_of(row), {})
        said.pop(reviewer := row.get("reviewer") or "", None)
        if row["decision"] != WITHDRAWN:
            said[reviewer] = row
    return {what: said for what, said in found.items() if said}


def known_decisions(out: Folder) -> list[dict[str, Any]]:
    """Read every decision there is, taken in or still in the inbox; a damaged file is left to the audit."""
    rows = _table_rows(out)
    for path in (f"{INBOX}/{e.path}" for e in out.entries(INBOX) if e.path.endswith(".json")):
        with suppress(DamagedError, FileNotFoundError):
            rows += read_side(out, path, decisions_in)
    return rows


def _table_rows(out: Folder) -> list[dict[str, Any]]:
    if not log.exists(out, QA):
        return []
    table = log.dataset(out, QA, log.opened(out, QA))
    there = [name for name in QA_SCHEMA.names if name in table.schema.names]  # once without causes
    rows = table.to_table(columns=there).to_pylist()
    return [{name: row.get(name) for name in QA_SCHEMA.names} for row in rows]


def _read(name: str) -> bytes:
    try:
        with Path(name).open("rb") as file:
            return file.read(LARGEST_BYTES)
    except OSError as error:
        said = printable(f"{name}: {error.strerror}")
        raise UsageError("--reviewed", said, "give the saved file") from None


def _rows_of(name: str, content: bytes) -> list[dict[str, Any]]:
    try:
        return decisions_in(json.loads(content))
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        why = f": {error}" if "decision" in str(error) else ""
        said = printable(f"{name} is no review of camray{why}")
        raise UsageError("--reviewed", said, "give a file that the report saved") from None


def decisions_in(review: Any) -> list[dict[str, Any]]:
    """Read the decisions of a review, the columns of the table alone.

    Raises:
        ValueError, LookupError, TypeError, OverflowError: it is none, or the table could not hold it.
    """
    if review["camray_review"] != 1 or not isinstance(review["decisions"], list):
        raise ValueError("it is no review of camray")
    for number, row in enumerate(review["decisions"]):
        if not _is_decision(row):
            raise ValueError(f"decision {number} cannot be read")
    rows = [{column: row.get(column) for column in QA_SCHEMA.names} for row in review["decisions"]]
    pa.Table.from_pylist(rows, QA_SCHEMA)  # text that is text, numbers that fit
    return rows


def _is_decision(row: Any) -> bool:
    if not isinstance(row, Mapping) or row.get("decision") not in DECISIONS:
        return False
    if row.get("cause"):
        is_text = all(isinstance(row.get(name), str) for name in ("explainer", "cause", "decided_at"))
        return is_text and isinstance(row.get("reviewer") or "", str)
    texts = ("explainer", "shard", "verdict", "decided_at")
    or_none = (row.get(name) for name in ("member", "content_sha256", "cause", "reviewer"))
    return (
        type(row.get("index")) is int
        and all(isinstance(row.get(name), str) for name in texts)
        and all(value is None or isinstance(value, str) for value in or_none)
    )
