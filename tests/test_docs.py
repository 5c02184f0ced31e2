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

from camray.cli.main import build_parser
from camray.errors import ErrorCode, ExitCode
from camray.job.run import Outcome
from camray.ledger.table import TABLE_SCHEMA
from camray.ledger.watch import GAUGES as GAUGES_OF_A_RUN
from docs import generate

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
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


def ray_parses(words: list[str]) -> None:
    """Ray's own command line takes these words; nothing is run."""
    from ray.scripts.scripts import cli

    command, place = cli, None
    while words and hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    place = command.make_context("ray", list(words), resilient_parsing=False)
    assert place is not None


@pytest.mark.parametrize(("page", "line"), shell_lines())
def test_every_command_parses(page: str, line: str) -> None:
    words = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=\S+", words[0]):  # of the environment
        words.pop(0)
    job = next((w for w in words if re.fullmatch(r"jobs/\w+\.py", w)), None)
    if job is not None:
        assert (ROOT / job).exists(), job
        words = ["camray", Path(job).stem, *words[words.index(job) + 1 :]]
    if words == ["camray", "--version"]:
        return
    if words[0] == "camray":
        build_parser().parse_args(words[1:])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), words
    elif words[0] == "python" and words[1].startswith("bench/"):
        assert (ROOT / words[1]).exists(), words
    elif words[:2] == ["python", "-m"]:
        assert (ROOT / (words[2].replace(".", "/") + ".py")).exists(), words
    elif words[0] == "ray":
        ray_parses(words[1:])
    else:
        assert words[0] in ("kubectl", "pip", "tar", "mkdir", "cp", "systemctl"), (
            f"{page}: a command that no test knows: {line}"
        )
        named = {word.partition("=")[2] or word for word in words}
        ours = {name for name in named if name.startswith(("deploy/", "demo/")) or name.endswith(".txt")}
        assert all((ROOT / name).is_file() for name in ours), words


def test_generated_parts_of_the_pages_follow_the_code() -> None:
    behind = [
        name for name in generate.BLOCKS for _, is_, must_be in [generate.filled(name)] if is_ != must_be
    ]
    assert behind == [], "run `make docs`"


def test_format_page_names_every_column_and_code() -> None:
    text = (ROOT / "docs" / "format.md").read_text()
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


def test_readme_snippet_runs(demo: Path, explain: Callable[..., Outcome], tmp_path: Path) -> None:
    out = tmp_path / "demo-out"
    shard = demo / "archive" / "hans64-00001.tar"
    explain(shard, out, demo / "models" / "hans64-poisoned", overlay__policy="all")
    (snippet,) = blocks(ROOT / "README.md", "python")
    opened = re.search(r"`(PIL\.Image\.open\(.*?\))`", (ROOT / "README.md").read_text())
    assert opened is not None
    code = f"{snippet}\nassert len(frame) == 60\nimport PIL.Image\nassert {opened[1]}.width >= 224\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_demo_page_runs(demo: Path, explain: Callable[..., Outcome], tmp_path: Path) -> None:
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


def pairs() -> list[tuple[str, str, str]]:
    """Sections of the migration page that show both sides: title, theirs, ours."""
    page = (ROOT / "docs" / "migration.md").read_text()
    sections = [section.partition("\n") for section in page.split("\n## ")[1:]]
    found = [(title, re.findall(r"```python\n(.*?)```", text, re.S)) for title, _, text in sections]
    return [(title, code[0], code[1]) for title, code in found if len(code) == 2]


@pytest.mark.parametrize(("title", "theirs", "ours"), pairs(), ids=[title for title, _, _ in pairs()])
def test_both_sides_of_the_migration_page_agree(title: str, theirs: str, ours: str) -> None:
    import numpy as np

    pytest.importorskip("pytorch_grad_cam")
    start = blocks(ROOT / "docs" / "migration.md", "python")[0]
    names: dict[str, object] = {}
    exec(start, names)
    exec(theirs, names)
    exec(ours, names)
    here, there = np.asarray(names["heat"]), np.asarray(names["grayscale"])
    assert here.shape == there.shape
    assert there.max() > 0.99, "nothing to compare"
    assert np.abs(here - there).max() <= 1e-4


def test_the_migration_page_names_methods_that_exist() -> None:
    peers = pytest.importorskip("pytorch_grad_cam")
    from camray.cam import METHODS

    page = (ROOT / "docs" / "migration.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|$", page, re.M)
    assert len(rows) >= 17
    for theirs, ours in rows:
        assert hasattr(peers, theirs), theirs
        assert ours in METHODS, ours


def test_the_architecture_page_names_every_part() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.partition("## Layout")[2].partition("## Where state lives")[0]
    for path in (ROOT / "camray").iterdir():
        if path.name.startswith("_") or path.suffix not in ("", ".py"):
            continue
        assert f"`{path.stem}{'/' if path.is_dir() else ''}`" in table, (
            f"{path.name} is not in docs/architecture.md"
        )


def test_the_operations_page_knows_every_code_and_metric() -> None:
    from camray.audit.gate import RATES
    from camray.flow.metrics import COUNTERS, GAUGES

    page = (ROOT / "docs" / "operations.md").read_text()
    for code in ExitCode:
        assert re.search(rf"^\| {int(code)} \| {code.name.lower().replace('_', ' ')} \|", page, re.M), code
    metrics = page.partition("## Metrics")[2].partition("\n## ")[0]
    told = set(re.findall(r"`((?:ray_)?camray_\w+)`", metrics))
    audit = {f"camray_audit_{name}" for name in RATES} | {"camray_audit_gate_fired"}
    audit |= {f"camray_audit_images_{name}" for name in ("archive", "night", "rows", "failed")}
    audit |= set(GAUGES_OF_A_RUN)
    assert told == {f"ray_{n}_total" for n in COUNTERS} | {f"ray_{n}" for n in GAUGES} | audit


def test_what_is_submitted_is_small(tmp_path: Path) -> None:
    """`--working-dir .` sends the sources, and neither tests nor the demonstration's archive."""
    import zipfile

    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True, excludes=[])
    names = zipfile.ZipFile(package).namelist()
    assert {"camray/job/run.py", "jobs/audit.py", "deploy/nightly.toml", "pyproject.toml"} <= set(names)
    assert not [n for n in names if n.partition("/")[0] in ("tests", "demo", "docs", "bench", ".git")]
    assert package.stat().st_size < 2 * 2**20
