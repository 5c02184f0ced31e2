"""How to add one thing: each worked example is applied to a copy of the tree, and works there.

An example is one new file. Its first lines say where it goes, and the one line, if any, that registers it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "contributing"
KINDS = ("method", "metric", "reader", "signal", "export", "verb")


@dataclass(frozen=True)
class Example:
    """A new file, and at most one line of another."""

    file: str
    text: str
    line: tuple[str, str, str] | None  # file, the line, the line that it follows

    @staticmethod
    def read(kind: str) -> Example:
        text = (EXAMPLES / f"{kind}.py").read_text("utf-8")
        head = dict(re.findall(r"^# (file|line|after): (.*)$", text, re.M))
        place, _, line = head.get("line", "").partition(": ")
        body = re.sub(r"^# (file|line|after): .*\n", "", text, flags=re.M).lstrip("\n")
        return Example(head["file"], body, (place, line, head["after"]) if line else None)

    def apply(self, tree: Path) -> None:
        assert not (tree / self.file).exists(), "it is a new file"
        (tree / self.file).write_text(self.text, "utf-8")
        if self.line is not None:
            place, line, after = self.line
            before = (tree / place).read_text("utf-8").splitlines()
            (at,) = [i for i, existing in enumerate(before) if existing.strip() == after.strip()]
            indent = before[at][: len(before[at]) - len(before[at].lstrip())]
            before.insert(at + 1, indent + line.strip())
            (tree / place).write_text("\n".join(before) + "\n", "utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what a contributor edits."""
    tree = tmp_path / "tree"
    tree.mkdir()
    names = ("camray", "docs", "tests", "jobs", "deploy", "README.md", "Makefile", "pyproject.toml")
    for name in (*names, "CONTRIBUTING.md", "CHANGELOG.md", "constraints.txt"):
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, tree / name)
    (tree / "demo").symlink_to(ROOT / "demo")
    return tree


def run(tree: Path, *words: str) -> str:
    """Run a command of the copied tree; give what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *words], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout + done.stderr


def camray(tree: Path, *words: str) -> str:
    return run(tree, "-m", "camray.cli", *words)
