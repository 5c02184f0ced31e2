"""A small OUT made by hand: shards, record files, commits. Used by the tests of ledger and review."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from camray.config import Config, Explainer, InputSpec
from camray.errors import ExitCode
from camray.ledger.runs import first_report, write_explainer
from camray.ledger.sink import write_records
from camray.ledger.table import ShardCommit, Table
from camray.records import RECORD_SCHEMA, Accounting, Receipt, Shard, account
from camray.storage import Folder

SPEC = InputSpec(8, 8, (8, 8), "center", "bicubic", (0.5,) * 3, (0.5,) * 3)
EXPLAINERS = [
    Explainer("m", {}, "ab", (), 2, SPEC, "gradcam", "predicted", f"layer{i}", {}, 1, 1, 1) for i in (1, 2)
]
E1, E2 = (explainer.id for explainer in EXPLAINERS)


def shard(name: str = "a", version: str = "v1", **changes: Any) -> Shard:
    return replace(Shard(f"/data/{name}.tar", "tar", 100, version), **changes)


def rows(first: int, count: int, **columns: Any) -> pa.Table:
    """Records of `count` healthy members, from index `first` on; columns given by name replace these."""
    size = count
    made: dict[str, Any] = {
        "run_id": ["r1"] * size,
        "shard": ["/data/a.tar"] * size,
        "member": [f"{i}.jpg" for i in range(first, first + size)],
        "index": list(range(first, first + size)),
        "key": [str(i) for i in range(first, first + size)],
        "status": ["ok"] * size,
        "confidence": [0.5] * size,
        "heatmap": [[0.25, 0.5, 0.75, float(i)] for i in range(size)],
        "heat_h": [2] * size,
        "heat_w": [2] * size,
    }
    made |= columns
    return pa.table({f.name: pa.array(made.get(f.name, [None] * size), f.type) for f in RECORD_SCHEMA})


def shard_error_row(code: str) -> pa.Table:
    absent = ("member", "index", "key", "confidence", "heatmap", "heat_h", "heat_w")
    nothing: dict[str, Any] = {name: [None] for name in absent}
    return rows(0, 1, status=["failed"], error_code=[code], **nothing)


def write_chunk(
    out: Folder,
    of: Shard,
    chunk: int,
    table: pa.Table | None = None,
    *,
    explainer: str = E1,
    chunk_size: int = 4,
    run_id: str = "r1",
) -> Receipt:
    """Write a chunk file; whole of `chunk_size` members unless `table` says otherwise."""
    table = rows(chunk * chunk_size, chunk_size) if table is None else table
    table = table.set_column(0, RECORD_SCHEMA.field("run_id"), pa.array([run_id] * table.num_rows))
    return write_records(out, explainer, of.id, chunk, table, chunk_size=chunk_size)


def finished(
    out: Folder,
    of: Shard,
    tables: Sequence[pa.Table] | None = None,
    *,
    explainer: str = E1,
    run_id: str = "r1",
) -> ShardCommit:
    """Write every chunk of a shard and give what is ready to commit."""
    tables = [rows(0, 4), rows(4, 2)] if tables is None else tables
    receipts = tuple(
        write_chunk(out, of, i, table, explainer=explainer, run_id=run_id) for i, table in enumerate(tables)
    )
    return ShardCommit(of, receipts, account(receipts))


def committed(
    out: Folder,
    of: Shard,
    tables: Sequence[pa.Table] | None = None,
    *,
    explainer: str = E1,
    run_id: str = "r1",
) -> ShardCommit:
    """Write and commit one shard."""
    done = finished(out, of, tables, explainer=explainer, run_id=run_id)
    table = Table(out)
    table.create()
    assert table.commit(explainer, run_id, [done]) == [done]
    return done


def described(out: Folder, *runs: str) -> None:
    """Write what stands beside the records: the explainers, and the reports of runs that ended well."""
    for explainer in EXPLAINERS:
        write_explainer(out, explainer)
    for run_id in runs:
        report = first_report(run_id, E1, Config(), {})
        report.ended(ExitCode.DONE, Accounting(), 1.0, {}).write(out)


def visible(out: Folder) -> list[dict[str, Any]]:
    """Every row a reader sees, through Delta alone."""
    from deltalake import DeltaTable

    found: list[dict[str, Any]] = DeltaTable(out.child_uri("records")).to_pyarrow_table().to_pylist()
    return sorted(found, key=lambda r: (r["explainer"], r["shard"], r["index"] is None, r["index"] or 0))
