"""An OUT of many rows that no model made: for pages, exports and times, not for figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from camray.audit.looks import write_looks
from camray.audit.night import audit_night
from camray.config import AuditConfig, Explainer, InputSpec
from camray.ledger.runs import write_explainer
from camray.ledger.sink import write_records
from camray.ledger.table import ShardCommit, Table
from camray.records import RECORD_SCHEMA, Shard, account
from camray.storage import open_folder

NASTY = (
    "<script>window.pwned=1</script>.jpg", "\"onerror=\"window.pwned=1\" x=\".jpg",
    "'><img src=x onerror=window.pwned=1>.png", "</script><script>window.pwned=1</script>",
    "\u202egpj.exe", "\u0627\u0644\u0635\u0648\u0631\u0629.jpg", "a/../../etc/passwd", "%2e%2e%2f\\x.jpg",
    "n" * 4096, "javascript:window.pwned=1", "\u0000\u0007.jpg", "{{ 7*7 }}.jpg", "line\nbreak\u2028.jpg",
)  # fmt: skip
CLASSES = ("disk", "square", "triangle", "cross", "<b>ring</b>", "star")
ROWS_A_SHARD = 5000


def explainer() -> Explainer:
    spec = InputSpec(64, 64, (64, 64), "center", "bicubic", (0.5,) * 3, (0.5,) * 3)
    return Explainer(
        "toy", {}, "0" * 64, CLASSES, 6, spec, "gradcam", "predicted", "layer4", {}, 3, 10**8, 1, confirm=0.15
    )


def records(start: int, count: int, run_id: str, shard: str) -> pa.Table:
    """Rows with every verdict in them; the same for the same numbers."""
    rng = np.random.default_rng(start)
    names = [NASTY[i] if i < len(NASTY) else f"img-{i:07d}.jpg" for i in range(start, start + count)]
    predicted, confidence = rng.integers(0, 6, count), rng.uniform(0.3, 1, count)
    wrong = rng.random(count) < 0.05
    wrong[: max(0, len(NASTY) - start)] = True
    failed = (rng.random(count) < 0.01) & ~wrong
    border = (rng.random(count) < 0.08) & ~wrong
    maps = rng.random((count, 49)).astype(np.float32)
    maps[border] *= np.where(np.arange(49) == 42, 40, 1)
    maps[predicted == 2] += np.where(np.arange(49) == 42, 3, 0).astype(np.float32)
    ok = ~failed

    def some(values: list, of: np.ndarray = ok) -> list:
        return [v if keep else None for v, keep in zip(values, of.tolist(), strict=True)]

    numbers = {
        "confidence": confidence, "margin": rng.uniform(0, 1, count), "entropy": 1 - confidence,
        "heat_max": maps.max(1), "heat_ring_mass": np.where(border, 0.6, 0.3),
        "heat_corner_mass": np.where(border, 0.5, 0.2), "heat_entropy": rng.uniform(0.5, 1, count),
        "heat_gini": rng.uniform(0, 1, count), "image_mean": rng.normal(120, 20, count),
        "image_std": rng.normal(50, 8, count), "image_sharpness": rng.lognormal(6, 1, count),
        "heat_in_padding": np.zeros(count),
    }  # fmt: skip
    top = zip(predicted.tolist(), confidence.tolist(), strict=True)
    drop = np.where(predicted == 2, 0.25 * confidence + 0.3, 0.1 * confidence)
    numbered = range(start + 1, start + count + 1)
    columns = {
        "run_id": [run_id] * count, "shard": [shard] * count, "member": names, "key": names,
        "index": list(range(start, start + count)), "status": np.where(failed, "failed", "ok").tolist(),
        "error_code": some(["corrupt_image"] * count, failed),
        "error_stage": some(["decode"] * count, failed),
        "error_message": some(["broken data stream <i>"] * count, failed),
        "content_sha256": [f"{i * 2654435761:064x}"[::-1] for i in numbered],
        "image_hash": [f"{i * 11400714819323198485 % 2**64:016x}" for i in numbered],
        "width": [64] * count, "height": [64] * count, "predicted_class": some(predicted.tolist()),
        "predicted_label": some([CLASSES[c] for c in predicted]), "correct": some((~wrong).tolist()),
        "label_class": some(np.where(wrong, (predicted + 1) % 6, predicted).tolist()),
        "target_class": some(predicted.tolist()), "heat_status": some(["ok"] * count),
        "heat_h": some([7] * count), "heat_w": some([7] * count), "heatmap": some(maps.tolist()),
        "heat_corner": some(["bottom_left"] * count), "heat_peaks": some([1] * count),
        "confirm_region": some(["border"] * count, border & ok),
        "confirm_drop": some(drop.tolist(), border & ok),
        "confirm_flip": some([False] * count, border & ok),
        "topk": some([[{"class_id": c, "label": CLASSES[c], "score": s}] for c, s in top]),
        **{name: some(values.tolist()) for name, values in numbers.items()},
    }  # fmt: skip
    size = {f.name: columns.get(f.name, [None] * count) for f in RECORD_SCHEMA}
    return pa.Table.from_pydict(size, RECORD_SCHEMA)


def _same(rows: pa.Table) -> pa.Table:
    return rows


def all_failed(rows: pa.Table) -> pa.Table:
    """The same members, of which not one could be decoded."""
    kept = rows.select(["run_id", "shard", "member", "key", "index", "content_sha256"]).to_pydict()
    count = rows.num_rows
    columns = kept | {"status": ["failed"] * count, "error_code": ["corrupt_image"] * count}
    whole = {f.name: columns.get(f.name, [None] * count) for f in RECORD_SCHEMA}
    return pa.Table.from_pydict(whole, RECORD_SCHEMA)


def make_out(
    place: Path,
    rows: int,
    run_id: str = "20261122T000000Z-0",
    change: Callable[[pa.Table], pa.Table] = _same,
    first: int = 0,
    causes: Mapping[int, str] = MappingProxyType({}),
) -> str:
    """Commit so many rows from shard `first` on, changed or not, audit them, and give the explainer's id."""
    out, what = open_folder(str(place), "OUT"), explainer()
    write_explainer(out, what)
    table = Table(out)
    table.create()
    for number in range(first, first - (-rows // ROWS_A_SHARD)):
        start = number * ROWS_A_SHARD
        count = min(ROWS_A_SHARD, rows - (number - first) * ROWS_A_SHARD)
        shard = Shard(f"shard-{number}.tar", "tar", 1, "1")
        found = change(records(start, count, run_id, shard.uri))
        receipt = write_records(out, what.id, shard.id, 0, found, chunk_size=ROWS_A_SHARD)
        table.commit(what.id, run_id, [ShardCommit(shard, (receipt,), account([receipt]))])
    if causes:
        look(place, run_id, causes)
    assert audit_night(str(place), what.id, run_id, AuditConfig(lift=0.0)).images.rows == rows
    return what.id


def look(place: Path, run_id: str, causes: Mapping[int, str]) -> None:
    """Write looks at every row of a run: half of the answers of a class fall by what `causes` names."""
    out, what, rng = open_folder(str(place), "OUT"), explainer(), np.random.default_rng(0)
    names = ["run_id", "shard", "member", "index", "content_sha256", "predicted_class", "confidence"]
    mine = (ds.field("run_id") == run_id) & ds.field("predicted_class").is_valid()
    looks = []
    for row in Table(out).dataset().to_table(names, filter=mine).to_pylist():
        falls = causes.get(row["predicted_class"], "") if rng.random() < 0.5 else ""
        for name in ("border", "levels", "frame", "detail", "noise"):
            drop = 0.6 if name == falls else 0.02
            looks.append(row | {"sampled": True, "intervention": name, "drop": drop})
    write_looks(out, what.id, looks)
