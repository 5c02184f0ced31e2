"""Host CPU time of each stage an image, with a model of no cost: what the job pays beside the network.

    python bench/overhead.py                    made pictures, 256 of them at 224 x 224, mobilenetv2_100
    python bench/overhead.py --images FOLDER    photographs
    python bench/overhead.py --json             the last line alone is one JSON object

The network runs once; after that its answers are given again. Of decoding its guarded process
counts, too. No overlays are drawn. Medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import job
import pyarrow as pa
import torch
from all import make_pictures

from camray.config import Config, ModelConfig, OverlayConfig
from camray.explain import explainer as explainer_module
from camray.flow.actor import ExplainActor, network_of
from camray.flow.guard import Guard
from camray.flow.stages import Decode, Sink, read_shard
from camray.ledger.plan import ShardTask
from camray.records import Shard

COUNT = 256
STAGES = ("read_ms", "decode_ms", "actor_ms", "sink_ms")


def cpu_s() -> float:
    """CPU seconds of this process and of those it started that live (Linux)."""
    total = time.process_time()
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            fields = Path("/proc", child, "stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU milliseconds an image, and what came out."""
    began = cpu_s()
    found = work()
    return (cpu_s() - began) / COUNT * 1000, found


def without_its_cost() -> None:
    """Let the engine give the first answer again wherever the batch has the same size."""
    real, known = explainer_module.cam.explain, {}

    def explain(module: Any, x: torch.Tensor, *more: Any) -> Any:
        if len(x) not in known:
            known[len(x)] = real(module, x, *more)
        return known[len(x)]

    explainer_module.cam.explain = explain  # type: ignore[assignment]


def main() -> None:
    """Run the stages in turn, round after round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "made").mkdir()
        if args.images is None:
            make_pictures(folder / "made", COUNT)  # all different: equal ones are decoded once
        job.SHARD = COUNT
        job.make_archive(args.images or folder / "made", folder / "archive", COUNT)
        job.make_model("mobilenetv2_100", folder / "model")
        rounds = measure(folder, args.rounds)
    found = {name: round(statistics.median(r[i] for r in rounds), 3) for i, name in enumerate(STAGES)}
    if not args.json:
        for i, name in enumerate(STAGES):
            values = sorted(r[i] for r in rounds)
            print(f"    {name:<10} {found[name]:7.3f}   ({values[0]:.3f} .. {values[-1]:.3f})")
    print(json.dumps(found))


def measure(folder: Path, rounds: int) -> list[tuple[float, ...]]:
    """Give CPU milliseconds an image of each stage; a first round warms up."""
    config = Config(out=str(folder / "out"), model=ModelConfig(name=str(folder / "model")))
    explainer, model = explainer_module.resolve(config)
    without_its_cost()
    (path,) = (folder / "archive").glob("*.tar")
    shard = Shard(str(path), "tar", path.stat().st_size, "")
    network, guard = network_of(model), Guard()
    decode = Decode(explainer.input, explainer.max_pixels, False, guard)
    actor = ExplainActor(explainer, lambda: network, "cpu", 8, 1, OverlayConfig(policy="none"), guard)

    def once(lap: int) -> tuple[float, ...]:
        os.makedirs(folder / f"out{lap}")
        sink = Sink(
            Config(out=str(folder / f"out{lap}"), overlay=OverlayConfig(policy="none")), explainer, "run",
            {shard.id: shard.uri},
        )  # fmt: skip
        read_ms, rows = timed(lambda: list(read_shard(ShardTask(shard), config.archive, COUNT)))
        decode_ms, decoded = timed(lambda: decode(rows[0]))
        actor_ms, explained = timed(lambda: actor(decoded))
        sink_ms, receipt = timed(lambda: sink(explained))
        assert isinstance(receipt, pa.Table)
        return read_ms, decode_ms, actor_ms, sink_ms

    once(0)
    return [once(lap) for lap in range(1, rounds + 1)]


if __name__ == "__main__":
    main()
