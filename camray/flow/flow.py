"""What a pass of the pipeline is made of, whichever engine drives it: the pool, the stages, the actor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from camray.config import Config, Explainer
from camray.errors import UsageError
from camray.flow.actor import ExplainActor
from camray.flow.guard import Guard
from camray.flow.stages import ChunkSink, Decode, Sink


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
    arguments: dict[str, Any]  # of the actor, beside device, threads, batch_size and guard
    sink: Callable[[dict[str, str]], ChunkSink]  # takes the URIs of the shards by id


def explain_flow(config: Config, explainer: Explainer, weights: Any, run_id: str) -> Flow:
    """Describe `camray explain`: one heatmap an image and target."""
    constants = {"run_id": run_id, "model": explainer.model, "weights_sha256": explainer.weights_sha256}
    keep_content = config.overlay.on == "original" and config.overlay.policy != "none"
    return Flow(
        config,
        partial(Decode, explainer.input, explainer.max_pixels, keep_content),
        ExplainActor,
        {"explainer": explainer, "weights": [weights], "overlay": config.overlay},
        lambda uris: Sink(
            config.out, explainer.id, constants, config.run.chunk_size, explainer.max_pixels,
            uris, explainer.input, config.overlay,
        ),
    )  # fmt: skip
