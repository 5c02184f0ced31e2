"""The Ray side of explaining: one actor holds one model; a chunk row in, a chunk row out."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from typing import Any

import pyarrow as pa

from camray.attempts import Guard
from camray.config import Explainer, OverlayConfig
from camray.errors import Stage
from camray.records import EXPLAINED, Chunk, ChunkKind, Status, add_seconds, struct_array


class ExplainActor:
    """Loads the model once, then explains chunk after chunk. `weights` is an object reference."""

    def __init__(
        self,
        explainer: Explainer,
        weights: list[Any],
        device: str,
        batch_size: int,
        threads: int,
        overlay: OverlayConfig,
        guard: Guard,
    ) -> None:
        import ray
        import torch

        from camray.explain.explainer import BatchExplainer

        torch.set_num_threads(threads)
        state = {name: torch.from_numpy(array.copy()) for name, array in ray.get(weights[0]).items()}
        self._explainer = BatchExplainer(explainer, state, device, batch_size)
        self._overlay, self._guard = overlay, guard

    def __call__(self, row: pa.Table) -> pa.Table:
        """Explain one chunk; rows without images pass."""
        chunk = Chunk.from_row(row)
        if chunk.kind != ChunkKind.DATA:
            return dataclasses.replace(chunk, images=None).to_row(EXPLAINED)
        started = time.perf_counter()
        images = self._guard.run(Stage.EXPLAIN, chunk, self._explainer)
        images = choose_overlays(images, chunk.shard_id, self._overlay)
        note = add_seconds(chunk.note, Stage.EXPLAIN, time.perf_counter() - started)
        return dataclasses.replace(chunk, images=images, note=note).to_row(EXPLAINED)


def choose_overlays(images: pa.StructArray, shard_id: str, overlay: OverlayConfig) -> pa.StructArray:
    """Mark the images that get a picture, and drop the pixels of all others before they travel on.

    A sample is the `sample_per_chunk` images of the chunk whose hashed index is lowest: the same images on
    every run, whatever the order of work.
    """
    from camray.explain.explainer import is_flagged

    if overlay.policy == "none":
        chosen: set[int] = set()
    else:
        names = ("index", "status", "correct", "heat_status", "margin")
        columns = {name: images.field(name).to_pylist() for name in names}
        rows = [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        ok = [r for r in rows if r["status"] == Status.OK and r["heat_status"] != "nonfinite"]
        if overlay.policy == "flagged":
            ok = [r for r in ok if is_flagged(r)]
        elif overlay.policy == "sample":
            ok = sorted(ok, key=lambda r: _rank(shard_id, r["index"]))[: overlay.sample_per_chunk]
        chosen = {r["index"] for r in ok}
    due = [i in chosen for i in images.field("index").to_pylist()]
    kept = "content" if overlay.on == "original" else "pixels"
    columns_out: dict[str, Any] = {f.name: images.field(f.name) for f in EXPLAINED}
    columns_out |= {"overlay": due, "pixels": None, "content": None}
    columns_out[kept] = [
        value.as_py() if d else None for value, d in zip(images.field(kept), due, strict=True)
    ]
    return struct_array(columns_out, EXPLAINED)


def _rank(shard_id: str, index: int) -> bytes:
    return hashlib.blake2b(f"{shard_id}/{index}".encode(), digest_size=8).digest()
