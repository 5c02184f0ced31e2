"""From the command to the first committed record, beside what cannot be avoided: Ray's start and the model.

    python bench/startup.py IMAGES             mobilenetv2_100, three rounds, interleaved

The unavoidable is timed in a process of its own: `ray.init`, then the imports and the weights of the model.
The archive has shards of four photographs, so that the first commit does not wait for a large shard.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import job

BARE = """
import sys, time
started = time.perf_counter()
from camray.flow.cluster import connect
connect()
ready = time.perf_counter()
from camray.config import ModelConfig
from camray.models.load import load_model
load_model(ModelConfig(name=sys.argv[1]))
print(ready - started, time.perf_counter() - ready)
"""


def bare(model: Path) -> tuple[float, float]:
    """Seconds of Ray's start and of the model's load, imports included."""
    done = subprocess.run([sys.executable, "-c", BARE, model], capture_output=True, text=True, check=True)
    ray_s, model_s = map(float, done.stdout.split())
    return ray_s, model_s


def first_commit(archive: Path, model: Path, out: Path) -> float:
    """Seconds from the command's start to the first version of the table that holds records."""
    began = time.time()
    command = [sys.executable, "-m", "camray.cli", "explain", archive, out, "--model", model]
    subprocess.run([*command, "--overlays", "none", "--chunk-size", "4"], capture_output=True, check=True)
    for entry in sorted(out.glob("records/_delta_log/*.json")):
        if any('"add"' in line for line in entry.read_text().splitlines()):
            return entry.stat().st_mtime - began
    raise SystemExit("nothing was committed")


def main() -> None:
    """Run both sides in turn and print the ratio of each round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        job.SHARD = 4
        job.make_archive(args.images, folder / "archive", 40)
        job.make_model("mobilenetv2_100", folder / "model")
        for i in range(args.rounds):
            ray_s, model_s = bare(folder / "model")
            rounds.append(
                (ray_s, model_s, first_commit(folder / "archive", folder / "model", folder / str(i)))
            )
            print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    ray_s, model_s, commit_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratios = sorted(c / (r + m) for r, m, c in rounds)
    print(f"    ray.init {ray_s:.1f} s, model {model_s:.1f} s, first committed record after {commit_s:.1f} s")
    print(
        f"    first record / (ray.init + model)   {statistics.median(ratios):.2f}   <= 2   "
        f"({ratios[0]:.2f} .. {ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
