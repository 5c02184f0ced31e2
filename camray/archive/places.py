"""Where the files of an archive lie: below a folder, or where a list says. Nothing is opened.

A local walk follows symbolic links but enters each real folder once, so that loops end; real folders come
before linked ones, so that a new link never renames what was there. Hidden folders, those that other programs
leave behind (`@eaDir`, `lost+found`), and outputs of camray are not entered; an `--include` that spells the
name of one lets it in, as a pattern of a shell does. What is left out is counted by reason. Paths of a list
are relative to its folder, or absolute, or URIs.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial

from pyarrow import fs as pafs

from camray.archive.names import is_web, junk_part, table_ending
from camray.errors import UsageError, printable
from camray.storage import Entry, Folder, open_folder

OUTPUT_MARK = "records/_delta_log"
"""A folder that holds this is an output of camray, never a part of an archive."""

MISSING = "missing"
"""The version of a file that was not there when it was listed."""

UNREADABLE = "folders that cannot be read: what lies in them is left out"
NOWHERE = "links that lead nowhere now: left out"
UNDATED = "undated"
"""The version of a file whose server gives none: taken as unchanged while its size is the same."""


class RefusedError(ValueError):
    """A place that is not asked, whatever would answer there."""


_STAT_BATCH = 1000
_NO_STORE = "check the address and the credentials"


# ── one file ─────────────────────────────────────────────────────────────────────────────────────


def entry_now(place: Folder, name: str = "") -> Entry | None:
    """Give the size and version that a file has now, as a listing would; None where a store has none.

    Raises:
        OSError: it is not there, or cannot be looked at.
    """
    if place.is_local:
        return _local_entry(name, os.stat(place.path))
    info = place.fs.get_file_info(place.path)
    return _store_entry(name, info) if info.type == pafs.FileType.File else None


def _local_entry(name: str, status: os.stat_result) -> Entry:
    return Entry(name, status.st_size, str(status.st_mtime_ns))


def _store_entry(name: str, info: pafs.FileInfo) -> Entry:
    return Entry(name, int(info.size), str(info.mtime_ns))


# ── the files below a folder ─────────────────────────────────────────────────────────────────────


def find_files(folder: Folder, include: Sequence[str] = ()) -> tuple[list[Entry], Counter[str]]:
    """List the files below `folder`, sorted by path, and count what was left out by reason.

    Of what is hidden or junk, only what one of the patterns `include` spells out is listed.

    Raises:
        UsageError: the folder is itself an output of camray, or cannot be listed.
    """
    find = _LocalWalk(folder.path, include).run if folder.is_local else partial(_remote, folder, include)
    entries, left_out = find()
    return sorted(entries, key=lambda entry: entry.path), left_out


class _LocalWalk:
    def __init__(self, root: str, include: Sequence[str]) -> None:
        self.root, self.include = root, include
        self.entries: list[Entry] = []
        self.left_out: Counter[str] = Counter()
        self.links: list[str] = []
        self.seen: set[tuple[int, int]] = set()

    def run(self) -> tuple[list[Entry], Counter[str]]:
        if os.path.isdir(os.path.join(self.root, OUTPUT_MARK)):
            raise _is_output(self.root)
        try:
            os.listdir(self.root)
        except OSError as error:
            raise UsageError("ARCHIVE", f"{self.root}: {error.strerror}", "make it readable") from None
        self.walk("")
        while self.links:
            links, self.links = sorted(self.links), []
            for link in links:
                self.walk(link)
        return self.entries, self.left_out

    def walk(self, start: str) -> None:
        """Walk the real folders below `start`; linked ones are put off to `links`."""
        pending = [start]
        while pending:
            relative = pending.pop()
            path = os.path.join(self.root, relative)
            try:
                status = os.stat(path)
                if (status.st_dev, status.st_ino) in self.seen:
                    self.left_out["folder seen before"] += 1
                    continue
                self.seen.add((status.st_dev, status.st_ino))
                if relative and os.path.isdir(os.path.join(path, OUTPUT_MARK)):
                    self.left_out["camray output"] += 1
                    continue
                with os.scandir(path) as scan:
                    children = sorted(scan, key=lambda child: child.name)
            except OSError:
                self.left_out[UNREADABLE] += 1
                continue
            for child in children:
                name = f"{relative}/{child.name}" if relative else child.name
                self.visit(child, name, pending)

    def visit(self, child: os.DirEntry[str], name: str, pending: list[str]) -> None:
        """Sort one folder entry into files, folders to enter, and what is left out."""
        try:
            status = child.stat()
        except OSError:  # a broken or looping link, or gone
            self.left_out[NOWHERE] += 1
            return
        if reason := _junk(child.name, self.include):
            self.left_out[reason] += 1
        elif stat.S_ISDIR(status.st_mode):
            (self.links if child.is_symlink() else pending).append(name)
        elif stat.S_ISREG(status.st_mode):
            self.entries.append(_local_entry(name, status))
        else:
            self.left_out["not a file"] += 1


def _junk(path: str, include: Sequence[str]) -> str:
    """Say as what a path is left out: `junk` where hidden, `junk (@eaDir)`; empty where it is not."""
    for part in filter(junk_part, path.split("/")):
        if not any(part in pattern for pattern in include):
            return "junk" if part.startswith(".") else f"junk ({part.strip()})"
    return ""


def _remote(folder: Folder, include: Sequence[str]) -> tuple[list[Entry], Counter[str]]:
    try:
        listed = list(folder.entries())
    except OSError as error:
        raise UsageError("ARCHIVE", f"{folder.uri}: {error}", _NO_STORE) from None
    outputs = _outputs(entry.path for entry in listed)
    if "" in outputs:
        raise _is_output(folder.uri)
    entries: list[Entry] = []
    left_out: Counter[str] = Counter()
    for entry in listed:
        parts = entry.path.split("/")
        if any("/".join(parts[:depth]) in outputs for depth in range(1, len(parts))):
            left_out["camray output"] += 1
        elif reason := _junk(entry.path, include):
            left_out[reason] += 1
        else:
            entries.append(entry)
    return entries, left_out


def _outputs(paths: Iterable[str]) -> set[str]:
    """Find the folders that are outputs of camray, going by the paths below them."""
    outputs = set()
    for path in paths:
        before, mark, _ = f"/{path}".partition(f"/{OUTPUT_MARK}/")
        if mark:
            outputs.add(before.removeprefix("/"))
    return outputs


def _is_output(place: str) -> UsageError:
    return UsageError("ARCHIVE", f"{place} is an output of camray", "name the folder that holds the images")


# ── the files that a list names ──────────────────────────────────────────────────────────────────


def tidy(path: str) -> str:
    """Give each path one spelling, so that the same file is listed once: no `./`, `//` or `a/../`.

    To a web server all of these may be different files: a URL stays as it is.
    """
    if is_web(path):
        return path
    scheme, separator, rest = path.partition("://")
    return f"{scheme}{separator}{posixpath.normpath(rest)}" if separator else posixpath.normpath(path)


def leads_out(path: str) -> bool:
    """Tell whether a relative path leaves the folder it is relative to."""
    return tidy(path).startswith("../") or tidy(path) == ".."


def base_of(root: str) -> Folder:
    """Give the folder that loose files are relative to: `root` itself, or the folder of the list it is."""
    place = open_folder(root, "ARCHIVE")
    return place.parent()[0] if _is_list(place) else place


def finder(root: str) -> Callable[[str], tuple[Folder, str]]:
    """Give what finds the folder to open a loose file in, and the path inside it.

    A list may name places anywhere. What a folder holds lies in it, whatever its name looks like.
    """
    place = open_folder(root, "ARCHIVE")
    if _is_list(place):
        return partial(locate, place.parent()[0])
    return lambda path: (place, path)


def _is_list(place: Folder) -> bool:
    return bool(table_ending(place.path)) and place.kind() == pafs.FileType.File


def locate(base: Folder, path: str) -> tuple[Folder, str]:
    """Find the folder to open a path of a list in, and the path inside it."""
    if is_web(path):
        from camray.archive.web import WEB  # with what it loads, where it is needed

        return WEB, path
    if "://" in path:
        scheme, _, rest = path.partition("://")
        host, _, inner = rest.partition("/")
        inner, query, options = inner.partition("?")
        return _store(f"{scheme}://{host or '/'}{query}{options}"), inner
    if path.startswith("/"):
        return _store("/"), path.removeprefix("/")
    return base, path


@lru_cache(maxsize=64)
def _store(uri: str) -> Folder:
    return open_folder(uri, "ARCHIVE")


def look_up(paths: Iterable[str], base: Folder) -> Iterator[Entry]:
    """Give each path its size and version; what is not there has the version `MISSING`."""
    remote: dict[str, tuple[Folder, list[tuple[str, str]]]] = {}
    urls = []
    for path in paths:
        if is_web(path):
            urls.append(path)
            continue
        if leads_out(path):
            yield Entry(path, 0, MISSING)
            continue
        folder, inner = locate(base, path)
        if folder.is_local:
            yield _look_up_local(path, folder.at(inner))
        else:
            remote.setdefault(folder.uri, (folder, []))[1].append((path, inner))
    if urls:
        from camray.archive import web

        yield from web.look_up(urls)
    for folder, asked in remote.values():
        for start in range(0, len(asked), _STAT_BATCH):
            batch = asked[start : start + _STAT_BATCH]
            try:
                infos = folder.fs.get_file_info([folder.at(inner) for _, inner in batch])
            except OSError as error:
                raise UsageError("ARCHIVE", printable(f"{folder.uri}: {error}"), _NO_STORE) from None
            for (path, _), info in zip(batch, infos, strict=True):
                is_file = info.type == pafs.FileType.File
                yield _store_entry(path, info) if is_file else Entry(path, 0, MISSING)


def _look_up_local(path: str, place: str) -> Entry:
    try:
        status = os.stat(place)
    except (OSError, ValueError):
        return Entry(path, 0, MISSING)
    return _local_entry(path, status) if stat.S_ISREG(status.st_mode) else Entry(path, 0, MISSING)
