"""The house: imports go one way, heavy libraries stay where they belong, modules and functions stay small."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "camray"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOTS = {
    "camray.errors",
    "camray.records",
    "camray.config",
    "camray.storage",
    "camray.panels",
    "camray.stopping",
}
# What a part of the house may import of camray beside itself. A test module of its own for each row.
MAY_IMPORT = {
    "errors": set(),
    "records": {"camray.errors"},
    "config": {"camray.errors"},
    "settings": {"camray.config", "camray.errors"},
    "storage": {"camray.errors"},
    "stopping": {"camray.errors"},
    "panels": {"camray.config"},
    "arguments": {"camray.errors"},
    "compare_options": {"camray.arguments"},
    "run_options": {"camray.arguments", "camray.config"},
    "archive": ROOTS,
    "cam": {"camray.errors"},
    "ledger": ROOTS,
    "attempts": ROOTS,
    "progress": ROOTS,
    "metrics": {"camray.progress"},
    "explain": ROOTS | {"camray.archive", "camray.cam", "camray.attempts"},
    "measure": ROOTS | {"camray.cam", "camray.explain", "camray.archive", "camray.attempts"},
    "review": ROOTS | {"camray.ledger"},
    "stages": ROOTS | {"camray.archive", "camray.attempts", "camray.explain.overlays", "camray.ledger"},
    "pipeline": ROOTS
    | {"camray.attempts", "camray.explain.actor", "camray.ledger", "camray.measure.actor", "camray.stages"},
    "prepare": ROOTS | {"camray.archive", "camray.explain", "camray.ledger"},
    "canary": ROOTS
    | {"camray.archive", "camray.attempts", "camray.explain", "camray.ledger", "camray.pipeline"}
    | {"camray.prepare", "camray.stages"},
    "pilot": ROOTS
    | {"camray.archive", "camray.attempts", "camray.explain.actor", "camray.ledger", "camray.prepare"}
    | {"camray.progress", "camray.stages"},
    "run": ROOTS
    | {"camray.canary", "camray.explain", "camray.ledger", "camray.metrics", "camray.pipeline"}
    | {"camray.prepare", "camray.progress"},
    "audit": ROOTS | {"camray.progress", "camray.review", "camray.run"},
    "compare_plan": ROOTS
    | {"camray.archive", "camray.cam", "camray.explain", "camray.ledger", "camray.measure"}
    | {"camray.prepare"},
    "compare": ROOTS
    | {"camray.attempts", "camray.compare_plan", "camray.ledger", "camray.measure", "camray.pipeline"}
    | {"camray.compare_report", "camray.prepare", "camray.progress", "camray.run", "camray.stages"},
    "compare_report": ROOTS
    | {"camray.explain.overlays", "camray.ledger", "camray.measure", "camray.review.comparison_page"},
}  # fmt: skip
OPEN = {"__init__", "__main__", "cli"}  # these stand above everything
# Who may name these libraries at all, at whatever depth of the code.
ONLY_IN = {
    "ray": {"attempts.py", "explain/actor.py", "metrics.py", "pipeline.py", "run.py"},
    "deltalake": {"ledger", "review"},
    "torch": {"cam", "explain", "measure"},
    "timm": {"cam", "explain", "measure"},
    "torchvision": {"cam", "explain", "measure"},
    "cv2": {"archive", "explain", "measure", "review"},
    "pydicom": {"archive/dicom.py"},
    "scipy": {"measure", "review/clusters.py", "review/drift.py"},
    "pyarrow": {
        "__init__.py", "archive", "attempts.py", "canary.py", "compare.py", "compare_report.py", "explain",
        "ledger", "measure", "panels.py", "pilot.py", "pipeline.py", "prepare.py", "records.py", "review",
        "stages.py", "storage.py",
    },
}  # fmt: skip


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module a file imports, wherever the import stands; `from camray import x` is camray.x."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            if module in ("camray", *(f"camray.{p.name}" for p in PACKAGE.iterdir() if p.is_dir())):
                found |= {f"{module}.{alias.name}" for alias in node.names}
            else:
                found.add(module)
    return found


def lies_in(module: str, places: set[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def named(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=named)
def test_imports_go_one_way(path: Path) -> None:
    own = part(path)
    if own in OPEN:
        return
    assert own in MAY_IMPORT, f"{own} has no place in the house yet: give it one here"
    ours = {m for m in imported(path) if lies_in(m, {"camray"})}
    allowed = MAY_IMPORT[own] | {f"camray.{own}"}
    assert {m for m in ours if not lies_in(m, allowed)} == set()


@pytest.mark.parametrize("library", ONLY_IN)
def test_heavy_libraries_stay_where_they_belong(library: str) -> None:
    users = {named(p) for p in FILES if lies_in(library, {m.partition(".")[0] for m in imported(p)})}
    allowed = ONLY_IN[library]
    assert {u for u in users if u not in allowed and u.partition("/")[0] not in allowed} == set()


def test_nothing_below_imports_what_stands_above() -> None:
    for path in FILES:
        if part(path) not in OPEN:
            assert not any(lies_in(m, {"camray.cli", "camray.__main__"}) for m in imported(path)), path


# The text of a file is one thing, what really gets loaded another.
LOADS_NEITHER = (
    "camray", "camray.cli", "camray.archive.listing", "camray.archive.members", "camray.archive.decode",
    "camray.archive.selection", "camray.ledger.commit", "camray.ledger.intake", "camray.ledger.plan",
    "camray.ledger.runs", "camray.review.status", "camray.review.verify", "camray.review.night",
    "camray.review.report", "camray.stages", "camray.run", "camray.prepare", "camray.settings",
    "camray.attempts", "camray.explain.overlays", "camray.explain.actor",
    "camray.measure.standing", "camray.measure.actor", "camray.compare", "camray.compare_plan",
    "camray.ledger.sample",
)  # fmt: skip


def loaded_by(*groups: tuple[str, ...]) -> list[set[str]]:
    """Import group after group in a fresh process; give what is loaded after each."""
    code = (
        "import sys, importlib\n"
        f"for group in {groups!r}:\n"
        "    for m in group: importlib.import_module(m)\n"
        "    print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_no_part_but_the_engine_loads_torch_or_ray() -> None:
    (loaded,) = loaded_by(LOADS_NEITHER)
    assert loaded & {"torch", "ray", "timm", "torchvision"} == set()


def test_the_engine_loads_no_files_and_the_actors_core_no_ray() -> None:
    engine, core = loaded_by(("camray.cam",), ("camray.explain.explainer",))
    assert engine & {"ray", "pyarrow", "deltalake", "camray.storage"} == set()
    assert "ray" not in core


# Every setting, the contract, one run from start to end: each on one page.
LONGER = {"cli.py": 360, "explain/explainer.py": 330, "records.py": 470}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_modules_and_functions_stay_small(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= LONGER.get(named(path), 300)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 80, f"{node.name} is too long"


@pytest.mark.parametrize("path", [p for p in FILES if p.stat().st_size], ids=named)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert (ast.get_docstring(tree(path)) or "").strip()


@pytest.mark.parametrize("path", FILES, ids=named)
def test_no_vague_names(path: Path) -> None:
    assert path.stem not in {"utils", "helpers", "base", "common", "misc", "manager"}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef):
            assert not node.name.endswith(("Manager", "Helper", "Utils"))
