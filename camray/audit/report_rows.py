"""The rows of the report: chosen by audit score, joined with their records, written as small script files.

    data/index.js        some bytes a row: verdict, class, flags, night, error; enough to filter and count
    data/rows-00000.js   100 rows each, in the order of the queue; loaded when a page shows them

Scripts, because a page opened from disk may load a script beside it, but may not fetch a file.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from camray.audit.columns import class_name
from camray.audit.tally import Place, among, places_of
from camray.audit.verdicts import FLAGS, VERDICTS
from camray.ledger import log
from camray.ledger.committed import PARTITION, checksum
from camray.ledger.out import AUDIT, REPORT, pruned_runs
from camray.ledger.side import DamagedError, read_side
from camray.ledger.table import Table
from camray.records import COLUMNS, EDGES
from camray.storage import Folder

ROWS_A_FILE = 100
MOST_CAUSES = 2**16 - 1  # that can be filtered by
SHOWN = {column.name: column.shown for column in COLUMNS if column.shown is not None}  # name -> decimals
QUEUE_FLAGS = (*FLAGS, "picture")  # one more to filter by
_LATER = ("cause", "others", "cause_id")  # columns that the audits of an earlier camray lack
_JUDGED = [
    "night",
    "shard",
    "index",
    "content_sha256",
    "verdict",
    "flags",
    "audit_score",
    "heat_lift",
    "suggested_class",
    "reviewed",
    *_LATER,
]
_RECORD = sorted({
    "run_id", "shard", "member", "index", "content_sha256", "error_code", "error_stage", "error_message",
    "width", "height", "predicted_class", "predicted_label", "confidence", "margin", "topk", "label",
    "label_class", "correct", "heatmap", "heat_h", "heat_w", "heat_ring_mass", "heat_corner_mass",
    "heat_corner", "heat_in_padding", "image_mean", "image_std", "image_sharpness", "confirm_drop",
    "confirm_flip", "overlay_path", "heat_boxes", *SHOWN,
})  # fmt: skip


class Facts(NamedTuple):
    """What the filters ask of a row: its class (-1: none), its error, whether its picture is there."""

    class_id: int
    error: str | None
    has_picture: bool
    lost: str | None  # "pruned" or "missing": a picture that was drawn


def audit_rows(
    out: Folder, explainer: str, limit: int, new_runs: Collection[str] = (), older: int | None = None,
    also: Collection[tuple[str, int]] = (),
) -> pa.Table:  # fmt: skip
    """Read at most `limit` rows of the queue, sorted: the highest audit score first.

    `new`: whether a row is of `new_runs`. Where not all rows find room, these come before older ones, of
    which there are at most `older`, and those that `also` names by shard and index.
    """
    table, mine = log.dataset(out, AUDIT, log.opened(out, AUDIT)), ds.field(PARTITION) == explainer
    there = [name for name in _JUDGED if name in table.schema.names]
    runs = pa.array(sorted(new_runs), pa.string())
    old, new = _scores(table.scanner(columns=["night", "audit_score"], filter=mine), runs)
    limit = limit if older is None else min(limit, new) + older
    least = np.partition(old, -limit)[-limit] if 0 < limit < len(old) else -np.inf
    asked = ds.field("night").isin(runs) | (ds.field("audit_score") >= pa.scalar(least, pa.float32()))
    named = ds.field("shard").isin(pa.array({shard for shard, _ in also}, pa.string()))
    named &= ds.field("index").isin(pa.array({index for _, index in also}, pa.int32()))
    rows = table.to_table(columns=there, filter=mine & (asked | named))
    for name in _LATER:
        rows = rows if name in there else rows.append_column(name, pa.nulls(len(rows), pa.string()))
    order = [("audit_score", "descending"), ("shard", "ascending"), ("index", "ascending")]
    rows = rows.append_column("new", pc.is_in(rows.column("night"), value_set=runs).cast(pa.int8()))
    if len(rows) > limit:
        best = pc.select_k_unstable(rows, limit, [("new", "descending"), *order])
        shards = pc.is_in(rows.column("shard"), value_set=pa.array({shard for shard, _ in also}, pa.string()))
        named = [
            i for i in np.flatnonzero(shards.to_numpy()).tolist()
            if (rows.column("shard")[i].as_py(), rows.column("index")[i].as_py()) in also
        ]  # fmt: skip
        rows = rows.take(pc.unique(pa.concat_arrays([best, pa.array(named, best.type)])))
    return rows.sort_by(order)


def _scores(rows: ds.Scanner, runs: pa.Array) -> tuple[NDArray[np.float32], int]:
    """Give the audit scores of rows that are not of these runs, and how many are."""
    parts, new = [np.empty(0, np.float32)], 0
    for batch in rows.to_batches():
        is_new = pc.is_in(batch.column("night"), value_set=runs)
        parts.append(batch.column("audit_score").filter(pc.invert(is_new)).to_numpy(zero_copy_only=False))
        new += len(batch) - len(parts[-1])
    return np.concatenate(parts), new


def written_rows(
    out: Folder, table: Table, explainer: str, judged: pa.Table, names: Sequence[str],
    before: Mapping[Place, Mapping[str, Any]] | None = None,
) -> list[str]:  # fmt: skip
    """Give each row of the queue as JSON, in its order. Memory: about 1 KB a row.

    `before`: rows as they were last written. Where nothing is said otherwise since, the record is not read.
    """
    texts, said = [""] * len(judged), judged.to_pylist()
    kept: dict[str, set[str]] = {}  # folder of a shard's pictures -> what is there
    pruned = pruned_runs(out)
    places = {place: i for i, place in enumerate(places_of(judged))}
    for place, shown in (before or {}).items():
        if (i := places.get(place)) is None or not _is_as_judged(shown, said[i], names):
            continue
        if "lost" not in shown and ("picture" not in shown or _is_there(out, shown["picture"], kept)):
            texts[i] = json.dumps(shown)
    due = {place: i for place, i in places.items() if not texts[i]}
    paths = table.files_of(explainer, {shard for shard, _ in due})
    records = table.dataset(explainer, paths).scanner(
        columns=_RECORD, batch_size=16384, batch_readahead=2, fragment_readahead=4
    )
    for batch in records.to_batches():
        for record in batch.filter(among(batch, due.keys())).to_pylist():
            i = due[record["shard"], record["index"]]
            if not texts[i]:  # of several targets the first
                shown = as_shown(record, said[i], names)
                if "picture" in shown and not _is_there(out, shown["picture"], kept):
                    del shown["picture"]
                    shown["lost"] = "pruned" if record["run_id"] in pruned else "missing"
                texts[i] = json.dumps(shown)
    return texts


def rows_before(out: Folder, made_by: Mapping[str, str]) -> dict[Place, dict[str, Any]]:
    """Read the rows of the report that is there, if it is whole and of the same explainer and camray."""
    try:
        pages = read_side(out, f"{REPORT}/pages.json", dict)
        if pages.get("made_by") != made_by:
            return {}
        rows: dict[Place, dict[str, Any]] = {}
        for name, digest in pages["pages"].items():
            if name.startswith("data/rows-") and checksum(data := out.read(f"{REPORT}/{name}")) == digest:
                found = filter(None, json.loads(data[data.index(b"[") : data.rindex(b"]") + 1]))
                rows |= {(row["shard"], row["index"]): row for row in found}
        return rows
    except (OSError, DamagedError, ValueError, LookupError, TypeError):  # it is written anew
        return {}


def _is_as_judged(shown: Mapping[str, Any], judged: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Tell whether a row as it was written says what the audit says now."""
    now = _told(judged, names) | {"run": judged["night"], "sha256": judged["content_sha256"]}
    return all(shown.get(name) == value for name, value in now.items())


