"""How to add one thing: each worked example is applied to a copy of the tree, and works there.

An example is one new file. Its first lines say where it goes, and the one line, if any, that registers it.
"""

from __future__ import annotations

import json
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
    left_out = shutil.ignore_patterns(
        ".git",
        ".venv",
        ".*_cache",
        ".hypothesis",
        "demo",
        "demo-out",
        "build",
        "dist",
        "*.egg-info",
        "__pycache__",
    )
    shutil.copytree(ROOT, tree, ignore=left_out)
    (tree / "demo").symlink_to(ROOT / "demo")
    shutil.copytree(ROOT / "camray" / "demo", tree / "camray" / "demo", symlinks=True)
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


def lines_of(tree: Path, before: Path) -> int:
    """Lines that the example adds to files that were there."""
    added = 0
    for path in sorted(before.rglob("*.py")):
        now = (tree / path.relative_to(before)).read_text("utf-8").splitlines()
        added += len(now) - len(path.read_text("utf-8").splitlines())
    return added


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_one_file_and_at_most_one_line(kind: str, copy: Path) -> None:
    example = Example.read(kind)
    example.apply(copy)
    assert lines_of(copy / "camray", ROOT / "camray") <= 1
    files = {p.relative_to(copy) for p in (copy / "camray").rglob("*.py")}
    assert files - {p.relative_to(ROOT) for p in (ROOT / "camray").rglob("*.py")} == {Path(example.file)}
    assert len(example.text.splitlines()) <= 70


SHARD = "demo/archive/hans64-00001.tar"
MODEL = ("--model", "demo/models/hans64-clean", "--engine", "here", "--overlays", "none")


def test_all_six_at_once_work_and_are_documented(copy: Path) -> None:
    """Together, as a project that grows has them: they run, and documents, help and the schema know them."""
    for kind in KINDS:
        Example.read(kind).apply(copy)
    run(copy, "-m", "docs.generate")
    methods = (copy / "docs" / "methods.md").read_text()
    assert "| `normgrad` |" in methods
    assert "| `hot_share` |" in (copy / "docs" / "comparison.md").read_text()
    assert "`.arrow`" in (copy / "docs" / "archives.md").read_text()
    assert "| `heat_symmetry` |" in (copy / "docs" / "format.md").read_text()
    assert "jsonl" in camray(copy, "report", "--help")
    assert "classes" in camray(copy, "--help")

    camray(copy, "audit", SHARD, "out", *MODEL, "--method", "normgrad")
    check = (
        "import camray; t = camray.open_records('out').to_table();"
        "s = [v for v in t['heat_symmetry'].to_pylist() if v is not None];"
        "assert len(s) == 60 and 0 <= min(s) < max(s) <= 1.000001, s;"
        "assert set(t['method'].to_pylist()) == {'normgrad'}; print('seen')"
    )
    assert "seen" in run(copy, "-c", check)
    assert sum(json.loads(camray(copy, "classes", "out", "--json")).values()) == 60
    camray(copy, "report", "out", "--export", "jsonl", "--to", "queue")
    assert json.loads((copy / "queue" / "queue.jsonl").read_text().splitlines()[0])["member"]

    import pyarrow as pa

    pictures = [p.read_bytes() for p in sorted((ROOT / "docs" / "images").glob("*.png"))]
    with pa.OSFile(str(copy / "pictures.arrow"), "wb") as file:
        table = pa.table({"image": pictures})
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    assert f"{len(pictures)} ok" in camray(copy, "explain", "pictures.arrow", "out-arrow", *MODEL)


@pytest.mark.slow
def test_the_suite_follows_them(copy: Path) -> None:
    """Tests that are parametrised over methods, columns and pages take the new things up by themselves."""
    for kind in KINDS:
        Example.read(kind).apply(copy)
    run(copy, "-m", "docs.generate")
    pages = (
        "tests/test_docs.py",
        "tests/test_public_api.py",
        "tests/test_layers.py",
        "tests/cli/test_help.py",
    )
    libraries = ("tests/cam/test_registry.py", "tests/cam/test_formulas.py", "tests/measure/test_registry.py")
    run(copy, "-m", "pytest", "-x", *pages, *libraries, "-k", "not runs and not snippet and not migration")
