"""What one audit carries over to the next: sums of the archive, so that a night reads what is new.

OUT/carried/<explainer>.sums holds a checksum, the arrays of the `ArchiveView`, the sample of the `Tally`, and
counts as JSON. It says of which versions of the tables it is, and under which settings: where anything else
is there, or it is damaged, the archive is judged anew as a whole.
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
from camray.ledger.out import AUDIT, LOOKS, QA, carried_file
from camray.ledger.table import Table
from camray.storage import Folder

FORMAT = 1
_JUDGING = ("drop", "lift", "margin", "dark", "bright", "flat", "blurry")


@dataclass(frozen=True, slots=True)
class Carried:
    """Sums after a night: `arrays` of the view, `facts` of tally and causes, and the sample."""

    versions: Mapping[str, int]  # of the tables then
    arrays: Mapping[str, NDArray[Any]]
    facts: Mapping[str, Any]
    sample: pa.Table


def read_carried(out: Folder, explainer: str, settings: AuditConfig) -> Carried | None:
    """Read what the night before left; None where there is none that holds for these settings and tables."""
    try:
        data = out.read(carried_file(explainer))
        if data[:16].decode("ascii", "replace") != checksum(memoryview(data)[16:]):
            return None
        with np.load(io.BytesIO(memoryview(data)[16:]), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(arrays.pop("facts").tobytes())
        sample = pa.ipc.open_stream(arrays.pop("sample").tobytes()).read_all()
        versions = facts.pop("versions")
        holds = facts.pop("holds") == _holds(settings) and versions[AUDIT] == log.versions(out).get(AUDIT)
        return Carried(versions, arrays, facts, sample) if holds else None
    except (OSError, ValueError, LookupError, TypeError):  # missing, or of another camray: it is made anew
        return None


def write_carried(
    table: Table, explainer: str, settings: AuditConfig, arrays: Mapping[str, Any],
    facts: Mapping[str, Any], sample: pa.Table,
) -> None:  # fmt: skip
    """Write what the next night needs; last of all, so that it never runs ahead of the table."""
    out = table.out
    versions = log.versions(out) | {table.kind.folder: table.version}
    said = {**facts, "versions": versions, "holds": _holds(settings)}
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, sample.schema) as writer:
        writer.write_table(sample)
    file = io.BytesIO()
    texts = {"facts": json.dumps(said).encode(), "sample": stream.getvalue()}
    packed: dict[str, Any] = {name: np.frombuffer(data, np.uint8) for name, data in texts.items()}
    np.savez(file, **arrays, **packed)
    content = file.getbuffer()
    out.write(carried_file(explainer), b"".join([checksum(content).encode(), content]))


def _holds(settings: AuditConfig) -> dict[str, Any]:
    said = asdict(settings)
    return {"format": FORMAT, **{name: said[name] for name in _JUDGING}}


def new_files(out: Folder, table: str, carried: Carried, last: int | None) -> list[str] | None:
    """Give the files that a table gained since; None where it lost one, or its log no longer tells."""
    since = carried.versions.get(table, -1)
    changes = log.changes(out, table, since, -1 if last is None else last)
    return None if changes is None or changes.removed else list(changes.added)


def has_new_decisions(out: Folder, carried: Carried) -> bool:
    """Tell whether people decided anything since."""
    return carried.versions.get(QA, -1) != log.versions(out).get(QA, -1)


def new_looks(out: Folder, carried: Carried) -> list[str] | None:
    """Give the files of looks that are new; None as in `new_files`."""
    return new_files(out, LOOKS, carried, log.versions(out).get(LOOKS))
