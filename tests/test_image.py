"""The image's recipe, step by step in a clean root: what can be done without a container engine is done."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECIPE = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")


def steps() -> list[tuple[str, list[str]]]:
    """Every instruction of the Dockerfile: its name, its words."""
    lines = [line for line in RECIPE.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], shlex.split(line)[1:]) for line in lines]


def run_step(root: Path, kind: str, words: list[str], places: list[str]) -> None:
    """Do one COPY or RUN with `root` in the place of /."""

    def moved(word: str) -> str:
        option, equals, path = word.partition("=") if word.startswith("--") else ("", "", word)
        return f"{option}{equals}{root}{path}" if path.startswith(tuple(places)) else word

    if kind == "COPY" and not words[0].startswith("--from"):
        to = Path(moved(words[-1]))
        for source in words[:-1]:
            place = ROOT / source
            target = to / place.name if len(words) > 2 or words[-1].endswith("/") else to
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if place.is_dir() else shutil.copy)(place, target)
    elif kind == "RUN" and words[0] != "useradd":
        words = [sys.executable if word == "python" else moved(word) for word in words]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=root)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_recipe_is_what_this_test_understands() -> None:
    assert {kind for kind, _ in steps()} == {"ARG", "FROM", "ENV", "RUN", "COPY", "USER", "WORKDIR", "CMD"}
    assert not re.search(r"^RUN .*(&&|\||;)", RECIPE, re.M)
    assert [words for kind, words in steps() if kind == "USER"] == [["1000"]]


@pytest.mark.slow
def test_the_steps_make_a_working_environment(tmp_path: Path) -> None:
    """Needs the package registry and some minutes."""
    places = ["/opt/camray", "/source", "/app"]
    for kind, words in steps():
        run_step(tmp_path, kind, words, places)
    program = tmp_path / "opt" / "camray" / "bin" / "camray"
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    said = subprocess.run([program, "--version"], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["camray", "0.1.0"]
    for job in ("explain", "audit", "compare"):  # as WORKDIR has them
        shown = subprocess.run(
            [program.parent / "python", f"jobs/{job}.py", "--help"], cwd=tmp_path / "app", env=environment,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert f"usage: camray {job} " in shown.stdout
    asked = "import camray; from importlib.metadata import version; print(camray.__file__, version('ray'))"
    found = subprocess.run(
        [program.parent / "python", "-c", asked], cwd=os.sep, env=environment, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    assert str(tmp_path / "opt") in found, "the installed package, not a checkout"
    pinned = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned is not None
    assert found.split()[1] == pinned[1]
    assert f'rayVersion: "{pinned[1]}"' in (ROOT / "deploy" / "rayjob.yaml").read_text()
