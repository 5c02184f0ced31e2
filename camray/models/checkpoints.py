"""A weights file, opened without running anything it holds.

Flows in: a file. Flows out: named tensors and, in words, how they were found. What a file is, is told by its
bytes, never by its name: safetensors; a torch file that holds tensors; or something else, refused by what it
looks like. A pickle of Python objects is a program: it is opened only when the user says so.
"""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import types
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from camray.errors import ModelError, printable
from camray.models.own_code import OwnCode, importable

# Where trainers keep the weights among other things; averaged ones first, as they are meant for use.
NESTS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model_state",
    "model", "net", "network", "weights", "params", "module",
)  # fmt: skip
_ALONE = "give a state_dict alone"
CONVERT = "save model.state_dict() where the file was made, or --trust-pickle if you trust its maker"

_YOLO = ("ultralytics.", "models.yolo.", "models.common.", "yolov5.")  # modules of what their files pickle
YOLO_FIX = "--model FILE.pt, without --checkpoint: the file has its architecture"
_WHERE_MADE = "give the Python model it was made from, and save its state_dict() for --checkpoint"

FORMATS = "give .safetensors, or a .pth that holds a state_dict"
_HTML = (b"<!doctype", b"<html", b"<head", b"<?xml")
_LOOKS: tuple[tuple[Callable[[bytes], bool], str, str], ...] = (  # tried in order on the first 512 bytes
    (lambda head: not head, "empty", "fetch it again"),
    (lambda head: head.startswith(b"version https://git-lfs"),
     "a git-lfs pointer, not the file it stands for", "git lfs pull"),
    (lambda head: head.startswith(b"\x89HDF"), "HDF5 (Keras)", "convert it to safetensors"),
    (lambda head: head.startswith(b"\x93NUMPY"), "a NumPy array", "convert it to safetensors"),
    (lambda head: head.startswith(b"\x1f\x8b"), "gzip", "unpack it"),
    (lambda head: head.startswith(b"GGUF"),
     "GGUF, of a language model", "give the weights of an image classifier"),
    (lambda head: head.lstrip().lower().startswith(_HTML),
     "a web page (HTML), not the file behind it", "download the file itself"),
    (lambda head: head[4:8] == b"TFL3", "a TensorFlow Lite model", "convert its weights to safetensors"),
    (lambda head: head[:1] == b"\x08" and head[1:2] <= b"\x20" and head[2:3] in b"\x12\x1a\x22\x28\x3a\x42",
     "ONNX: a fixed graph, whose inner layers cannot be reached", _WHERE_MADE),
    (lambda head: not any(head), "zeros, as an interrupted download leaves behind", "fetch it again"),
    (lambda head: head.startswith((b"PK", b"\x80")) or b"ustar" in head, "", ""),  # what torch writes
    (lambda head: head.lstrip()[:64].isascii(), "text", FORMATS),
    (lambda head: True, "of a kind unknown here", FORMATS),
)  # fmt: skip
# Harmless Python objects that trainers store beside the weights: numbers of NumPy, options, paths.
_SAFE: list[Any] = [
    argparse.Namespace, np.dtype, np.ndarray,
    *((getattr(np._core.multiarray, name), f"numpy.{core}.multiarray.{name}")  # type: ignore[attr-defined]
      for name in ("scalar", "_reconstruct") for core in ("core", "_core")),
    *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?", "S", "U")},
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a file held. `notes` says in words what was done to find the tensors."""

    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_checkpoint(path: Path, trust_pickle: bool = False, code: OwnCode | None = None) -> Checkpoint:
    """Read the tensors of a file. `code`: the user's own model file, whose classes a pickle may name.

    Raises:
        ModelError: not a file of weights, or one that would run code and is not trusted.
    """
    if _is_safetensors(path):
        try:
            return Checkpoint(load_file(path))
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise _refused(path, "is safetensors, but damaged or truncated", error) from None
    _refuse_by_looks(path)
    trusted = False
    try:
        with torch.serialization.safe_globals(_SAFE):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises its own types on a damaged file
        content = _load_pickle(path, error, trust_pickle, code)
        trusted = True
    found = _unnested(content, path)
    if not trusted:
        return found
    warning = f"WARNING: {path.name} is a pickle and was run as a program, because of --trust-pickle"
    return Checkpoint(found.state, (warning, *found.notes))


def _unnested(content: Any, path: Path) -> Checkpoint:
    """Find the dict of tensors in what trainers write around it."""
    trail: list[str] = []
    while inner := _nested(content):
        trail.append(inner[0])
        content = inner[1]
    if not isinstance(content, Mapping) or not content:
        kind = "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise ModelError("--checkpoint", f"{path.name}: it holds {kind}, not weights", _ALONE)
    odd = [str(k) for k, v in content.items() if not isinstance(v, Tensor)]
    if odd:
        raise ModelError("--checkpoint", f"{path.name}: {printable(odd[0])} is no tensor", _ALONE)
    notes = (f"weights of {path.name}: taken from {' > '.join(trail)}",) if trail else ()
    return Checkpoint({str(k): v for k, v in content.items()}, notes)


def _nested(content: Any) -> tuple[str, Any] | None:
    """Give what holds the weights inside, and its name in words; None where nothing is around them."""
    if isinstance(content, nn.Module):
        return "a whole model", content.state_dict()
    if not isinstance(content, Mapping):
        return None
    nest = next((n for n in NESTS if isinstance(content.get(n), Mapping | nn.Module)), None)
    return None if nest is None else (repr(nest), content[nest])


def _is_safetensors(path: Path) -> bool:
    """Look for a length of 8 bytes, then JSON."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def _refuse_by_looks(path: Path) -> None:
    """Refuse what is no pickle and no zip, or a zip with a program in it."""
    what, fix = look(path)
    if what:
        raise ModelError("--checkpoint", f"{path.name} is {what}", fix)


def look(path: Path) -> tuple[str, str]:
    """Tell what a file is by its bytes, and what to do; empty words where it may hold weights."""
    if _is_safetensors(path):
        return "", ""
    with path.open("rb") as file:
        head = file.read(512)
    what, fix = next((what, fix) for fits, what, fix in _LOOKS if fits(head))
    return _zipped(path) if not what and head.startswith(b"PK") else (what, fix)


def _zipped(path: Path) -> tuple[str, str]:
    """Tell what a zip is, and what to do; empty words where it is a torch file of objects."""
    try:
        names = zipfile.ZipFile(path).namelist()
    except zipfile.BadZipFile:
        return "truncated: a torch file without its end", "fetch it again"
    fix = _WHERE_MADE
    if any(n.endswith("model.weights.h5") for n in names):
        return "a Keras model, of TensorFlow", "convert it to safetensors"
    if any("/code/" in n or n.endswith("constants.pkl") for n in names):
        return "TorchScript: a fixed program, whose inner layers cannot be reached", fix
    if any(n.endswith("serialized_exported_program.json") or "/models/" in n for n in names):
        return "an exported program (.pt2): a fixed graph, whose inner layers cannot be reached", fix
    if not any(n.endswith("data.pkl") for n in names):
        return "a zip without weights", FORMATS
    return "", ""


def _load_pickle(path: Path, error: Exception, trust: bool, code: OwnCode | None) -> Any:
    """Open a pickle as the program it is, or refuse it by name."""
    if not isinstance(error, pickle.UnpicklingError) or "nsupported" not in str(error):
        raise _refused(path, "is damaged or truncated", error) from None
    if not trust:
        objects = _objects(path)
        whole = any(n.startswith("torch.nn.") for n in objects)
        what = "is a whole pickled model" if whole else "holds pickled Python objects"
        named = f" ({', '.join(objects[:2])}{' ...' if len(objects) > 2 else ''})" if objects else ""
        said = f"{path.name} {what}{printable(named)}, and a pickle runs code when opened"
        raise ModelError("--checkpoint", said, YOLO_FIX if is_yolo(path) else CONVERT) from None
    surroundings: AbstractContextManager[None] = importable(code) if code else nullcontext()
    try:
        with surroundings:
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_unpickler(code))
    except Exception as failed:  # noqa: BLE001 - a pickle may raise anything
        raise ModelError(
            "--checkpoint", f"{path.name} cannot be unpickled: {printable(str(failed), 160)}",
            "--model path/to/file.py:ClassName with the class it names, or save model.state_dict()",
        ) from None  # fmt: skip


