"""The same images every night, explained anew: they tell a changed stack from a changed archive.

Numbers drift because other images came, or because a library, a driver or a machine is another one. The
first night picks images and keeps what was found of them. Each night explains the same bytes again, on a
worker of the pool's kind and outside the table, and says how far the answers are from the first ones.

OUT/canary/<explainer>.json   the images and their first answers
runs/<run>/canary.json        how tonight's answers differ
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.dataset as ds

from camray.archive.members import read_members
from camray.config import ArchiveConfig, Explainer
from camray.errors import ShardError
from camray.flow.actor import Weights, batch_explainer, shared_state
from camray.flow.flow import Pool
from camray.flow.guard import Guard
from camray.flow.ray import on_a_worker
from camray.flow.stages import Decode
from camray.job.prepare import Prepared
from camray.ledger.committed import PARTITION
from camray.ledger.runs import RUNS
from camray.ledger.table import Table
from camray.records import Member, Shard, member_array
from camray.storage import Folder

LOOKED_AT = 20_000  # rows, the first that come; the choice among them is by checksum
_KEPT = ("shard", "index", "content_sha256", "predicted_class", "confidence", "heatmap")

Answer = dict[str, Any]


def look(ready: Prepared, pool: Pool, run_id: str, size: int) -> None:
    """Explain the canary images again and write how the answers differ; the first time, choose them.

    An image that is gone, or whose bytes are others, is left out.
    """
    explainer = ready.explainer
    first = first_answers(ready.out, explainer.id, size)
    shards = {shard.uri: shard for shard in _shards(ready)}
    state = {name: tensor.numpy() for name, tensor in ready.model.module.state_dict().items()}
    chosen = _by_shard(first)
    wanted = [replace(shards[uri], selection=places) for uri, places in chosen.items() if uri in shards]
    now = on_a_worker(explain_again, pool, state, wanted, ready.config.archive, explainer)
    ready.out.write(f"{RUNS}/{run_id}/canary.json", json.dumps(difference(first, now)).encode())


def first_answers(out: Folder, explainer: str, size: int) -> list[Answer]:
    """Give what was kept of the canary images; chosen again for as long as there are too few."""
    path = f"canary/{explainer}.json"
    kept: list[Answer] = json.loads(out.read(path)) if out.exists(path) else []
    if len(kept) < size:
        kept = choose(Table(out), explainer, size)
        out.write(path, json.dumps(kept).encode())
    return kept


def choose(table: Table, explainer: str, size: int) -> list[Answer]:
    """Pick explained images by the lowest checksums: the same ones whatever the order of the work."""
    asked = (ds.field(PARTITION) == explainer) & (ds.field("heat_status") == "ok")
    asked &= ds.field("target_class") == ds.field("predicted_class")
    rows = table.dataset().scanner(columns=[*_KEPT], filter=asked).head(LOOKED_AT)
    chosen: list[Answer] = rows.sort_by("content_sha256").slice(0, size).to_pylist()
    return chosen


def explain_again(
    pool: Pool, weights: Weights, shards: Sequence[Shard], archive: ArchiveConfig, explainer: Explainer
) -> list[Answer]:
    """Read, decode and explain the selected members of `shards`: runs on a worker."""
    state = shared_state(weights)
    explain = batch_explainer(explainer, state, pool.device, pool.batch_size, pool.threads)
    nobody = Guard(None)  # the images were explained before: none of them ends a worker
    decode = Decode(explainer.input, explainer.max_pixels, False, nobody).decode
    answers: list[Answer] = []
    for shard in shards:
        members = member_array(list(_members(shard, archive)))
        for row in explain(decode(members)).to_pylist():
            answers.append({"shard": shard.uri} | {name: row[name] for name in _KEPT[1:]})
    return answers


def difference(first: Sequence[Answer], now: Sequence[Answer]) -> dict[str, Any]:
    """Say of how many images the answer is another one, and the largest distance of confidence and heat."""
    then = {_key(a): a for a in first}
    pairs = [(then[_key(a)], a) for a in now if _key(a) in then and a["predicted_class"] is not None]
    heat = [_cosine(a["heatmap"], b["heatmap"]) for a, b in pairs if b["heatmap"]]
    return {
        "images": len(pairs),
        "gone": len(first) - len(pairs),
        "changed": sum(a["predicted_class"] != b["predicted_class"] for a, b in pairs),
        "confidence_distance": max((abs(a["confidence"] - b["confidence"]) for a, b in pairs), default=0.0),
        "heat_cosine": min(heat, default=1.0),
    }


def _shards(ready: Prepared) -> Iterator[Shard]:
    yield from ready.listing.shards
    if ready.grouping is not None:
        yield from (group.shard(ready.grouping.root) for group in ready.grouping.groups)


def _members(shard: Shard, archive: ArchiveConfig) -> Iterator[Member]:
    try:
        yield from read_members(shard, archive)
    except ShardError:
        return  # what could be read before counts; tonight's records tell what is wrong with it


def _by_shard(answers: Sequence[Answer]) -> dict[str, tuple[int, ...]]:
    places: dict[str, set[int]] = defaultdict(set)
    for answer in answers:
        places[answer["shard"]].add(answer["index"])
    return {uri: tuple(sorted(found)) for uri, found in places.items()}


def _key(answer: Answer) -> tuple[str, int, str]:
    return answer["shard"], answer["index"], answer["content_sha256"]


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    a, b = np.array(one), np.array(other)
    if a.shape != b.shape:
        return 0.0
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 1.0
