"""The whole Ray Data graph on one screen.

shards ──ShardSource──> chunk rows ──Decode──> pixels ──ExplainActor──> heatmaps ──Sink──> receipts
                                                 └──────ScoreActor────> scores ──ChunkSink──> receipts

A row is one chunk, `batch_size=1` everywhere: no engine setting can split or mix chunks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata

from camray.config import Config
from camray.flow.actor import Network, Weights
from camray.flow.cluster import connect, logs_of_ray, open_to_others
from camray.flow.flow import Engine, Flow, Pool, receipts_of, size_pool
from camray.flow.guard import Attempts, Guard
from camray.flow.metrics import run_metrics
from camray.flow.stages import read_shard
from camray.ledger.plan import ShardTask
from camray.records import Chunk
from camray.storage import Folder

WAVE_SHARDS = 2000  # a read task costs the driver about 5 KB and 1.3 ms for as long as its wave runs
# Logical CPUs. They differ from stage to stage: Ray Data fuses neighbours with equal resources.
READ_CPUS, DECODE_CPUS, SINK_CPUS = 0.2, 0.5, 0.3


def on_ray(config: Config, out: Folder) -> Engine:
    """Give the engine, with the pool that fits the cluster.

    Raises:
        UsageError: as `connect` and `size_pool`.
    """
    pool = size_pool(config, *connect(out))
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return Engine("ray", pool, run_waves, share, on_a_worker, run_metrics, open_to_others(), logs_of_ray())


class ShardSource(Datasource):
    """One read task per shard. Called twice on the driver, so it is cheap and pure."""

    def __init__(self, tasks: Sequence[ShardTask], config: Config) -> None:
        self._tasks, self._config = tasks, config

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """Give one task per shard, whatever parallelism Ray would like."""
        archive, chunk_size = self._config.archive, self._config.run.chunk_size
        return [
            ReadTask(
                partial(read_shard, task, archive, chunk_size),
                BlockMetadata(
                    num_rows=None, size_bytes=task.shard.size_bytes, input_files=None, exec_stats=None
                ),
            )
            for task in self._tasks
        ]

    def estimate_inmemory_data_size(self) -> int:
        """Bytes to read, as listed."""
        return sum(task.shard.size_bytes for task in self._tasks)


def share(network: Network) -> Weights:
    """Put a model's weights into the object store: one copy a machine, read-only."""
    stored: Any = ray.put(network)
    fetch: Any = partial(ray.get, stored)
    return fetch  # type: ignore[no-any-return]


def on_a_worker(work: Callable[..., Any], pool: Pool, *arguments: Any) -> Any:
    """Run `work(pool, *arguments)` once, where an actor of the pool could run; give its result."""
    task: Any = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus)(work)
    return ray.get(task.remote(pool, *arguments))


class _SharedAttempts(Attempts):
    """The one `Attempts` of the run, asked from any worker."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def begin(self, chunk: str, _machine: str = "") -> int:
        """Note one more attempt, on this machine."""
        machine = ray.get_runtime_context().get_node_id()
        return int(ray.get(self._actor.begin.remote(chunk, machine)))

    def may_try(self, chunk: str, position: int) -> bool:
        """Announce one image."""
        return bool(ray.get(self._actor.may_try.remote(chunk, position)))

    def finish(self, chunk: str) -> None:
        """Forget a chunk."""
        ray.get(self._actor.finish.remote(chunk))

    def worker(self) -> str:
        """Name the actor that asks: the id stays when Ray starts it anew."""
        return str(ray.get_runtime_context().get_actor_id())


def _is_dead_node(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and not node["Alive"] for node in ray.nodes())


def run_waves(tasks: Sequence[ShardTask], flow: Flow, pool: Pool) -> Iterator[list[Chunk]]:
    """Do the shards, wave after wave; yield chunks and ends of shards as they come.

    Raises:
        OSError: a stage could not write to OUT.
        IncompleteError: a worker could not load its model.
    """
    settings = DataContext.get_current()
    settings.enable_progress_bars = False  # progress is told from receipts
    settings.print_on_execution_start = False
    # Every row is a block of its own. Ray Data would join rows up to this size, and what is in one block is
    # decoded by one task and explained by one actor: of a large shard of small images, all of it.
    settings.target_max_block_size = 1
    # It may lose its counts when its own worker dies; it must not take the run with it.
    attempts: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote(
        _is_dead_node
    )
    for start in range(0, len(tasks), WAVE_SHARDS):
        guard = Guard(_SharedAttempts(attempts))
        dataset = _graph(tasks[start : start + WAVE_SHARDS], flow, pool, guard)
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            assert isinstance(block, pa.Table)
            yield receipts_of(block)
    ray.kill(attempts)  # its handle travelled inside the stages' code, where Ray does not count it


def _graph(tasks: Sequence[ShardTask], flow: Flow, pool: Pool, guard: Guard) -> Dataset:
    one_chunk: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    # An actor of one thread on a CPU also decodes (equal resources: Ray Data fuses the two); others are fed.
    decode_cpus = pool.cpus if pool.threads == 1 and not pool.gpus else DECODE_CPUS
    source = ray.data.read_datasource(
        ShardSource(tasks, flow.config), override_num_blocks=len(tasks), num_cpus=READ_CPUS
    )
    decoded = source.map_batches(flow.decode(guard).__call__, num_cpus=decode_cpus, **one_chunk)
    worked = decoded.map_batches(
        flow.actor,
        fn_constructor_kwargs=flow.to_actor(pool, guard),
        compute=ActorPoolStrategy(min_size=pool.actors, max_size=pool.max_actors),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
        **one_chunk,
    )
    sink: Any = flow.to_sink(tasks)
    receipts: Dataset = worked.map_batches(sink.__call__, num_cpus=SINK_CPUS, **one_chunk)
    return receipts
