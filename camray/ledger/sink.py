"""One chunk of explained images becomes one Parquet file: named after its bytes, atomic, page checksums.

The name ends in a checksum of the whole file: `verify` sees every bit that changed. The file carries its own
receipt in the footer, so that a later run can take it over without reading rows. It is invisible to readers
until a commit names it.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from camray.errors import PASSING_ERRORS
from camray.ledger.committed import checksum, file_name
from camray.ledger.parts import FOOTER_KEY
from camray.ledger.table import RECORDS, Kind
from camray.records import SCHEMA_VERSION, Receipt, Status
from camray.storage import Folder


def write_records(
    out: Folder,
    explainer: str,
    shard_id: str,
    chunk: int,
    records: pa.Table,
    *,
    chunk_size: int,
    kind: Kind = RECORDS,
) -> Receipt:
    """Write the records of one chunk and return its receipt.

    `records` has the columns of the kind's schema; a row with a null member is the shard's own and is not
    counted as a member.
    """
    counted = counts(records)
    note = {"shard_id": shard_id, "chunk": chunk, "rows": records.num_rows, **counted}
    footer = json.dumps(note | {"chunk_size": chunk_size, "schema_version": SCHEMA_VERSION})
    table = records.cast(kind.schema).replace_schema_metadata({FOOTER_KEY: footer.encode()})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    data = buffer.getvalue()
    again = any(code in PASSING_ERRORS for code in counted["failed"])
    path = file_name(explainer, shard_id, chunk, checksum(data), kind.partition, again=again)
    out.write(f"{kind.folder}/{path}", data)
    return Receipt(path=path, size_bytes=data.size, **note)


def counts(records: pa.Table) -> dict[str, Any]:
    """Count members, not rows: an image explained for several classes is one member."""
    rows = zip(
        *(records.column(c).to_pylist() for c in ("member", "index", "status", "error_code")), strict=True
    )
    members = {index: (status, code) for member, index, status, code in rows if member is not None}
    statuses = Counter(status for status, _ in members.values())
    drawn = "overlay_path" in records.column_names
    overlays = records.num_rows - records.column("overlay_path").null_count if drawn else 0
    looked = "confirm_flip" in records.column_names
    changed = pc.sum(records.column("confirm_flip")).as_py() if looked else 0
    return {
        "ok": statuses[Status.OK],
        "skipped": statuses[Status.SKIPPED],
        "failed": dict(Counter(code for status, code in members.values() if status == Status.FAILED)),
        "overlays": overlays,
        "changed_answers": changed or 0,
    }
