"""An OUT written by camray 0.1.0, two audited nights and a comparison, goes on living under this version.

What that version wrote: tars of 8 and 6 images, and the first of them again, cut off behind its first image.
A shard's identity holds its path, so the archive must lie where it lay.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import camray
from camray.cli.main import main
from camray.ledger.table import TABLE_SCHEMA

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "out-0.1.0.tar.gz"
PLACE = Path("/tmp/camray-0.1.0")
EXPLAINER = "0d453a4523cc9e66"
PANEL = "ed77c300f3533d88"


@pytest.fixture
def out() -> Iterator[Path]:
    if PLACE.exists():
        pytest.skip(f"{PLACE} is there: the fixture must lie where it was written")
    PLACE.mkdir()
    try:
        with tarfile.open(FIXTURE) as tar:
            tar.extractall(PLACE, filter="data")
        yield PLACE / "out"
    finally:
        shutil.rmtree(PLACE)


def printed(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(words) == code
    return capsys.readouterr().out


def test_it_is_whole_and_read_as_it_was(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(printed(capsys, "status", str(out), "--json"))
    (counted,) = told["explainers"].values()
    assert list(told["explainers"]) == [EXPLAINER]
    assert list(told["panels"]) == [PANEL]
    assert (counted["shards"], counted["members"], counted["ok"]) == (3, 15, 15)
    assert [run["exit"] for run in told["runs"]] == [0, 3, 0]
    assert printed(capsys, "verify", str(out), "--json", code=0)
    rows = camray.open_records(str(out)).to_table()
    assert rows.schema.equals(TABLE_SCHEMA)
    assert rows.num_rows == 16  # and the row that speaks of the broken shard
    assert printed(capsys, "report", str(out))


def test_the_next_night_does_only_what_is_new(
    out: Path, demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, model = PLACE / "archive", str(demo / "models" / "hans64-poisoned")
    audit = ("audit", str(archive), str(out), "--model", model, "--overlay-sample", "2", "--engine", "here")
    before = camray.open_records(str(out)).to_table()
    assert main(audit) == 3  # nothing is new, what failed is not done again, and its verdict stands
    runs = json.loads(printed(capsys, "status", str(out), "--json"))["runs"]
    assert [run["exit"] for run in runs] == [0, 3, 0, 3]
    assert main(["accept", str(out), runs[1]["run_id"]]) == 0
    assert main(audit) == 0
    shutil.copy(demo / "archive" / "hans64-00003.tar", archive / "three.tar")
    assert main(audit) == 0
    after = camray.open_records(str(out)).to_table()
    assert set(after["explainer"].to_pylist()) == {EXPLAINER}
    assert after.num_rows == before.num_rows + 60
    assert set(before["shard"].to_pylist()) < set(after["shard"].to_pylist())
    nights = [json.loads(path.read_text()) for path in out.glob("runs/*/summary.json")]
    assert max(night["images"]["night"] for night in nights) == 60
    assert printed(capsys, "verify", str(out), "--json")


def test_the_comparison_has_nothing_left_to_measure(
    out: Path, demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(demo / "models" / "hans64-poisoned")
    words = ("compare", str(PLACE / "archive"), str(out), "--model", model)
    assert main((*words, "--methods", "gradcam", "--sample", "2")) == 0
    assert "nothing to measure" in capsys.readouterr().err
