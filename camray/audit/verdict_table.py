"""The audit table: written anew as a whole, or given new rows in the place of some.

Its files are few: the small ones of many nights are put together with the next night's, so that a look at one
column of all rows stays cheap.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.transaction import AddAction, RemoveAction

from camray.audit.tally import Place, among
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
_FILE = "__filename"  # what Arrow calls the file of a row
ROWS_A_FILE, GROUP = 100_000, 8192
SMALL, MOST_SMALL = 20_000, 16  # rows of a small file, and how many may stand


def write_whole(out: Folder, explainer: str, run_id: str, rows: Iterable[pa.RecordBatch]) -> None:
    """Write all rows of an explainer anew, in one transaction; the table is made where it is not there."""
    if not log.exists(out, AUDIT):
        DeltaTable.create(
            out.child_uri(AUDIT), AUDIT_SCHEMA, mode="ignore", partition_by=[PARTITION], name="camray audit",
            configuration=log.BESIDE,
        )  # fmt: skip
    table = log.opened(out, AUDIT)
    there = {field.name for field in table.schema().fields}
    if later := [f for f in Schema.from_arrow(AUDIT_SCHEMA).fields if f.name not in there]:
        table.alter.add_columns(later)
        table = log.opened(out, AUDIT)
    _put(out, table, explainer, run_id, log.newest(table, explainer)["path"].to_pylist(), _in_files(rows))


def _in_files(rows: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Gather batches to as many rows as a file has."""
    parts: list[pa.RecordBatch] = []
    for batch in rows:
        parts.append(batch)
        if sum(map(len, parts)) >= ROWS_A_FILE:
            yield pa.Table.from_batches(parts)
            parts = []
    if parts:
        yield pa.Table.from_batches(parts)


def read_rows(out: Folder, explainer: str, places: Collection[Place]) -> tuple[pa.Table, set[str]]:
    """Read the rows of these images, without the explainer, and the paths of the files that have them."""
    paths = log.newest(log.opened(out, AUDIT), explainer)["path"].to_pylist() if places else []
    shards, indices = (
        pa.array({s for s, _ in places}, pa.string()),
        pa.array({i for _, i in places}, pa.int32()),
    )
    schema = AUDIT_SCHEMA.remove(0)
    files = ds.dataset(paths, schema, format="parquet", filesystem=log.file_system(out, AUDIT))
    scanner = files.scanner(
        columns=[*schema.names, _FILE], batch_readahead=2, fragment_readahead=4,
        filter=ds.field("shard").isin(shards) & ds.field("index").isin(indices),
    )  # fmt: skip
    parts = [batch.filter(among(batch, places)) for batch in scanner.to_batches()] if paths else []
    found = pa.Table.from_batches(parts, schema.append(pa.field(_FILE, pa.string())))
    return found.drop_columns([_FILE]), set(found[_FILE].to_pylist())


def put_rows(
    out: Folder, explainer: str, run_id: str, rows: Iterable[pa.RecordBatch], places: Collection[Place],
    held: Collection[str],
) -> None:  # fmt: skip
    """Add rows, in the place of those of `places`, in one transaction; files without any stay as they are.

    `held`: the files that have rows of these places. They are written anew one by one.
    """
    table = log.opened(out, AUDIT)
    files = log.newest(table, explainer)
    small = files.filter(pc.field("num_records") < SMALL)["path"].to_pylist()
    gone = {*held, *(small if len(small) >= MOST_SMALL else ())}

    def parts() -> Iterator[pa.Table]:
        together = [pa.Table.from_batches(rows, AUDIT_SCHEMA).drop_columns([PARTITION])]
        for path in sorted(gone):
            kept = _read(out, path)
            kept = kept.filter(pc.invert(among(kept, places))) if path in held else kept
            if path in small:
                together.append(kept)
            elif len(kept):
                yield kept
        whole = pa.concat_tables(together)
        yield from (whole.slice(start, ROWS_A_FILE) for start in range(0, len(whole), ROWS_A_FILE))

    _put(out, table, explainer, run_id, gone, parts())


def _read(out: Folder, path: str) -> pa.Table:
    """Read a file; it has no column for the explainer."""
    schema = AUDIT_SCHEMA.remove(0)
    rows = pq.read_table(path, filesystem=log.file_system(out, AUDIT), partitioning=None)
    return rows.select(schema.names).cast(schema)


def _put(
    out: Folder,
    table: DeltaTable,
    explainer: str,
    run_id: str,
    gone: Iterable[str],
    parts: Iterable[pa.Table],
) -> None:
    """Write parts as files, and put them in the place of others, in one transaction."""
    now_ms = int(time.time() * 1000)
    partition: dict[str, str | None] = {PARTITION: explainer}
    actions: list[AddAction | RemoveAction] = [RemoveAction(p, True, now_ms, None, partition) for p in gone]
    for number, rows in enumerate(parts):
        actions.append(_written(out, explainer, rows, f"{run_id}-{number}", now_ms))
    note = CommitProperties(custom_metadata={"camray": json.dumps({"run_id": run_id})})
    table.create_write_transaction(
        actions, "append", AUDIT_SCHEMA, partition_by=[PARTITION], commit_properties=note
    )


def _written(out: Folder, explainer: str, rows: pa.Table, name: str, now_ms: int) -> AddAction:
    """Write a file, the first of the queue first: a look at the queue then reads no more of it."""
    rows = rows.select(AUDIT_SCHEMA.names[1:]).sort_by([("audit_score", "descending")])
    buffer = pa.BufferOutputStream()
    pq.write_table(rows, buffer, compression="zstd", row_group_size=GROUP)
    data = buffer.getvalue()
    path = f"{PARTITION}={explainer}/{name}-{checksum(data)}.parquet"
    out.write(f"{AUDIT}/{path}", data)
    said = json.dumps({"numRecords": len(rows)})
    return AddAction(path, data.size, {PARTITION: explainer}, now_ms, True, said)
