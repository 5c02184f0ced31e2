"""Every benchmark, small, one after the other; what they print goes to bench/RESULTS.md.

    python bench/all.py                        made pictures, about an hour on two cores
    python bench/all.py --images FOLDER        photographs
    python bench/all.py --only job.py          some of them; the page then holds these alone

Figures of a machine that does other work are noise: ratios of one run and their spread are what to read.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
PACKAGES = ("camray", "torch", "timm", "ray", "pyarrow", "deltalake", "opencv-python-headless", "pillow")


def make_pictures(folder: Path, count: int = 64) -> None:
    """JPEGs of 500 x 375, as large as a photograph of that size."""
    for i in range(count):
        rng = np.random.default_rng(i)
        coarse = Image.fromarray(rng.integers(0, 256, (47, 63, 3), dtype=np.uint8))
        fine = rng.normal(0, 12, (375, 500, 3))
        pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)) + fine
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        (folder / f"{i:03d}.jpg").write_bytes(buffer.getvalue())


def instructions() -> str:
    """Name what this CPU has for matrices (Linux)."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return (
        ", ".join(name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags)
        or "no AVX"
    )


def commands(images: str) -> list[list[str]]:
    """What is run."""
    return [
        ["overhead.py", "--images", images],
        ["startup.py", images],
        ["job.py", images, "--rounds", "2"],
        ["job.py", images, "--models", "resnet50", "vit_small_patch16_224", "--images-per-side", "640",
         "--sides", "loop-threads", "loop-processes", "loop-prepared", "loop-compiled", "job",
         "job-compiled"],
        ["decode.py", images],
        ["memory.py", "--images", "500"],
        ["scale.py", "--shards", "200000"],
        ["nodes.py", "large-shard"],
        ["engine.py"],
    ]  # fmt: skip


def main() -> None:
    """Run them and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images")
    parser.add_argument("--only", nargs="+", default=[])
    args = parser.parse_args()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = [
        "# Benchmarks",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()} "
        f"with {instructions()}, Python {platform.python_version()}; "
        + ", ".join(f"{p} {version(p)}" for p in PACKAGES)
        + ".",
        "`make bench` writes this page. Ratios of one run count; seconds are this machine's.",
    ]
    with tempfile.TemporaryDirectory() as made:
        if args.images is None:
            make_pictures(Path(made))
        asked = commands(args.images or made)
        for command in (one for one in asked if not args.only or one[0] in args.only):
            shown = " ".join("IMAGES" if word in (made, args.images) else word for word in command)
            print(f"bench/{shown}", flush=True)
            began = time.monotonic()
            done = subprocess.run(
                [sys.executable, HERE / command[0], *command[1:]], capture_output=True, text=True, check=False
            )
            said = done.stdout if done.returncode == 0 else done.stdout + done.stderr[-2000:]
            print(said, flush=True)
            lines += ["", f"## python bench/{shown}", "", f"{time.monotonic() - began:.0f} s", "", "```"]
            lines += [*said.rstrip().splitlines(), "```"]
            (HERE / "RESULTS.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
