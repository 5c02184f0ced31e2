"""Raylets and whole nodes of a Ray cluster killed in the middle of a run: nothing lost, repeated or invented.

A real cluster of several nodes on this machine (`ray.cluster_utils`). The model's answer is the red value of
the image, so the generator of the archive knows every record. `make faults` runs CAMRAY_NODE_SEEDS (6).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.faults.small_archive import Oracle, make
from tests.faults.watcher import check, watched

pytestmark = pytest.mark.faults

SEEDS = int(os.environ.get("CAMRAY_NODE_SEEDS", "6"))
NODES, SHARDS, MEMBERS, CHUNK = 3, 12, 20, 5
VICTIMS = ("raylet", "node", "actor's node")
MODEL = '''
import os, time
from pathlib import Path

import ray
from torch import nn


class Red(nn.Module):
    """Answers with the red value of an image of one colour, slowly; notes on which node it works."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 1, 1, bias=False)
        self.head = nn.Linear(1, 256)

    def forward(self, x):
        if ray.is_initialized() and ray.get_runtime_context().get_actor_id():
            (Path({place!r}) / ray.get_runtime_context().get_node_id()).touch()
            time.sleep(0.1 * len(x))
        return self.head(self.features(x).mean((2, 3)))
'''


def prepare(place: Path) -> list[str]:
    """Write a network whose logit of class c is -(red - c) squared, but for what all classes share."""
    (place / "nodes").mkdir()
    (place / "red.py").write_text(MODEL.format(place=str(place / "nodes")))
    classes = torch.arange(256.0)
    state = {
        "features.weight": torch.tensor([255.0, 0.0, 0.0]).reshape(1, 3, 1, 1),
        "head.weight": (2 * classes + 10).reshape(256, 1),  # the same 10 for all: no gradient is zero
        "head.bias": -(classes**2),
    }
    save_file(state, place / "red.safetensors")
    options = ["--model", f"{place}/red.py:Red", "--checkpoint", f"{place}/red.safetensors"]
    options += ["--layer", "features", "--input-size", "32", "--mean", "0,0,0", "--std", "1,1,1"]
    return [*options, "--overlays", "none", "--chunk-size", str(CHUNK), "--actors", str(NODES)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 2, "object_store_memory": 10**8}
    made = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    for _ in range(NODES - 1):
        made.add_node(**small)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Oracle]:
    folder = tmp_path_factory.mktemp("archive")
    return folder, make(folder, SHARDS, MEMBERS)


def start(cluster: Any, archive: Path, out: Path, options: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "camray.cli", "explain", str(archive), str(out), *options]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)


def kill(cluster: Any, place: Path, victim: str, chance: random.Random) -> None:
    """Kill one of the nodes that are not the head; the driver's own raylet is the head's."""
    node = chance.choice(sorted(cluster.worker_nodes, key=lambda n: n.node_id))
    if victim == "actor's node":
        busy = {p.name for p in (place / "nodes").iterdir()}
        node = next((n for n in cluster.worker_nodes if n.node_id in busy), node)
    if victim == "raylet":
        (raylet,) = node.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        time.sleep(1)  # its workers notice and end
    cluster.remove_node(node, allow_graceful=False)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_node_is_killed(seed: int, cluster: Any, archive: tuple[Path, Oracle], tmp_path: Path) -> None:
    chance, out, options = random.Random(seed), tmp_path / "out", prepare(tmp_path)
    victim = VICTIMS[seed % len(VICTIMS)]
    with watched(out) as reader:
        job, codes = start(cluster, archive[0], out, options), []
        count = chance.randrange(1, SHARDS * MEMBERS // CHUNK * 2 // 3)
        while job.poll() is None and len(list(out.glob("records/explainer=*/*.parquet"))) < count:
            time.sleep(0.02)
        before = reader.look()
        kill(cluster, tmp_path, victim, chance)
        _, stderr = job.communicate(timeout=300)
        codes.append(job.returncode)
        cluster.add_node(num_cpus=2, object_store_memory=10**8)
        while codes[-1] == 4 and len(codes) < 3:
            job = start(cluster, archive[0], out, options)
            _, stderr = job.communicate(timeout=300)
            codes.append(job.returncode)
        assert codes[-1] == 3, (codes, stderr.decode()[-3000:])  # one shard of the archive is cut
        after = reader.look()
    check(after, archive[1])
    assert all(after[key]["run_id"] == row["run_id"] for key, row in before.items())
    print(
        f"seed {seed}: {victim} killed at {len(before)} rows committed; exits {codes}, {reader.reads} reads"
    )


def test_a_node_without_out_is_refused(cluster: Any, archive: tuple[Path, Oracle], tmp_path: Path) -> None:
    """A node for which a disk of its own lies where the others have OUT."""
    if os.geteuid():
        pytest.skip("mounting needs root")
    options, place = prepare(tmp_path), tmp_path / "disk"
    place.mkdir()
    ray = Path(sys.executable).parent / "ray"
    join = (
        f"mount -t tmpfs tmpfs {place} && exec {ray} start --address={cluster.address} --num-cpus=1 --block"
    )
    node = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", join], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert node.stdout is not None
        if not any("Ray runtime started" in line for line in node.stdout):
            pytest.skip("no node with a mount of its own can be made here")
        job = start(cluster, archive[0], place / "out", options)
        _, stderr = job.communicate(timeout=120)
        assert job.returncode == 2, stderr.decode()
        assert f"OUT: 1 of {NODES + 1} nodes of the cluster do not see {place}" in stderr.decode()
        assert not list(place.iterdir())
    finally:
        node.terminate()
        node.wait(60)
