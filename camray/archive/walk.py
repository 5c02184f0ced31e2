"""Every file below a folder, local or in an object store, with size and version. Nothing is opened.

A local walk follows symbolic links but enters each real folder once, so that loops end; real folders come
before linked ones, so that a new link never renames what was there. Hidden folders, and folders that are an
output of camray, are not entered. What is left out is counted by reason.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable

from camray.archive.names import is_junk
from camray.errors import UsageError
from camray.storage import Entry, Folder

OUTPUT_MARK = "records/_delta_log"
"""A folder that holds this is an output of camray, never a part of an archive."""


def find_files(folder: Folder) -> tuple[list[Entry], Counter[str]]:
    """List the files below `folder`, sorted by path, and count what was left out by reason.

    Raises:
        UsageError: the folder is itself an output of camray, or cannot be listed.
    """
    entries, left_out = _LocalWalk(folder.path).run() if folder.is_local else _remote(folder)
    return sorted(entries, key=lambda entry: entry.path), left_out


def local_version(status: os.stat_result) -> str:
    """Give the version of a local file as a listing holds it: its modification time in nanoseconds."""
    return str(status.st_mtime_ns)


class _LocalWalk:
    def __init__(self, root: str) -> None:
        self.root = root
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
                with os.scandir(path) as found:
                    children = sorted(found, key=lambda child: child.name)
            except OSError:
                self.left_out["unreadable folder"] += 1
                continue
            for child in children:
                name = f"{relative}/{child.name}" if relative else child.name
                self.visit(child, name, pending)

    def visit(self, child: os.DirEntry[str], name: str, pending: list[str]) -> None:
        """Sort one folder entry into files, folders to enter, and what is left out."""
        try:
            status = child.stat()
        except OSError:  # a broken or looping link, or gone
            self.left_out["not a file"] += 1
            return
        if is_junk(child.name):
            self.left_out["junk"] += 1
        elif stat.S_ISDIR(status.st_mode):
            (self.links if child.is_symlink() else pending).append(name)
        elif stat.S_ISREG(status.st_mode):
            self.entries.append(Entry(name, status.st_size, local_version(status)))
        else:
            self.left_out["not a file"] += 1


def _remote(folder: Folder) -> tuple[list[Entry], Counter[str]]:
    try:
        listed = list(folder.entries())
    except OSError as error:
        raise UsageError(
            "ARCHIVE", f"{folder.uri}: {error}", "check the address and the credentials"
        ) from None
    outputs = _outputs(entry.path for entry in listed)
    if "" in outputs:
        raise _is_output(folder.uri)
    entries: list[Entry] = []
    left_out: Counter[str] = Counter()
    for entry in listed:
        parts = entry.path.split("/")
        if any("/".join(parts[:depth]) in outputs for depth in range(1, len(parts))):
            left_out["camray output"] += 1
        elif any(is_junk(part) for part in parts):
            left_out["junk"] += 1
        else:
            entries.append(entry)
    return entries, left_out


def _outputs(paths: Iterable[str]) -> set[str]:
    """Find the folders that are outputs of camray, going by the paths below them."""
    found = set()
    for path in paths:
        before, mark, _ = f"/{path}".partition(f"/{OUTPUT_MARK}/")
        if mark:
            found.add(before.removeprefix("/"))
    return found


def _is_output(place: str) -> UsageError:
    return UsageError("ARCHIVE", f"{place} is an output of camray", "name the folder that holds the images")
