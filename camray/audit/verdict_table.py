"""The audit table: written anew as a whole, or given new rows in the place of some.

Its files are few: the small ones of many nights are put together with the next night's, so that a look at one
column of all rows stays cheap.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.transaction import AddAction, RemoveAction

from camray.audit.tally import Place
from camray.ledger import log
from camray.ledger.committed import PARTITION, checksum
from camray.ledger.out import AUDIT
from camray.storage import Folder

AUDIT_SCHEMA = pa.schema(
    [
        (PARTITION, pa.string()),
        ("shard", pa.string()),
        ("member", pa.string()),
        ("index", pa.int32()),
        ("content_sha256", pa.string()),
        ("night", pa.string()),  # the run whose audit saw this row first
        ("verdict", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("audit_score", pa.float32()),  # 0..1, what to look at first
        ("heat_lift", pa.float32()),
        ("suggested_class", pa.int32()),
        ("reviewed", pa.string()),  # what a person said of this image and verdict
        ("cause", pa.string()),  # of a confirmed shortcut, one of causes.CAUSES
        ("others", pa.int32()),  # confirmed images with the same cause, beside this one
        ("cause_id", pa.string()),  # the same from night to night
    ]
)
ROWS_A_FILE = 100_000
SMALL, MOST_SMALL = 20_000, 16  # rows of a small file, and how many may stand


def write_whole(out: Folder, explainer: str, run_id: str, rows: Iterable[pa.RecordBatch]) -> None:
    """Write all rows of an explainer anew, in one transaction; the table is made where it is not there."""
    uri = out.child_uri(AUDIT)
    if not log.exists(out, AUDIT):
        DeltaTable.create(
            uri, AUDIT_SCHEMA, mode="ignore", partition_by=[PARTITION], name="camray audit",
            configuration=log.BESIDE,
        )  # fmt: skip
    write_deltalake(
        uri, pa.RecordBatchReader.from_batches(AUDIT_SCHEMA, rows), mode="overwrite",
        predicate=f"{PARTITION} = '{explainer}'", commit_properties=_note(run_id), schema_mode="merge",
        target_file_size=2**24,
    )  # fmt: skip


def read_rows(out: Folder, explainer: str, places: Collection[Place]) -> pa.Table:
    """Read the rows of these images."""
    shards = ds.field("shard").isin(pa.array(sorted({shard for shard, _ in places}), pa.string()))
    table = log.dataset(out, AUDIT, log.opened(out, AUDIT))
    rows = table.to_table(filter=(ds.field(PARTITION) == explainer) & shards)
    return rows.filter(among(rows, places))


def among(rows: pa.Table | pa.RecordBatch, places: Collection[Place]) -> pa.Array:
    """Mark the rows of these images."""
    indices = pa.array(sorted({index for _, index in places}), pa.int32())
    chosen = pc.is_in(rows.column("index"), value_set=indices).to_numpy(zero_copy_only=False).copy()
    at = np.flatnonzero(chosen)
    shards, numbers = (rows.column(name).take(pa.array(at)).to_pylist() for name in ("shard", "index"))
    chosen[at] = [place in places for place in zip(shards, numbers, strict=True)]
    return pa.array(chosen, pa.bool_())


def put_rows(
    out: Folder, explainer: str, run_id: str, rows: Iterable[pa.RecordBatch], places: Collection[Place]
) -> None:
    """Add rows, in the place of those of `places`, in one transaction; files without any stay as they are."""
    table = log.opened(out, AUDIT)
    files = pa.table(table.get_add_actions(flatten=True))
    files = files.filter(pc.field(f"partition.{PARTITION}") == explainer)
    small = files.filter(pc.field("num_records") < SMALL)["path"].to_pylist()
    gone = set(small) if len(small) >= MOST_SMALL else set()
    folder = log.file_system(out, AUDIT)
    shards = pa.array(sorted({shard for shard, _ in places}), pa.string())
    kept: list[pa.Table] = []
    for path in files["path"].to_pylist() if len(shards) else gone:
        if path not in gone:
            keys = pq.read_table(path, columns=["shard", "index"], filesystem=folder, partitioning=None)
            keys = keys.filter(pc.is_in(keys["shard"], value_set=shards))
            if not pc.any(among(keys, places)).as_py():
                continue
        whole = pq.read_table(path, filesystem=folder, partitioning=None)
        kept.append(whole.filter(pc.invert(among(whole, places))) if len(shards) else whole)
        gone.add(path)
    new = pa.Table.from_batches(rows, AUDIT_SCHEMA).drop_columns([PARTITION])
    whole = pa.concat_tables([*(part.select(new.column_names).cast(new.schema) for part in kept), new])
    now_ms = int(time.time() * 1000)
    partition: dict[str, str | None] = {PARTITION: explainer}
    actions: list[AddAction | RemoveAction] = [RemoveAction(p, True, now_ms, None, partition) for p in gone]
    for start in range(0, len(whole), ROWS_A_FILE):
        actions.append(_written(out, explainer, whole.slice(start, ROWS_A_FILE), f"{run_id}-{start}", now_ms))
    table.create_write_transaction(
        actions, "append", AUDIT_SCHEMA, partition_by=[PARTITION], commit_properties=_note(run_id)
    )


def _written(out: Folder, explainer: str, rows: pa.Table, name: str, now_ms: int) -> AddAction:
    buffer = pa.BufferOutputStream()
    pq.write_table(rows, buffer, compression="zstd")
    data = buffer.getvalue()
    path = f"{PARTITION}={explainer}/{name}-{checksum(data)}.parquet"
    out.write(f"{AUDIT}/{path}", data)
    said = json.dumps({"numRecords": len(rows)})
    return AddAction(path, data.size, {PARTITION: explainer}, now_ms, True, said)


def _note(run_id: str) -> CommitProperties:
    return CommitProperties(custom_metadata={"camray": json.dumps({"run_id": run_id})})
