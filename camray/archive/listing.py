"""What an archive holds: its packed shards and its loose files, by listing alone.

    path or URI ──walk──> files ──metadata, include, exclude, names──> Listing(shards, root, files, left_out)
                └─lists──> files, when ARCHIVE is itself a list of paths

`include` and `exclude` are globs on the path relative to the archive, where `*` also crosses folders: a
file is in when it matches one of `include` (or there is none) and none of `exclude`. Loose sidecars
(`x.txt` beside `x.jpg`) are no members; the image's version names them, so that a changed label is a
changed file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from pyarrow import fs as pafs

from camray.archive.lists import NOTE_MARK, base_of, files_of, is_list, noted, read_list
from camray.archive.metadata import Said, read_metadata
from camray.archive.names import extension_of, name_kind, shard_format, stem_of
from camray.archive.parquet import check_parquet
from camray.archive.walk import find_files, local_version
from camray.config import ArchiveConfig
from camray.errors import UsageError, printable
from camray.records import LooseFile, Shard
from camray.storage import Entry, Folder, open_folder

__all__ = ["Listing", "list_archive", "name_kind", "sidecar_extensions"]

_SIDECAR_MARK = "+"


@dataclass(frozen=True, slots=True)
class Listing:
    """What an archive holds, in order. `root` names it: what `files` are relative to, or their list."""

    shards: tuple[Shard, ...] = ()
    root: str = ""
    files: tuple[LooseFile, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)  # how many, by reason


def list_archive(config: ArchiveConfig) -> Listing:
    """List the archive at `config.path`: one file, what a list names, or a folder and all below it.

    Raises:
        UsageError: nothing there, no permission, an unsupported scheme, a Parquet file without a column of
            images or paths, or a list that cannot be understood.
    """
    if not config.path:
        raise UsageError("ARCHIVE", "no path given", "name a folder, a tar, zip or Parquet file, or a URI")
    folder = open_folder(config.path, "ARCHIVE")
    kind = _kind(folder)
    if kind == pafs.FileType.NotFound:
        raise _missing(folder)
    if kind == pafs.FileType.Directory:
        entries, left_out = find_files(folder)
        return _listing(folder, entries, left_out, config)
    if kind != pafs.FileType.File:
        raise UsageError("ARCHIVE", f"{folder.uri} is neither a file nor a folder", "name one of the two")
    if is_list(folder, config):
        return _from_list(folder, config)
    parent, _, name = folder.uri.rpartition("/")
    return _listing(open_folder(parent or "/", "ARCHIVE"), [_single(folder, name)], Counter(), config)


def sidecar_extensions(file: LooseFile) -> tuple[str, ...]:
    """Give the extensions of a loose image's sidecars, as the listing found them: `("cls", "txt")`."""
    marks = file.version.partition(NOTE_MARK)[0].split(_SIDECAR_MARK)[1:]
    return tuple(mark.partition("@")[0] for mark in marks)


def _kind(folder: Folder) -> pafs.FileType:
    try:
        if folder.is_local:
            os.stat(folder.path)  # says "no permission" where pyarrow says "not found"
        return folder.kind()
    except FileNotFoundError:
        return pafs.FileType.NotFound
    except OSError as error:
        why = printable(str(error.strerror or error))
        raise UsageError("ARCHIVE", f"{printable(folder.uri)}: {why}", "make it readable") from None


def _missing(folder: Folder) -> UsageError:
    if not folder.is_local:
        return UsageError("ARCHIVE", f"{folder.uri} is not there", "check the address")
    nearest = folder.path
    while not os.path.exists(nearest):
        nearest = os.path.dirname(nearest)
    fix = f"what exists is {nearest}"
    if set("*?[{") & set(folder.path):
        fix += "; for a pattern give the folder and --include 'GLOB'"
    return UsageError("ARCHIVE", printable(f"{folder.path} is not there"), fix)


def _single(folder: Folder, name: str) -> Entry:
    if folder.is_local:
        status = os.stat(folder.path)
        return Entry(name, status.st_size, local_version(status))
    info = folder.fs.get_file_info(folder.path)
    return Entry(name, info.size, str(info.mtime_ns))


def _from_list(place: Folder, config: ArchiveConfig) -> Listing:
    listed = read_list(place, config)
    chosen = {path: said for path, said in listed.found.items() if _is_chosen(path, config)}
    listed.left_out["excluded"] += len(listed.found) - len(chosen)
    files, shards = files_of(replace(listed, found=chosen), base_of(place.uri))
    check_parquet(shards, config)
    return Listing(shards, place.uri, files, +listed.left_out)


def _listing(folder: Folder, entries: list[Entry], left_out: Counter[str], config: ArchiveConfig) -> Listing:
    said, used = read_metadata(folder, entries, config)
    used |= _of_shards(entries)
    left_out["metadata"] += len(used)
    chosen = [entry for entry in entries if entry.path not in used and _is_chosen(entry.path, config)]
    left_out["excluded"] += len(entries) - len(used) - len(chosen)
    shards, loose = [], []
    for entry in chosen:
        packed = shard_format(entry.path)
        if packed is None:
            loose.append(entry)
        else:
            shards.append(Shard(folder.child_uri(entry.path), packed, entry.size_bytes, entry.version))
    check_parquet(shards, config)
    files = _loose_files(loose, said, {entry.path: entry.version for entry in entries})
    left_out["sidecar"] += len(loose) - len(files)
    left_out["in metadata only"] += len(said.keys() - {entry.path for entry in entries})
    return Listing(tuple(shards), folder.uri, files, +left_out)


def _of_shards(entries: list[Entry]) -> set[str]:
    """Find what img2dataset writes beside each tar: `00000.parquet`, `00000_stats.json`."""
    tars = {entry.path[:-4] for entry in entries if entry.path.endswith(".tar")}
    beside = {f"{stem}{ending}" for stem in tars for ending in (".parquet", "_stats.json")}
    return {entry.path for entry in entries if entry.path in beside}


def _is_chosen(path: str, config: ArchiveConfig) -> bool:
    if config.include and not any(fnmatchcase(path, pattern) for pattern in config.include):
        return False
    return not any(fnmatchcase(path, pattern) for pattern in config.exclude)


def _loose_files(entries: list[Entry], said: Said, versions: Mapping[str, str]) -> tuple[LooseFile, ...]:
    """Make loose files of all but the sidecars that belong to an image."""
    images = {stem_of(entry.path) for entry in entries if name_kind(entry.path) == "image"}
    marks: dict[str, str] = {}
    kept = []
    for entry in entries:
        stem = stem_of(entry.path)
        if name_kind(entry.path) == "sidecar" and stem in images:
            mark = f"{_SIDECAR_MARK}{extension_of(entry.path)}@{entry.version}"
            marks[stem] = marks.get(stem, "") + mark
        else:
            kept.append(entry)
    files = []
    for entry in kept:
        mark = marks.get(stem_of(entry.path), "") if name_kind(entry.path) == "image" else ""
        marked = Entry(entry.path, entry.size_bytes, entry.version + mark)
        annotation = said.get(entry.path)
        if annotation is None:
            files.append(LooseFile(marked.path, marked.size_bytes, marked.version))
        else:
            files.append(noted(marked, annotation, True, versions.get(annotation.mask or "", "")))
    return tuple(files)
