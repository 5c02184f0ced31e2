"""The actor pool fits its machine: nothing hangs, no core is claimed twice, GPUs are found or refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from camray.config import Config, RunConfig
from camray.errors import ExitCode, IncompleteError, UsageError
from camray.flow import cluster
from camray.flow.flow import size_pool
from camray.flow.ray import DECODE_CPUS, READ_CPUS, SINK_CPUS


def config(**run: object) -> Config:
    return replace(Config(), run=RunConfig(**run))  # type: ignore[arg-type]


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 8, 64])
@pytest.mark.parametrize("actors", [None, 1, 2, 5])
def test_actors_on_cpus_leave_room_for_the_other_stages(cpus: int, actors: int | None) -> None:
    pool = size_pool(config(actors=actors), cpus, 0)
    assert pool.actors == (actors or cpus)
    left = cpus - pool.actors * pool.cpus
    assert left >= max(READ_CPUS, DECODE_CPUS, SINK_CPUS)  # each can run, if only by turns
    if cpus > 1:
        assert left >= READ_CPUS + DECODE_CPUS + SINK_CPUS
    assert pool.actors * pool.threads <= max(cpus, pool.actors)  # one thread at least, else within the cores


def test_gpus_take_one_actor_each() -> None:
    pool = size_pool(config(), 16, 4)
    assert (pool.device, pool.actors, pool.gpus) == ("cuda", 4, 1)
    assert size_pool(config(device="cpu"), 16, 4).device == "cpu"


@pytest.mark.parametrize(
    ("run", "gpus", "says"),
    [
        ({"device": "cuda"}, 0, "no GPU"),
        ({"actors": 3}, 2, "3 on 2 GPUs"),
        ({"actors": 21}, 0, "at most 20"),
    ],
)
def test_what_does_not_fit_is_refused(run: dict[str, object], gpus: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        size_pool(config(**run), 2, gpus)


class Starts:
    """Stands where Ray starts: fails so many times, as it does on a machine that is too busy."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
        self.failures, self.tries, self.paused_s = failures, 0, 0.0
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "")
        monkeypatch.setattr(cluster.ray, "init", self.init)
        monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
        monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
        monkeypatch.setattr(cluster, "_look_after_ray", lambda: None)
        monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 3.0})
        monkeypatch.setattr(cluster.time, "sleep", self.sleep)

    def init(self, **_: object) -> None:
        self.tries += 1
        if self.tries <= self.failures:
            raise Exception("The current node timed out during startup. This\ncould happen because ...")

    def sleep(self, seconds: float) -> None:
        self.paused_s += seconds


def test_a_ray_that_does_not_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch, failures=1)
    assert cluster.connect() == (3.0, 0.0)
    assert (starts.tries, starts.paused_s) == (2, cluster.SECOND_TRY_S)


def test_a_ray_that_never_starts_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch, failures=9)
    with pytest.raises(IncompleteError) as stopped:
        cluster.connect()
    assert starts.tries == 2
    assert stopped.value.exit_code == ExitCode.INCOMPLETE
    assert str(stopped.value) == (
        "Ray does not start on this machine: The current node timed out during startup. This could happen "
        "because .... Fix: the same command when the machine is less busy, or --engine here"
    )
