"""The audit of an OUT: every committed record gets flags, a verdict and a place in the queue.

records ──pass 1──> sums over the archive ──pass 2──> verdicts ──one transaction──> OUT/audit
                                             └──> counts by class, state of the night

A verdict is a function of the records, the settings and the reviewers' words alone, so nothing needs to be
resumed: an audit that was killed left the table of the audit before, and the next one writes it anew.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, write_deltalake
from numpy.typing import NDArray

from camray.audit import verdicts
from camray.audit.archive_view import ArchiveView
from camray.audit.cause_book import Card, CauseBook
from camray.audit.columns import NUMBERS, WORDS, as_arrays
from camray.audit.counts import ClassCounts, NightState
from camray.audit.history import Key as ImageKey
from camray.audit.history import Nights
from camray.audit.looks import read_looks
from camray.audit.properties import Properties
from camray.audit.reviewed import Decisions
from camray.audit.slices import Slices
from camray.config import AuditConfig
from camray.ledger import log
from camray.ledger.committed import PARTITION
from camray.ledger.out import AUDIT
from camray.ledger.table import Table
from camray.records import Status
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
_COPIED = ("shard", "member", "index", "content_sha256")
_READ = [
    *_COPIED, "run_id", "predicted_class", "label_class", "error_code", *WORDS, *NUMBERS, "heatmap", "heat_h",
    "heat_w", "topk", "image_hash", "format", "attributes",
]  # fmt: skip
_LOOKED = ("run_id", "shard", "index", "content_sha256", "predicted_class", "intervention", "sampled", "drop",
           "same", "other")  # fmt: skip
BATCH_ROWS = 16384


@dataclass(frozen=True, slots=True)
class Past:
    """What is known before an audit: the runs that earlier ones covered, and what people decided."""

    covered: frozenset[str]
    decisions: Decisions
    nights: Nights = field(default_factory=Nights)


@dataclass(frozen=True, slots=True)
class Judged:
    """One batch of records, its flags, and its rows of the audit table."""

    batch: pa.RecordBatch
    flags: verdicts.Marks
    rows: pa.RecordBatch


class Tally:
    """What is counted while rows are judged: of the archive, of new rows, of earlier nights that are open."""

    def __init__(self, num_classes: int, open_nights: Mapping[str, frozenset[str]]) -> None:
        self.open_nights = {night: ClassCounts(num_classes) for night in open_nights}
        self._runs_of = open_nights
        self.archive, self.night = ClassCounts(num_classes), ClassCounts(num_classes)
        self.asked = ClassCounts(num_classes)  # of the gate: the night without what a person accepted
        self.accepted = 0  # new images whose cause a person accepted
        self.archive_verdicts: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.state = NightState()
        self.properties = Properties()
        self.archive_slices, self.night_slices = Slices(), Slices()
        self.causes: list[Card] = []
        self.covered: set[str] = set()  # the runs that have a new row

    def add(self, judged: Judged, covered: frozenset[str]) -> None:
        """Count a batch; the rows of the runs in `covered` are not new."""
        verdict, runs = (judged.rows.column(name).to_pylist() for name in ("verdict", "night"))
        self.archive.add(judged.batch, judged.flags)
        self.properties.add(judged.batch, judged.flags)
        self.archive_slices.add(judged.batch, judged.flags)
        self.archive_verdicts.update(verdict)
        for night, counts in self.open_nights.items():
            self._add_open(counts, judged, np.array([run in self._runs_of[night] for run in runs], bool))
        new = np.array([run not in covered for run in runs], bool)
        if new.any():
            self.covered |= set(runs) - covered
            self._add_open(self.asked, judged, new)
            said = judged.rows.column("reviewed").to_pylist()
            self.accepted += sum(
                s == "accepted" for s, is_new in zip(said, new.tolist(), strict=True) if is_new
            )
            rows = judged.batch.filter(pa.array(new))
            flags = {name: mark[new] for name, mark in judged.flags.items()}
            self.night.add(rows, flags)
            self.state.add(rows, flags)
            self.night_slices.add(rows, flags)
            self.verdicts.update(compress(verdict, new))
            self.errors.update(code for code in rows.column("error_code").to_pylist() if code)

    def _add_open(self, counts: ClassCounts, judged: Judged, mine: NDArray[np.bool_]) -> None:
        """Count the images of an earlier night; of what a person accepted nothing is held against it."""
        if mine.any():
            accepted = np.array([said == "accepted" for said in judged.rows.column("reviewed").to_pylist()])
            flags = {name: (mark & ~accepted)[mine] for name, mark in judged.flags.items()}
            counts.add(judged.batch.filter(pa.array(mine)), flags)


def batches(table: Table, explainer: str) -> Iterator[pa.RecordBatch]:
    """Read the records in bounded batches, one row an image: of several targets the first."""
    rows = table.dataset().scanner(
        columns=_READ, filter=ds.field(PARTITION) == explainer, batch_size=BATCH_ROWS, batch_readahead=2,
        fragment_readahead=4,
    )  # fmt: skip
    for batch in rows.to_batches():
        chosen = batch.filter(pa.array(_first_of_each_image(batch)))
        if len(chosen):
            yield chosen


def judge(
    batch: pa.RecordBatch,
    view: ArchiveView,
    settings: AuditConfig,
    decisions: Decisions,
    explainer: str,
    book: CauseBook,
) -> Judged:
    """Find flags, verdict and score of each row of a batch; `view` and `book` have seen the whole archive."""
    known = book.of(batch)
    columns, whole = as_arrays(batch), view.of(batch) | known
    flags = verdicts.find_flags(columns, whole, settings)
    verdict = verdicts.decide(flags)
    names = np.where(flags["shortcut_confirmed"], known["cause_id"], "").tolist()
    reviewed = [decisions.causes.get(name) for name in names]
    if decisions.images:
        images = (batch.column(name).to_pylist() for name in ("shard", "index", "content_sha256"))
        keys = zip(*images, verdict.tolist(), strict=True)
        reviewed = [decisions.images.get(key, said) for key, said in zip(keys, reviewed, strict=True)]
    scores = verdicts.audit_scores(verdict, columns, flags, known["cause_drop"])
    scores = np.where(flags["shortcut_confirmed"], 0.9 + 0.1 / (1 + known["rank"]), scores)  # causes in turn
    accepted = np.array([decision == "accepted" for decision in reviewed], bool)
    rows: dict[str, Any] = {name: batch.column(name) for name in _COPIED} | {
        PARTITION: [explainer] * len(batch),
        "night": batch.column("run_id"),
        "verdict": verdict.tolist(),
        "flags": verdicts.as_lists(flags),
        "audit_score": np.where(accepted, 0.0, scores),
        "heat_lift": pa.array(whole["lift"], pa.float32(), from_pandas=True),
        "suggested_class": pa.array(whole["suggested_class"], pa.int32(), mask=~whole["label_suspect"]),
        "reviewed": reviewed,
        "cause": pa.array(known["cause"], pa.string(), mask=~flags["shortcut_confirmed"]),
        "others": pa.array(known["others"], mask=~flags["shortcut_confirmed"]),
        "cause_id": [name or None for name in names],
    }
    return Judged(batch, flags, pa.RecordBatch.from_pydict(rows, AUDIT_SCHEMA))


def judge_archive(
    out: Folder, table: Table, explainer: str, num_classes: int, settings: AuditConfig, past: Past,
    run_id: str, open_nights: Mapping[str, frozenset[str]], names: Sequence[str] = (),
) -> Tally:  # fmt: skip
    """Judge every record of an explainer, write the audit table, and give the counts.

    `open_nights` names earlier nights to be counted again, with the runs that each covers.
    """
    view, tally = ArchiveView(num_classes), Tally(num_classes, open_nights)
    book = CauseBook(_looks(out, explainer), settings.drop, past.nights, partial(_crops, out, explainer))
    for batch in batches(table, explainer):
        view.add(batch)
        book.add(batch)
    book.close()  # it reads a table, which nothing may do while another is written

    def rows() -> Iterator[pa.RecordBatch]:
        for batch in batches(table, explainer):
            judged = judge(batch, view, settings, past.decisions, explainer, book)
            tally.add(judged, past.covered)
            yield judged.rows

    uri = out.child_uri(AUDIT)
    if not log.exists(out, AUDIT):
        DeltaTable.create(
            uri, AUDIT_SCHEMA, mode="ignore", partition_by=[PARTITION], name="camray audit",
            configuration=log.BESIDE,
        )  # fmt: skip
    note = CommitProperties(custom_metadata={"camray": json.dumps({"run_id": run_id})})
    write_deltalake(
        uri, pa.RecordBatchReader.from_batches(AUDIT_SCHEMA, rows()), mode="overwrite",
        predicate=f"{PARTITION} = '{explainer}'", commit_properties=note, schema_mode="merge",
    )  # fmt: skip
    tally.causes = book.cards(names, past.decisions.causes)
    return tally


def _looks(out: Folder, explainer: str) -> Iterator[dict[str, Any]]:
    """Read the looks, as many at once as memory bears."""
    for batch in read_looks(out, explainer, _LOOKED).to_batches(max_chunksize=BATCH_ROWS):
        yield from batch.to_pylist()


def _crops(out: Folder, explainer: str, keys: Collection[ImageKey]) -> dict[ImageKey, bytes]:
    """Read the hot spots of these images."""
    contents = pa.array(sorted({content for _, _, content in keys}), pa.string())
    where = ds.field("content_sha256").isin(contents) & ds.field("crop").is_valid()
    rows = read_looks(out, explainer, [*_COPIED, "crop"], where).to_pylist()
    found = {(row["shard"], row["index"], row["content_sha256"]): row["crop"] for row in rows}
    return {key: found[key] for key in keys if key in found}


def named_before(out: Folder, explainer: str) -> dict[ImageKey, str]:
    """Read which cause each image had in the table of the audit before."""
    if not log.exists(out, AUDIT):
        return {}
    table = log.dataset(out, AUDIT, log.opened(out, AUDIT))
    if "cause_id" not in table.schema.names:  # of an earlier camray
        return {}
    where = (ds.field(PARTITION) == explainer) & ds.field("cause_id").is_valid()
    rows = table.to_table(columns=[*_COPIED, "cause_id"], filter=where).to_pylist()
    return {(row["shard"], row["index"], row["content_sha256"]): row["cause_id"] for row in rows}


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
