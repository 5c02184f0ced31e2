"""The job on a real Ray cluster of several nodes on one machine: scaling, nodes that come and go, and skew.

    python bench/nodes.py scale         1, 2, 4, 8 nodes: images per second and efficiency
    python bench/nodes.py late          2 nodes of 2 CPUs, a third joins halfway: 4 actors, at most 6
    python bench/nodes.py leaving       4 nodes, one is killed halfway
    python bench/nodes.py large-shard   4 nodes, one shard 50 times larger than the 20 others, listed last
    python bench/nodes.py slow-node     4 nodes, one with a model four times slower
    python bench/nodes.py slow-store    4 nodes, the archive in an S3 emulator (moto) behind a slow line

Each node is a raylet of its own. The time of the model is a sleep inside the actor (a model of the user's
own, 200 ms an image), so that the cores of one machine do not limit the number of nodes. What is measured is
the rest: does the graph keep every actor of every node supplied until the end?

Speed counts from the moment every actor has finished a chunk; "busy" is the share of that time in which the
actors slept for the model.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ray.cluster_utils import Cluster
from safetensors.torch import save_file
from torch import nn

SLEEP_S, CHUNK = 0.2, 32
LATENCY_S, BYTES_A_SECOND = 0.5, 20_000
"""Of each answer and each connection of the slow store: a chunk of 32 pictures takes about 5 s to come, 6.4 s
to explain."""
MODEL = '''
import os, time
from pathlib import Path

import ray
import torch
from torch import nn


class Sleeper(nn.Module):
    """A tiny network that takes as long as a large one; every batch is noted with its actor."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, stride=4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        if ray.is_initialized() and ray.get_runtime_context().get_actor_id():
            context, place = ray.get_runtime_context(), Path({place!r})
            slow = context.get_node_id() == (place / "slow").read_text()
            started = time.time()
            time.sleep({sleep} * len(x) * (4 if slow else 1))
            with (place / context.get_actor_id()).open("a") as log:
                log.write(f"{{started}} {{time.time()}} {{len(x)}}\\n")
        return self.head(self.features(x).relu().mean((2, 3)))
