"""The whole job beside what people write instead: same images, same model, same cores, one run, interleaved.

    python bench/job.py IMAGES                       mobilenetv2_100, three rounds of 2,560 images
    python bench/job.py IMAGES --models resnet50 --images-per-side 1024 --sides loop-processes job

IMAGES is a folder of photographs (JPEG), repeated until there are enough of them. A model is a timm name,
with random weights, or a folder of weights. The sides:

    loop-threads     timm's transform and forward, no explanation, no files: threads decode ahead, all cores
                     run a forward
    loop-processes   the same in a process of one thread for each core: mostly the faster one
    loop-prepared    the same with model, input and decoding as the job has them
    loop-compiled    that with torch.compile and frozen weights
    ray              Ray Data with the prepared model in as many actors as the job has, nothing else
    job              `camray explain`: Grad-CAM, records, commits, overlays of a sample
    job-compiled     the same with --compile
    job-all          the same with an overlay for each image, as the script draws them
    script           pytorch-grad-cam in batches, overlays with OpenCV, one Parquet file with pandas

Every side runs in processes of its own and tells its steady state, from its first finished batch or chunk to
its last: images a second, and CPU milliseconds an image of all its processes. Start-up is told apart. A side
that does not run here (no compiler, no pytorch-grad-cam) is left out, and why is said. Random weights: speed
does not depend on them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
BATCH, CHUNK, SHARD = 8, 128, 512  # batches as the job has them: the fastest of 1 to 16 on a core


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
    """A folder that both timm and camray read: config.json and weights.

    Batch norms get the statistics of some images, as training gives them: with those of a new network what
    rounding does grows from layer to layer, and camray would not fold them.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    if Path(name).is_dir():
        shutil.copytree(name, folder)
        return
    torch.manual_seed(0)
    model = timm.create_model(name).train()
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(32, *model.pretrained_cfg["input_size"]))
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {"architecture": name, "num_classes": model.num_classes, "pretrained_cfg": model.pretrained_cfg}
    (folder / "config.json").write_text(json.dumps(config))


def opened(data: bytes) -> Any:
    """The picture in a file, as people open it."""
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def plain(model: Path) -> tuple[Any, Any]:
    """The model and what turns a picture into its input, as people write it."""
    import timm

    name = json.loads((model / "config.json").read_text())["architecture"]
    net = timm.create_model(name, checkpoint_path=str(model / "model.safetensors")).eval()
    return net, timm.data.create_transform(**timm.data.resolve_data_config({}, model=net))


def prepared(model: Path, compiled: bool = False) -> tuple[Any, Any, Any, Any]:
    """The model as the job prepares it, its input, and mean and std."""
    import torch

    from camray.config import Config, ModelConfig
    from camray.explain.explainer import resolve

    found = resolve(Config(model=ModelConfig(name=str(model))))[1]
    module: Any = found.module
    if compiled:
        import torch._inductor.config

        torch._inductor.config.freezing = True
        module = torch.compile(module)
    return module, found.input, torch.tensor(found.input.mean), torch.tensor(found.input.std)


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


# ── the sides: each prints {"images_per_s", "startup_s", "images", "first", "last"} ───────────────


def report(started: float, ticks: list[tuple[float, int]]) -> None:
    """`ticks`: when something was finished, and how many images it held."""
    ticks = sorted(ticks)
    images = sum(n for _, n in ticks[1:])
    speed = images / (ticks[-1][0] - ticks[0][0])
    facts = {"images_per_s": speed, "startup_s": ticks[0][0] - started, "images": images}
    print(json.dumps(facts | {"first": ticks[0][0], "last": ticks[-1][0]}))


def loop_of_processes(archive: Path, model: Path, started: float, form: str) -> None:
    """A process for each core, each with every so-manieth batch."""
    cores = os.cpu_count() or 1
    command = [sys.executable, __file__, str(archive), "--model", str(model), "--side"]
    shares = [
        subprocess.Popen([*command, f"share:{form}:{i}:{cores}"], stdout=subprocess.PIPE)
        for i in range(cores)
    ]
    said = [share.communicate()[0] for share in shares]
    if any(share.returncode for share in shares):
        raise SystemExit("a share of the loop failed")
    ends: list[list[tuple[float, int]]] = [json.loads(one.splitlines()[-1]) for one in said]
    ready = max(own[0][0] for own in ends)  # from here on all of them work
    report(started, [(ready, 0), *((at, n) for own in ends for at, n in own if at > ready)])


