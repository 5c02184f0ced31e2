"""The part of a network in front of its layer as a compiled library: made once, proved, loaded by actors.

    model, explainer ──compile_front──> Library ──(travels with the weights)──> installed ──> a path to load

Libraries are kept in the user's cache and never in OUT: whoever may write there must not choose what runs
here. A library is of one kind of machine; another kind runs the network as it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from camray import __version__, cam
from camray.cam.compiled import compile_to, load_compiled
from camray.config import Explainer
from camray.errors import printable
from camray.explain.explainer import PASS, layer_of, moved_by
from camray.models.load import LoadedModel


@dataclass(frozen=True, slots=True)
class Library:
    """A compiled front as it travels."""

    name: str  # names everything that it depends on
    sha256: str
    content: NDArray[np.uint8]


def compile_front(model: LoadedModel, explainer: Explainer, device: str) -> tuple[Library | None, str]:
    """Compile a network's front for this machine, or find it compiled; say what became of it.

    It is taken only where a probe gives the maps and scores of the network as it is, within the bounds that
    hold for folded batch norms.
    """
    method = cam.parse_method(explainer.method)
    if device != "cpu" or explainer.precision != "fp32" or "task" in model.build_args:
        return None, "not compiled: only classifiers in fp32 on CPUs are"
    if method.entry.needs != "gradient" or method.averages_views:
        return (
            None,
            f"not compiled: {method.name} runs the network more than once",
        )
    layer = layer_of(explainer)
    spec = explainer.input
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(PASS, len(spec.mean), spec.height, spec.width, generator=draw)
    name = _digest([explainer.id, model.folded, PASS, machine_kind()])
    path = _place(name)
    try:
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        if not path.exists():
            _compile(path, model, images, layer)
        fast = load_compiled(path, model.module, images, layer)
        why = moved_by(model.module, fast, images, layer, explainer.activation)
    except Exception as error:  # noqa: BLE001 - a compiler fails in many ways, and is not needed
        with suppress(OSError):
            path.unlink(missing_ok=True)
        said = str(error).strip().partition("\n")[0][:200]
        return None, f"not compiled: {printable(said or type(error).__name__)}"
    if why:
        return None, f"not compiled: {why}"
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return Library(name, digest, np.frombuffer(content, np.uint8)), "compiled in front of its layer"


def installed(library: Library) -> Path | None:
    """Give the file of a library on this machine; None where it is of another kind, or cannot be kept."""
    if not library.name.endswith(machine_kind()):
        return None
    path = _place(library.name)
    with suppress(OSError):
        if hashlib.sha256(path.read_bytes()).hexdigest() == library.sha256:
            return path
    try:
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(library.content.tobytes())
        os.replace(file.name, path)
    except OSError:
        return None
    return path


def machine_kind() -> str:
    """Name all of a machine that compiled code depends on: 8 hex digits."""
    flags: list[str] = []
    with suppress(OSError), open("/proc/cpuinfo") as file:
        flags = next((sorted(line.split()) for line in file if line.startswith(("flags", "Features"))), [])
    return hashlib.sha256(json.dumps([
        __version__, torch.__version__, platform.machine(), platform.libc_ver(), flags,
    ]).encode()).hexdigest()[:8]  # fmt: skip


def _digest(said: list[Any]) -> str:
    return f"{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]}-{machine_kind()}"


def _place(name: str) -> Path:
    """Give the file of that name in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return cache / "camray" / "compiled" / f"{name}.so"


def _compile(path: Path, model: LoadedModel, images: torch.Tensor, layer: cam.TargetLayer) -> None:
    """Compile beside the place and move it there, so that no half of a library is ever found."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it looks for CUDA, too
    with tempfile.TemporaryDirectory(dir=path.parent) as made:
        compile_to(Path(made) / path.name, model.module, images, layer)
        os.replace(Path(made) / path.name, path)
