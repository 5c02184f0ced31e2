"""The audit of an OUT: every committed record gets flags, a verdict and a place in the queue.

new records, and what was carried over ──> sums over the archive ──> verdicts ──one transaction──> OUT/audit
                                                  └──> earlier images that are told of otherwise

A verdict is a function of the records, the settings and the reviewers' words, so nothing needs to be resumed:
an audit that was killed left the table of the audit before, and the next one finds that what was carried over
is not of this table, and judges the archive anew as a whole: all records in two passes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from camray.audit import verdicts
from camray.audit.alike import KEY, rows_of, table_of
from camray.audit.archive_view import ArchiveView
from camray.audit.carried import (
    Carried,
    has_new_decisions,
    new_files,
    read_carried,
    write_carried,
)
from camray.audit.cause_book import CauseBook
from camray.audit.columns import NUMBERS, WORDS, as_arrays
from camray.audit.history import Key as ImageKey
from camray.audit.history import Nights
from camray.audit.looks import read_looks
from camray.audit.reviewed import Decisions
from camray.audit.tally import Judged, Place, Tally, among, places_of
from camray.audit.verdict_table import AUDIT_SCHEMA, put_rows, read_rows, write_whole
from camray.config import AuditConfig
from camray.ledger import log
from camray.ledger.committed import PARTITION
from camray.ledger.out import AUDIT, LOOKS
from camray.ledger.table import Table
from camray.records import Status
from camray.storage import Folder

_COPIED = ("shard", "member", "index", "content_sha256")
_READ = [
    *_COPIED, "run_id", "predicted_class", "label_class", "error_code", *WORDS, *NUMBERS, "heatmap", "heat_h",
    "heat_w", "topk", "image_hash", "format", "attributes",
]  # fmt: skip
_LOOKED = ("run_id", "shard", "index", "content_sha256", "predicted_class", "intervention", "sampled", "drop",
           "flip", "same", "other", "thing_of")  # fmt: skip
_WRITTEN = pa.schema([*KEY, ("cause", pa.string()), ("others", pa.int64()), ("place", pa.int64())])
BATCH_ROWS = 16384
Placed = tuple[str, int, int]  # cause, others with it, place among them
OTHERS_LAG, SCORE_LAG = 0.1, 0.01  # share, score: so far a number of an earlier image with a cause may be off


@dataclass(frozen=True, slots=True)
class Past:
    """What is known before an audit: the runs that earlier ones covered, and what people decided."""

    covered: frozenset[str]
    decisions: Decisions
    nights: Nights = field(default_factory=Nights)


def batches(
    table: Table, explainer: str, paths: Collection[str] | None = None, places: Collection[Place] = ()
) -> Iterator[pa.RecordBatch]:
    """Read the records, or these files of them, in bounded batches: one row an image, the first.

    `places`: only row groups are read that may have one of these images.
    """
    shards = ds.field("shard").isin(pa.array({shard for shard, _ in places}, pa.string()))
    rows = table.dataset(explainer, paths).scanner(
        columns=_READ, batch_size=BATCH_ROWS, batch_readahead=2, fragment_readahead=4,
        filter=shards if places else None,
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
    scores = np.where(flags["shortcut_confirmed"], _score(known["rank"]), scores)
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
    """Judge the records of an explainer, bring the audit table up to date, and give the counts.

    Judged are new records, and earlier ones whose verdict may be another one since; all of them where nothing
    holds that the night before carried over. `open_nights` names earlier nights to be counted again, with the
    runs that each covers.
    """
    carried = None if settings.full else read_carried(out, explainer, settings)
    written = _written_causes(carried) if carried else None
    named = {k: cause for k, (cause, _, _) in written.items()} if written else named_before(out, explainer)
    past = replace(past, nights=replace(past.nights, causes=named))
    work = _Work(table, explainer, num_classes, settings, past, run_id, open_nights)
    done = work.judge_new(carried, written) if carried and written is not None else None
    view, book, tally = done or work.judge_all()
    if done is None or written is None:
        written = book.placed()
    causes, tables = book.carried()
    tables |= {
        "sample": tally.sample.rows(),
        "written": table_of([(*key, *said) for key, said in written.items()], _WRITTEN),
    }
    facts = {"tally": tally.carried(run_id), "causes": causes}
    write_carried(table, explainer, settings, view.carried(), facts, tables)
    tally.causes = book.cards(names, past.decisions.causes)
    return tally


@dataclass(frozen=True, slots=True)
class _Work:
    """One audit of one explainer's records."""

    table: Table
    explainer: str
    num_classes: int
    settings: AuditConfig
    past: Past
    run_id: str
    open_nights: Mapping[str, frozenset[str]]

    def judge_all(self) -> tuple[ArchiveView, CauseBook, Tally]:
        """Judge every record, in two passes, and write the audit table anew."""
        view, book = ArchiveView(self.num_classes), self._book()
        tally = Tally(self.num_classes, self.open_nights)
        for batch in batches(self.table, self.explainer):
            view.add(batch)
            book.add(batch)
        book.close()  # it reads a table, which nothing may do while another is written

        def rows() -> Iterator[pa.RecordBatch]:
            for batch in batches(self.table, self.explainer):
                judged = self._judge(batch, view, book)
                tally.add(judged, self.past.covered)
                yield judged.rows

        write_whole(self.table.out, self.explainer, self.run_id, rows())
        return view, book, tally

    def judge_new(
        self, carried: Carried, written: dict[ImageKey, Placed]
    ) -> tuple[ArchiveView, CauseBook, Tally] | None:
        """Judge what is new, and what else may be judged otherwise now; None where all has to be judged.

        `written`: the causes that the audit table tells; it is brought up to date too.
        """
        out, explainer = self.table.out, self.explainer
        paths = new_files(out, self.table.kind.folder, carried, self.table.version)
        looked = new_files(out, LOOKS, carried)
        if paths is None or looked is None:
            return None
        mine, looked = (
            [path for path in some if path.startswith(f"{PARTITION}={explainer}/")]
            for some in (paths, looked)
        )
        tally, book = Tally(self.num_classes, self.open_nights), self._book(looked)
        facts, tables = carried.facts, carried.tables
        if not tally.recall(facts["tally"], tables["sample"]) or not book.recall(facts["causes"], tables):
            return None
        new = list(batches(self.table, explainer, mine)) if mine else []
        view = ArchiveView(self.num_classes, carried.arrays)
        for batch in new:
            view.add(batch)
            book.add(batch)
        if view.has_moved():
            return None
        fresh = {place for batch in new for place in places_of(batch)}
        placed = book.placed()
        again = {
            key[:2] for key in written.keys() | placed.keys() if _differs(written.get(key), placed.get(key))
        }
        again |= view.moved() | {key[:2] for key in book.looked}
        if has_new_decisions(out, carried):
            again |= self._decided(placed)
        before, held = read_rows(out, explainer, again - fresh)
        screened = ["border_heat" in flags for flags in before.column("flags").to_pylist()]
        book.recollect(before.column("content_sha256").filter(pa.array(screened, pa.bool_())).to_pylist())
        judged = [self._judge(batch, view, book) for batch in new]
        for part in judged:
            tally.add(part, self.past.covered)
        rejudged = self._judge_again(before, view, book, tally)
        rows = [part.rows for part in (*judged, *rejudged)]
        places = {place for part in rejudged for place in places_of(part.rows)}
        put_rows(out, explainer, self.run_id, rows, places, held if places else ())
        for key in [key for key in written if key[:2] in again]:
            del written[key]
        told = again | fresh
        written |= {key: said for key, said in placed.items() if key[:2] in told}
        return view, book, tally

    def _judge(self, batch: pa.RecordBatch, view: ArchiveView, book: CauseBook) -> Judged:
        return judge(batch, view, self.settings, self.past.decisions, self.explainer, book)

    def _book(self, looked: Sequence[str] | None = None) -> CauseBook:
        """Open the causes of all looks, or of those in these files."""
        out, explainer = self.table.out, self.explainer
        looks, crops = _looks(out, explainer, looked), partial(_crops, out, explainer, looked or [])
        return CauseBook(looks, self.settings.drop, self.past.nights, crops)

    def _judge_again(
        self, before: pa.Table, view: ArchiveView, book: CauseBook, tally: Tally
    ) -> list[Judged]:
        """Judge records of earlier nights again, which have these rows in the audit table."""
        if not len(before):
            return []
        rows = {place: i for i, place in enumerate(places_of(before))}
        paths = self.table.files_of(self.explainer, {shard for shard, _ in rows})
        found = []
        for batch in batches(self.table, self.explainer, paths, rows.keys()):
            mine = batch.filter(among(batch, rows.keys()))
            if not len(mine):
                continue
            now = self._judge(mine, view, book)
            old = before.take([rows[place] for place in places_of(mine)]).combine_chunks().to_batches()[0]
            held = [set(flags) for flags in old.column("flags").to_pylist()]
            marks = {name: np.array([name in flags for flags in held], bool) for name in verdicts.FLAGS}
            tally.swap(Judged(mine, marks, old), now)
            found.append(now)
        return found

    def _decided(self, placed: Mapping[ImageKey, Placed]) -> set[Place]:
        """Give the images that a person decided on, themselves or by their cause, now or before."""
        out, decisions = self.table.out, self.past.decisions
        table = log.dataset(out, AUDIT, log.opened(out, AUDIT))
        where = (ds.field(PARTITION) == self.explainer) & ds.field("reviewed").is_valid()
        found = set(places_of(table.to_table(columns=["shard", "index"], filter=where)))
        found |= {(shard, index) for shard, index, *_ in decisions.images}
        return found | {key[:2] for key, (cause, _, _) in placed.items() if cause in decisions.causes}


