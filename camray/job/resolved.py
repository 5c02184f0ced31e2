"""What an explainer was resolved from, remembered: a night with nothing new needs no model to name it.

    settings, folders, software ──> key      OUT/resolved/<key>.json: the state of the model's files, and
    files of the model          ──> state    the explainer and notes that came of them

Whatever differs, however little, and the model is resolved again. What is fetched from a hub is asked for
again every night: only the hub knows whether it is still the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camray import __version__
from camray.config import Config, Explainer, ModelConfig
from camray.errors import ModelError
from camray.ledger.out import RESOLVED, explainer_of
from camray.ledger.side import recovered, write_side
from camray.models import own_code
from camray.storage import Folder

MOST_FILES = 10_000  # of a model: to look at more costs as much as loading it
_HOMES = ("HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TORCH_HOME")


@dataclass(frozen=True, slots=True)
class Origin:
    """All that decides which explainer settings mean; `places` are the files and folders looked at."""

    key: str
    places: tuple[str, ...]
    state: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """An explainer, and what was said of its model."""

    explainer: Explainer
    notes: tuple[str, ...]


def origin_of(config: Config, folders: Iterable[str], cached: Iterable[Path] = ()) -> Origin | None:
    """Look at what the explainer is to be resolved from, before it is; None where that cannot be told.

    `cached`: where weights that come by name lie.
    """
    if config.model.download or config.model.name.startswith("hf-hub:"):
        return None
    try:
        places = tuple(map(str, (*_named_places(config.model, config.method.target), *cached)))
        state = _digest([[place, *_state_of(Path(place))] for place in places])
        run, code = config.run, _own_texts(config.model.name)
    except (OSError, ValueError, ModelError):  # resolving says what is wrong, or there are too many files
        return None
    said = {
        "settings": [config.model, config.preprocess, config.method],
        "run": [run.top_k, run.batch_size == 1, config.archive.max_pixels, config.audit.confirm,
                config.archive.bands],
        "folders": sorted(folders), "code": code,
        "place": [os.getcwd(), *map(os.environ.get, _HOMES)], "software": [*_software()],
    }  # fmt: skip
    return Origin(_digest(said)[:16], places, state)


def recall(out: Folder, origin: Origin | None, config: Config, folders: Iterable[str]) -> Resolved | None:
    """Give what was resolved from just this; None where it never was, or is not what it was."""
    if origin is None or (found := recovered(out, _file(origin), _read)) is None:
        return None
    places, state, resolved = found
    if len(places) > len(origin.places):  # with those that only the loaded libraries could name
        origin = origin_of(config, folders, map(Path, places[len(origin.places) :]))
    return resolved if origin and (places, state) == (origin.places, origin.state) else None


def keep(out: Folder, origin: Origin | None, resolved: Resolved) -> None:
    """Remember it for the nights to come."""
    if origin is not None:
        tree = {"places": origin.places, "state": origin.state, "notes": resolved.notes}
        write_side(out, _file(origin), tree | {"explainer": json.loads(resolved.explainer.to_json())})


def _file(origin: Origin) -> str:
    return f"{RESOLVED}/{origin.key}.json"


def _read(tree: Any) -> tuple[tuple[str, ...], str, Resolved]:
    resolved = Resolved(explainer_of(tree["explainer"]), tuple(map(str, tree["notes"])))
    return tuple(map(str, tree["places"])), str(tree["state"]), resolved


def _named_places(model: ModelConfig, target: str) -> Iterator[Path]:
    """Give the files and folders that settings name; a name may be that of a folder that is not there yet."""
    named = (
        model.name.removeprefix("local-dir:"),
        model.checkpoint,
        model.class_names,
        model.prompts,
        model.head,
    )
    yield from (Path(name).expanduser() for name in named if name)
    kind, _, reference = target.partition(":")
    if kind == "similarity":
        yield Path(reference).expanduser()
    if model.checkpoint:  # what an adapter is beside its weights
        yield Path(model.checkpoint).expanduser().parent / "adapter_config.json"


def _state_of(place: Path) -> Iterator[Any]:
    """Give path, size, times and number of each file at a place; nothing where there is none."""
    files = [place] if place.is_file() else place.rglob("*") if place.is_dir() else []
    for count, file in enumerate(sorted(files)):
        if count >= MOST_FILES:
            raise ValueError("too many files")
        if file.is_file():
            s = file.stat()
            yield [str(file), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino]


def _own_texts(name: str) -> Any:
    """Read the user's own code, with all that it imports from beside itself."""
    is_own = ":" in name and not name.startswith(("torchvision:", "local-dir:"))
    return own_code.collect_code(name) if is_own or name.endswith(".py") else None


def _software() -> Iterator[Any]:
    """Give Python, the machine, and every package that could be imported, with when it was installed."""
    yield from (__version__, platform.python_version(), platform.machine())
    found: set[tuple[str, int]] = set()
    for place in filter(os.path.isdir, sys.path):
        with os.scandir(place) as entries:
            packages = (e for e in entries if e.name.endswith((".dist-info", ".egg-info", ".egg-link")))
            found |= {(entry.name, entry.stat().st_mtime_ns) for entry in packages}
    yield sorted(found)
    yield sorted((str(f), f.stat().st_mtime_ns) for f in Path(__file__).parents[1].rglob("*.py"))


def _digest(said: Any) -> str:
    text = json.dumps(said, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _plain(known: Any) -> Any:
    is_settings = dataclasses.is_dataclass(known) and not isinstance(known, type)
    return dataclasses.asdict(known) if is_settings else str(known)
