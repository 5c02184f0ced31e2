"""Nights without Ray: the stages of the real flow, called one after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from camray.audit.night import audit_night
from camray.config import Config
from camray.explain.explainer import BatchExplainer
from camray.flow.actor import choose_overlays
from camray.flow.stages import Decode, Sink, read_shard
from camray.job.prepare import Prepared, prepare
from camray.ledger.commit import CommitDesk
from camray.ledger.intake import remember
from camray.ledger.plan import ShardTask
from camray.ledger.runs import write_explainer
from camray.options import load
from camray.records import EXPLAINED, Chunk, ChunkKind
from demo import hans64

MODELS = Path(hans64.__file__).parent / "models"
AUDIT = {"audit.confirm": 0.15, "overlay.policy": "none"}


class NoGuard:
    """Runs a stage's work at once."""

    def run(
        self, _stage: Any, chunk: Chunk, work: Callable[[pa.StructArray], pa.StructArray]
    ) -> pa.StructArray:
        return work(chunk.images)


def settings_for(archive: Path, out: Path, model: str = "hans64-poisoned", **settings: Any) -> Config:
    named = {"archive.path": str(archive), "out": str(out), "model.name": str(MODELS / model)}
    return load(None, named | {name.replace("__", "."): v for name, v in settings.items()}, AUDIT)


def explain(settings: Config, run_id: str, die_after: int | None = None) -> int:
    """Explain what is new, and give the number of images explained; dies before commit `die_after`."""
    ready = prepare(settings)
    if not ready.plan.tasks:
        return 0
    write_explainer(ready.out, ready.explainer)
    ready.table.create()
    if ready.grouping is not None:
        remember(ready.out, ready.grouping.root, ready.grouping.new)
    desk = CommitDesk(ready.table, ready.explainer.id, run_id, ready.plan.tasks)
    done = 0
    for number, task in enumerate(ready.plan.tasks):
        notes, images = _shard(ready, settings, task, run_id)
        if die_after is not None and number >= die_after:
            return done
        desk.take(notes)
        desk.flush()
        done += images
    return done


def _shard(ready: Prepared, settings: Config, task: ShardTask, run_id: str) -> tuple[list[Any], int]:
    e = ready.explainer
    decode = Decode(e.input, e.max_pixels, False, NoGuard())
    core = _core(ready)
    constants = {"run_id": run_id, "model": e.model, "weights_sha256": e.weights_sha256}
    sink = Sink(settings.out, e.id, constants, settings.run.chunk_size, e.max_pixels,
                {task.shard.id: task.shard.uri}, e.input, settings.overlay)  # fmt: skip
    notes, images = [], 0
    for row in read_shard(task, settings.archive, settings.run.chunk_size):
        chunk = Chunk.from_row(decode(row))
        if chunk.kind == ChunkKind.DATA:
            assert chunk.images is not None
            found = choose_overlays(core(chunk.images), chunk.images, chunk.shard_id, settings.overlay)
            images += len(found)
            chunk = Chunk(chunk.shard_id, chunk.index, chunk.kind, chunk.note, found)
        done = Chunk.from_row(sink(chunk.to_row(EXPLAINED)))
        notes.append((done.shard_id, done.kind, done.note))
    return notes, images


_CORES: dict[str, BatchExplainer] = {}


def _core(ready: Prepared) -> BatchExplainer:
    if ready.explainer.id not in _CORES:
        state = {n: t.clone() for n, t in ready.model.module.state_dict().items()}
        _CORES[ready.explainer.id] = BatchExplainer(ready.explainer, state, batch_size=32)
    return _CORES[ready.explainer.id]


def night(
    archive: Path, out: Path, run_id: str, model: str = "hans64-poisoned", **settings: Any
) -> dict[str, Any]:
    """One night: explain, audit; gives the summary, with `done`: images explained."""
    chosen = settings_for(archive, out, model, **settings)
    done = explain(chosen, run_id)
    summary = audit_night(str(out), prepare(chosen).explainer.id, run_id, chosen.audit)
    return summary | {"done": done}


def write_archive(folder: Path, samples: Iterable[hans64.Sample], per_shard: int = 120) -> Path:
    """Write tar shards and give their folder."""
    hans64.write_tar_shards(samples, folder, per_shard)
    return folder
