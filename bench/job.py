"""The whole job beside three others: same images, same model, same cores, one run, interleaved.

    python bench/job.py IMAGES                       mobilenetv2_100 and resnet18, overlays none and all
    python bench/job.py IMAGES --models resnet18 --images 400 --rounds 2

IMAGES is a folder of photographs (JPEG), repeated until there are enough of them. The four sides:

    loop     decode and forward in one process: no explanation, no files. What the model alone costs.
    script   pytorch-grad-cam in batches, an overlay per image with OpenCV, one Parquet file with pandas.
    ray      Ray Data with the same decode and the same forward in the same number of actors, nothing else.
    job      `camray explain`: Grad-CAM, records, overlays as asked, commits.

Every side runs in a process of its own and reports images per second in steady state: from its first
finished chunk or batch to its last. Start-up is told apart. Random weights: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
BATCH, CHUNK, SHARD = 8, 32, 200  # batches as the job has them: the fastest of 1 to 16 on a core


def contents(archive: Path) -> Iterator[bytes]:
    """Every image of the tars, in order."""
    for path in sorted(archive.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                yield file.read()


def make_archive(images: Path, folder: Path, count: int) -> None:
    """Tars of `SHARD` photographs each."""
    files = sorted(p for p in images.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    folder.mkdir()
    for start in range(0, count, SHARD):
        with tarfile.open(folder / f"{start // SHARD:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(start, min(start + SHARD, count)):
                data = files[i % len(files)].read_bytes()
                info = tarfile.TarInfo(f"{i:06d}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def make_model(name: str, folder: Path) -> None:
    """A folder that both timm and camray read: config.json and weights."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model(name)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {"architecture": name, "num_classes": model.num_classes, "pretrained_cfg": model.pretrained_cfg}
    (folder / "config.json").write_text(json.dumps(config))


def loaded(model: Path) -> tuple[Any, Any, Any, Any]:
    """The model as camray loads it, its input, and mean and std."""
    import torch

    from camray.config import ModelConfig
    from camray.models.load import load_model

    found = load_model(ModelConfig(name=str(model)))
    return found.module, found.input, torch.tensor(found.input.mean), torch.tensor(found.input.std)


def in_batches(items: Iterator[Any], size: int = BATCH) -> Iterator[list[Any]]:
    """Lists of `size` items."""
    wave: list[Any] = []
    for item in items:
        wave.append(item)
        if len(wave) == size:
            yield wave
            wave = []
    if wave:
        yield wave


# ── the sides: each prints {"images_per_s", "startup_s", "images"} ────────────────────────────────


def report(started: float, ticks: list[tuple[float, int]]) -> None:
    """`ticks`: when something was finished, and how many images it held."""
    ticks = sorted(ticks)
    images = sum(n for _, n in ticks[1:])
    speed = images / (ticks[-1][0] - ticks[0][0])
    facts = {"images_per_s": speed, "startup_s": ticks[0][0] - started, "images": images + ticks[0][1]}
    print(json.dumps(facts))


def loop(archive: Path, model: Path, started: float) -> None:
    """Threads decode the next batch while this one runs."""
    import numpy as np
    import torch

    from camray.image.decode import decode
    from camray.models.preprocessing import to_input

    module, spec, mean, std = loaded(model)
    ticks, cores = [], os.cpu_count() or 1
    torch.set_num_threads(cores)

    def pixels(wave: list[bytes]) -> list[Any]:
        return [decode(data, spec, 10**8).pixels for data in wave]

    with ThreadPoolExecutor(cores) as pool, torch.inference_mode():
        ahead = None
        for wave in in_batches(contents(archive)):
            parts = [pool.submit(pixels, wave[i::cores]) for i in range(cores)]
            if ahead is not None:
                ticks.append((time.time(), forward(module, ahead, mean, std, np, torch, to_input)))
            ahead = parts
        assert ahead is not None
        ticks.append((time.time(), forward(module, ahead, mean, std, np, torch, to_input)))
    report(started, ticks)


def forward(module: Any, parts: Any, mean: Any, std: Any, np: Any, torch: Any, to_input: Any) -> int:
    """One batch of the loop."""
    views = np.stack([view for part in parts for view in part.result()])
    return len(module(to_input(torch.from_numpy(views), mean, std)).softmax(1))


def script(archive: Path, model: Path, started: float) -> None:
    """What people write today, in batches: timm's transform, grad-cam, OpenCV, pandas."""
    import cv2
    import numpy as np
    import pandas as pd
    import timm
    import torch
    from PIL import Image
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import show_cam_on_image

    name = json.loads((model / "config.json").read_text())["architecture"]
    net = timm.create_model(name, checkpoint_path=str(model / "model.safetensors")).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=net))
    layer = {"resnet18": "layer4", "mobilenetv2_100": "bn2"}[name]
    cam = GradCAM(net, [net.get_submodule(layer)])
    torch.set_num_threads(os.cpu_count() or 1)
    rows, ticks = [], []
    with tempfile.TemporaryDirectory() as out:
        for wave in in_batches(contents(archive)):
            pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in wave]
            x = torch.stack([transform(picture) for picture in pictures])
            maps = cam(x, None)
            scores = cam.outputs.softmax(1).detach()
            for picture, heat, score in zip(pictures, maps, scores, strict=True):
                small = np.asarray(picture.resize((224, 224)), np.float32) / 255
                path = f"{out}/{len(rows):06d}.jpg"
                cv2.imwrite(path, show_cam_on_image(small, heat, use_rgb=True)[..., ::-1])
                rows.append({"path": path, "class": int(score.argmax()), "score": float(score.max())})
            ticks.append((time.time(), len(wave)))
        pd.DataFrame(rows).to_parquet(f"{out}/records.parquet")
    report(started, ticks)


