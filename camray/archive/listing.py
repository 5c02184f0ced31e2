"""What an archive holds: its packed shards and its loose files, by listing alone.

    path or URI ──places──> files ──metadata, include, exclude──> Listing(shards, root, files, left_out)
                └─tables──> files, when ARCHIVE is itself a list of paths

`include` and `exclude` are globs on the path relative to the archive, where `*` also crosses folders: a
file is in when it matches one of `include` (or there is none) and none of `exclude`. Loose sidecars
(`x.txt` beside `x.jpg`) are no members. A loose file's version names them, and what a list or metadata file
says of it: a changed label is a changed file.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from urllib.parse import unquote

from pyarrow import fs as pafs

from camray.archive.annotations import Annotation, to_note
from camray.archive.frames import FIRST, version_mark
from camray.archive.names import extension_of, file_kind, name_kind, stem_of, table_ending
from camray.archive.patterns import base_folder, expand, is_pattern, matched
from camray.archive.places import (
    MISSING,
    NOWHERE,
    UNDATED,
    UNREADABLE,
    base_of,
    entry_now,
    find_files,
    leads_out,
    locate,
    look_up,
)
from camray.archive.readers import METADATA, check_shards, packed_format, readers
from camray.archive.sniff import is_packed, looks_like
from camray.archive.tables import is_list, read_list, read_metadata, said_of_files, spellings
from camray.config import ArchiveConfig
from camray.errors import UsageError, printable
from camray.records import UNSEEN, LooseFile, Shard
from camray.storage import Entry, Folder, open_folder

LOST = (
    "in metadata for several files", "in metadata only", "listed twice", "other label for a listed file",
    "unusable row of metadata",
)  # fmt: skip
"""What a list or metadata says and nothing follows from, of the reasons in `Listing.left_out`."""

SILENT = "URLs without an answer: taken as they were"
DATELESS = "URLs without ETag or date: taken as unchanged where the size is (--rehash reads them)"
UNSURE = (SILENT, DATELESS, UNREADABLE, NOWHERE)
"""What web servers leave open of listed files, and what cannot be seen tonight, counted there too."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What an archive holds, in order. `root` names it: what `files` are relative to, or their list."""

    shards: tuple[Shard, ...] = ()
    root: str = ""
    files: tuple[LooseFile, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)  # how many, by reason
    name: str = ""  # what OUT calls `root`, if otherwise
    parts: tuple[Listing, ...] = ()  # where there are several archives; they differ in identity

    @property
    def archives(self) -> tuple[Listing, ...]:
        """The listings of single archives, each with the loose files of one root."""
        return self.parts or (self,)

    @property
    def identity(self) -> str:
        """What OUT calls the place that the loose files are relative to."""
        return self.name or self.root


def list_archive(config: ArchiveConfig) -> Listing:
    """List the archive at `config.path`: one file, what a list names, or a folder and all below it.

    Raises:
        UsageError: nothing there, no permission, an unsupported scheme, a Parquet file without a column of
            images or paths, or a list that cannot be understood.
    """
    if not config.path:
        raise UsageError("ARCHIVE", "no path given", "name a folder, a tar, zip or Parquet file, or a URI")
    _check_encoding("--zip-encoding", config.zip_encoding)
    _check_encoding("--encoding", config.encoding)
    listing = _listed(config)
    return called(listing, config.path, config.name) if config.name else listing


def _listed(config: ArchiveConfig) -> Listing:
    if _is_uri_pattern(config.path):
        return _from_pattern(config.path, config)
    folder = open_folder(config.path, "ARCHIVE")
    kind = _kind(folder)
    if kind == pafs.FileType.NotFound:
        if is_pattern(folder.path) and folder.is_local:
            return _from_pattern(folder.path, config)
        raise _missing(folder)
    if kind == pafs.FileType.Directory:
        return _from_folder(folder, *find_files(folder, config.include), config)
    if kind != pafs.FileType.File:
        raise UsageError("ARCHIVE", f"{folder.uri} is neither a file nor a folder", "name one of the two")
    return _from_list(folder, config) if is_list(folder, config) else _from_file(folder, config)


def _is_uri_pattern(path: str) -> bool:
    """Tell whether a URI is a pattern; a key that holds such characters is written with %2A, %5B, %7B."""
    return "://" in path and is_pattern(_address(path))


