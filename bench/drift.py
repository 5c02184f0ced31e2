"""Which family of drift fires for which change, and how often anything fires without one.

    python bench/drift.py [--count 480] [--null 100]

Every night is `count` new images of hans64 judged by the poisoned checkpoint, compared with one reference
night. The nights without drift are pairs of random halves of one large pool.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageFilter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from camray.audit.archive_view import ArchiveView  # noqa: E402
from camray.audit.counts import NightState  # noqa: E402
from camray.audit.drift import Finding, compare_nights  # noqa: E402
from camray.audit.judge import batches, judge  # noqa: E402
from camray.config import AuditConfig  # noqa: E402
from camray.job.prepare import prepare  # noqa: E402
from camray.ledger.out import open_out  # noqa: E402
from demo import hans64  # noqa: E402
from tests.audit.night_world import explain, settings_for  # noqa: E402

Change = Callable[[Image.Image, int], Image.Image]
FAMILIES = ("pixel", "confidence", "heat", "classes", "labels", "failures")


def write_night(
    folder: Path, start: int, count: int, split: str = "audit", change: Change | None = None,
    wrong_labels: float = 0.0, broken_every: int = 0,
) -> Path:  # fmt: skip
    """Write loose files, one folder a class: images `start` to `start + count` of a split, changed."""
    rng = np.random.default_rng(start)
    for i in range(start, start + count):
        sample = hans64.render(0, split, i)
        label = int(rng.integers(6)) if rng.random() < wrong_labels else sample.label
        path = folder / hans64.LABEL_NAMES[label] / f"{sample.key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(sample.image)
        content = io.BytesIO()
        (change(picture, i) if change else picture).save(content, "JPEG", quality=95)
        data = content.getvalue()
        path.write_bytes(data[: len(data) // 2] if broken_every and i % broken_every == 0 else data)
    return folder


def darker(picture: Image.Image, _index: int) -> Image.Image:
    return Image.fromarray((np.asarray(picture).astype(int) - 25).clip(0, 255).astype(np.uint8))


def blurred(picture: Image.Image, _index: int) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(1))


def warmer(picture: Image.Image, _index: int) -> Image.Image:
    return Image.fromarray((np.asarray(picture) * [1.0, 0.94, 0.82]).astype(np.uint8))


def packed(picture: Image.Image, index: int) -> Image.Image:
    if index % 10 >= 3:
        return picture
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=12)
    return Image.open(content)


def noisy(picture: Image.Image, index: int) -> Image.Image:
    if index % 10 >= 3:
        return picture
    noise = np.random.default_rng(index).normal(0, 12, (picture.height, picture.width, 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


CHANGES: dict[str, dict[str, Any]] = {
    "none": {},
    "tag on 10 %": {"split": "night10"},
    "tag on 30 %": {"split": "night30"},
    "brightness - 25": {"change": darker},
    "blur, sigma 1": {"change": blurred},
    "warm tint": {"change": warmer},
    "JPEG 12 on 30 %": {"change": packed},
    "noise 12 on 30 %": {"change": noisy},
    "5 % label flips": {"wrong_labels": 0.06},
    "10 % label flips": {"wrong_labels": 0.12},
    "2 % broken files": {"broken_every": 50},
}


def explained(folder: Path, archive: Path) -> tuple[ArchiveView, list[pa.RecordBatch]]:
    """Explain an archive; give its records, and what the whole of them tells."""
    settings = settings_for(archive, folder / "out", run__max_failed=1.0)
    explain(settings, "20261122T000000Z-0")
    _, table = open_out(str(folder / "out"))
    explainer = prepare(settings).explainer
    view, rows = ArchiveView(explainer.num_classes), list(batches(table, explainer.id))
    for batch in rows:
        view.add(batch)
    return view, rows


def state_of(view: ArchiveView, rows: list[pa.RecordBatch]) -> NightState:
    state = NightState()
    for batch in rows:
        state.add(batch, judge(batch, view, AuditConfig(), {}, "").flags)
    return state


def night_state(count: int, start: int, **changes: Any) -> NightState:
    with tempfile.TemporaryDirectory() as folder:
        archive = write_night(Path(folder) / "archive", start, count, **changes)
        return state_of(*explained(Path(folder), archive))


def null_alarms(pool: int, count: int, nights: int) -> int:
    """Count the pairs of random halves that fire although nothing changed."""
    with tempfile.TemporaryDirectory() as folder:
        archive = write_night(Path(folder) / "archive", 20_000, pool, "test")
        view, found = explained(Path(folder), archive)
        rows = pa.Table.from_batches(found).combine_chunks()
        fired = 0
        for seed in range(nights):
            order = np.random.default_rng(seed).permutation(len(rows))
            halves = [
                state_of(view, rows.take(pa.array(part)).combine_chunks().to_batches())
                for part in (order[:count], order[count : 2 * count])
            ]
            fired += any(f.level != "none" for f in compare_nights(*halves))
    return fired


def level(found: list[Finding], family: str) -> str:
    levels = {f.level for f in found if f.family == family}
    return "major" if "major" in levels else "moderate" if "moderate" in levels else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=480)
    parser.add_argument("--null", type=int, default=100)
    chosen = parser.parse_args()
    reference = night_state(chosen.count, 10_000, split="test")
    print(f"{'change':<18}" + "".join(f"{family:>12}" for family in FAMILIES))
    for number, (name, changes) in enumerate(CHANGES.items()):
        tonight = night_state(chosen.count, 1000 * number, **{"split": "test", **changes})
        found = compare_nights(reference, tonight)
        print(f"{name:<18}" + "".join(f"{level(found, family):>12}" for family in FAMILIES), flush=True)
        for f in found:
            if f.level != "none":
                print(f"    {f.name}: {f.statistic} {f.value:.3f} (fires from {f.limit:.3f}), p {f.p:.1e}")
    alarms = null_alarms(2 * chosen.count + 240, chosen.count, chosen.null)
    print(f"nights without drift that fired: {alarms} of {chosen.null}")


if __name__ == "__main__":
    main()
