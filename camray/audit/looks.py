"""The second looks of a night: what is looked at again, with what, and within which budget.

new records ──choice──> images ──read, decode──> hot spots that repeat, a sample of each answer with every
intervention, then all images of the answers that stand out ──one commit──> OUT/looks

They run where an actor of the pool could run, as the canary does, and the images are held in memory there: at
most `MEMORY` bytes. A night that is killed meanwhile has no looks; the next one catches up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import write_deltalake

from camray.archive.frames import file_index
from camray.audit.causes import ALONE, DROP, NEEDS, Seen, excesses, named_of
from camray.config import Config, Explainer
from camray.explain.repeats import hot_crop, likeness, things
from camray.flow.actor import Weights, network_of
from camray.flow.flow import Engine, Pool
from camray.flow.guard import Guard
from camray.flow.progress import Reporter
from camray.flow.stages import Decode, read_shard
from camray.job.prepare import Prepared, chosen_shards
from camray.ledger import log
from camray.ledger.committed import PARTITION
from camray.ledger.out import LOOKS, TABLE
from camray.ledger.plan import ShardTask
from camray.ledger.table import Table
from camray.records import Chunk, Data, Shard, Status
from camray.storage import Folder

LOOKS_SCHEMA = pa.schema(
    [
        (PARTITION, pa.string()),
        ("run_id", pa.string()),
        ("shard", pa.string()),
        ("member", pa.string()),
        ("index", pa.int32()),
        ("content_sha256", pa.string()),
        ("predicted_class", pa.int32()),
        ("intervention", pa.string()),  # `repeat`: no forward, the hot spot compared
        ("sampled", pa.bool_()),  # of the seeded sample of its answer; else something pointed at it
        ("confidence", pa.float32()),  # in the answer, as it is
        ("drop", pa.float32()),  # of confidence; of a `carry` what the other image gained
        ("flip", pa.bool_()),
        ("to_class", pa.int32()),
        ("same", pa.float32()),  # likeness to the best twentieth of the answer
        ("other", pa.float32()),  # and of other answers
        ("crop", pa.binary()),  # the hot spot, square, RGB; of a `thing` what is around it
        ("before", pa.binary()),  # PNG of the image, of few
        ("after", pa.binary()),  # PNG of it changed
        ("thing_of", pa.int32()),  # of a `thing`: the answer in which it repeats
    ]
)
BATTERY = (
    "carry",
    "carry_surround",
    "border",
    "levels",
    "carry_levels",
    "detail",
    "noise",
    "frame",
)
SAMPLE = 64  # images of each answer
POOL = 500  # images of each answer that are read again
MEMORY = 2**30  # bytes of views
SMALL = 6400  # forwards that any night may have, but not more than eight an image
EARLIER, KEPT = 192, 128  # hot spots of earlier nights that are read for each answer, and kept
MOST_SMALL, LARGE = 32, 2**20  # files that are put together, bytes: the newest alone are read each night
PAIRS = 3  # of an answer and intervention, that are drawn
_RECORD = (
    "run_id", "shard", "member", "index", "content_sha256", "predicted_class", "confidence", "heatmap",
    "heat_h", "heat_w", "confirm_region", "confirm_drop",
)  # fmt: skip

Row = dict[str, Any]


def allowed(images: int, share: float) -> int:
    """Give the forwards that looks at so many images may cost.

    The share of the images; in a small night, where that leaves too few an answer, at most eight an image.
    """
    return max(round(share * images), min(8 * images, SMALL)) if share else 0


def describe_looks(images: int | None, share: float) -> str:
    """Say what looks at tonight's images may cost, for `plan`."""
    if images is None:
        return f"at most {share:.0%} more forwards, or {SMALL:,} where that is more (eight an image)"
    most = allowed(images, share)
    return f"at most {most:,} forwards, {most / max(images, 1):.0%} of {images:,} of explaining (--looks)"


