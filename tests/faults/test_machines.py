"""Other people's machines, really made: `machines.csv` has the command that makes each and what must come.

In a row's script `"$@"` is a whole `camray explain` of an archive whose generator knows every record; the
table is read by a reader that is not camray. Where a machine cannot be made here, its row is skipped.
"""

from __future__ import annotations

import csv
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.small_archive import Oracle, make
from tests.faults.test_nodes import prepare
from tests.faults.watcher import Reader, check

ROOT = Path(__file__).resolve().parents[2]
with (ROOT / "tests" / "machines.csv").open(encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))
# A user without a name who may write nowhere but in the place of the test; reading is for the interpreter.
STRANGER = (
    "setpriv --reuid 54321 --regid 54321 --clear-groups "
    "--inh-caps +dac_read_search --ambient-caps +dac_read_search"
)
LIBFAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path: Ray's sockets lie below TMPDIR."""
    made = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp"))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def on(script: str, place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the machine that the script makes."""
    given = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "CAMRAY_", "PYTEST_"))}
    given |= {
        "PLACE": str(place),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "LIBFAKETIME": LIBFAKETIME,
    }
    done = subprocess.run(
        ["timeout", "280", "sh", "-c", script.replace("$STRANGER", STRANGER), "sh", *command],
        check=False, capture_output=True, env=given, cwd=ROOT,
    )  # fmt: skip
    said = (done.stdout + done.stderr).decode("utf-8", "backslashreplace")
    return subprocess.CompletedProcess(done.args, done.returncode, "", said)


def cases(quick: bool) -> list[object]:
    """Give each row with its engine."""
    marks = [] if quick else [pytest.mark.faults]
    return [
        pytest.param(row, engine, id=f"{row['machine']}-{engine}", marks=marks)
        for row in ROWS
        for engine in (("here", "ray") if row["engine"] == "both" else (row["engine"],))
        if (quick and engine in row["quick"].split()) or not quick
    ]


def explained(row: dict[str, str], engine: str, place: Path) -> tuple[int, str, Oracle]:
    """Make the machine and run the job on it; its exit code, what it said, and what must be in its table."""
    tried, place = place / "tried", place / "job"
    (tried / "archive").mkdir(parents=True)
    if on(row["made_by"], tried, "true").returncode:
        pytest.skip("this machine cannot be made here")
    oracle = make(place / "archive", shards=2)
    options = prepare(place)
    for made in (place, *place.rglob("*")):
        made.chmod(0o777 if made.is_dir() else 0o644)
    job = [sys.executable, "-m", "camray.cli", "explain", str(place / "archive"), str(place / "out ü")]
    job += [*options[:-2], "--engine", engine, "--max-failed", "2"]
    job += ["--actors", "1"] * (engine == "ray")
    done = on(row["made_by"], place, *job)
    return done.returncode, done.stderr, oracle


def too_open(out: Path) -> list[str]:
    """Name what others than the owner may write in OUT."""
    others = stat.S_IWGRP | stat.S_IWOTH
    return [str(p) for p in (out, *out.rglob("*")) if not p.is_symlink() and p.stat().st_mode & others]


def hold(row: dict[str, str], engine: str, place: Path) -> None:
    code, said, oracle = explained(row, engine, place)
    assert code == int(row["exit"]), said
    assert row["says"] in said
    assert "Traceback" not in said
    out = place / "job" / "out ü"
    if code == 0:
        check(Reader(out).look(), oracle, broken=frozenset())
        assert too_open(out) == []
    elif code == 2:
        assert not out.exists()


@pytest.mark.parametrize(("row", "engine"), cases(quick=False))
def test_a_machine(row: dict[str, str], engine: str, place: Path) -> None:
    hold(row, engine, place)


@pytest.mark.parametrize(("row", "engine"), cases(quick=True))
def test_a_machine_soon_made(row: dict[str, str], engine: str, place: Path) -> None:
    hold(row, engine, place)