def called(listing: Listing, path: str, name: str) -> Listing:
    """Give a listing of the archive at `path` the identity it has at `name`: shards, root of loose files.

    Where its files are opened stays as it is. So an archive that was moved, or is reached by another path, is
    the same archive for OUT.
    """
    here, there = place_of(listing, path), name.removeprefix("file://").rstrip("/") or "/"
    pairs = [(here, there)]
    if here != listing.root or table_ending(_address(here)):  # a file: its neighbours went along with it
        pairs.append((_above(here), _above(there)))

    def moved(uri: str) -> str:
        address, options = _address(uri), there.removeprefix(_address(there))
        for old, new in pairs:
            if address == _address(old) or address.startswith(_address(old) + "/"):
                return _address(new) + address.removeprefix(_address(old)) + options
        return uri

    shards = [replace(shard, uri=moved(shard.uri), place=shard.uri) for shard in listing.shards]
    return replace(listing, shards=tuple(shards), name=moved(listing.root))


def joined(listings: Sequence[Listing]) -> Listing:
    """Put the listings of several archives together; what two of them hold is there once.

    Raises:
        UsageError: one lies inside another: its images would have two names.
    """
    by_identity: dict[str, Listing] = {}
    for listing in listings:
        name = listing.identity
        files = {file.path: replace(file, archive=name) for file in listing.files}
        if name in by_identity:  # two files of one folder
            files = {file.path: file for file in by_identity[name].files} | files
        by_identity[name] = replace(listing, files=tuple(files.values()))
    roots = sorted(name for name, listing in by_identity.items() if listing.files)
    for outer, inner in itertools.pairwise(roots):
        if inner.startswith(outer.rstrip("/") + "/") and not table_ending(inner):
            raise UsageError("ARCHIVE", printable(f"{inner} lies inside {outer}"), "give the outer one alone")
    shards = {shard.uri: shard for listing in listings for shard in listing.shards}
    left_out: Counter[str] = sum((Counter(listing.left_out) for listing in listings), Counter())
    parts = tuple(by_identity.values())
    every = tuple(file for part in parts for file in part.files)
    return Listing(tuple(shards.values()), listings[0].root, every, left_out, listings[0].name, parts)


def place_of(listing: Listing, path: str) -> str:
    """Give the place that ARCHIVE names: of a pattern, the folder that holds all it may match."""
    if _is_uri_pattern(path):
        return listing.root
    folder = open_folder(path, "ARCHIVE")
    return listing.root if folder.is_local and not os.path.lexists(folder.path) else folder.uri


def _address(uri: str) -> str:
    return uri.partition("?")[0] if "://" in uri else uri


def _above(uri: str) -> str:
    return _address(uri).rpartition("/")[0] or uri


_NO_FILES = ("idna", "punycode", "unicode-escape", "raw-unicode-escape")  # of host names and of source text


def _check_encoding(option: str, name: str | None) -> None:
    try:
        codec = codecs.lookup(name or "utf-8").name
        "x".encode(codec)
        if codec in _NO_FILES:
            raise LookupError
    except (LookupError, ValueError):
        problem = printable(f"{name!r} is no encoding of text")
        raise UsageError(option, problem, "cp850, shift_jis, gbk, cp1252 ...") from None


def _from_file(place: Folder, config: ArchiveConfig) -> Listing:
    parent, name = place.parent()
    if packed_format(name) is None:
        _refuse_what_is_not_read(place, name, config.reads_arrays)
    entry = entry_now(place, name)
    return _from_folder(parent, [entry] if entry else [], Counter(), config)


def _refuse_what_is_not_read(place: Folder, name: str, arrays: bool) -> None:
    """Refuse one file that is no image by its name, or packed by its content."""
    try:
        with place.open() as file:
            looks = looks_like(file.read(512))
    except OSError as error:
        raise UsageError("ARCHIVE", f"{place.uri}: {error.strerror or error}", "make it readable") from None
    is_array = arrays and looks == "NumPy array"
    if file_kind(name, arrays) == "image" and (is_array or not is_packed(looks)):
        return
    endings = ", ".join(suffix for reader in readers().values() for suffix in reader.suffixes)
    what = (
        f"{printable(name)} is no image, and of what is packed camray reads {endings}; it looks like {looks}"
    )
    raise UsageError("ARCHIVE", what, "unpack it, or give it the ending of what it is")


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
    return UsageError("ARCHIVE", printable(f"{folder.path} is not there"), f"what exists is {nearest}")


