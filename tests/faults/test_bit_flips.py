"""Bits that flip in stored record files: `camray verify` names the file, and no wrong value reads as right.

`make faults` draws CAMRAY_FLIPS (1,000) flips, each alone, in the files of a small OUT; the quick suite 20.
What was written is kept beside.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

import camray
from camray.ledger.out import open_out
from camray.ledger.table import Table
from camray.storage import open_folder
from camray.upkeep import verify
from tests.faults import sabotage
from tests.ledger.ledger_world import E1, committed, rows, shard

FLIPS = int(os.environ.get("CAMRAY_FLIPS", "1000"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("flips") / "out"
    folder = open_folder(str(place), "OUT")
    folder.write(f"explainers/{E1}.json", b"{}")
    chance = random.Random(0)
    for name in "ab":
        scores = [chance.random() for _ in range(32)]
        committed(folder, shard(name), [rows(0, 32, confidence=scores, label=["x" * 40] * 32)])
    return place


def read(out: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = camray.open_records(str(out)).to_table().to_pylist()
    return rows


def is_wrong(found: list[dict[str, object]], right: list[dict[str, object]]) -> bool:
    """Tell whether a value is another one. Null in its place is no value: a footer has no checksum."""
    pairs = zip(found, right, strict=True)
    return any(one[name] not in (None, other[name]) for one, other in pairs for name in other)


def seen(out: Path) -> bool:
    return bool(list(verify.find_problems(*open_out(str(out)))))


def flip(file: Path, chance: random.Random) -> bytes:
    """Flip one bit; give the bytes as they were."""
    before = file.read_bytes()
    data = bytearray(before)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)
    return before


def draw(out: Path, count: int) -> Counter[str]:
    """Give how many flips verify missed, how many readers refused, and how many read as wrong or as null."""
    right = read(out)
    files = sorted(out.glob("records/explainer=*/*.parquet"))
    found = Counter[str]()
    for seed in range(count):
        chance = random.Random(seed)
        file = chance.choice(files)
        before = flip(file, chance)
        found["missed by verify"] += not seen(out)
        try:
            now = read(out)
            found["read wrong"] += is_wrong(now, right)
            found["a column read as null"] += now != right and not is_wrong(now, right)
        except (pa.ArrowException, OSError, ValueError):
            found["refused by readers"] += 1
        file.write_bytes(before)
    return found


@pytest.mark.parametrize("count", [20, pytest.param(FLIPS, marks=pytest.mark.faults)])
def test_every_flip_is_seen(out: Path, count: int) -> None:
    found = draw(out, count)
    print(f"{count} flips: {dict(found)}")
    assert found["missed by verify"] == 0
    assert found["read wrong"] == 0
    assert not seen(out)


@pytest.mark.faults
def test_sabotage_without_checksums(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draw with the checksums taken out finds what they hold back."""
    sabotage.without_checksums(monkeypatch)
    found = draw(out, min(FLIPS, 400))
    assert found["missed by verify"]
    assert found["read wrong"]
    assert Table(open_folder(str(out), "OUT")).delta is not None


@pytest.mark.faults
def test_verify_ends_well_every_time(out: Path) -> None:
    """A thread that lets go of Python's memory while Python ends aborts the process: 1 in 10 did."""
    command = [sys.executable, "-m", "camray.cli", "verify", str(out)]
    ends = Counter(subprocess.run(command, capture_output=True, check=False).returncode for _ in range(60))
    assert ends == {0: 60}
