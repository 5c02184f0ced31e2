"""What one audit carries over to the next: sums of the archive, so that a night reads what is new.

OUT/carried/<explainer>.sums holds the arrays of the `ArchiveView`, tables (the sample of the `Tally`, counts
by night of the `CauseBook`, which image has which cause), counts as JSON, and a checksum. It says of
which versions of the tables it is, and under which settings: where anything else is there, or it is damaged,
the archive is judged anew as a whole.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camray.config import AuditConfig
from camray.ledger import log
from camray.ledger.committed import checksum
from camray.ledger.out import AUDIT, QA, carried_file
from camray.ledger.table import Table
from camray.storage import Folder

FORMAT = 5
DIGITS = 16  # of the checksum, behind the arrays
_TABLE = "table "  # begins the names of tables
_JUDGING = ("drop", "lift", "margin", "dark", "bright", "flat", "blurry")


@dataclass(frozen=True, slots=True)
class Carried:
    """Sums after a night: `arrays` of the view, `facts` of tally and causes, and tables."""

    versions: Mapping[str, int]  # of the tables then
    arrays: Mapping[str, NDArray[Any]]
    facts: Mapping[str, Any]
    tables: Mapping[str, pa.Table]


def read_carried(out: Folder, explainer: str, settings: AuditConfig) -> Carried | None:
    """Read what the night before left; None where there is none that holds for these settings and tables."""
    try:
        data = out.read(carried_file(explainer))
        if data[-DIGITS:].decode("ascii", "replace") != checksum(memoryview(data)[:-DIGITS]):
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(arrays.pop("facts").tobytes())
        tables = {
            name.removeprefix(_TABLE): pa.ipc.open_stream(pa.py_buffer(arrays.pop(name))).read_all()
            for name in [name for name in arrays if name.startswith(_TABLE)]
        }
        versions = facts.pop("versions")
        carried = Carried(versions, arrays, facts, tables)
        holds = facts.pop("holds") == _holds(settings) and new_files(out, AUDIT, carried) == []
        return carried if holds else None
    except (OSError, ValueError, LookupError, TypeError):  # missing, or of another camray: it is made anew
        return None


def write_carried(
    table: Table, explainer: str, settings: AuditConfig, arrays: Mapping[str, Any],
    facts: Mapping[str, Any], tables: Mapping[str, pa.Table],
) -> None:  # fmt: skip
    """Write what the next night needs; last of all, so that it never runs ahead of the table."""
    out = table.out
    versions = log.versions(out) | {table.kind.folder: table.version}
    said = {**facts, "versions": versions, "holds": _holds(settings)}
    packed: dict[str, Any] = {
        f"{_TABLE}{name}": np.frombuffer(_stream_of(table), np.uint8) for name, table in tables.items()
    }
    file = io.BytesIO()
    np.savez(file, **arrays, **packed, facts=np.frombuffer(json.dumps(said).encode(), np.uint8))
    file.write(checksum(file.getbuffer()).encode())
    out.write(carried_file(explainer), file.getvalue())


def _stream_of(table: pa.Table) -> pa.Buffer:
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table.combine_chunks())  # of each night one, with each pass over all costs more
    return stream.getvalue()


def _holds(settings: AuditConfig) -> dict[str, Any]:
    said = asdict(settings)
    return {"format": FORMAT, **{name: said[name] for name in _JUDGING}}


def new_files(out: Folder, table: str, carried: Carried, last: int | None = None) -> list[str] | None:
    """Give the files that a table gained since; None where it lost one, or its log no longer tells.

    A compaction is no change: the rows are the same. `last`: the version up to which is asked; None: that of
    now. None also where prune took away a new file that a compaction had put elsewhere.
    """
    last = log.versions(out).get(table, -1) if last is None else last
    changes = log.changes(out, table, carried.versions.get(table, -1), last)
    if changes is None or changes.removed or not all(out.exists(f"{table}/{p}") for p in changes.added):
        return None
    return changes.added


def has_new_decisions(out: Folder, carried: Carried) -> bool:
    """Tell whether people decided anything since."""
    return carried.versions.get(QA, -1) != log.versions(out).get(QA, -1)
