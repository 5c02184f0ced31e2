"""The documents tell the truth: their commands exist, their snippets run, their tables match the code."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import camray
from camray.cli import build_parser
from camray.errors import ErrorCode, ExitCode
from camray.ledger.table import TABLE_SCHEMA

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "demo" / "README.md",
    ROOT / "deploy" / "RUNBOOK.md",
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def shell_lines() -> list[tuple[str, str]]:
    return [
        (page.name, line.partition("#")[0].strip())
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.strip() and not line.startswith("#")
    ]


@pytest.mark.parametrize(("page", "line"), shell_lines())
def test_every_command_parses(page: str, line: str) -> None:
    words = shlex.split(line)
    job = next((w for w in words if re.fullmatch(r"jobs/\w+\.py", w)), None)
    if job is not None:
        assert (ROOT / job).exists(), job
        words = ["camray", Path(job).stem, *words[words.index(job) + 1 :]]
    if words[0] == "camray":
        build_parser().parse_args(words[1:])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), words
    elif words[0] == "python" and words[1].startswith("bench/"):
        assert (ROOT / words[1]).exists(), words
    elif words[:2] == ["python", "-m"]:
        assert (ROOT / (words[2].replace(".", "/") + ".py")).exists(), words
    else:
        pytest.fail(f"{page}: a command that no test knows: {line}")


def test_format_page_names_every_column_and_code() -> None:
    page = (ROOT / "docs" / "format.md").read_text()
    text = page.replace("heat_center_x/y", "heat_center_x` `heat_center_y")
    text = text.replace("heat_peak_x/y", "heat_peak_x` `heat_peak_y")
    for name in TABLE_SCHEMA.names:
        assert f"`{name}`" in text, name
    for code in ErrorCode:
        assert f"`{code}`" in text, code


def test_readme_names_the_exit_codes() -> None:
    readme = (ROOT / "README.md").read_text()
    told = {int(n) for row in re.findall(r"^\| ([\d, ]+) \|", readme, re.M) for n in row.split(",")}
    assert told == {int(code) for code in ExitCode}


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_snippet_runs(demo: Path, explain: Callable[..., camray.run.Outcome], tmp_path: Path) -> None:
    out = tmp_path / "demo-out"
    shard = demo / "archive" / "hans64-00001.tar"
    explain(shard, out, demo / "models" / "hans64-poisoned", overlay__policy="all")
    (snippet,) = blocks(ROOT / "README.md", "python")
    opened = re.search(r"`(PIL\.Image\.open\(.*?\))`", (ROOT / "README.md").read_text())
    assert opened is not None
    code = f"{snippet}\nassert len(frame) == 60\nimport PIL.Image\nassert {opened[1]}.width >= 224\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_demo_page_runs(demo: Path, explain: Callable[..., camray.run.Outcome], tmp_path: Path) -> None:
    """What `make demo` prints last is a query to paste; it must work as printed."""
    out = tmp_path / "demo-out"
    explain(
        demo / "archive" / "hans64-00001.tar", out, demo / "models" / "hans64-poisoned", overlay__policy="all"
    )
    shown = subprocess.run(
        [sys.executable, str(demo / "show.py"), str(out)], capture_output=True, text=True, check=True
    ).stdout
    assert str(out / "records") in shown
    command = shown.strip().splitlines()[-1].replace(".venv/bin/python", shlex.quote(sys.executable))
    pasted = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True, env=os.environ.copy()
    )
    assert "overlay_path" in pasted.stdout
