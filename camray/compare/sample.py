"""The images of a comparison: drawn once, kept in OUT, so that a method added later meets the same ones.

Flows in: the archive's shards, and the records of the model where OUT holds some. Flows out: a `Sample`, and
the shards cut down to it. Stratified means systematic: images are sorted by the given columns, and every
k-th is taken from a random start. Each class and level of confidence has its share, so plain means speak of
the whole archive.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from camray.config import Explainer
from camray.errors import UsageError
from camray.ledger.out import EXPLAINERS, explainer_file, ids_in, sample_file
from camray.ledger.side import as_object, recovered, write_side
from camray.ledger.table import Table
from camray.records import Shard, as_text
from camray.storage import Folder

FIELDS = ("predicted_class", "label_class", "confidence", "margin")  # that a sample can be stratified by
PICTURED = 8  # images that a page shows under every method
Place = tuple[str, int]  # shard key, member index


@dataclass(frozen=True, slots=True)
class Part:
    """What was drawn from one shard, as it was then."""

    key: str
    uri: str
    version: str
    indices: tuple[int, ...]
    size_bytes: int | None = None  # not known to samples of 0.1.0

    def is_of(self, shard: Shard | None) -> bool:
        """Tell whether a shard, as listed now, is what was drawn from."""
        same_size = shard is not None and self.size_bytes in (None, shard.size_bytes)
        return shard is not None and same_size and shard.version == self.version


@dataclass(frozen=True, slots=True)
class Sample:
    """A frozen sample. `pictured`: shard key -> indices of the images that a page shows."""

    id: str
    asked: Mapping[str, Any]  # what the id is a hash of
    stratified_by: tuple[str, ...]
    population: int  # images it was drawn from
    parts: tuple[Part, ...]
    pictured: dict[str, list[int]]

    @property
    def size(self) -> int:
        """How many images it has."""
        return sum(len(part.indices) for part in self.parts)

    def shards(self, listed: Iterable[Shard]) -> list[Shard]:
        """Cut the archive's shards down to the sample.

        Raises:
            UsageError: a shard of the sample changed or is gone.
        """
        now = {shard.key: shard for shard in listed}
        lost = [p.uri for p in self.parts if not p.is_of(now.get(p.key))]
        if lost:
            what = f"{len(lost)} of {len(self.parts)} shards of the sample changed or are gone ({lost[0]})"
            raise UsageError("ARCHIVE", what, "--seed N draws another sample")
        return [replace(now[p.key], selection=p.indices) for p in self.parts]

    def write(self, out: Folder) -> None:
        """Keep it in OUT."""
        write_side(out, sample_file(self.id), dataclasses.asdict(self))


def sample_id(asked: Mapping[str, Any]) -> str:
    """Name a sample by what was asked for: 16 hex digits."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def read_sample(out: Folder, name: str) -> Sample | None:
    """Read a sample that was drawn before, or None; a damaged one is set aside, and drawn anew."""
    return recovered(out, sample_file(name), _sample_of)


def _sample_of(tree: Any) -> Sample:
    from pydantic import TypeAdapter  # late: --help needs none of it

    found: Sample = TypeAdapter(Sample).validate_python(tree)
    return found


def freeze(
    asked: Mapping[str, Any],
    stratified_by: Sequence[str],
    population: int,
    places: Sequence[Place],
    shards: Iterable[Shard],
) -> Sample:
    """Make a sample of drawn places; the pictured ones lie evenly in the order they are given."""
    by_key: dict[str, list[int]] = {}
    for key, index in places:
        by_key.setdefault(key, []).append(index)
    pictured: dict[str, list[int]] = {}
    for key, index in (places[i] for i in _evenly(len(places), min(PICTURED, len(places)), 0.5)):
        pictured.setdefault(key, []).append(index)
    parts = tuple(
        Part(s.key, s.uri, s.version, tuple(sorted(by_key[s.key])), s.size_bytes)
        for s in shards
        if s.key in by_key
    )
    return Sample(sample_id(asked), dict(asked), tuple(stratified_by), population, parts, pictured)


def explained_images(
    out: Folder, table: Table, explainer: Explainer, shards: Sequence[Shard], fields: Sequence[str]
) -> pa.Table:
    """Give what OUT knows of the images of these shards by the same model: shard key, index, fields.

    One row an image, sorted by shard and index; empty where the model explained nothing yet.
    """
    names = [name for name in ids_in(out, EXPLAINERS) if _is_same_model(out, name, explainer)]
    empty = pa.table({"key": pa.array([], pa.string()), "index": pa.array([], pa.int32())})
    if table.delta is None or not names:
        return empty
    committed = [table.shards(name) for name in names]
    known = {as_text(s.uri): s.key for s in shards if any(files.holds(s) for files in committed)}
    ok = (pc.field("explainer").isin(names)) & (pc.field("status") == "ok")
    rows = table.dataset().to_table(columns=["shard", "index", *fields], filter=ok)
    rows = rows.filter(pc.is_in(rows["shard"], pa.array(list(known), pa.string())))
    rows = rows.group_by(["shard", "index"]).aggregate([(f, "min") for f in fields])
    rows = rows.rename_columns([n.removesuffix("_min") for n in rows.column_names])
    rows = rows.sort_by([("shard", "ascending"), ("index", "ascending")])
    keys = pa.array([known[uri] for uri in rows["shard"].to_pylist()], pa.string())
    return rows.append_column("key", keys)


def draw(images: pa.Table, count: int, fields: Sequence[str], seed: int) -> list[Place]:
    """Draw `count` images systematically, sorted by the fields, ties in random order."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(images.num_rows)
    for name in reversed(fields):
        column = pc.fill_null(images[name], -1).to_numpy()[order]
        order = order[np.argsort(column, kind="stable")]
    chosen = order[_evenly(images.num_rows, min(count, images.num_rows), rng.random())]
    taken = images.select(["key", "index"]).take(pa.array(chosen))
    return list(zip(taken["key"].to_pylist(), taken["index"].to_pylist(), strict=True))


def _evenly(total: int, count: int, start: float) -> list[int]:
    """Give `count` places of `total`, evenly apart; `start` in [0, 1) moves them."""
    return [int((i + start) * total / count) for i in range(count)]


def _is_same_model(out: Folder, name: str, explainer: Explainer) -> bool:
    """Tell whether an explainer of OUT predicts as this one does: weights, input and activation."""
    about = recovered(out, explainer_file(name), as_object) or {}
    own = json.loads(explainer.to_json())
    return all(about.get(k) == own[k] for k in ("weights_sha256", "input", "activation", "model"))
