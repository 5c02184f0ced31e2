"""`camray doctor [OUT]`: whether this machine, and the place of an OUT, can do the work; faults with fixes.

Flows in: the machine. Flows out: one line a check. Nothing stays behind: the file that tries OUT is deleted.
"""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from camray.errors import CamrayError, ExitCode, in_a_line, printable
from camray.storage import open_folder

GIB = 1 << 30
SHM_GIB, TEMP_GIB, MEMORY_GIB = 1.0, 1.0, 4.0  # an object store, a chunk of pictures, driver and one actor
_SHM, _NVIDIA = Path("/dev/shm"), Path("/dev/nvidiactl")
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, what was found, and, where it is a fault, how to mend it."""

    name: str
    found: str
    fix: str = ""


def print_doctor(place: str | None, as_json: bool) -> ExitCode:
    """Print a line for each check: ok, or what to do. Exit 5 where there is something to do."""
    has_fault = False
    for check in checks(place):
        has_fault |= bool(check.fix)
        if as_json:
            print(json.dumps(asdict(check)), flush=True)
            continue
        print(f"{'FAIL' if check.fix else 'ok':<5}{check.name:<10}{printable(check.found, 300)}", flush=True)
        if check.fix:
            print(f"{'':<15}fix: {check.fix}", flush=True)
    return ExitCode.GATE if has_fault else ExitCode.DONE


def checks(place: str | None) -> Iterator[Check]:
    """Look at one thing after the other; the slowest, torch and Ray, last."""
    looks: list[tuple[str, Callable[[], Check]]] = [
        ("packages", packages), ("machine", machine), ("shm", shm), ("temp", temp), ("home", home),
        *([("OUT", partial(store, place))] if place else []), ("GPU", gpu), ("Ray", ray),
    ]  # fmt: skip
    for name, look in looks:
        try:
            yield look()
        except (CamrayError, OSError) as error:
            said, _, fix = in_a_line(error).partition(". Fix: ")
            yield Check(name, said, fix or "see the message")


def packages() -> Check:
    """Compare what is installed with what camray's own metadata asks for."""
    try:
        needs = [Requirement(text) for text in requires("camray") or ()]
    except PackageNotFoundError:
        return Check("packages", "camray runs from a bare checkout: not compared")
    behind = [_behind(need) for need in needs if need.marker is None and _behind(need)]
    extras: dict[str, bool] = {}  # by name, whether all of it is there
    for need in needs:
        for name in re.findall(r"extra == .(\w+)", str(need.marker or "")):
            extras[name] = extras.get(name, True) and not _behind(need)
    core = ", ".join(f"{name} {_version(name)}" for name in ("camray", "torch", "timm", "ray", "deltalake"))
    there = ", ".join(sorted(name for name, whole in extras.items() if whole)) or "none"
    told = f"Python {platform.python_version()}, {core}; extras: {there}"
    fix = "pip install " + " ".join(f"'{need}'" for need in needs if need.marker is None and _behind(need))
    return Check("packages", "; ".join(behind) or told, fix if behind else "")


def _behind(need: Requirement) -> str:
    """Say what is installed where it is not what is needed."""
    found = _version(need.name)
    if found is not None and need.specifier.contains(found, prereleases=True):
        return ""
    return f"{need.name} is {found or 'missing'}, needed is {need.specifier or 'any'}"


def _version(name: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(name)
    return None


def machine() -> Check:
    """Count the cores and the memory that this process may use."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in _LIMITS:
        with suppress(OSError, ValueError):
            memory = min(memory, int(limit.read_text()))
    fix = f"{MEMORY_GIB:g} GiB or more; or --actors 1 --batch-size 1" if memory < MEMORY_GIB * GIB else ""
    return Check("machine", f"{cores} cores, {memory / GIB:.1f} GiB of memory", fix)


def shm() -> Check:
    """Look at shared memory, where Ray keeps what its workers pass on."""
    if not _SHM.is_dir():
        return Check("shm", f"{_SHM} is not there", "docker run --shm-size 2g, or --engine here")
    free = shutil.disk_usage(_SHM).free / GIB
    fix = "docker run --shm-size 2g (emptyDir of medium Memory), or --engine here" if free < SHM_GIB else ""
    return Check("shm", f"{free:.1f} GiB free in {_SHM}", fix)


def temp() -> Check:
    """Look at the folder of temporary files."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free / GIB
    fix = f"export TMPDIR=FOLDER with {TEMP_GIB:g} GiB free" if free < TEMP_GIB else ""
    return Check("temp", f"{free:.1f} GiB free in {folder}", fix)


def home() -> Check:
    """Look at HOME, where weights are cached and a cluster's token lies; camray works without it."""
    folder = Path(os.environ.get("HOME", ""))
    if "HOME" in os.environ and os.access(folder, os.W_OK):
        return Check("home", f"{folder} can be written")
    what = f"{folder} cannot be written" if "HOME" in os.environ else "HOME is not set"
    return Check("home", f"{what}: no weights are cached there; all else works")


def store(place: str) -> Check:
    """Try what a run needs of OUT: make a file, make it again in vain, read it, delete it."""
    out = open_folder(place, "OUT")
    out.reach("OUT")
    if out.is_local and not out.exists():
        above = next(p for p in Path(out.path).parents if p.exists())
        free = f"{shutil.disk_usage(above).free / GIB:.1f} GiB free"
        fix = "" if os.access(above, os.W_OK | os.X_OK) else f"choose another folder, or chmod u+w {above}"
        return Check("OUT", f"{out.uri} is not there yet; {free} in {above}", fix)
    name, began = f".camray-doctor-{secrets.token_hex(4)}", time.monotonic()
    try:
        made, again = out.create(name, b"camray"), out.create(name, b"other")
        read = out.read(name)
    finally:
        with suppress(OSError):
            out.delete(name)
    if not made or again or read != b"camray":
        why = f"{out.uri}: it makes an object that is there already (it ignores If-None-Match)"
        return Check("OUT", why, "a store with conditional writes, or a shared disk")
    free = f", {shutil.disk_usage(out.path).free / GIB:.1f} GiB free" if out.is_local else ""
    return Check("OUT", f"{out.uri} can be written{free}; {1000 * (time.monotonic() - began):.0f} ms")


def gpu() -> Check:
    """Ask torch for the device that `--device auto` would take."""
    from camray.flow.actor import device_here

    device = device_here("auto")
    if device == "cpu" and _NVIDIA.exists():
        return Check(
            "GPU", "there is an NVIDIA driver, and torch does not see a GPU", "install torch for CUDA"
        )
    return Check("GPU", "none: models run on the cores" if device == "cpu" else f"models run on {device}")


def ray() -> Check:
    """Start Ray here as a run does, or join the cluster that RAY_ADDRESS names."""
    from camray.flow.cluster import connect

    began = time.monotonic()
    cpus, gpus = connect()
    address = os.environ.get("RAY_ADDRESS")
    what = f"the cluster at {address}" if address else "starts here"
    return Check("Ray", f"{what}: {cpus:g} CPUs, {gpus:g} GPUs, in {time.monotonic() - began:.1f} s")