'''


def picture(number: int) -> bytes:
    """A small JPEG, every one different."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def make_archive(folder: Path, sizes: Sequence[int]) -> None:
    """One tar for each size."""
    folder.mkdir()
    for number, size in enumerate(sizes):
        with tarfile.open(folder / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(size):
                data = picture(number * 10_000 + i)
                info = tarfile.TarInfo(f"{i:05d}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@contextmanager
def slow_store(archive: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Put the archive into an S3 emulator behind a slow line; give its URI and the way to reach it."""
    from pyarrow import fs

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    moto = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    loop = asyncio.new_event_loop()
    line = loop.run_until_complete(asyncio.start_server(lambda r, w: slow_line(r, w, port), "127.0.0.1", 0))
    threading.Thread(target=loop.run_forever, daemon=True).start()
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.2)
        s3 = fs.S3FileSystem(
            endpoint_override=f"127.0.0.1:{port}", scheme="http", access_key="bench", secret_key="bench",
            region="us-east-1", allow_bucket_creation=True,
        )  # fmt: skip
        s3.create_dir("bucket")
        fs.copy_files(str(archive), "bucket/archive", destination_filesystem=s3)
        address = f"http://127.0.0.1:{line.sockets[0].getsockname()[1]}"
        keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}
        yield "s3://bucket/archive", {**keys, "AWS_ENDPOINT_URL": address, "AWS_ALLOW_HTTP": "true"}
    finally:
        moto.kill()


async def slow_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Pass one connection on; what comes back is late and slow."""
    upstream, downstream = await asyncio.open_connection("127.0.0.1", port)

    async def answers() -> None:
        while data := await upstream.read(2**14):
            await asyncio.sleep(LATENCY_S + len(data) / BYTES_A_SECOND)
            writer.write(data)
        writer.close()

    async def requests() -> None:
        while data := await reader.read(2**14):
            downstream.write(data)
        downstream.close()

    await asyncio.gather(answers(), requests(), return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward of the model."""

    actor: str
    started: float
    ended: float
    images: int


def batches(place: Path) -> list[Batch]:
    """Every forward so far, by its end."""
    found = []
    for log in place.glob("?" * 32):
        for line in log.read_text().splitlines():
            started, ended, images = line.split()
            found.append(Batch(log.name, float(started), float(ended), int(images)))
    return sorted(found, key=lambda b: b.ended)


def busy_share(done: Sequence[Batch], actors: int, start: float, end: float) -> float:
    """Share of the actors' time between two moments that the model took."""
    worked = sum(max(0.0, min(b.ended, end) - max(b.started, start)) for b in done)
    return worked / (actors * (end - start))


def run(
    nodes: int,
    sizes: Sequence[int],
    options: Sequence[str] = (),
    halfway: Callable[[Cluster], Any] | None = None,
    slow: bool = False,
    far: bool = False,
) -> list[Batch]:
    """Start a cluster, run the job on it, check that every image has its row; give the forwards."""
    with tempfile.TemporaryDirectory(prefix="n") as folder:
        place = Path(folder)
        make_archive(place / "archive", sizes)
        with (
            slow_store(place / "archive") if far else nullcontext((str(place / "archive"), {})) as (uri, keys)
        ):
            os.environ.update(keys)  # before the nodes start: their workers inherit it
            return run_on(nodes, place, uri, sum(sizes), options, halfway, slow)


def run_on(
    nodes: int,
    place: Path,
    archive: str,
    images: int,
    options: Sequence[str],
    halfway: Callable[[Cluster], Any] | None,
    slow: bool,
) -> list[Batch]:
    """Start the nodes and the command."""
    (place / "log").mkdir()
    (place / "net.py").write_text(MODEL.format(place=str(place / "log"), sleep=SLEEP_S))
    features, head = nn.Conv2d(3, 4, 3, stride=4), nn.Linear(4, 2)
    weights = {"features": features, "head": head}
    state = {f"{name}.{k}": v for name, part in weights.items() for k, v in part.state_dict().items()}
    save_file(state, place / "net.safetensors")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": 2 * 10**8},
    )
    added = [cluster.add_node(num_cpus=2, object_store_memory=2 * 10**8) for _ in range(nodes - 1)]
    (place / "log/slow").write_text(added[0].node_id if slow else "none")
    command = [sys.executable, "-m", "camray.cli", "explain", archive, str(place / "out")]
    command += ["--model", f"{place / 'net.py'}:Sleeper", "--input-size", "32", "--layer", "features"]
    command += ["--checkpoint", str(place / "net.safetensors")]
    command += ["--chunk-size", str(CHUNK), "--batch-size", str(CHUNK), "--overlays", "none", *options]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        while job.poll() is None:
            time.sleep(0.5)
            if halfway and sum(b.images for b in batches(place / "log")) > images / 2:
                halfway(cluster)
                halfway = None
        assert job.stderr is not None
        said = job.stderr.read()
        if job.returncode:
            raise SystemExit(said)
        report = json.loads(next((place / "out").glob("runs/*/run.json")).read_text())
        assert report["accounting"]["ok"] == images, said
        return batches(place / "log")
    finally:
        job.kill()
        cluster.shutdown()


def everyone_started(done: Sequence[Batch]) -> float:
    """When the last of the actors had finished its first batch."""
    first: dict[str, float] = {}
    for batch in done:
        first.setdefault(batch.actor, batch.ended)
    return max(first.values())


def speed(done: Sequence[Batch], start: float, end: float) -> float:
    """Images per second between two moments."""
    return sum(b.images for b in done if start < b.ended <= end) / (end - start)


def scale() -> None:
    """As many images per node at every size; an actor a node."""
    alone = 0.0
    for nodes in (1, 2, 4, 8):
        done = run(nodes, [96] * 3 * nodes, ("--actors", str(nodes)))
        actors = len({b.actor for b in done})
        start, end = everyone_started(done), done[-1].ended
        found = speed(done, start, end)
        alone = alone or found
        share = busy_share(done, actors, start, end)
        efficiency = found / nodes / alone
        print(f"    {nodes} nodes, {actors:>2} actors: {found:6.1f} images/s, ", end="")
        print(f"efficiency {efficiency:.2f}, busy {share:.0%}", flush=True)


def late() -> None:
    """A node joins: actors are added to the pool, and take part."""
    joined: list[float] = []

    def join(cluster: Cluster) -> None:
        cluster.add_node(num_cpus=2, object_store_memory=2 * 10**8)
        joined.append(time.time())

    done = run(2, [96] * 32, ("--actors", "4", "--max-actors", "6"), join)
    before = {b.actor for b in done if b.started < joined[0]}
    after = [b for b in done if b.actor not in before]
    if not after:
        print("    the late node got no actor")
        return
    settled, start = everyone_started(done), everyone_started([b for b in done if b.actor in before])
    print(f"    {len(before)} actors, then {len(before | {b.actor for b in after})}; ", end="")
    print(f"first work on the late node after {after[0].started - joined[0]:.1f} s; ", end="")
    print(f"{speed(done, start, joined[0]):.1f} -> ", end="")
    print(f"{speed(done, settled, done[-1].ended):.1f} images/s")


def leaving() -> None:
    """A node is killed: its work is done elsewhere, nothing is lost."""
    killed: list[float] = []

    def kill(cluster: Cluster) -> None:
        killed.append(time.time())
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)

    done = run(4, [96] * 12, ("--actors", "4"), halfway=kill)
    count, before = sum(b.images for b in done), [b for b in done if b.ended < killed[0]]
    last = [b for b in done if b.started > killed[0] + 10]
    print(
        f"    1,152 images, all with one row; the model ran {count:,} ({count / 1152 - 1:.1%} twice); ",
        end="",
    )
    print(f"{speed(done, everyone_started(before), killed[0]):.1f} -> ", end="")
    print(f"{speed(done, last[0].ended, done[-1].ended):.1f} images/s")


def report_skew(done: Sequence[Batch]) -> None:
    """Busy share of all actors, in the last tenth, and how evenly they ended."""
    actors = len({b.actor for b in done})
    start, end = everyone_started(done), done[-1].ended
    last = {b.actor: b.ended for b in done}
    tail = end - statistics.median(last.values())
    print(f"    {actors} actors, busy {busy_share(done, actors, start, end):.0%}, ", end="")
    print(f"in the last tenth {busy_share(done, actors, end - (end - start) / 10, end):.0%}; ", end="")
    print(f"the last ended {tail:.1f} s after the median, of {end - start:.0f} s")


def main() -> None:
    """Run one of the measurements, or all."""
    parts: dict[str, Callable[[], None]] = {
        "scale": scale,
        "late": late,
        "leaving": leaving,
        "large-shard": lambda: report_skew(run(4, [16] * 20 + [800], ("--actors", "4"))),
        "slow-node": lambda: report_skew(run(4, [96] * 12, ("--actors", "4"), slow=True)),
        "slow-store": lambda: report_skew(run(4, [96] * 12, ("--actors", "4"), far=True)),
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="*", choices=[*parts, []], default=[])
    for part in parser.parse_args().part or parts:
        print(part, flush=True)
        parts[part]()


if __name__ == "__main__":
    main()
