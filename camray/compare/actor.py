"""The actor of scoring: it holds one model and one panel; a chunk row in, a chunk row out."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyarrow as pa

from camray.compare.panel import SCORED, SCORES, Panel
from camray.config import Config
from camray.errors import IncompleteError, Stage
from camray.flow.actor import Weights
from camray.flow.flow import Flow
from camray.flow.guard import Guard
from camray.flow.stages import ChunkSink, Decode
from camray.records import Chunk


class ScoreActor:
    """Loads the model once, then scores chunk after chunk."""

    def __init__(
        self, panel: Panel, weights: Weights, device: str, batch_size: int, threads: int, guard: Guard
    ) -> None:
        import torch

        from camray.compare.scorer import BatchScorer

        torch.set_num_threads(threads)
        self._score = guard.start(lambda: BatchScorer(panel, weights().state(), device, batch_size))
        self._pictured, self._guard = panel.pictured, guard

    def __call__(self, row: pa.Table) -> pa.Table:
        """Score one chunk; rows without images pass."""
        chunk = Chunk.from_row(row)
        score: Any = self._score
        if not isinstance(score, IncompleteError):
            shard_key = chunk.shard_id.partition("-")[0]
            score = partial(score, pictured=frozenset(self._pictured.get(shard_key, ())))
        return self._guard.run(Stage.EXPLAIN, chunk, score).to_row(SCORED)


def score_flow(config: Config, panel: Panel, weights: Weights, run_id: str) -> Flow:
    """Describe `camray compare`: rows of scores of a panel of methods."""
    return Flow(
        config,
        partial(Decode, panel.explainer.input, panel.explainer.max_pixels, False),
        ScoreActor,
        {"panel": panel, "weights": weights},
        partial(ChunkSink, config, panel.id, {"run_id": run_id}, kind=SCORES),
    )
