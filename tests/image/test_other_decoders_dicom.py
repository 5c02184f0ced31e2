"""DICOM over the product of its properties, beside what went in, and beside DCMTK where it is installed.

A picture is equal, or refused by name, or different: that must never be. What went in is known, so is the
rule of the documents; DCMTK's `dcm2pnm`, `dcmj2pnm` and `dcml2pnm` share nothing with either.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("imagecodecs")
pytest.importorskip("gdcm")
pytest.importorskip("openjpeg")

from camray.errors import ErrorCode, ImageError
from camray.image import dicom
from camray.image.decode import upright
from tests.image.dicom_files import (
    CENTER,
    LOSSY,
    NATIVE,
    WIDTH,
    Case,
    cases,
    make,
    palette_of,
    to_ybr,
    values_of,
)

ALL = list(cases())
pytestmark = pytest.mark.filterwarnings("ignore")


def expected(case: Case) -> NDArray[np.float64]:
    """What the documents say, of the values that went in: 0..255, (H, W) or (H, W, 3)."""
    values, (low, high) = values_of(case).astype(float), case.range()
    if case.space == "PALETTE COLOR":
        table = palette_of(case)
        return (
            table[np.clip(values_of(case), 0, len(table) - 1)] / (255 if "8" in case.beside else 65535) * 255
        )
    if case.space == "YBR_FULL_422" and case.syntax in NATIVE:
        return shared_colour(values_of(case))
    if values.ndim == 3:
        return values / high * 255
    if case.voi == "window":
        center, width = round(low + CENTER * (high - low)), max(2, round(WIDTH * (high - low)))
        shares = np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    elif case.stored <= 8 and not case.signed and case.voi == "none":
        shares = values / high
    else:
        shares = (values - values.min()) / (values.max() - values.min())
    return (1 - shares if case.space == "MONOCHROME1" else shares) * 255


def shared_colour(rgb: NDArray[Any]) -> NDArray[np.float64]:
    """Two neighbours have one colour, that of the first: PS3.3 C.7.6.3.1.2, and back."""
    y, cb, cr = np.moveaxis(to_ybr(rgb[:, : rgb.shape[1] // 2 * 2], 8).astype(float), -1, 0)
    cb, cr = (np.repeat(plane[:, ::2], 2, axis=1) - 128 for plane in (cb, cr))
    return np.clip(np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1), 0, 255)


def judge(case: Case, truth: NDArray[np.float64], content: bytes | None = None) -> str:
    try:
        got = upright(make(case) if content is None else content, 10**6).astype(float)
    except ImageError as error:
        return "refused" if error.code == ErrorCode.FORMAT_NOT_ALLOWED else f"different: {error}"
    truth = np.broadcast_to(truth[..., None], (*truth.shape, 3)) if truth.ndim == 2 else truth
    if got.shape != truth.shape:
        return f"different: {got.shape}"
    exact = case.syntax not in LOSSY and not case.space.startswith("YBR")
    step = 255 / (2**case.stored - 1)  # of 5 bits: 8 levels
    near = np.abs(got - truth).max() <= 1.01 if exact else np.abs(got - truth).mean() <= max(2, 0.7 * step)
    alike = np.corrcoef(got.ravel(), truth.ravel())[0, 1] >= (0.999 if exact or step < 2 else 0.99)
    return "equal" if near and alike else f"different: by {np.abs(got - truth).mean():.2f} levels"


def count(chosen: Iterable[Case]) -> Counter[str]:
    verdicts = {case: judge(case, expected(case)) for case in chosen}
    for case, verdict in verdicts.items():
        if verdict.startswith("different"):
            print(case, verdict)
    return Counter(verdict.partition(":")[0] for verdict in verdicts.values())


def quick() -> list[Case]:
    """Each syntax, colour space and depth once."""
    each = {(c.syntax, c.space, c.stored): c for c in random.Random(0).sample(ALL, len(ALL))}
    return list(each.values())


def test_a_sample_of_the_product() -> None:
    counts = count(quick())
    assert counts["different"] == 0
    assert counts["refused"] < 0.05 * counts.total()


@pytest.mark.slow
def test_the_whole_product() -> None:
    counts = count(ALL)
    print(counts)
    assert counts["different"] == 0
    assert {c.syntax for c in ALL if judge(c, expected(c)) == "equal"} == {c.syntax for c in ALL}


# ── DCMTK ────────────────────────────────────────────────────────────────────────────────────────

needs_dcmtk = pytest.mark.skipif(
    not all(map(shutil.which, ("dcm2pnm", "dcmj2pnm", "dcml2pnm"))), reason="DCMTK is not installed"
)


def by_dcmtk(case: Case, content: bytes, path: Path) -> NDArray[np.float64] | None:
    """The picture that DCMTK makes, told which of its rules is meant; None: it does not read this file."""
    program = {"jpeg-": "dcml2pnm", "jpeg": "dcmj2pnm"}.get(case.syntax[:5].rstrip(" "), "dcm2pnm")
    rule = []
    if case.space.startswith("MONOCHROME"):
        wide = case.stored != 8 or case.signed or case.voi == "rescaled"  # -W maps 0..1 to 0 and 128
        rule = ["+Wi", "1"] if case.voi == "window" else ["+Wm"] if wide else ["-W"]
    path.write_bytes(content)
    command = [program, "-q", "-O", *rule, path, path.with_suffix(".pnm")]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        return None
    with Image.open(path.with_suffix(".pnm")) as image:
        return np.asarray(image).astype(float)


def is_read_alike(case: Case) -> bool:
    """All but slopes beyond 32 bits, and values that a loss made larger than their bits: DCMTK wraps both."""
    return (case.allocated, case.voi) != (32, "rescaled") and (
        case.syntax != "jpeg-ls near" or case.stored in (8, 16)
    )


def judged_by_dcmtk(chosen: Iterable[Case], path: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for case in chosen:
        content = make(case)
        truth = by_dcmtk(case, content, path)
        verdict = "not read by DCMTK" if truth is None else judge(case, truth, content)
        if verdict.startswith("different"):
            print(case, verdict)
        counts[verdict.partition(":")[0]] += 1
    return counts


@needs_dcmtk
def test_dcmtk_shows_the_same_of_a_sample(tmp_path: Path) -> None:
    chosen = random.Random(1).sample([c for c in ALL if is_read_alike(c)], 16)
    counts = judged_by_dcmtk(chosen, tmp_path / "x.dcm")
    assert counts["different"] == 0
    assert counts["equal"] > 8


@needs_dcmtk
@pytest.mark.slow
def test_dcmtk_shows_the_same(tmp_path: Path) -> None:
    counts = judged_by_dcmtk(filter(is_read_alike, ALL), tmp_path / "x.dcm")
    print(counts)
    assert counts["different"] == 0
    assert counts["equal"] > 0.7 * len(ALL)


# ── the judge notices ────────────────────────────────────────────────────────────────────────────


def planes_swapped(values: Any, full: int) -> Any:
    return SCALED(values[..., ::-1], full)


def polarity_lost(values: Any, rule: str) -> Any:
    return GREY(255 - values if "inverted" in rule else values, rule)


def bits_ignored(_: Any, values: Any, __: str) -> Any:
    return values


def little_endian_always(data: Any, *rest: Any) -> Any:
    data._read_implicit, data._read_little = True, True
    return LOOK_UP(data, *rest)


def full_range_of_a_byte(data: Any, stored: Any, frame: int) -> Any:
    data.BitsStored = 8
    return OWN_GREY(data, stored, frame)


SCALED, GREY, LOOK_UP, OWN_GREY = dicom._scaled, dicom.grey, dicom._look_up, dicom._grey
SABOTAGES = {
    "_scaled": planes_swapped,
    "grey": polarity_lost,
    "_own_bits": bits_ignored,
    "_look_up": little_endian_always,
    "_grey": full_range_of_a_byte,
    "_is_rgb_already": lambda *_: False,
    "_YBR": dicom._YBR.T.copy(),
}


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_sabotage_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom, name, SABOTAGES[name])
    chosen = [c for c in quick() if c.syntax == "big endian"] + [c for c in ALL if c.syntax == "jpeg"]
    assert count(chosen)["different"] > 0
