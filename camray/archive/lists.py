"""An archive that is a list of paths: csv, tsv, txt, jsonl, or Parquet without a column of images.

    list ──rows──> path, label, boxes, mask ──stat──> loose files (with a note) and packed shards

Paths are relative to the list's folder, or absolute, or URIs; one that leads out of the folder by `..`
becomes a failed record, and so does one with nothing there. Several rows of one image are several boxes.
What a row says goes into the file's note, and the note into its version: a changed label is a changed file.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

from pyarrow import fs as pafs

from camray.archive.annotations import Annotation, from_row, label_columns, to_note
from camray.archive.boxes import join_boxes
from camray.archive.names import shard_format
from camray.archive.parquet_columns import PATHS, path_column
from camray.archive.parquet_footer import open_parquet
from camray.archive.rows import ending, read_rows
from camray.archive.walk import local_version
from camray.config import ArchiveConfig
from camray.errors import ShardError, UsageError, printable
from camray.records import LooseFile, Shard
from camray.storage import Entry, Folder, open_folder

MISSING = "missing"
"""The version of a file that was not there when it was listed."""

NOTE_MARK = "~"
"""What separates the hash of a file's note from the rest of its version."""

_STAT_BATCH = 1000


@dataclass(slots=True)
class Listed:
    """What the rows of a list or metadata file say, by path, in the order of their first rows."""

    found: dict[str, Annotation] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    is_labelled: bool = False  # it has a column of labels

    def add(self, path: str, annotation: Annotation) -> None:
        """Take a row; a further row of a path brings a further box, or nothing and is counted."""
        before = self.found.setdefault(path, annotation)
        if before is annotation:
            return
        if annotation.boxes is not None:
            edges = [*(before.boxes.edges if before.boxes else ()), *annotation.boxes.edges]
            self.found[path] = replace(before, boxes=join_boxes(edges))
        else:
            self.left_out["listed twice"] += 1
        if (annotation.label, annotation.label_class) != (before.label, before.label_class):
            self.left_out["other label for a listed file"] += 1


def is_list(place: Folder, config: ArchiveConfig) -> bool:
    """Tell whether a file is a list of paths: by its ending, and a Parquet file by its columns."""
    if ending(place.path) != "parquet":
        return bool(ending(place.path))
    try:
        with place.open() as file:
            schema = open_parquet(file, file.size()).schema_arrow
    except (ShardError, OSError):
        return False  # said as a record, when the shard is read
    return path_column(schema, config.image_column) is not None


def base_of(root: str) -> Folder:
    """Give the folder that loose files are relative to: `root` itself, or the folder of the list it is."""
    place = open_folder(root, "ARCHIVE")
    if not ending(place.path) or place.kind() != pafs.FileType.File:
        return place
    address, query, options = place.uri.partition("?")
    return open_folder((address.rpartition("/")[0] or "/") + query + options, "ARCHIVE")


def read_list(place: Folder, config: ArchiveConfig, paths: tuple[str, ...] = PATHS) -> Listed:
    """Read a list or metadata file whole; `[archive] image_column` may name its column of paths.

    Raises:
        UsageError: naming the line and what is wrong there.
    """
    listed = Listed()
    paths = (config.image_column.lower(),) if config.image_column else paths
    for where, path, row in read_rows(place, paths):
        try:
            annotation = from_row(row, config.label_column, config.bbox)
        except ValueError as error:
            name = place.uri.rpartition("/")[2]
            raise UsageError("ARCHIVE", printable(f"{name} {where}: {error}"), "correct the row") from None
        listed.is_labelled = listed.is_labelled or bool(label_columns(row, config.label_column))
        listed.add(tidy(path), annotation)
    return listed


def tidy(path: str) -> str:
    """Give each path one spelling, so that the same file is listed once: no `./`, `//` or `a/../`."""
    scheme, separator, rest = path.partition("://")
    return f"{scheme}{separator}{posixpath.normpath(rest)}" if separator else posixpath.normpath(path)


def leads_out(path: str) -> bool:
    """Tell whether a relative path leaves the folder it is relative to."""
    return tidy(path).startswith("../") or tidy(path) == ".."


def files_of(listed: Listed, base: Folder) -> tuple[tuple[LooseFile, ...], tuple[Shard, ...]]:
    """Look each listed file up: the loose ones, and the packed ones as shards."""
    masks = [a.mask for a in listed.found.values() if a.mask]
    wanted = dict.fromkeys([*listed.found, *masks])
    entries = {entry.path: entry for entry in _look_up(wanted, base)}
    files, shards = [], []
    for path, annotation in listed.found.items():
        entry, packed = entries[path], shard_format(path)
        if packed is not None and not leads_out(path):
            place, inner = locate(base, path)
            shards.append(Shard(place.child_uri(inner), packed, entry.size_bytes, entry.version))
            continue
        mask = entries[annotation.mask].version if annotation.mask else ""
        files.append(noted(entry, annotation, listed.is_labelled, mask))
    return tuple(files), tuple(shards)


def noted(entry: Entry, annotation: Annotation, is_labelled: bool, mask_version: str = "") -> LooseFile:
    """Make a loose file that carries what is said of it, and whose version names that."""
    note = to_note(annotation, is_labelled)
    said = hashlib.blake2b(f"{note}|{mask_version}".encode("utf-8", "surrogateescape"), digest_size=8)
    version = f"{entry.version}{NOTE_MARK}{said.hexdigest()}" if note else entry.version
    return LooseFile(entry.path, entry.size_bytes, version, note)


def locate(base: Folder, path: str) -> tuple[Folder, str]:
    """Find the folder to open a listed path in, and the path inside it."""
    if "://" in path:
        scheme, _, rest = path.partition("://")
        host, _, inner = rest.partition("/")
        inner, query, options = inner.partition("?")
        return _store(f"{scheme}://{host or '/'}{query}{options}"), inner
    if path.startswith("/") and not base.is_local:
        return _store("/"), path.removeprefix("/")
    return base, path


@lru_cache(maxsize=64)
def _store(uri: str) -> Folder:
    return open_folder(uri, "ARCHIVE")


def _look_up(paths: Iterable[str], base: Folder) -> Iterator[Entry]:
    """Give each path its size and version; what is not there has the version `MISSING`."""
    remote: dict[str, tuple[Folder, list[tuple[str, str]]]] = {}
    for path in paths:
        if leads_out(path):
            yield Entry(path, 0, MISSING)
            continue
        folder, inner = locate(base, path)
        if folder.is_local:
            yield _local(path, os.path.join(folder.path, inner))
        else:
            remote.setdefault(folder.uri, (folder, []))[1].append((path, inner))
    for folder, asked in remote.values():
        for start in range(0, len(asked), _STAT_BATCH):
            batch = asked[start : start + _STAT_BATCH]
            try:
                infos = folder.fs.get_file_info([folder.at(inner) for _, inner in batch])
            except OSError as error:
                raise UsageError(
                    "ARCHIVE", printable(f"{folder.uri}: {error}"), "check the address and the credentials"
                ) from None
            for (path, _), info in zip(batch, infos, strict=True):
                there = info.type == pafs.FileType.File
                yield Entry(path, info.size if there else 0, str(info.mtime_ns) if there else MISSING)


def _local(path: str, place: str) -> Entry:
    try:
        status = os.stat(place)
    except (OSError, ValueError):
        return Entry(path, 0, MISSING)
    if not stat.S_ISREG(status.st_mode):
        return Entry(path, 0, MISSING)
    return Entry(path, status.st_size, local_version(status))
