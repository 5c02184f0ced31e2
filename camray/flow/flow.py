"""What a pass of the pipeline is made of, whichever engine drives it: the pool, the stages, the actor.

Two engines drive it: `flow.ray` with many workers, `flow.here` in this process. Same flow, same receipts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pyarrow as pa

from camray.config import Config, Explainer
from camray.errors import IncompleteError, UsageError
from camray.flow.actor import ExplainActor, Network, Weights
from camray.flow.guard import Guard
from camray.flow.progress import RunProgress
from camray.flow.stages import Decode, Sink
from camray.ledger.plan import ShardTask
from camray.records import Chunk, Lost

Stage = Callable[[pa.Table], pa.Table]  # a chunk row in, chunk rows out


@dataclass(frozen=True, slots=True)
class Pool:
    """The actor pool: how many, on what, with how many threads each."""

    actors: int
    max_actors: int  # more than `actors`: the pool grows when nodes join
    device: str
    cpus: float
    gpus: float
    threads: int
    batch_size: int


def size_pool(config: Config, cpus: float, gpus: float) -> Pool:
    """Size the pool from the cluster's resources.

    On CPUs: one actor of one thread per core. Processes of one thread outrun threads of one process, wait at
    no barrier, and leave the balance between decoding and the model to the operating system. They claim half
    of the CPUs, so that reading, decoding and writing always find room (claiming all is a sure hang).

    Raises:
        UsageError: a GPU was asked for and there is none, or more actors than the cluster can hold.
    """
    run = config.run
    device = ("cuda" if gpus else "cpu") if run.device == "auto" else run.device
    if device == "cuda":
        if not gpus:
            raise UsageError("--device", "cuda, but the cluster has no GPU", "--device cpu")
        actors = run.actors or int(gpus)
        if actors > gpus:
            raise UsageError("--actors", f"{actors} on {int(gpus)} GPUs", f"at most {int(gpus)}")
        return Pool(actors, max(actors, run.max_actors or 0), device, 0.5, 1, 1, run.batch_size or 32)
    actors = run.actors or max(1, int(cpus))
    if actors > cpus * 10:
        raise UsageError("--actors", f"{actors} on {int(cpus)} CPUs", f"at most {int(cpus * 10)}")
    share = int(cpus / 2 / actors * 100) / 100
    threads = max(1, int(cpus / actors))
    return Pool(actors, max(actors, run.max_actors or 0), device, share, 0, threads, run.batch_size or 8)


@dataclass(frozen=True, slots=True)
class Flow:
    """What differs between jobs: how images are prepared, the actor, and where its rows go."""

    config: Config
    decode: Callable[[Guard], Decode]
    actor: type
    arguments: dict[str, Any]  # of the actor, beside those of the pool
    sink: Callable[[dict[str, str]], Stage]  # takes the URIs of the shards by id

    def to_actor(self, pool: Pool, guard: Guard) -> dict[str, Any]:
        """Give every argument of the actor."""
        of_pool = {"device": pool.device, "batch_size": pool.batch_size, "threads": pool.threads}
        return self.arguments | of_pool | {"guard": guard}

    def to_sink(self, tasks: Sequence[ShardTask]) -> Stage:
        """Make the sink for these shards."""
        return self.sink({task.shard.id: task.shard.uri for task in tasks})


@dataclass(frozen=True, slots=True)
class Engine:
    """What drives a flow, and with which pool."""

    name: Literal["here", "ray"]
    pool: Pool
    run: Callable[[Sequence[ShardTask], Flow, Pool], Iterator[list[Chunk]]]
    share: Callable[[Network], Weights]  # with every worker
    once: Callable[..., Any]  # once(work, pool, *arguments): where an actor of the pool could run
    metrics: Callable[[str, RunProgress], AbstractContextManager[Any]]  # of the owner of the rows
    warning: str = ""  # who else may run code there
    logs: str = ""  # the folder in which it keeps its own words


def receipts_of(block: pa.Table) -> list[Chunk]:
    """Read what a sink gave: receipts and ends of shards, without images.

    Raises:
        OSError: OUT could not be written.
        IncompleteError: a worker could not load its model.
    """
    chunks = [Chunk.from_row(block.slice(i, 1)) for i in range(block.num_rows)]
    for lost in (chunk.note for chunk in chunks if isinstance(chunk.note, Lost)):
        raise IncompleteError(lost.message) if lost.errno is None else OSError(lost.errno, lost.message)
    return chunks


def explain_flow(config: Config, explainer: Explainer, weights: Weights, run_id: str) -> Flow:
    """Describe `camray explain`: one heatmap an image and target."""
    keep_content = config.overlay.on == "original" and config.overlay.policy != "none"
    return Flow(
        config,
        partial(Decode, explainer.input, explainer.max_pixels, keep_content),
        ExplainActor,
        {"explainer": explainer, "weights": weights, "overlay": config.overlay},
        partial(Sink, config, explainer, run_id),
    )
