"""`camray doctor`: what is fine is said to be, each fault comes with its fix, and nothing stays behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from camray.errors import ExitCode
from camray.job import doctor
from camray.storage import Folder


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ray", lambda: doctor.Check("Ray", "not asked"))


@pytest.mark.usefixtures("without_ray")
def test_a_machine_that_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.print_doctor(str(tmp_path), as_json=True) == ExitCode.DONE
    told = {line["name"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(told) == ["packages", "machine", "shm", "temp", "home", "OUT", "GPU", "Ray"]
    assert f"{len(os.sched_getaffinity(0))} cores" in told["machine"]["found"]
    assert f"{tmp_path} can be written" in told["OUT"]["found"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_ray")
def test_each_fault_has_its_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Packages of other versions, no shared memory, a full disk, a store that makes what is there already."""
    asked = ["timm>=99", "no-such-thing>=1", "pytest>=9; extra == 'dev'"]
    monkeypatch.setattr(doctor, "requires", lambda _: asked)
    monkeypatch.setattr(doctor, "_SHM", tmp_path / "shm")
    usage: Any = SimpleNamespace(free=1 << 20, total=1 << 30, used=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(Folder, "create", lambda self, name, data: self.write(name, data) or True)
    assert doctor.print_doctor(str(tmp_path), as_json=False) == ExitCode.GATE
    said = capsys.readouterr().out
    assert "no-such-thing is missing, needed is >=1" in said
    assert "fix: pip install 'timm>=99' 'no-such-thing>=1'" in said
    assert "--shm-size" in said
    assert "export TMPDIR=" in said
    assert "If-None-Match" in said
    assert said.count("FAIL") == said.count("fix: ") == 4
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert "is not there yet" in doctor.store(str(tmp_path / "a" / "b")).found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ray_is_started(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "camray.cli", "doctor", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok   Ray       starts here" in done.stdout
