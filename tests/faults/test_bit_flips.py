"""Bits that flip in stored record files: `camray verify` names the file, and no wrong value reads as right.

CAMRAY_FLIPS (1,000) flips, each alone, in the files of a small OUT. What was written is kept beside.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pyarrow as pa
import pytest

import camray
from camray.ledger.table import Table
from camray.review import verify
from camray.review.status import open_out
from camray.storage import open_folder
from tests.faults import sabotage
from tests.ledger.ledger_world import E1, committed, rows, shard

pytestmark = pytest.mark.faults

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


def read(out: Path) -> pa.Table:
    table = camray.open_records(str(out)).to_table()
    return table.sort_by([("shard", "ascending"), ("index", "ascending")])


def seen(out: Path) -> bool:
    return bool(list(verify.find_problems(*open_out(str(out)))))


def flip(file: Path, chance: random.Random) -> bytes:
    """Flip one bit; give the bytes as they were."""
    before = file.read_bytes()
    data = bytearray(before)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)
    return before


def draw(out: Path, count: int) -> tuple[int, int, int]:
    """Give how many flips verify missed, how many readers refused, and how many read as wrong values."""
    right = read(out)
    files = sorted(out.glob("records/explainer=*/*.parquet"))
    missed = refused = wrong = 0
    for seed in range(count):
        chance = random.Random(seed)
        file = chance.choice(files)
        before = flip(file, chance)
        missed += not seen(out)
        try:
            wrong += not read(out).equals(right)
        except (pa.ArrowException, OSError, ValueError):
            refused += 1
        file.write_bytes(before)
    return missed, refused, wrong


def test_every_flip_is_seen(out: Path) -> None:
    missed, refused, wrong = draw(out, FLIPS)
    print(f"{FLIPS} flips: verify missed {missed}; readers refused {refused}, read {wrong} wrong")
    assert missed == 0
    assert wrong == 0
    assert not seen(out)


def test_sabotage_without_checksums(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draw with the checksums taken out finds what they hold back."""
    sabotage.without_checksums(monkeypatch)
    missed, _, wrong = draw(out, min(FLIPS, 100))
    assert missed
    assert wrong
    assert Table(open_folder(str(out), "OUT")).delta is not None