def _is_chosen(path: str, config: ArchiveConfig) -> bool:
    if config.include and not any(fnmatchcase(path, pattern) for pattern in config.include):
        return False
    return not any(fnmatchcase(path, pattern) for pattern in config.exclude)


def _from_pattern(pattern: str, config: ArchiveConfig) -> Listing:
    """List what a pattern matches, with the sidecars and metadata files beside it."""
    alternatives = expand(_address(pattern))
    base = base_folder(alternatives)
    folder = open_folder((base or "/") + pattern.removeprefix(_address(pattern)), "ARCHIVE")
    if _kind(folder) != pafs.FileType.Directory:
        raise _missing(folder)
    entries, left_out = find_files(folder, (pattern, *config.include))
    inner = [alternative.removeprefix(base).removeprefix("/") for alternative in alternatives]
    inner = inner if folder.is_local else [unquote(alternative) for alternative in inner]
    meant, unmatched = matched((entry.path for entry in entries), inner)
    if unmatched:
        count = f"{len(unmatched):,} of the {len(inner):,} paths it stands for match nothing"
        problem = f"{pattern}: {count}, the first is {unmatched[0]}"
        raise UsageError("ARCHIVE", printable(problem), f"see what {printable(folder.uri)} holds")
    stems = {stem_of(path) for path in meant if name_kind(path, config.reads_arrays) == "image"}
    for entry in entries:
        is_sidecar = name_kind(entry.path) == "sidecar" and stem_of(entry.path) in stems
        if is_sidecar or entry.path.rpartition("/")[2] in METADATA:
            meant.add(entry.path)
    return _from_folder(folder, [entry for entry in entries if entry.path in meant], left_out, config)


def _shard(uri: str, packed: str, entry: Entry, config: ArchiveConfig) -> Shard:
    return Shard(uri, packed, entry.size_bytes, entry.version + version_mark(config.frames))


# ── a list ───────────────────────────────────────────────────────────────────────────────────────


def _from_list(place: Folder, config: ArchiveConfig) -> Listing:
    listed, base = read_list(place, config), base_of(place.uri)
    said = listed.annotations
    entries = _found(said, base)
    masks = _found([annotation.mask for annotation in said.values() if annotation.mask], base)
    files, shards, taken = [], [], set[str]()
    for path, annotation in said.items():
        entry = entries[path]
        if not _is_chosen(entry.path, config):
            listed.left_out["excluded"] += 1
        elif entry.path in taken:
            listed.left_out["listed twice"] += 1
        elif (packed := packed_format(path)) is not None and not leads_out(path):
            folder, inner = locate(base, entry.path)
            shards.append(_shard(folder.child_uri(inner), packed, entry, config))
        else:
            mask = masks[annotation.mask] if annotation.mask else None
            entry = _as_told(entry, mask, listed.left_out)
            note = to_note(replace(annotation, mask=mask.path if mask else None), listed.is_labelled)
            files.append(loose_file(entry, (), note, mask.version if mask else "", config.frames))
        taken.add(entry.path)
    unusable = {name: row for name, row in listed.unusable.items() if _is_chosen(name, config)}
    files += [
        loose_file(Entry(n, 0, MISSING), (), to_note(row, True), frames=config.frames)
        for n, row in unusable.items()
    ]
    check_shards(shards, config)
    return Listing(tuple(shards), place.uri, tuple(files), +listed.left_out)


def _as_told(entry: Entry, mask: Entry | None, left_out: Counter[str]) -> Entry:
    """Count what a web server leaves open; without an answer for its mask, a file gave none itself."""
    if UNSEEN in (entry.version, mask and mask.version):
        left_out[SILENT] += 1
        return replace(entry, version=UNSEEN)
    left_out[DATELESS] += entry.version == UNDATED
    return entry


