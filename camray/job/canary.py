"""The same images every night, explained anew: they tell a changed stack from a changed archive.

Numbers drift because other images came, or because a library, a driver or a machine is another one. The
first night picks images and keeps what was found of them. Each night explains the same bytes again, where
an actor of the pool could run and outside the table, and says how far the answers are from the first ones.

OUT/canary/<explainer>.json   the images and their first answers
runs/<run>/canary.json        how tonight's answers differ
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from camray.archive.frames import file_index
from camray.config import Config, Explainer, OverlayConfig
from camray.flow.actor import Weights, network_of
from camray.flow.flow import Engine, Pool, explain_flow
from camray.flow.here import run_here
from camray.job.prepare import Prepared, chosen_shards
from camray.ledger.committed import PARTITION
from camray.ledger.out import ANSWER, answers_of, canary_file, run_file
from camray.ledger.plan import ShardTask
from camray.ledger.side import recovered, write_side
from camray.ledger.table import Table
from camray.records import Chunk, Data, Shard
from camray.storage import Folder

LOOKED_AT = 20_000  # rows, the first that come; the choice among them is by checksum

Answer = dict[str, Any]


def look(ready: Prepared, engine: Engine, run_id: str, size: int) -> None:
    """Explain the canary images again and write how the answers differ; the first time, choose them.

    An image that is gone, or whose bytes are others, is left out.
    """
    explainer = ready.explainer
    first = first_answers(ready.out, explainer.id, size)
    shards = {shard.uri: shard for shard in chosen_shards(ready.listing, ready.listing, ready.groupings)}
    indices: dict[str, set[int]] = defaultdict(set)
    for answer in first:
        indices[answer["shard"]].add(file_index(answer["index"], ready.config.archive.frames))
    parts = [replace(shards[uri], selection=tuple(sorted(i))) for uri, i in indices.items() if uri in shards]
    weights = engine.share(network_of(ready.model))
    now = engine.once(explain_again, engine.pool, weights, parts, ready.config, explainer)
    write_side(ready.out, run_file(run_id, "canary.json"), difference(first, now))


def first_answers(out: Folder, explainer: str, size: int) -> list[Answer]:
    """Give what was kept of the canary images; chosen again for as long as there are too few."""
    path = canary_file(explainer)
    answers = recovered(out, path, partial(answers_of, explainer)) or []
    if len(answers) < size:
        answers = choose(Table(out), explainer, size)
        write_side(out, path, {"explainer": explainer, "answers": answers})
    return answers


def choose(table: Table, explainer: str, size: int) -> list[Answer]:
    """Pick explained images by the lowest checksums: the same ones whatever the order of the work."""
    usable = (ds.field(PARTITION) == explainer) & (ds.field("heat_status") == "ok")
    usable &= ds.field("target_class") == ds.field("predicted_class")
    usable &= ds.field("detection").is_null() | (ds.field("detection") == 0)  # the best of each image
    rows = table.dataset().scanner(columns=[*ANSWER], filter=usable).head(LOOKED_AT)
    chosen: list[Answer] = rows.sort_by("content_sha256").slice(0, size).to_pylist()
    return chosen


def explain_again(
    pool: Pool, weights: Weights, shards: Sequence[Shard], config: Config, explainer: Explainer
) -> list[Answer]:
    """Read, decode and explain the selected members of `shards`, wherever this runs.

    Of a shard that cannot be read to its end, what could be read counts: tonight's records say what is wrong.
    """
    config, answers = replace(config, overlay=OverlayConfig("none")), list[Answer]()

    def keep(row: pa.Table, uris: dict[str, str]) -> pa.Table:
        chunk = Chunk.from_row(row)
        for image in chunk.images.to_pylist() if isinstance(chunk.note, Data) else ():
            answers.append({"shard": uris[chunk.shard_id]} | {name: image[name] for name in ANSWER[1:]})
        return row

    flow = explain_flow(config, explainer, weights, "")
    flow = replace(flow, sink=lambda uris: partial(keep, uris=uris))
    for _ in run_here([ShardTask(shard) for shard in shards], flow, pool):
        pass
    return answers


def difference(first: Sequence[Answer], now: Sequence[Answer]) -> dict[str, Any]:
    """Say of how many images the answer is another one, and the largest distance of confidence and heat."""
    then = {_key(a): a for a in first}
    best = {_key(a): a for a in reversed(now)}  # of several detections the first
    pairs = [(then[key], a) for key, a in best.items() if key in then and a["predicted_class"] is not None]
    heat = [_cosine(a["heatmap"], b["heatmap"]) for a, b in pairs if b["heatmap"]]
    return {
        "images": len(pairs),
        "gone": len(first) - len(pairs),
        "changed": sum(a["predicted_class"] != b["predicted_class"] for a, b in pairs),
        "confidence_distance": max((abs(a["confidence"] - b["confidence"]) for a, b in pairs), default=0.0),
        "heat_cosine": min(heat, default=1.0),
    }


def _key(answer: Answer) -> tuple[str, int, str]:
    return answer["shard"], answer["index"], answer["content_sha256"]


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    a, b = np.array(one), np.array(other)
    if a.shape != b.shape:
        return 0.0
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 1.0
