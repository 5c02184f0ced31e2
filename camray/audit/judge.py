"""The audit of an OUT: every committed record gets flags, a verdict and a place in the queue.

records ──pass 1──> sums over the archive ──pass 2──> verdicts ──one transaction──> OUT/audit
                                             └──> counts by class, state of the night

A verdict is a function of the records, the settings and the reviewers' words alone, so nothing needs to be
resumed: an audit that was killed left the table of the audit before, and the next one writes it anew.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, write_deltalake
from numpy.typing import NDArray

from camray.audit import verdicts
from camray.audit.archive_view import ArchiveView
from camray.audit.classes import ClassCounts
from camray.audit.columns import NUMBERS, WORDS, as_arrays
from camray.audit.night_state import NightState
from camray.audit.reviewed import Key
from camray.config import AuditConfig
from camray.ledger import log
from camray.ledger.committed import PARTITION
from camray.ledger.table import Table
from camray.records import Status
from camray.storage import Folder

AUDIT = "audit"
_KEYS: tuple[str, ...] = (
    "shard",
    "member",
    "index",
    "key",
    "content_sha256",
    "run_id",
    "predicted_class",
    "predicted_label",
)
_KEYS += ("label_class", "label", "target_class", "error_code")
_READ = [*_KEYS, *WORDS, *NUMBERS, "heatmap", "heat_h", "heat_w", "topk", "image_hash"]
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
    ]
)
BATCH_ROWS = 16384


@dataclass(frozen=True, slots=True)
class Judged:
    """One batch with everything found out about it."""

    batch: pa.RecordBatch
    fresh: NDArray[np.bool_]
    verdict: NDArray[np.str_]
    flags: verdicts.Marks
    score: NDArray[np.float64]
    lift: NDArray[np.float64]
    suggested: NDArray[np.int64]
    reviewed: NDArray[np.str_]


class Audit:
    """The audit of one explainer's records in an OUT."""

    def __init__(self, out: Folder, table: Table, explainer: str, settings: AuditConfig) -> None:
        self.out, self.table, self.explainer, self.settings = out, table, explainer, settings
        what = json.loads(out.read(f"explainers/{explainer}.json"))
        self.class_names: list[str] = what["class_names"]
        self.view = ArchiveView(int(what["num_classes"]))
        self.night = ClassCounts(int(what["num_classes"]))
        self.all = ClassCounts(int(what["num_classes"]))
        self.verdicts: Counter[str] = Counter()  # of the night
        self.all_verdicts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.state = NightState()
        self.reviewed: dict[Key, str] = {}  # what people decided, set before `run`
        self.covered: set[str] = set()  # the runs whose rows are in the table

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Read the records in bounded batches, one row an image: of several targets the first."""
        rows = self.table.dataset().scanner(
            columns=_READ, filter=ds.field(PARTITION) == self.explainer, batch_size=BATCH_ROWS,
            batch_readahead=2, fragment_readahead=4,
        )  # fmt: skip
        for batch in rows.to_batches():
            chosen = batch.filter(pa.array(_first_of_each_image(batch)))
            if len(chosen):
                yield chosen

    def run(self, seen: set[str], run_id: str) -> None:
        """Judge every row and write the table. `seen`: runs that an earlier audit has covered."""
        for batch in self.batches():
            self.view.add(batch)
        rows = pa.RecordBatchReader.from_batches(AUDIT_SCHEMA, self._judged(seen, run_id))
        uri = self.out.child_uri(AUDIT)
        if not log.exists(self.out, AUDIT):
            DeltaTable.create(uri, AUDIT_SCHEMA, mode="ignore", partition_by=[PARTITION], name="camray audit")
        said = CommitProperties(custom_metadata={"camray": json.dumps({"run_id": run_id})})
        mine = f"{PARTITION} = '{self.explainer}'"
        write_deltalake(uri, rows, mode="overwrite", predicate=mine, commit_properties=said)

    def _judged(self, seen: set[str], run_id: str) -> Iterator[pa.RecordBatch]:
        for batch in self.batches():
            judged = self.judge(batch, seen)
            self.count(judged)
            yield self._rows(judged, run_id)

    def judge(self, batch: pa.RecordBatch, seen: set[str]) -> Judged:
        """Find flags, verdict and score of each row of a batch."""
        rows, whole = as_arrays(batch), self.view.of(batch)
        flags = verdicts.find_flags(rows, whole, self.settings)
        verdict = verdicts.decide(flags)
        reviewed = self._reviewed(batch, verdict)
        score = np.where(reviewed == "accepted", 0.0, verdicts.audit_scores(verdict, rows, flags))
        fresh = np.array([run not in seen for run in batch.column("run_id").to_pylist()], bool)
        return Judged(batch, fresh, verdict, flags, score, whole["lift"], whole["suggested_class"], reviewed)

    def _reviewed(self, batch: pa.RecordBatch, verdict: NDArray[np.str_]) -> NDArray[np.str_]:
        """Give the decision a person took for each image and verdict; empty where there is none."""
        if not self.reviewed:
            return np.full(len(batch), "", "<U16")
        columns = (batch.column(name).to_pylist() for name in ("shard", "index", "content_sha256"))
        keys = zip(*columns, verdict.tolist(), strict=True)
        return np.array([self.reviewed.get(key, "") for key in keys], "<U16")

    def count(self, judged: Judged) -> None:
        """Add a batch to the counts of the archive and of the night."""
        self.all.add(judged.batch, judged.flags)
        self.all_verdicts.update(judged.verdict.tolist())
        if judged.fresh.any():
            self.covered |= set(judged.batch.column("run_id").unique().to_pylist())
            kept = judged.batch.filter(pa.array(judged.fresh))
            flags = {name: mark[judged.fresh] for name, mark in judged.flags.items()}
            self.night.add(kept, flags)
            self.state.add(kept, flags)
            self.verdicts.update(judged.verdict[judged.fresh].tolist())
            self.errors.update(code for code in kept.column("error_code").to_pylist() if code)

    def _rows(self, judged: Judged, run_id: str) -> pa.RecordBatch:
        batch = judged.batch
        columns: dict[str, Any] = {name: batch.column(name) for name in AUDIT_SCHEMA.names if name in _KEYS}
        columns |= {
            PARTITION: [self.explainer] * len(batch),
            "night": batch.column("run_id"),
            "verdict": judged.verdict.tolist(),
            "flags": verdicts.as_lists(judged.flags),
            "audit_score": judged.score,
            "heat_lift": pa.array(judged.lift, pa.float32(), from_pandas=True),
            "suggested_class": pa.array(judged.suggested, pa.int32(), mask=judged.suggested < 0),
            "reviewed": pa.array(judged.reviewed.tolist(), pa.string(), mask=judged.reviewed == ""),
        }
        arrays = [pa.array(columns[f.name], f.type) if not isinstance(columns[f.name], pa.Array)
                  else columns[f.name].cast(f.type) for f in AUDIT_SCHEMA]  # fmt: skip
        return pa.RecordBatch.from_arrays(arrays, schema=AUDIT_SCHEMA)


def _first_of_each_image(batch: pa.RecordBatch) -> NDArray[np.bool_]:
    """Mark the members (no shard rows, nothing skipped), of several targets the first.

    The rows of a member stand together in its file; a batch that starts amid them repeats it at most once.
    """
    members = ~np.asarray(batch.column("member").is_null())
    open_ones = batch.column("status").to_numpy(zero_copy_only=False) != Status.SKIPPED
    index = batch.column("index").to_numpy(zero_copy_only=False)
    shard = batch.column("shard").to_numpy(zero_copy_only=False)
    first = np.ones(len(batch), bool)
    first[1:] = (index[1:] != index[:-1]) | (shard[1:] != shard[:-1])
    return np.asarray(members & open_ones & first)
