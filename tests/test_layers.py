"""The house: imports go one way, heavy libraries stay where they belong, functions stay small."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "camray"
FILES = sorted(PACKAGE.rglob("*.py"))
# The order of the house. What stands in a line may import what stands in it or above it.
ORDER = (
    "errors", "machine", "records", "config", "options", "storage", "archive", "image", "cam", "models",
    "explain", "measure", "ledger", "flow", "job", "audit", "compare", "upkeep", "serve", "demo", "cli",
)  # fmt: skip
# Arrows that the order alone would allow, and the house does not.
NOT = {
    "cam": set(ORDER) - {"errors", "cam"},  # a library on tensors
    "measure": {"records", "config", "options", "storage", "archive", "image", "models", "explain"},
    "ledger": {"archive", "image", "cam", "models", "explain", "measure"},
    "upkeep": {"archive", "image", "cam", "models", "explain", "measure", "flow", "job"},
}
# Who may name these libraries at all, at whatever depth of the code.
ONLY_IN = {
    "ray": {"flow", "job/run.py"},
    "deltalake": {"ledger", "audit", "upkeep"},
    "torch": {"cam", "models", "explain", "measure", "compare", "flow/actor.py", "flow/here.py"},
    "timm": {"cam", "models"},
    "transformers": {"models/hugging_face.py"},
    "torchvision": {"cam", "models"},
    "ultralytics": {"models/yolo.py"},
    "open_clip": {"models/open_clip.py"},
    "cv2": {"image", "models", "explain", "measure", "compare", "audit"},
    "pydicom": {"image/dicom.py"},
    "urllib3": {"archive/web.py"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "scipy": {"measure", "audit", "compare", "serve"},
}
# The text of a file is one thing, what really gets loaded another.
LOADS_NEITHER = (
    "camray", "camray.cli.main", "camray.archive.listing", "camray.archive.members", "camray.image.decode",
    "camray.ledger.commit", "camray.ledger.intake", "camray.ledger.plan", "camray.upkeep.status",
    "camray.upkeep.verify", "camray.audit.night", "camray.audit.report", "camray.flow.stages",
    "camray.flow.actor", "camray.job.run", "camray.job.prepare", "camray.explain.overlays",
    "camray.compare.actor", "camray.compare.job",
)  # fmt: skip


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def named(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module a file imports, wherever the import stands; `from camray import x` is camray.x."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_of(path: Path) -> set[str]:
    ours = (module.split(".") for module in imported(path))
    return {parts[1] for parts in ours if parts[0] == "camray" and parts[1] in ORDER}


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


def test_every_file_has_a_place_in_the_house() -> None:
    assert {room(path) for path in FILES} == {*ORDER, "__init__"}


def test_imports_go_one_way() -> None:
    below = {own: set(ORDER[: place + 1]) - NOT.get(own, set()) for place, own in enumerate(ORDER)}
    astray = {named(p): rooms_of(p) - below[room(p)] for p in FILES if room(p) in below}
    assert {name: rooms for name, rooms in astray.items() if rooms} == {}


def test_heavy_libraries_stay_where_they_belong() -> None:
    for library, allowed in ONLY_IN.items():
        users = {named(p) for p in FILES if library in {m.partition(".")[0] for m in imported(p)}}
        assert {u for u in users if u not in allowed and u.partition("/")[0] not in allowed} == set(), library


def test_no_part_but_the_engine_loads_torch_or_ray() -> None:
    (loaded,) = loaded_by(LOADS_NEITHER)
    assert loaded & {"torch", "ray", "timm", "torchvision"} == set()


def test_the_engine_loads_no_files_and_the_actors_core_no_ray() -> None:
    engine, core = loaded_by(("camray.cam",), ("camray.explain.explainer",))
    assert engine & {"ray", "pyarrow", "deltalake", "camray.storage"} == set()
    assert "ray" not in core


def test_only_the_ledger_knows_the_paths_of_out() -> None:
    """No text elsewhere begins with a folder of OUT, nor does a `Folder` get one by its bare name."""
    folders = "records|overlays|explainers|runs|intake|audit|qa|qa-inbox|report|canary|scores|panels"
    folders += "|costs|comparisons"
    asked = {"entries", "folders", "exists", "read", "write", "delete", "open", "child_uri"}
    inside, whole = re.compile(rf"({folders})/\S*"), re.compile(folders)
    found = set()
    for path in FILES:
        if named(path) in ("ledger/out.py", "archive/places.py"):  # the listing tells an OUT by its log
            continue
        nodes = list(ast.walk(tree(path)))
        calls = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
        given = [c.args[0] for c in calls if c.args and getattr(c.func, "attr", "") in asked]
        texts = [n for n in nodes if _matches(inside, n)] + [n for n in given if _matches(whole, n)]
        found |= {f"{named(path)}: {getattr(text, 'value', '')}" for text in texts}
    assert found == set()


def _matches(pattern: re.Pattern[str], node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and pattern.fullmatch(str(node.value)) is not None


def test_functions_stay_small() -> None:
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 80, f"{named(path)}: {node.name} is too long"


def test_every_module_and_folder_says_what_it_is() -> None:
    assert [named(p) for p in FILES if not (ast.get_docstring(tree(p)) or "").strip()] == []
    folders = [p for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"]
    assert [p.name for p in folders if not (p / "__init__.py").is_file()] == []


def test_no_vague_names() -> None:
    assert {p.stem for p in FILES} & {"utils", "helpers", "base", "common", "misc", "manager"} == set()
    classes = [n.name for p in FILES for n in ast.walk(tree(p)) if isinstance(n, ast.ClassDef)]
    assert [name for name in classes if name.endswith(("Manager", "Helper", "Utils"))] == []