def _found(paths: Iterable[str], base: Folder) -> dict[str, Entry]:
    """Look the listed paths up, however a file system spells them; what is not there stays as listed."""
    spelled = {path: spellings(path) for path in paths}
    there = {
        entry.path: entry for entry in look_up({s: None for all_ in spelled.values() for s in all_}, base)
    }
    found = {}
    for path, ways in spelled.items():
        hits = [there[way] for way in ways if there[way].version != MISSING]
        exact = there[path].version != MISSING
        found[path] = hits[0] if exact or len(hits) == 1 else Entry(path, 0, MISSING)
    return found


# ── a folder ─────────────────────────────────────────────────────────────────────────────────────


def _from_folder(
    folder: Folder, entries: list[Entry], left_out: Counter[str], config: ArchiveConfig
) -> Listing:
    metadata, used = read_metadata(folder, entries, config)
    used |= _beside_shards(entries)
    left_out += metadata.left_out
    left_out["metadata"] += len(used)
    chosen = [entry for entry in entries if entry.path not in used and _is_chosen(entry.path, config)]
    left_out["excluded"] += len(entries) - len(used) - len(chosen)
    shards, loose = [], []
    for entry in chosen:
        packed = packed_format(entry.path)
        if packed is None:
            loose.append(entry)
        else:
            shards.append(_shard(folder.child_uri(entry.path), packed, entry, config))
    has_others = any(file_kind(entry.path, config.reads_arrays) == "image" for entry in loose)
    tables = check_shards(shards, config, has_others)
    left_out["table without images"] += len(tables)
    shards = [shard for shard in shards if shard.uri not in tables]
    annotations = said_of_files(metadata.annotations, [entry.path for entry in entries], left_out)
    versions = {entry.path: entry.version for entry in entries}
    files = _loose_files(loose, annotations, versions, config)
    left_out["sidecar"] += len(loose) - len(files)
    return Listing(tuple(shards), folder.uri, files, +left_out)


def _beside_shards(entries: list[Entry]) -> set[str]:
    """Find what img2dataset writes beside each tar or folder: `00000.parquet`, `00000_stats.json`."""
    paths = {entry.path for entry in entries}
    stems = {path[:-4] for path in paths if path.endswith(".tar")}
    folders = {path.rpartition("/")[0] for path in paths}
    stems |= {f for f in folders if f.rpartition("/")[2].isdigit() and f"{f}_stats.json" in paths}
    return paths & {f"{stem}{ending}" for stem in stems for ending in (".parquet", "_stats.json")}


def _loose_files(
    entries: list[Entry],
    annotations: Mapping[str, Annotation],
    versions: Mapping[str, str],
    config: ArchiveConfig,
) -> tuple[LooseFile, ...]:
    """Make loose files of all but the sidecars that belong to an image."""
    images = {stem_of(e.path) for e in entries if name_kind(e.path, config.reads_arrays) == "image"}
    sidecars: dict[str, list[Entry]] = {}
    others = []
    for entry in entries:
        stem = stem_of(entry.path)
        if name_kind(entry.path) == "sidecar" and stem in images:
            sidecars.setdefault(stem, []).append(entry)
        else:
            others.append(entry)
    files = []
    for entry in others:
        is_image = name_kind(entry.path, config.reads_arrays) == "image"
        beside = sidecars.get(stem_of(entry.path), ()) if is_image else ()
        annotation = annotations.get(entry.path)
        note = to_note(annotation, True) if annotation else ""
        mask = versions.get(annotation.mask or "", "") if annotation else ""
        files.append(loose_file(entry, beside, note, mask, config.frames))
    return tuple(files)


def loose_file(
    entry: Entry,
    sidecars: Sequence[Entry] = (),
    note: str = "",
    mask_version: str = "",
    frames: str = FIRST,
) -> LooseFile:
    """Make a loose file whose version is the fingerprint of all that decides its record."""
    marks = "".join(f"+{extension_of(sidecar.path)}@{sidecar.version}" for sidecar in sidecars)
    if note:
        text = f"{note}|{mask_version}".encode("utf-8", "surrogateescape")
        marks += f"~{hashlib.blake2b(text, digest_size=8).hexdigest()}"
    marks += version_mark(frames)
    endings = tuple(sidecar.path.rpartition(".")[2] for sidecar in sidecars)
    return LooseFile(entry.path, entry.size_bytes, entry.version + marks, note, endings)
