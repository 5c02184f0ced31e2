"""A user's own model file, and what it imports from beside itself, as texts that travel to any worker.

    model.py:Net or package.module:factory ──collect_code──> OwnCode(module, name, files)
    OwnCode ──load_object──> the class or function, imported from the texts alone

Only the files that are reached by import statements are taken, and none that an installed distribution holds,
wherever it is installed: on PYTHONPATH, in a layered environment. The driver, too, builds the model from the
texts, so that a file that would be missing on another machine is missed at once.
"""

from __future__ import annotations

import ast
import glob
import importlib
import importlib.util
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from camray.errors import ModelError, printable

_CODE = (".py", ".so", ".pyd")


@dataclass(frozen=True, slots=True)
class OwnCode:
    """Where a class or function is found. `files` is empty where an installed package holds it."""

    module: str
    name: str
    files: Mapping[str, str]  # path -> text


def collect_code(written: str) -> OwnCode:
    """Read `path/to/file.py:Name` or `package.module:name`.

    Raises:
        ModelError: no such file or module, or no Python in it.
    """
    place, _, name = written.rpartition(":")
    if written.endswith(".py"):
        place, name = written, ""
    if place.endswith(".py"):
        file = Path(place).expanduser()
        if not file.is_file():
            raise ModelError("--model", f"{printable(place)} is not a file", "give path/to/file.py:ClassName")
        root, module = _package_of(file)
    elif "/" in place:
        said = f"{printable(place)} is no Python file"
        raise ModelError("--model", said, "give path/to/file.py:ClassName")
    else:
        root, module = _root_of(place), place
    is_installed = _is_standard(root) or module.partition(".")[0] in _distributed(root)
    files = {} if is_installed else _reached(root, module)
    if files and not name:
        raise ModelError("--model", f"{place} is named without a class", _fix_name(place, files, module))
    return OwnCode(module, name, files)


def load_object(code: OwnCode) -> Any:
    """Import the class or function. What it imported from the texts is forgotten again afterwards."""
    with importable(code):
        return _attribute(code)


@contextmanager
def importable(code: OwnCode) -> Iterator[None]:
    """Let the texts be imported within the body, by the names they have among themselves."""
    if not code.files:
        yield
        return
    tops = {Path(path).parts[0].removesuffix(".py") for path in code.files}
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in tops}
    with tempfile.TemporaryDirectory(prefix="camray-model-") as folder:
        for path, text in code.files.items():
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            with redirect_stdout(sys.stderr):  # where results and --json go, a model has nothing to say
                yield
        finally:
            sys.path.remove(folder)
            for name in [n for n in sys.modules if n.partition(".")[0] in tops]:
                del sys.modules[name]
            sys.modules.update(hidden)


def _package_of(file: Path) -> tuple[Path, str]:
    """Give the folder from which a file is imported, and by which name: alone, or of the package it is in."""
    root, module = file.resolve().parent, file.stem
    if not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(_parsed(file))):
        return file.parent, module
    parts = [root.name] if module == "__init__" else [root.name, module]
    while (root := root.parent).joinpath("__init__.py").is_file():
        parts.insert(0, root.name)
    return root, ".".join(parts)


def _attribute(code: OwnCode) -> Any:
    try:
        module = importlib.import_module(code.module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's own code may raise anything
        raise ModelError(
            "--model", printable(f"{code.module} cannot be imported: {type(error).__name__}: {error}"),
            "a model file may import installed packages and Python files beside it",
        ) from None  # fmt: skip
    found = getattr(module, code.name, None)
    if not callable(found):
        raise ModelError(
            "--model", f"{code.module} has no class or function {printable(code.name)!r}",
            _fix_name(code.module, code.files, code.module),
        )  # fmt: skip
    return found


def _fix_name(place: str, files: Mapping[str, str], module: str) -> str:
    """Name the classes and functions the file defines."""
    text = files.get(module.replace(".", "/") + ".py", "")
    names = [n.name for n in ast.parse(text).body if isinstance(n, ast.ClassDef | ast.FunctionDef)]
    return f"give {place}:NAME" + (f", where NAME is one of {', '.join(names[-5:])}" if names else "")


def _root_of(module: str) -> Path:
    """Find the folder that holds a top package: the current one, or where it is installed."""
    top = module.partition(".")[0]
    here = Path.cwd()
    if (here / f"{top}.py").is_file() or (here / top).is_dir():
        return here
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin:
        raise ModelError(
            "--model", f"there is no package {printable(top)!r}",
            "install it, run where it lies, or give path/to/file.py:ClassName",
        )  # fmt: skip
    origin = Path(spec.origin)
    return origin.parent.parent if origin.name == "__init__.py" else origin.parent


def _is_standard(root: Path) -> bool:
    """Tell the interpreter's own folders."""
    places = {Path(p).resolve() for p in sysconfig.get_paths().values()}
    return root.resolve() in places


def _distributed(root: Path) -> set[str]:
    """Name the top packages in a folder that a distribution installed there holds."""
    found: set[str] = set()
    for distribution in metadata.distributions(path=[str(root)]):
        listed = (distribution.read_text("top_level.txt") or "").split()
        held = {file.parts[0] for file in distribution.files or () if file.suffix in _CODE}
        found |= {*listed, *(name.partition(".")[0] for name in held)}
    return {name for name in found if (root / name).exists() or any(root.glob(f"{glob.escape(name)}.*"))}


def _reached(root: Path, module: str) -> dict[str, str]:
    """Read a module and, through its import statements, every module below the same folder."""
    installed = _distributed(root)
    files: dict[str, str] = {}
    todo, seen = [module], set[str]()
    while todo:
        name = todo.pop()
        if name in seen or name.partition(".")[0] in installed:
            continue
        seen.add(name)
        if "." in name:
            todo.append(name.rpartition(".")[0])
        path = _file_of(root, name)
        if path is None:
            continue
        files[path.relative_to(root).as_posix()] = _text(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        todo += _imports(path, package)
    if not files:
        raise ModelError("--model", f"there is no module {printable(module)!r} in {root}", "check its name")
    return dict(sorted(files.items()))


def _file_of(root: Path, name: str) -> Path | None:
    path = root.joinpath(*name.split("."))
    for candidate in (path / "__init__.py", path.with_name(path.name + ".py")):
        if candidate.is_file():
            return candidate
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError("--model", f"{path}: {printable(str(error))}", "give a Python file") from None


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(_text(path))
    except (SyntaxError, ValueError) as error:
        raise ModelError("--model", f"{path}: {printable(str(error))}", "give a Python file") from None


def _imports(path: Path, package: str) -> list[str]:
    """Give the dotted names a file imports; a name imported from a package may be a module of it."""
    found: list[str] = []
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*filter(None, parts), *filter(None, [node.module])])
            found += [base] * bool(base)
            found += [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
    return found