def share(archive: Path, model: Path, form: str, number: int, of: int) -> None:
    """One process of a loop: decode and forward, in one thread."""
    import torch

    torch.set_num_threads(1)
    run = as_written(model) if form == "plain" else as_prepared(model, form == "compiled")
    ticks = []
    with torch.inference_mode():
        for i, wave in enumerate(in_batches(contents(archive))):
            if i % of == number and len(wave) == BATCH:
                run(wave)
                ticks.append((time.time(), len(wave)))
    print(json.dumps(ticks))


def as_written(model: Path) -> Callable[[list[bytes]], Any]:
    """Decode and classify as people write it."""
    import torch

    net, transform = plain(model)
    return lambda wave: net(torch.stack([transform(opened(data)) for data in wave])).softmax(1)


def as_prepared(model: Path, compiled: bool) -> Callable[[list[bytes]], Any]:
    """Decode and classify with what the job has."""
    import torch

    from camray.image.decode import decode
    from camray.models.preprocessing import to_input

    module, spec, mean, std = prepared(model, compiled)

    def run(wave: list[bytes]) -> Any:
        views = np.stack([decode(data, spec, 10**8).pixels for data in wave])
        return module(to_input(torch.from_numpy(views), mean, std)).softmax(1)

    return run


def loop(archive: Path, model: Path, started: float) -> None:
    """Threads decode the next batch while this one runs."""
    import torch

    net, transform = plain(model)
    ticks, cores = [], os.cpu_count() or 1
    torch.set_num_threads(cores)
    with ThreadPoolExecutor(cores) as pool, torch.inference_mode():
        ahead: list[Any] = []
        for wave in [*in_batches(contents(archive)), []]:
            parts = [pool.submit(lambda data: transform(opened(data)), data) for data in wave]
            if ahead:
                ticks.append((time.time(), len(net(torch.stack([p.result() for p in ahead])).softmax(1))))
            ahead = parts
    report(started, ticks)


def script(archive: Path, model: Path, started: float) -> None:
    """What people write today, in batches: timm's transform, grad-cam, OpenCV, pandas."""
    import cv2
    import pandas as pd
    import torch
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import show_cam_on_image

    net, transform = plain(model)
    name = json.loads((model / "config.json").read_text())["architecture"]
    layer = {"resnet18": "layer4", "resnet50": "layer4", "mobilenetv2_100": "bn2"}[name]
    cam = GradCAM(net, [net.get_submodule(layer)])
    torch.set_num_threads(os.cpu_count() or 1)
    rows, ticks = [], []
    with tempfile.TemporaryDirectory() as out:
        for wave in in_batches(contents(archive)):
            pictures = [opened(data) for data in wave]
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
        self.module, _, self.mean, self.std = prepared(Path(model))

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
    _, spec, _, _ = prepared(model)

    def members(row: dict[str, Any]) -> list[dict[str, Any]]:
        with tarfile.open(row["item"]) as tar:
            return [{"content": tar.extractfile(m).read()} for m in tar]  # type: ignore[union-attr]

    def pixels(batch: dict[str, Any]) -> dict[str, Any]:
        from camray.image.decode import decode

        return {"pixels": np.stack([decode(c, spec, 10**8).pixels for c in batch["content"]])}

    paths = [str(p) for p in sorted(archive.glob("*.tar"))]
    data = ray.data.from_items(paths, override_num_blocks=len(paths))
    data = data.flat_map(members, num_cpus=READ_CPUS)
    data = data.map_batches(pixels, batch_size=32, num_cpus=DECODE_CPUS)
    data = data.map_batches(
        Forward, fn_constructor_args=(str(model), pool.threads), batch_size=BATCH,
        concurrency=pool.actors, num_cpus=pool.cpus,
    )  # fmt: skip
    times = Counter(t for batch in data.iter_batches(batch_size=None) for t in batch["time"].tolist())
    report(started, list(times.items()))


