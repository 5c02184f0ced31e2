"""Memory of the whole job on an archive and on one ten times as large: peaks by process, and spilling.

    python bench/memory.py                    2,000 and 20,000 small images, demonstration model

Whether speed falls as the archive grows is read off the large run alone: the time per image of its second
half over that of its first. The small run is too short for it.

Memory is what a process alone holds (RssAnon): pages of the object store are shared and counted once, as
its own line. Spilled files are looked for while the job runs. Time per image and the cost of a rerun with
nothing to do come from the same runs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SHARD = 1000


def make_archive(folder: Path, count: int) -> None:
    """Tars of small JPEGs, every one different."""
    folder.mkdir()
    for start in range(0, count, SHARD):
        with tarfile.open(folder / f"{start // SHARD:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(start, min(start + SHARD, count)):
                pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "JPEG")
                info = tarfile.TarInfo(f"{i:06d}.jpg")
                info.size = buffer.tell()
                tar.addfile(info, io.BytesIO(buffer.getvalue()))


def own_mib(pid: int) -> tuple[float, float]:
    """Private and shared memory of a process, MiB."""
    sizes = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssShmem"):
            sizes[name] = int(value.split()[0]) / 1024
    return sizes.get("RssAnon", 0.0), sizes.get("RssShmem", 0.0)


def family(root: int) -> set[int]:
    """A process and all it started, to any depth."""
    parent = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended meanwhile
    found = {root}
    while more := {pid for pid, above in parent.items() if above in found} - found:
        found |= more
    return found


def role(pid: int, driver: int) -> str | None:
    """The kind of a process of the run: driver, an actor, a worker of the stages; None for Ray's own."""
    if pid == driver:
        return "driver"
    title = Path(f"/proc/{pid}/cmdline").read_text()
    for mark, kind in (("ExplainActor", "actor"), ("ray::", "worker")):
        if mark in title:
            return kind
    return None


def follow(command: list[str], temporary: Path) -> tuple[dict[str, float], int, float]:
    """Run a command; give peaks by role in MiB, the number of spilled files seen, and the seconds it took."""
    peaks: dict[str, float] = defaultdict(float)
    spilled, started = 0, time.monotonic()
    environment = {**os.environ, "RAY_TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"}
    run = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while run.poll() is None:
        for pid in family(run.pid):
            try:
                kind = role(pid, run.pid)
                private, shared = own_mib(pid)
            except OSError:
                continue  # it ended meanwhile
            if kind:
                peaks[kind] = max(peaks[kind], private)
                peaks["object store"] = max(peaks["object store"], shared)
        spilled = max(spilled, sum(1 for _ in temporary.rglob("ray_spilled_objects*/*")))
        time.sleep(0.5)
    if run.returncode:
        assert run.stderr is not None
        raise SystemExit(run.stderr.read())
    return dict(peaks), spilled, time.monotonic() - started


def main() -> None:
    """Run both sizes and print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--times", type=int, default=10)
    args = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory(prefix="m") as place:
        for count in (args.images, args.images * args.times):
            archive, out, temporary = (Path(place) / f"{name}{count}" for name in ("a", "o", "r"))
            make_archive(archive, count)
            temporary.mkdir()
            command = [sys.executable, "-m", "camray.cli", "explain", str(archive), str(out)]
            command += ["--model", str(ROOT / "demo/models/hans64-clean"), "--overlays", "none"]
            peaks, spilled, seconds = follow(command, temporary)
            report = json.loads(next(out.glob("runs/*/run.json")).read_text())
            assert report["accounting"]["members"] == count
            found.append((count, peaks, spilled, report["duration_s"], steady(out)))
            print(f"{count:>7,} images in {seconds:.0f} s; steady {found[-1][4]:.1f} images/s", flush=True)
        growth = halves(out)
        again = follow(command, temporary)[2]
    (_, small, _, _, before), (_, large, spilled, duration, after) = found
    for kind in sorted(large):
        ratio = large[kind] / max(1.0, small.get(kind, 0.0))
        goal = "" if kind == "object store" else "<= 1.10"
        print(f"    {kind:<14} {small.get(kind, 0):7.0f} -> {large[kind]:7.0f} MiB   {ratio:5.2f} x   {goal}")
    print(f"    spilled files                                {spilled}      0")
    print(f"    time per image, large / small              {before / after:5.2f} x")
    print(f"    time per image, second half / first half   {growth:5.2f} x   0.95 .. 1.05")
    print(f"    a rerun with nothing to do: {again:.0f} s, {again / duration:.1%} of the run   <= 5 %")


def finished(out: Path) -> list[tuple[float, int]]:
    """When each record file was written, and its rows."""
    import pyarrow.parquet as pq

    files = sorted((f.stat().st_mtime, f) for f in out.rglob("records/explainer=*/*.parquet"))
    return [(written, pq.read_metadata(f).num_rows) for written, f in files]


def steady(out: Path) -> float:
    """Images per second between the first and the last record file."""
    (start, _), *rest = finished(out)
    return sum(rows for _, rows in rest) / (rest[-1][0] - start)


def halves(out: Path) -> float:
    """Seconds an image of the second half of a run, over those of the first."""
    (start, _), *rest = finished(out)
    first, second = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    early = (first[-1][0] - start) / sum(rows for _, rows in first)
    return (second[-1][0] - first[-1][0]) / sum(rows for _, rows in second) / early


if __name__ == "__main__":
    main()
