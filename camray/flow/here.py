"""The engine of small work: the same flow, chunk after chunk, in this process. Starting Ray costs seconds.

It has no worker to lose: what ends the process ends the run. What is committed stays, and the same command
resumes; an image that does it again and again is found by Ray alone, which the next run therefore takes
unless it is told otherwise (`job.run.choose_engine`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from camray.config import Config
from camray.errors import UsageError
from camray.flow.flow import Engine, Flow, Pool, Stage, receipts_of, size_pool
from camray.flow.guard import Guard
from camray.flow.stages import read_shard
from camray.ledger.plan import ShardTask
from camray.records import Chunk


def here(config: Config) -> Engine:
    """Give the engine: one actor, with the threads that torch has in this process.

    Raises:
        UsageError: more actors are asked for, or a GPU that is not there.
    """
    import torch

    if max(config.run.actors or 1, config.run.max_actors or 1) > 1:
        raise UsageError("--engine", "here, which is one process, with several actors", "--engine ray")
    threads = torch.get_num_threads()
    alone = replace(config, run=replace(config.run, actors=1))
    pool = replace(size_pool(alone, threads, torch.cuda.device_count()), threads=threads)
    return Engine("here", pool, run_here, lambda network: lambda: network, _at_once, lambda *_: nullcontext())


def run_here(tasks: Sequence[ShardTask], flow: Flow, pool: Pool) -> Iterator[list[Chunk]]:
    """Do the shards one after the other; yield chunks and ends of shards as `flow.ray.run_waves` does."""
    work = stages_here(flow, pool, tasks)
    for task in tasks:
        for row in read_shard(task, flow.config.archive, flow.config.run.chunk_size):
            yield receipts_of(work(row))


def stages_here(flow: Flow, pool: Pool, tasks: Sequence[ShardTask]) -> Stage:
    """Join the stages after reading, with the model loaded."""
    guard = Guard()
    decode, actor, sink = flow.decode(guard), flow.actor(**flow.to_actor(pool, guard)), flow.to_sink(tasks)
    return lambda row: sink(actor(decode(row)))


def _at_once(work: Callable[..., Any], pool: Pool, *arguments: Any) -> Any:
    return work(pool, *arguments)