def look_again(ready: Prepared, engine: Engine, _run_id: str, reporter: Reporter) -> None:
    """Look again at images of the runs that nobody looked at, and commit what was found."""
    explainer, config = ready.explainer, ready.config
    # the interventions are of classifiers and of pictures: what resolved the model said so
    if "task" in explainer.model_args or explainer.input.bands:
        return
    pool, images = choose(Table(ready.out), explainer)
    shards = {shard.uri: shard for shard in chosen_shards(ready.listing, ready.listing, ready.groupings)}
    indices: dict[str, set[int]] = defaultdict(set)
    for row in pool:
        indices[row["shard"]].add(file_index(row["index"], config.archive.frames))
    parts = [replace(shards[uri], selection=tuple(sorted(i))) for uri, i in indices.items() if uri in shards]
    if not parts:
        return
    weights, budget = engine.share(network_of(ready.model)), allowed(images, config.audit.looks)
    found, forwards = engine.once(
        look_at,
        engine.pool,
        weights,
        parts,
        config,
        explainer,
        pool,
        budget,
        earlier_crops(ready.out, explainer.id),
    )
    write_looks(ready.out, explainer.id, found)
    reporter.say(f"looked again: {forwards:,} forwards for {images:,} images", forwards=forwards)


def choose(table: Table, explainer: Explainer) -> tuple[list[Row], int]:
    """Pick at most 500 images of each answer, by checksum, of runs behind those looked at; and count all."""
    out, runs = table.out, ["run_id"]
    old, paths = set[str](), None
    for known in newest_looks(out, explainer.id, runs):  # the last files tell, unless the log does not
        old |= set(pc.unique(known.column("run_id")).to_pylist())
        if (paths := log.files_behind(out, TABLE, table.delta, old) if table.delta else None) is not None:
            break
    records = table.dataset(explainer.id, paths)
    usable = (ds.field(PARTITION) == explainer.id) & (ds.field("heat_status") == "ok")
    usable &= ds.field("target_class") == ds.field("predicted_class")
    usable &= ~ds.field("run_id").isin(sorted(old) or [""])
    keys = records.to_table(columns=["predicted_class", "content_sha256"], filter=usable)
    keys = keys.sort_by("content_sha256")
    answers = keys.column("predicted_class").to_numpy()
    most = max(1, MEMORY // (3 * explainer.input.width * explainer.input.height))
    each = min(POOL, max(1, most // max(len(np.unique(answers)), 1)))
    rank = _rank_within(answers)
    chosen = keys.column("content_sha256").filter(pa.array(rank < each)).to_pylist()
    wanted = pa.array(sorted(set(chosen)), pa.string())
    rows = records.scanner(columns=[*_RECORD], filter=usable & ds.field("content_sha256").isin(wanted))
    return rows.to_table().sort_by(
        [("content_sha256", "ascending"), ("shard", "ascending")]
    ).to_pylist(), len(keys)


def _rank_within(answers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Give the place of each row among those of its answer."""
    order = np.argsort(answers, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(answers[order]) != 0])
    rank = np.empty(len(answers), int)
    rank[order] = np.arange(len(answers)) - np.repeat(starts, np.diff(np.r_[starts, len(answers)]))
    return rank


def look_at(
    pool: Pool, weights: Weights, shards: Sequence[Shard], config: Config, explainer: Explainer,
    wanted: Sequence[Row], budget: int, earlier: Sequence[tuple[int, bytes]],
) -> tuple[list[Row], int]:  # fmt: skip
    """Read and decode the images, look at them, wherever this runs; give rows of looks and the forwards."""
    from camray.explain.looker import Looker

    views = read_views(shards, config, explainer, wanted)
    rows = [row for row in wanted if _key(row) in views]
    if not rows:
        return [], 0
    network = weights()
    looker = Looker(explainer, network.state(), network.folded, pool.device, pool.batch_size, pool.threads)
    plan = _Plan(looker, rows, np.stack([views[_key(row)] for row in rows]), budget)
    plan.compare(earlier)
    plan.carry_out()
    return plan.found, looker.forwards


def read_views(
    shards: Sequence[Shard], config: Config, explainer: Explainer, wanted: Sequence[Row]
) -> dict[tuple[str, int, str], Any]:
    """Read and decode the wanted images as the model sees them, (H, W, 3), by key; some may be gone."""
    decode = Decode(explainer.input, explainer.max_pixels, False, Guard())
    keys, found = {_key(row) for row in wanted}, {}
    shape = (explainer.input.height, explainer.input.width, 3)
    for shard in shards:
        for part in read_shard(ShardTask(shard), config.archive, config.run.chunk_size):
            chunk = Chunk.from_row(decode(part))
            if not isinstance(chunk.note, Data):
                continue
            names = (chunk.images.field(n).to_pylist() for n in ("index", "content_sha256", "status"))
            for place, (index, content, status) in enumerate(zip(*names, strict=True)):
                key = shard.uri, index, content
                if key in keys and status == Status.OK:
                    pixels = chunk.images.field("pixels")[place].as_buffer()
                    found[key] = np.frombuffer(pixels, np.uint8).reshape(shape)
    return found


def _key(row: Mapping[str, Any]) -> tuple[str, int, str]:
    return row["shard"], row["index"], row["content_sha256"]


class _Plan:
    """Looks at the images of one night, the most telling looks first, until the budget is spent."""

    def __init__(self, looker: Any, rows: Sequence[Row], views: Any, budget: int) -> None:
        self._looker, self._rows, self._views, self._budget = looker, rows, views, budget
        self._maps = [np.reshape(r["heatmap"], (r["heat_h"], r["heat_w"])).astype(np.float32) for r in rows]
        self._answers = np.array([row["predicted_class"] for row in rows])
        self._seen = [Seen(int(answer)) for answer in self._answers]
        self.found: list[Row] = []
        looker.take(views, self._maps, self._answers.tolist(), [row["confidence"] for row in rows])

    def compare(self, earlier: Sequence[tuple[int, bytes]]) -> None:
        """Compare the hot spots of tonight with each other and with earlier ones."""
        self._crops = crops = np.stack([hot_crop(v, m) for v, m in zip(self._views, self._maps, strict=True)])
        before = [np.frombuffer(crop, np.uint8).reshape(1, *crops.shape[1:]) for _, crop in earlier]
        answers = np.r_[self._answers, [answer for answer, _ in earlier]].astype(int)
        same, other = likeness(np.concatenate([crops, *before]), answers)
        for i, crop in enumerate(crops):
            self._seen[i].same, self._seen[i].other = float(same[i]), float(other[i])
            facts = {"same": float(same[i]), "other": float(other[i]), "crop": crop.tobytes()}
            self.found.append(self._row(i, "repeat") | facts)

    def carry_out(self) -> None:
        """Fill what repeats, give a sample of each answer everything, then look at those that stand out."""
        self._look("fill", [i for i, one in enumerate(self._seen) if one.repeats])
        classes = np.unique(self._answers)
        each = min(SAMPLE, int(0.8 * self._left / (len(BATTERY) * len(classes))))
        sample = np.flatnonzero(_rank_within(self._answers) < each).tolist()
        for i in sample:
            self._seen[i].is_sampled = True
        for name in BATTERY:
            self._look(name, sample)
        named = named_of(excesses(self._seen))
        for answer in classes.tolist():
            mine, by = np.flatnonzero(self._answers == answer).tolist(), named.get(answer, set())
            for carry, need in NEEDS.items():
                if carry in by or (carry == "carry" and "repeat" in by):
                    self._look(need, mine)
                    self._look(carry, [i for i in mine if self._seen[i].drops.get(need, 0) > DROP])
            for name in [name for name in ("border", *ALONE) if name in by]:
                self._look(name, mine)
        screened = [i for i, row in enumerate(self._rows) if row["confirm_region"] is not None]
        self._look("fill", screened)
        fell = [i for i in screened if (self._rows[i]["confirm_drop"] or 0) > DROP]
        self._look("border", fell)  # for the page: the pair
        fell += [
            i
            for i, one in enumerate(self._seen)
            if one.drops.get("border", 0) > DROP or one.needs_what_repeats()
        ]
        self._look("carry_rim", dict.fromkeys(fell))
        self._look_for_things()
        self._draw()

    def _look_for_things(self) -> None:
        """Look for what repeats and is needed in all images, wherever their heat is, and fill it there."""
        best: dict[int, float] = {}
        for answer, thing in things(self._crops, self._answers):
            for i, view in enumerate(self._views):
                alike, place = thing.found_in(view)
                if alike > max(thing.least, best.get(i, 0)):
                    best[i], self._looker.marked[i], self._seen[i].thing_of = alike, place, answer
        self._look("thing", sorted(best))

    @property
    def _left(self) -> int:
        return int(max(0, self._budget - self._looker.forwards))

    def _look(self, name: str, positions: Iterable[int]) -> None:
        due = [i for i in positions if name not in self._seen[i].drops][: self._left]
        for i, effect in zip(due, self._looker.effects(name, due) if due else (), strict=True):
            blurred = self._rows[i]["confirm_drop"] if name == "border" else None
            drop = effect.drop if blurred is None else min(effect.drop, blurred)  # both ways must agree
            self._seen[i].drops[name] = drop
            facts = {"drop": drop, "flip": effect.flip, "to_class": effect.to_class}
            if name == "thing":
                spot = hot_crop(self._views[i], self._looker.marked[i])
                facts |= {"thing_of": self._seen[i].thing_of, "crop": spot.tobytes()}
            self.found.append(self._row(i, name) | facts | {"place": i})

    def _draw(self) -> None:
        """Keep pictures of the pairs that moved most, of each answer and intervention."""
        pairs: dict[tuple[int, str], list[Row]] = defaultdict(list)
        for row in self.found:
            if (row.get("drop") or 0) > DROP and not row["intervention"].startswith("carry"):
                pairs[row["predicted_class"], row["intervention"]].append(row)
        for rows in pairs.values():
            for row in sorted(rows, key=lambda r: -r["drop"])[:PAIRS]:
                row["before"], row["after"] = self._looker.pair(row["intervention"], row["place"])

    def _row(self, i: int, name: str) -> Row:
        same = ("run_id", "shard", "member", "index", "content_sha256", "predicted_class", "confidence")
        row = {field: self._rows[i][field] for field in same}
        return row | {"intervention": name, "sampled": self._seen[i].is_sampled}


def write_looks(out: Folder, explainer: str, found: Sequence[Row]) -> None:
    """Commit the rows of a night; `run_id` is that of the record, which may be of a run that was killed."""
    columns = {f.name: [row.get(f.name) for row in found] for f in LOOKS_SCHEMA}
    columns |= {PARTITION: [explainer] * len(found)}
    rows = pa.Table.from_pydict(columns, LOOKS_SCHEMA)
    write_deltalake(
        out.child_uri(LOOKS), rows, mode="append", partition_by=[PARTITION], name="camray looks",
        configuration=log.BESIDE, schema_mode="merge",
    )  # fmt: skip
    table = log.opened(out, LOOKS)
    if sum(size < LARGE for size in log.sizes(table).values()) >= MOST_SMALL:
        table.optimize.compact(target_size=LARGE)  # a file a night: to open five hundred takes seconds


def read_looks(
    out: Folder, explainer: str, columns: Sequence[str], where: ds.Expression | None = None,
    paths: Sequence[str] | None = None,
) -> pa.Table:  # fmt: skip
    """Read columns of all looks of an explainer, or of some; no rows where nobody looked.

    `paths`: of these files alone, which are of the explainer.
    """
    if paths == [] or not log.exists(out, LOOKS):
        return LOOKS_SCHEMA.empty_table().select(list(columns))
    if paths is not None:
        files = ds.dataset(paths, LOOKS_SCHEMA, format="parquet", filesystem=log.file_system(out, LOOKS))
        return files.to_table(columns=list(columns), filter=where)
    table = log.dataset(out, LOOKS, log.opened(out, LOOKS)).replace_schema(LOOKS_SCHEMA)  # older: has less
    mine = ds.field(PARTITION) == explainer
    return table.to_table(columns=list(columns), filter=mine if where is None else mine & where)


def newest_looks(
    out: Folder, explainer: str, columns: Sequence[str], where: ds.Expression | None = None
) -> Iterator[pa.Table]:
    """Read columns of some looks file by file, that of the latest nights first."""
    files = log.newest(log.opened(out, LOOKS), explainer)["path"] if log.exists(out, LOOKS) else ()
    for path in map(str, files):
        yield read_looks(out, explainer, columns, where, [path])


def earlier_crops(out: Folder, explainer: str) -> list[tuple[int, bytes]]:
    """Give the hot spots of earlier nights, with their answers, at most 128 of each, of the latest files."""
    columns = ["run_id", "predicted_class", "crop"]
    parts, answers, rows = [LOOKS_SCHEMA.empty_table().select(columns)], set[int](), 0
    things = ds.field("crop").is_valid() & (ds.field("intervention") == "repeat")
    for part in newest_looks(out, explainer, columns, things):
        parts.append(part)
        answers |= set(pc.unique(part["predicted_class"]).to_pylist())
        rows += len(part)
        if rows > EARLIER * len(answers):
            break
    found = pa.concat_tables(parts).sort_by([("run_id", "descending")])
    kept: Any = _rank_within(found.column("predicted_class").to_numpy()) < KEPT if rows else []
    found = found.filter(pa.array(kept, pa.bool_()))
    answer_of, crops = (found.column(name).to_pylist() for name in columns[1:])
    return list(zip(answer_of, crops, strict=True))