def _told(judged: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Give what the page shows of a row's verdict."""
    return {
        "verdict": judged["verdict"], "flags": judged["flags"], "score": _short(judged["audit_score"]),
        "reviewed": judged["reviewed"], "suggested": class_name(judged["suggested_class"], names),
        "lift": _short(judged["heat_lift"]), "cause": judged["cause_id"], "others": judged["others"],
    }  # fmt: skip


def _is_there(out: Folder, picture: str, kept: dict[str, set[str]]) -> bool:
    """Tell whether a picture is there; `kept` remembers the folders that were listed."""
    folder = picture.rpartition("/")[0]
    if folder not in kept:
        kept[folder] = {f"{folder}/{entry.path}" for entry in out.entries(folder)}
    return picture in kept[folder]


def row_files(texts: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Give name and content of each file of rows."""
    for start in range(0, len(texts), ROWS_A_FILE):
        number = start // ROWS_A_FILE
        rows = ",\n".join(text or "null" for text in texts[start : start + ROWS_A_FILE])
        yield f"data/rows-{number:05d}.js", f"camrayRows({number},[\n{rows}\n]);\n".encode()


def facts_of(texts: Sequence[str]) -> list[Facts]:
    """Read back what the filters ask of each row."""
    rows = (json.loads(text) if text else {} for text in texts)
    return [Facts(r.get("class", -1), r.get("error"), "picture" in r, r.get("lost")) for r in rows]


def index_file(judged: pa.Table, facts: Sequence[Facts]) -> bytes:
    """Give what the filters ask of every row, as base64 of little-endian numbers; errors, causes from 1."""
    numbers = {verdict: i for i, verdict in enumerate(VERDICTS)}
    bits = [_bits(*both) for both in zip(judged.column("flags").to_pylist(), facts, strict=True)]
    errors = sorted({fact.error for fact in facts if fact.error})
    places = {error: i for i, error in enumerate(errors, 1)}
    given = judged.column("cause_id").to_pylist()
    causes = {cause: i for i, cause in enumerate(sorted({c for c in given if c})[:MOST_CAUSES], 1)}
    packed = {
        "verdict": _packed(np.array([numbers[v] for v in judged.column("verdict").to_pylist()], "<u1")),
        "flags": _packed(np.array(bits, "<u4")),
        "class": _packed(np.array([fact.class_id for fact in facts], "<i4")),
        "night": _packed(judged.column("new").to_numpy().astype("<u1")),
        "error": _packed(np.array([places.get(fact.error or "", 0) for fact in facts], "<u1")),
        "cause": _packed(np.array([causes.get(cause, 0) for cause in given], "<u2")),
    }
    said = {"rows": len(judged), "perFile": ROWS_A_FILE, "errors": errors, "causes": [*causes], **packed}
    return f"camrayIndex({json.dumps(said)});\n".encode()


def _bits(flags: Sequence[str], facts: Facts) -> int:
    """Give one bit a flag of `QUEUE_FLAGS`."""
    held = set(flags)
    if facts.has_picture:
        held.add("picture")
    return sum(1 << QUEUE_FLAGS.index(flag) for flag in held)


def as_shown(record: Mapping[str, Any], judged: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Give what the page shows of one image; short names, nothing that is missing."""
    row = {
        "member": record["member"], "shard": record["shard"], "index": record["index"],
        "run": record["run_id"], "sha256": record["content_sha256"], "error": record["error_code"],
        "class": record["predicted_class"], "predicted": record["predicted_label"],
        "confidence": _short(record["confidence"]), **{name: _short(record[name]) for name in SHOWN},
        "label": record["label"] or class_name(record["label_class"], names), "correct": record["correct"],
        "top": [[t["label"] or f"class {t['class_id']}", _short(t["score"])] for t in record["topk"] or []],
        "size": [record["width"], record["height"]] if record["width"] else None,
        "picture": record["overlay_path"], "grid": [record["heat_h"], record["heat_w"]],
        "heat": _heat(record["heatmap"]), "boxes": _boxes(record["heat_boxes"]),
        "why": reasons(record, judged, names),
        **_told(judged, names),
    }  # fmt: skip
    return {name: value for name, value in row.items() if value is not None}


def reasons(record: Mapping[str, Any], judged: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Say why a row was flagged, in sentences with its numbers."""
    values = dict(record) | {
        "label": record["label"] or class_name(record["label_class"], names),
        "error_message": record["error_message"] or "",
        "heat_corner": str(record["heat_corner"] or "").replace("_", " "),
        "suggested": class_name(judged["suggested_class"], names),
        "lift": judged["heat_lift"],
        "second_look": _second_look(record),
        "cause": judged["cause"] or "",
        "others": judged["others"] or 0,
    }
    flags = set(judged["flags"])
    return [text.format(**values).strip() for flag, text in _REASONS if flag in flags]


def _second_look(record: Mapping[str, Any]) -> str:
    before, drop = record["confidence"], record["confirm_drop"]
    if drop is None:
        return "No second look: it was over the budget."
    then = ", and another class wins" if record["confirm_flip"] else ""
    return f"With the hot border blurred the confidence goes from {before:.2f} to {before - drop:.2f}{then}."


_REASONS = (  # flag, sentence; in this order
    ("shortcut_confirmed", "Cause: {cause}. {others} more answers of this class have it."),
    ("failed", "{error_stage}: {error_code}. {error_message}"),
    (
        "border_heat",
        "{heat_ring_mass:.0%} of the heat lies on the outer eighth of the image, "
        "{heat_corner_mass:.0%} in the {heat_corner} corner.",
    ),
    ("border_heat", "{second_look}"),
    ("unusual_place", "The class looks where others do not look (lift {lift:.2f} nats)."),
    ("wrong", "The label is {label}, the model says {predicted_label} ({confidence:.1%})."),
    (
        "label_suspect",
        "Of all labels of the archive this is one of those the model believes least: it may be wrong.",
    ),
    ("dead_map", "The heatmap has no positive value."),
    ("nonfinite_map", "The heatmap is not finite."),
    ("no_target", "There was no class to explain."),
    ("off_object", "Most of the heat lies outside the object: its mask, its box or its pixels."),
    ("padding_heat", "{heat_in_padding:.0%} of the heat lies on padding, where there is no image."),
    ("low_margin", "The two best classes are {margin:.3f} apart."),
    ("dark", "The image is dark (mean luminance {image_mean:.0f} of 255)."),
    ("bright", "The image is bright (mean luminance {image_mean:.0f} of 255)."),
    ("flat", "The image is nearly one colour (standard deviation {image_std:.1f})."),
    ("blurry", "The image is blurry (variance of the Laplacian {image_sharpness:.0f})."),
    ("odd_shape", "The image has an unusual shape: {width} x {height} pixels."),
    ("exact_duplicate", "The same file is in the archive more than once."),
    ("near_duplicate", "Another image of the archive looks the same at 9 x 8 pixels."),
)


def _boxes(boxes: Sequence[Mapping[str, float]] | None) -> list[list[float]] | None:
    return [[round(box[edge], 2) for edge in EDGES] for box in boxes] if boxes else None


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _heat(values: Sequence[float] | None) -> str | None:
    """Give a map as base64 of bytes, 255 where it is hottest."""
    if not values:
        return None
    heat = np.maximum(np.array(values, np.float32), 0)
    top = float(heat.max())
    return _packed((heat / top * 255).round().astype("u1")) if top > 0 else None


def _packed(values: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()