def job(archive: Path, model: Path, started: float, overlays: str, more: Sequence[str] = ()) -> None:
    """The product, as a command."""
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "camray.cli", "explain", str(archive), f"{out}/out"]
        command += ["--model", str(model), "--overlays", overlays, "--chunk-size", str(CHUNK), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        files = list(Path(out).rglob("records/explainer=*/*.parquet"))
        report(started, [(f.stat().st_mtime, pq.read_metadata(f).num_rows) for f in files])


# ── the comparison ───────────────────────────────────────────────────────────────────────────────


def cpu_s(root: int) -> float:
    """CPU seconds of a process and of all that it started and that live (Linux)."""
    used, parents = {}, {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = place.read_text().rpartition(")")[2].split()
            parents[int(place.parent.name)] = int(fields[1])
            used[int(place.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    ours = {root}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(used.get(pid, 0.0) for pid in ours)


def measure(side: str, archive: Path, model: Path) -> dict[str, float] | str:
    """Run one side in a process of its own; give its facts, or why there are none."""
    command = [sys.executable, __file__, "--side", side, str(archive), "--model", str(model)]
    with tempfile.TemporaryFile("w+") as told:
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, text=True)
        seen: list[tuple[float, float]] = []

        def watch() -> None:
            while run.poll() is None:
                seen.append((time.time(), cpu_s(run.pid)))
                time.sleep(0.2)

        watcher = threading.Thread(target=watch)
        watcher.start()
        said, _ = run.communicate()
        watcher.join()
        if run.returncode:
            told.seek(0)
            return (told.read().strip() or "it failed").splitlines()[-1][-200:]
    facts: dict[str, float] = json.loads(said.splitlines()[-1])
    last = np.maximum.accumulate([cpu for _, cpu in seen])  # processes that end take theirs with them
    between = np.interp([facts["first"], facts["last"]], [at for at, _ in seen], last)
    return facts | {"cpu_ms": float(between[1] - between[0]) / facts["images"] * 1000}


SIDES = (
    "loop-threads", "loop-processes", "loop-prepared", "loop-compiled", "ray", "job", "job-compiled",
    "job-all", "script",
)  # fmt: skip
FORMS = {"loop-processes": "plain", "loop-prepared": "prepared", "loop-compiled": "compiled"}
GOALS = (  # what is beside what, and what it should be for mobilenetv2_100
    ("job", ("loop-threads", "loop-processes"), 1.5),
    ("job", ("loop-prepared",), 0.9),
    ("job-compiled", ("loop-compiled",), 0.9),
    ("job", ("ray",), 0.95),
    ("job-all", ("script",), 5.0),
)


def compare(name: str, archive: Path, model: Path, rounds: int, sides: Sequence[str]) -> None:
    """Run every side once per round, and print medians and ratios of the same round."""
    found: dict[str, list[dict[str, float]]] = {}
    missing: dict[str, str] = {}
    for _ in range(rounds):
        for side in (side for side in sides if side not in missing):
            facts = measure(side, archive, model)
            if isinstance(facts, str):
                missing[side] = facts
                continue
            found.setdefault(side, []).append(facts)
            print(f"{name} {side}: {facts['images_per_s']:.1f} images/s", file=sys.stderr)
    print(name)
    for side, own in found.items():
        speed, cpu, first = (
            statistics.median(one[name] for one in own) for name in ("images_per_s", "cpu_ms", "startup_s")
        )
        print(
            f"    {side:<15} {speed:6.1f} images/s {cpu:7.1f} ms of CPU an image, first after {first:5.1f} s"
        )
    for side, why in missing.items():
        print(f"    {side:<15} left out: {why}")
    whole = {side: own for side, own in found.items() if len(own) == rounds}
    for ours, theirs, goal in GOALS:
        others = [whole[side] for side in theirs if side in whole]
        if ours not in whole or not others:
            continue
        label = f"{ours} / {'best of ' * (len(others) > 1)}{' and '.join(s for s in theirs if s in whole)}"
        wall = [own["images_per_s"] / max(o["images_per_s"] for o in each)
                for own, *each in zip(whole[ours], *others, strict=True)]  # fmt: skip
        cpu = [min(o["cpu_ms"] for o in each) / own["cpu_ms"]
               for own, *each in zip(whole[ours], *others, strict=True)]  # fmt: skip
        print(f"    {label:<48} wall {_spread(wall)}   CPU {_spread(cpu)}   >= {goal}", flush=True)


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):5.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"


def main() -> None:
    """Measure all sides, or be one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--models", nargs="+", default=["mobilenetv2_100"])
    parser.add_argument("--images-per-side", dest="count", type=int, default=2560)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        be(args.side, args.images, args.model, time.time())
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "archive"
        make_archive(args.images, archive, args.count)
        for name in args.models:
            model = Path(folder) / Path(name).name
            make_model(name, model)
            compare(name, archive, model, args.rounds, args.sides)


def be(side: str, archive: Path, model: Path, started: float) -> None:
    """Be one side."""
    if side.startswith("share:"):
        _, form, number, of = side.split(":")
        share(archive, model, form, int(number), int(of))
    elif side in FORMS:
        loop_of_processes(archive, model, started, FORMS[side])
    elif side.startswith("job"):
        overlays = "all" if side == "job-all" else "sample"
        job(archive, model, started, overlays, ["--compile"] if side == "job-compiled" else [])
    else:
        {"loop-threads": loop, "script": script, "ray": bare_ray}[side](archive, model, started)


if __name__ == "__main__":
    main()
