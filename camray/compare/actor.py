"""The Ray side of scoring: one actor holds one model and one panel; a chunk row in, a chunk row out."""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import Any

import pyarrow as pa

from camray.compare.panel import SCORED, SCORES, Panel
from camray.config import Config
from camray.errors import IncompleteError, Stage
from camray.flow.actor import Weights, shared_state, this_worker
from camray.flow.flow import Flow
from camray.flow.guard import Guard
from camray.flow.stages import ChunkSink, Decode
from camray.records import Chunk, ChunkKind, add_seconds


class ScoreActor:
    """Loads the model once, then scores chunk after chunk. `weights` is an object reference."""

    def __init__(
        self, panel: Panel, weights: Weights, device: str, batch_size: int, threads: int, guard: Guard
    ) -> None:
        import torch

        from camray.compare.scorer import BatchScorer

        torch.set_num_threads(threads)
        self._scorer = guard.start(
            this_worker(), lambda: BatchScorer(panel, shared_state(weights), device, batch_size)
        )
        self._guard = guard

    def __call__(self, row: pa.Table) -> pa.Table:
        """Score one chunk; rows without images pass."""
        chunk = Chunk.from_row(row)
        if chunk.kind != ChunkKind.DATA:
            return dataclasses.replace(chunk, images=None).to_row(SCORED)
        if isinstance(self._scorer, IncompleteError):
            return chunk.lost(None, str(self._scorer)).to_row(SCORED)
        started = time.perf_counter()
        shard_key = chunk.shard_id.partition("-")[0]
        pictured = frozenset(self._scorer.panel.pictured.get(shard_key, ()))
        images = self._guard.run(Stage.EXPLAIN, chunk, partial(self._scorer, pictured=pictured))
        note = add_seconds(chunk.note, Stage.EXPLAIN, time.perf_counter() - started)
        return dataclasses.replace(chunk, images=images, note=note).to_row(SCORED)


def score_flow(config: Config, panel: Panel, weights: Any, run_id: str) -> Flow:
    """Describe `camray compare`: rows of scores of a panel of methods."""
    return Flow(
        config,
        partial(Decode, panel.explainer.input, panel.explainer.max_pixels, False),
        ScoreActor,
        {"panel": panel, "weights": [weights]},
        lambda uris: ChunkSink(config.out, panel.id, {"run_id": run_id}, config.run.chunk_size, uris, SCORES),
    )
