"""The pixel family on photographs: what is done to the pictures of a night fires, nothing else does."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from camray.audit.columns import VIEW, as_arrays
from camray.audit.counts import NightState
from camray.audit.drift import Finding, compare_nights
from camray.audit.verdicts import find_flags
from camray.config import AuditConfig
from camray.image.health import image_health
from camray.records import RECORD_SCHEMA

View = NDArray[np.uint8]
NIGHT = 480


@pytest.fixture(scope="module")
def photographs(shared: Path) -> list[View]:
    table = pq.read_table(shared / "cifar10_train.parquet", columns=["image"]).column("image").to_pylist()
    order = np.random.default_rng(0).permutation(len(table))[:3000]
    return [np.asarray(Image.open(io.BytesIO(table[i]["bytes"])).convert("RGB")) for i in order]


def night(measured: list[dict[str, float]], without: tuple[str, ...] = ()) -> NightState:
    """The sums of a night of which only the pictures are known."""
    rows = [{"status": "ok", "predicted_class": 0} | m for m in measured]
    table = pa.Table.from_pylist(
        [{k: v for k, v in r.items() if k not in without} for r in rows], RECORD_SCHEMA
    )
    batch = table.combine_chunks().to_batches()[0]
    no = np.zeros(len(batch), bool)
    whole = dict.fromkeys(("lift", "place_drop"), np.full(len(batch), np.nan))
    marks = ("label_suspect", "exact_duplicate", "near_duplicate", "has_cause")
    whole |= dict.fromkeys(marks, no)
    found = NightState()
    found.add(batch, find_flags(as_arrays(batch), whole, AuditConfig()))
    return found


def firing(one: NightState, two: NightState) -> list[Finding]:
    return [f for f in compare_nights(one, two) if f.level != "none"]


def tinted(view: View, rng: np.random.Generator) -> View:
    return (view * [1.0, 0.94, 0.82]).astype(np.uint8)


def packed(view: View, rng: np.random.Generator) -> View:
    buffer = io.BytesIO()
    Image.fromarray(view).save(buffer, "JPEG", quality=12)
    return np.asarray(Image.open(buffer).convert("RGB"))


def noisy(view: View, rng: np.random.Generator) -> View:
    return (view + rng.normal(0, 12, view.shape)).clip(0, 255).astype(np.uint8)


def blurred(view: View, rng: np.random.Generator) -> View:
    return np.asarray(Image.fromarray(view).filter(ImageFilter.GaussianBlur(1)))


@pytest.mark.parametrize(
    ("change", "share", "expected"),
    [
        (tinted, 1.0, {"image_blue"}), (packed, 0.3, {"image_blockiness"}), (noisy, 0.3, {"image_noise"}),
        (blurred, 0.3, {"image_sharpness"}),
    ],
)  # fmt: skip
def test_what_is_done_to_the_photographs_of_a_night_fires_the_pixel_family(
    photographs: list[View],
    change: Callable[[View, np.random.Generator], View],
    share: float,
    expected: set[str],
) -> None:
    """A tint on all; JPEG quality 12, noise and blur on 30 %."""
    rng = np.random.default_rng(1)
    before = night([image_health(view) for view in photographs[:NIGHT]])
    views = photographs[NIGHT : 2 * NIGHT]
    changed = [change(v, rng) if rng.random() < share else v for v in views]
    found = firing(before, night([image_health(v) for v in changed]))
    assert {f.family for f in found} == {"pixel"}
    assert expected <= {f.name for f in found}
    assert firing(before, night([image_health(v) for v in views])) == []


@pytest.mark.slow
def test_photographs_of_one_archive_do_not_drift(photographs: list[View]) -> None:
    """100 pairs of random halves: at 2 % a night at most 6 may fire (probability of more: 0.4 %)."""
    measured = [image_health(view) for view in photographs]
    fired = 0
    for seed in range(100):
        order = np.random.default_rng(seed).permutation(len(measured))[: 2 * NIGHT]
        fired += bool(firing(*(night([measured[i] for i in half]) for half in np.split(order, 2))))
    assert fired <= 6


def test_what_an_earlier_camray_did_not_measure_is_no_change(photographs: list[View]) -> None:
    """Its rows are null, its state has no such histogram: unknown, on whichever side."""
    measured = [image_health(v) for v in photographs[:NIGHT]]
    old = night(measured, without=VIEW[3:])
    tinted_ones = night([image_health(tinted(v, np.random.default_rng(0))) for v in photographs[:NIGHT]])
    said = old.to_json()
    said["histograms"] = {n: h for n, h in said["histograms"].items() if n not in VIEW[3:]}
    for before in (old, NightState.from_json(said)):
        compared = {f.name for f in compare_nights(before, tinted_ones)}
        assert not compared & set(VIEW[3:])
        assert {"image_mean", "image_std"} <= compared