def _written_causes(carried: Carried) -> dict[ImageKey, Placed]:
    """Give what the audit table says of causes: the cause of an image, how many more have it, its place."""
    return {(shard, i, content): (*said,) for shard, i, content, *said in rows_of(carried.tables["written"])}


def _differs(row: Placed | None, placed: Placed | None) -> bool:
    """Tell whether the cause of an image is another one, or its numbers are further off than may be."""
    if row is None or placed is None:
        return True
    far = abs(placed[1] - row[1]) > OTHERS_LAG * row[1] or abs(_score(placed[2]) - _score(row[2])) > SCORE_LAG
    return placed[0] != row[0] or bool(far)


def _score(rank: Any) -> Any:
    """Give the audit score of an image with a cause: causes in turn."""
    return 0.9 + 0.1 / (1 + rank)


def _looks(out: Folder, explainer: str, paths: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """Read looks, all or of these files, as many at once as memory bears."""
    for batch in read_looks(out, explainer, _LOOKED, paths=paths).to_batches(max_chunksize=BATCH_ROWS):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield dict(zip(_LOOKED, row, strict=True))


def _crops(
    out: Folder, explainer: str, recent: Sequence[str], keys: Collection[ImageKey]
) -> dict[ImageKey, bytes]:
    """Read the hot spots of these images, from recent files of looks, and what is not there from all."""
    found: dict[ImageKey, bytes] = {}
    for paths in (recent, None):
        contents = pa.array(sorted({key[2] for key in keys if key not in found}), pa.string())
        if len(contents):
            where = ds.field("content_sha256").isin(contents) & ds.field("crop").is_valid()
            rows = read_looks(out, explainer, [*KEY.names, "crop", "intervention"], where, paths=paths)
            rows = rows.sort_by("intervention").drop_columns("intervention")  # a thing goes before a hot spot
            found |= {(*key,): crop for *key, crop in rows_of(rows)}
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