def is_yolo(path: Path) -> bool:
    """Tell whether a file is a pickled network of ultralytics or YOLOv5, as MegaDetector's are.

    By the names in its pickle: torch names only those that no library has told it are safe.
    """
    try:
        with zipfile.ZipFile(path) as file:
            pickled = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
        named = (str(arg) for op, arg, _ in pickletools.genops(pickled) if op.name == "GLOBAL")
        return any(name.replace(" ", ".").startswith(_YOLO) for name in named)
    except (zipfile.BadZipFile, StopIteration, ValueError):  # no zip of torch's
        return False


def _objects(path: Path) -> list[str]:
    """Name the classes and functions a torch zip would import; the model's own class first."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - only for the message
        return []
    return sorted(found, key=lambda n: (n.startswith(("torch.nn.", "__builtin__", "builtins")), n))


def _unpickler(code: OwnCode | None) -> types.ModuleType:
    """Give a pickle module that finds classes of the user's own file, whatever module they were saved in."""
    import importlib

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            try:
                return super().find_class(module, name)
            except (AttributeError, ImportError):
                if code is None:
                    raise
                return getattr(importlib.import_module(code.module), name)

    made = types.ModuleType("camray_pickle")
    made.__dict__.update(
        Unpickler=Unpickler, load=lambda file, **_: Unpickler(file).load(),
        loads=lambda data, **_: Unpickler(io.BytesIO(data)).load(),
    )  # fmt: skip
    return made


def _refused(path: Path, reason: str, error: Exception) -> ModelError:
    detail = printable(str(error).partition("\n")[0], 160)
    return ModelError("--checkpoint", f"{path.name} {reason} ({detail})", "fetch it again")