class Forward:
    """The model in a Ray Data actor."""

    def __init__(self, model: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.module, _, self.mean, self.std = loaded(Path(model))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import torch

        from camray.models.preprocessing import to_input

        with torch.inference_mode():
            x = to_input(torch.from_numpy(batch["pixels"]), self.mean, self.std)
            score = self.module(x).softmax(1).amax(1).numpy()
        return {"score": score, "time": [time.time()] * len(score)}


def bare_ray(archive: Path, model: Path, started: float) -> None:
    """Read, decode, forward; the actors are as many and as wide as the job's."""
    import ray

    from camray.config import Config
    from camray.flow.cluster import connect
    from camray.flow.flow import size_pool
    from camray.flow.ray import DECODE_CPUS, READ_CPUS

    cpus, gpus = connect()
    pool = size_pool(Config(), cpus, gpus)
    ray.data.DataContext.get_current().enable_progress_bars = False
    _, spec, _, _ = loaded(model)

    def members(row: dict[str, Any]) -> list[dict[str, Any]]:
        with tarfile.open(row["item"]) as tar:
            return [{"content": tar.extractfile(m).read()} for m in tar]  # type: ignore[union-attr]

    def pixels(batch: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        from camray.image.decode import decode

        return {"pixels": np.stack([decode(c, spec, 10**8).pixels for c in batch["content"]])}

    paths = [str(p) for p in sorted(archive.glob("*.tar"))]
    data = ray.data.from_items(paths, override_num_blocks=len(paths))
    data = data.flat_map(members, num_cpus=READ_CPUS)
    data = data.map_batches(pixels, batch_size=CHUNK, num_cpus=DECODE_CPUS)
    data = data.map_batches(
        Forward, fn_constructor_args=(str(model), pool.threads), batch_size=BATCH,
        concurrency=pool.actors, num_cpus=pool.cpus,
    )  # fmt: skip
    times = Counter(t for batch in data.iter_batches(batch_size=None) for t in batch["time"].tolist())
    report(started, list(times.items()))


def job(archive: Path, model: Path, started: float, overlays: str) -> None:
    """The product, as a command."""
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "camray.cli", "explain", str(archive), f"{out}/out"]
        command += ["--model", str(model), "--overlays", overlays, "--chunk-size", str(CHUNK)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        files = list(Path(out).rglob("records/explainer=*/*.parquet"))
        report(started, [(f.stat().st_mtime, pq.read_metadata(f).num_rows) for f in files])


# ── the comparison ───────────────────────────────────────────────────────────────────────────────


def measure(side: str, archive: Path, model: Path) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, str(archive), "--model", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side}: {done.stderr[-3000:]}")
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return facts


def compare(name: str, archive: Path, model: Path, rounds: int) -> None:
    """Run every side once per round, and print medians and ratios of the same round."""
    sides = ("loop", "job-none", "ray", "job-all", "script")
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    start_up: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            facts = measure(side, archive, model)
            speeds[side].append(facts["images_per_s"])
            start_up[side].append(facts["startup_s"])
            print(f"{name} {side}: {facts['images_per_s']:.1f} images/s", file=sys.stderr)
    print(name)
    for side in sides:
        median, first = statistics.median(speeds[side]), statistics.median(start_up[side])
        print(f"    {side:<10} {median:7.1f} images/s in steady state, first result after {first:5.1f} s")
    for label, above, below, goal in (
        ("job / loop, overlays none", "job-none", "loop", 0.85),
        ("job / loop, overlays all", "job-all", "loop", 0.75),
        ("job / script, overlays all", "job-all", "script", 3.0),
        ("job / Ray Data alone, overlays none", "job-none", "ray", 0.95),
    ):
        ratios = sorted(a / b for a, b in zip(speeds[above], speeds[below], strict=True))
        spread = f"{ratios[0]:.2f} .. {ratios[-1]:.2f}"
        print(f"    {label:<40} {statistics.median(ratios):6.2f}   >= {goal:<5} ({spread})", flush=True)


def main() -> None:
    """Measure all sides, or be one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--models", nargs="+", default=["mobilenetv2_100", "resnet18"])
    parser.add_argument("--images-per-side", dest="count", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    started = time.time()
    if args.side:
        sides = {"loop": loop, "script": script, "ray": bare_ray}
        if args.side in sides:
            sides[args.side](args.images, args.model, started)
        else:
            job(args.images, args.model, started, args.side.removeprefix("job-"))
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "archive"
        make_archive(args.images, archive, args.count)
        for name in args.models:
            model = Path(folder) / name
            make_model(name, model)
            compare(name, archive, model, args.rounds)


if __name__ == "__main__":
    main()
