"""The whole Ray Data graph on one screen.

shards ──ShardSource──> chunk rows ──Decode──> pixels ──ExplainActor──> heatmaps ──Sink──> receipts
                                                 └──────ScoreActor────> scores ──ChunkSink──> receipts

A row is one chunk, `batch_size=1` everywhere: no engine setting can split or mix chunks.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as NodeAffinity

from camray.config import Config
from camray.errors import IncompleteError, UsageError, printable
from camray.flow.actor import Network, Weights
from camray.flow.flow import Engine, Flow, Pool, receipts_of, size_pool
from camray.flow.guard import Attempts, Guard
from camray.flow.metrics import run_metrics
from camray.flow.stages import read_shard
from camray.flow.stopping import handlers_kept
from camray.ledger.plan import ShardTask
from camray.records import Chunk
from camray.storage import Folder

WAVE_SHARDS = 2000  # a read task costs the driver about 5 KB and 1.3 ms for as long as its wave runs
# Logical CPUs. They differ from stage to stage: Ray Data fuses neighbours with equal resources.
READ_CPUS, DECODE_CPUS, SINK_CPUS = 0.2, 0.5, 0.3
SECOND_TRY_S = 10.0  # between two tries to start Ray
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}


def on_ray(config: Config, out: Folder) -> Engine:
    """Give the engine, with the pool that fits the cluster.

    Raises:
        UsageError: as `connect` and `size_pool`.
    """
    pool = size_pool(config, *connect(out))
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return Engine("ray", pool, run_waves, share, on_a_worker, run_metrics)


def connect(out: Folder | None = None) -> tuple[float, float]:
    """Join the cluster named by RAY_ADDRESS, else start Ray on this machine; give its CPUs and GPUs.

    Raises:
        UsageError: no such cluster, one of other versions, or one whose nodes do not share `out`.
        IncompleteError: Ray does not start on this machine.
    """
    if not ray.is_initialized():
        with _native_stderr_closed(), handlers_kept():
            _join(address) if (address := os.environ.get("RAY_ADDRESS")) else _start()
    if out is not None and out.is_local:
        _refuse_unshared(Path(out.path))
    resources = ray.cluster_resources()
    return resources.get("CPU", 1.0), resources.get("GPU", 0.0)


def _join(address: str) -> None:
    try:
        ray.init(**_QUIET)
    except (ConnectionError, RuntimeError, ValueError) as error:
        why = printable(f"{address}: {' '.join(str(error).split())}")
        fix = "the address of a running cluster with the same versions of Python and Ray"
        raise UsageError("RAY_ADDRESS", why, fix) from None


def _start() -> None:
    """Start Ray here; where a busy machine makes it give up, once more after a pause, with more patience."""
    for pause_s in (SECOND_TRY_S, 0.0):
        try:
            ray.init(address="local", include_dashboard=False, **_QUIET)
            return
        except Exception as error:  # noqa: BLE001 - what Ray raises here has no class of its own
            ray.shutdown()
            why = printable(" ".join(str(error).split()), 160)
        time.sleep(pause_s)
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")
    fix = "the same command when the machine is less busy, or --engine here"
    raise IncompleteError(f"Ray does not start on this machine: {why}. Fix: {fix}")


def _refuse_unshared(out: Path) -> None:
    """Refuse a folder that is on this machine's own disk while other nodes would write there, too."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    folder = next(p for p in (out, *out.parents) if p.exists())

    def sees(path: str) -> bool:
        return os.path.exists(path)

    look: Any = ray.remote(num_cpus=0, max_retries=0)(sees)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".camray-probe-") as probe:
        looks = [
            look.options(scheduling_strategy=NodeAffinity(n, soft=True)).remote(probe.name) for n in nodes
        ]
        seen = ray.get(looks)
    if not all(seen):
        blind = f"{seen.count(False)} of {len(nodes)} nodes of the cluster do not see {folder}"
        raise UsageError("OUT", blind, "a shared disk, or s3:// or gs://")


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Keep Ray's C++ start-up notices off the screen; its errors still come as exceptions.

    The level set here also hides a notice that every actor pool logs (ray#53727).
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


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

    def begin(self, chunk: str) -> int:
        """Count one more attempt."""
        return int(ray.get(self._actor.begin.remote(chunk)))

    def may_try(self, chunk: str, position: int) -> bool:
        """Announce one image."""
        return bool(ray.get(self._actor.may_try.remote(chunk, position)))

    def finish(self, chunk: str) -> None:
        """Forget a chunk."""
        ray.get(self._actor.finish.remote(chunk))

    def worker(self) -> str:
        """Name the actor that asks: the id stays when Ray starts it anew."""
        return str(ray.get_runtime_context().get_actor_id())


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
    attempts: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
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
