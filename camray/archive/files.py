"""The members of a group of loose files, with what is said of each.

The note that a list or metadata file gave a file counts first; then the sidecars beside it; then, for the
label alone, the class folder. Where the note comes with labels at all, nothing else gives one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from camray.archive.annotations import (
    Annotation,
    annotated,
    from_note,
    merged,
    read_sidecar,
    size_cap,
    whole_of,
)
from camray.archive.names import extension_of, file_kind, stem_of
from camray.archive.places import MISSING, RefusedError, finder, leads_out
from camray.archive.readers import IsNeeded, failed, size_problem, skipped
from camray.archive.tables import path_inside, spellings
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ImageError, UsageError, printable
from camray.records import LooseFile, Member, Shard
from camray.storage import Folder

Finder = Callable[[str], tuple[Folder, str]]
"""What finds the folder to open a loose file in, and the path inside it."""


class _NoFileError(OSError):
    """A path that is no file to be read, whatever the disk says."""


_SEALED = (
    _NoFileError, FileNotFoundError, NotADirectoryError, IsADirectoryError, UsageError, RefusedError,
    ValueError,
)  # fmt: skip
"""What the listing or its path already tells, and tells anew when it changes; the rest may pass."""


def read_files(shard: Shard, config: ArchiveConfig, is_needed: IsNeeded) -> Iterator[Member]:
    """Yield one member per file of the group. A file that vanished is a failed member."""
    find = finder(shard.root)
    for index, file in enumerate(shard.files):
        yield _member(find, file, index, config, is_needed)


def _member(find: Finder, file: LooseFile, index: int, config: ArchiveConfig, is_needed: IsNeeded) -> Member:
    kind, limit = file_kind(file.path, config.reads_arrays), config.max_member_bytes
    noted, _ = from_note(file.note)
    if noted.problem is not None:
        return annotated(Member(index, file.path), noted)
    if kind != "image":
        what = "no image has this name" if kind == "sidecar" else f"a .{extension_of(file.path)} file"
        return skipped(index, file.path, what)
    if problem := size_problem(file.size_bytes, limit):
        return failed(index, file.path, ErrorCode.MEMBER_TOO_LARGE, problem)
    if not is_needed(index):
        return Member(index, file.path)
    annotation = Annotation()
    content = mask = None
    try:
        annotation = _annotation(find, file, config)
        if annotation.problem is None:
            content = _content(find, file.path, limit, was_there=not file.version.startswith(MISSING))
            name = annotation.mask
            mask = None if name is None else _content(find, name, limit, f"mask {name}: ")
    except ImageError as error:
        return annotated(failed(index, file.path, error.code, error.message), annotation)
    return annotated(Member(index, file.path, content, mask=mask), annotation)


def read_named(base: Folder, member: Member, limit: int) -> Member:
    """Read the files that a table names for a member: relative to its folder, and inside it."""
    told = replace(member, file=None, mask_file=None)
    content, mask = member.content, member.mask
    find = partial(_inside, base)
    try:
        if member.file is not None:
            content = _content(find, member.file, limit)
        if member.mask_file is not None:
            mask = _content(find, member.mask_file, limit, f"mask {member.mask_file}: ")
    except ImageError as error:
        broken = failed(member.index, member.name, error.code, error.message)
        return replace(broken, label=member.label, label_class=member.label_class, boxes=member.boxes)
    return replace(told, content=content, mask=mask)


def _inside(base: Folder, path: str) -> tuple[Folder, str]:
    """Find a file that a table names.

    Raises:
        OSError: it may not be named there.
    """
    _, problem = path_inside("", path)
    if problem:
        raise _NoFileError(f"{printable(path, 100)} {problem}")
    return base, next((spelled for spelled in spellings(path) if base.exists(spelled)), path)


def _content(find: Finder, path: str, limit: int, role: str = "", was_there: bool = False) -> bytes:
    """Read a whole file; `role` stands before the message. One that was there when it was listed may return.

    Raises:
        ImageError: MEMBER_UNREADABLE, MEMBER_READ_FAILED where that may pass, or MEMBER_TOO_LARGE. An image
            without the mask that was named fails as well, for its record would say too little.
    """
    try:
        content = _opened(find, path, limit + 1)
    except (OSError, UsageError, ValueError) as error:  # of an odd key Arrow says ValueError
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        sealed = isinstance(error, _SEALED) and not (was_there and isinstance(error, FileNotFoundError))
        code = ErrorCode.MEMBER_UNREADABLE if sealed else ErrorCode.MEMBER_READ_FAILED
        raise ImageError(code, printable(role + reason)) from None
    if len(content) > limit:
        message = printable(f"{role}grew to more than {limit:,} bytes")
        raise ImageError(ErrorCode.MEMBER_TOO_LARGE, message)
    return content


def _opened(find: Finder, path: str, limit: int) -> bytes:
    if "\0" in path:
        raise _NoFileError("a path with a zero byte")
    if leads_out(path):
        raise _NoFileError("leads out of the list's folder by `..`")
    return _read(*find(path), limit)


def _read(root: Folder, path: str, limit: int) -> bytes:
    """Read a file, at most `limit` bytes; never waits for a pipe."""
    if not root.is_local:
        return root.read_up_to(path, limit)
    handle = os.open(root.at(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as local:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise _NoFileError("no longer a regular file")
        return local.read(limit)


def _annotation(find: Finder, file: LooseFile, config: ArchiveConfig) -> Annotation:
    """Read what is said of a file.

    Raises:
        ImageError: a sidecar cannot be read now: without it the record would say too little.
    """
    noted, is_labelled = from_note(file.note)
    beside = []
    for ending in file.sidecars:
        extension = ending.lower()
        try:
            content = _read(*find(f"{stem_of(file.path)}.{ending}"), size_cap(extension) + 1)
            beside.append((extension, read_sidecar(extension, content, config)))
        except (FileNotFoundError, ValueError):
            continue  # gone since the listing, which will tell; or of an odd key, as Arrow says
        except OSError as error:
            why = printable(f"sidecar .{ending}: {error.strerror or error}")
            raise ImageError(ErrorCode.MEMBER_READ_FAILED, why) from None
    is_inside = not file.path.startswith("/") and "://" not in file.path
    return whole_of(file.path if is_inside else "", noted, is_labelled, merged(beside))
