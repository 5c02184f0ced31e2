"""What the audit and its report cost: signals against explaining, and a report of many rows.

python bench/report.py [--rows 100000]
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from camray.audit.report import write_report  # noqa: E402
from tests.audit.report_world import make_out  # noqa: E402


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median of several runs, after one to warm up."""
    work()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return float(np.median(found))


def signals() -> None:
    """Compare, side by side: explaining 16 images at 224 pixels, and all signals of them."""
    import timm
    import torch

    from camray import cam
    from camray.explain.signals import heat_signals
    from camray.image.health import image_health

    torch.set_num_threads(1)
    images = torch.rand(16, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    views = np.random.default_rng(0).integers(0, 255, (16, 224, 224, 3), np.uint8)
    health = seconds(lambda: [image_health(view) for view in views], 20)
    for name in ("mobilenetv2_100", "resnet50"):
        model = timm.create_model(name).eval().requires_grad_(False)
        layer = cam.find_target_layer(model, (3, 224, 224))
        run = partial(cam.explain, model, images, layer, "gradcam")
        maps = next(iter(run().maps.values()))[:, 0]
        explain, heat = seconds(run, 5), seconds(partial(heat_signals, maps), 20)
        with torch.no_grad():
            again = seconds(partial(second_look, model, images, maps), 5)
        print(
            f"{name}: explain {explain / 16 * 1e3:.2f} ms an image, heat signals {heat / explain:.2%}, "
            f"picture signals {health / explain:.2%}, a second look {again / explain:.2f} of an explanation"
        )


def second_look(model: Any, images: Any, maps: Any) -> object:
    from camray.explain.confirm import without_hot_border

    return model(without_hot_border(images, maps))


def report(rows: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        make_out(Path(place) / "out", rows)
        audited = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        write_report(f"{place}/out")
        took = time.perf_counter() - audited
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        size = sum(f.stat().st_size for f in Path(place, "out/report").rglob("*") if f.is_file())
    print(
        f"{rows:,} rows: made and audited in {audited - started:.1f} s; report in {took:.1f} s, "
        f"{size / 1e6:.0f} MB on disk; memory at most {peak / 1024:.0f} MiB ({before / 1024:.0f} before)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    report(rows)
    signals()


if __name__ == "__main__":
    main()
