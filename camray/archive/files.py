"""The members of a group of loose files, with what is said of each.

The note that a list or metadata file gave a file counts first; then the sidecars beside it; then, for the
label alone, the class folder. Where the note comes with labels at all, nothing else gives one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace

from camray.archive.annotations import Annotation, annotated, from_note, label_text
from camray.archive.listing import sidecar_extensions
from camray.archive.lists import base_of, leads_out, locate
from camray.archive.names import class_folder, extension_of, file_kind, stem_of
from camray.archive.sidecars import failed, merged, read_sidecar, size_cap, skipped
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, UsageError, printable
from camray.records import LooseFile, Member, Shard
from camray.storage import Folder


def read_files(shard: Shard, config: ArchiveConfig, wanted: Callable[[int], bool]) -> Iterator[Member]:
    """Yield one member per file of the group. A file that vanished is a failed member."""
    base = base_of(shard.root)
    for index, file in enumerate(shard.files):
        yield _member(base, file, index, config, wanted)


def _member(
    base: Folder, file: LooseFile, index: int, config: ArchiveConfig, wanted: Callable[[int], bool]
) -> Member:
    kind = file_kind(file.path)
    if kind != "image":
        what = "no image has this name" if kind == "sidecar" else f"a .{extension_of(file.path)} file"
        return skipped(index, file.path, what)
    limit = config.max_member_bytes
    if file.size_bytes > limit:
        return failed(
            index, file.path, ErrorCode.MEMBER_TOO_LARGE, f"{file.size_bytes:,} bytes, more than {limit:,}"
        )
    if not wanted(index):
        return Member(index, file.path)
    said = _annotation(base, file, config)
    try:
        member = Member(index, file.path, _content(base, file.path, limit))
    except OSError as error:
        reason = printable(error.strerror or str(error))
        return annotated(failed(index, file.path, ErrorCode.MEMBER_UNREADABLE, reason), said)
    except ValueError as error:
        return failed(index, file.path, ErrorCode.MEMBER_TOO_LARGE, str(error))
    return _with_mask(annotated(member, said), base, said.mask, limit)


def _with_mask(member: Member, base: Folder, mask: str | None, limit: int) -> Member:
    """Read the mask that was named; without it the image fails, as its record would say too little."""
    if mask is None:
        return member
    try:
        return replace(member, mask=_content(base, mask, limit))
    except OSError as error:
        code, reason = ErrorCode.MEMBER_UNREADABLE, error.strerror or str(error)
    except ValueError as error:
        code, reason = ErrorCode.MEMBER_TOO_LARGE, str(error)
    broken = failed(member.index, member.name, code, printable(f"mask {mask}: {reason}"))
    return replace(broken, label=member.label, label_class=member.label_class, boxes=member.boxes)


def _content(base: Folder, path: str, limit: int) -> bytes:
    """Read a whole file; ValueError where it is larger than allowed."""
    if "\0" in path:
        raise OSError("a path with a zero byte")
    if leads_out(path):
        raise OSError("leads out of the list's folder by `..`")
    try:
        folder, inner = locate(base, path)
    except UsageError as error:
        raise OSError(str(error)) from None
    content = _read(folder, inner, limit + 1)
    if len(content) > limit:
        raise ValueError(f"grew to more than {limit:,} bytes")
    return content


def _read(root: Folder, path: str, limit: int) -> bytes:
    """Read a file, at most `limit` bytes; never waits for a pipe."""
    if not root.is_local:
        with root.open(path) as file:
            return bytes(file.read(limit))
    handle = os.open(os.path.join(root.path, path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as local:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError("no longer a regular file")
        return local.read(limit)


def _annotation(base: Folder, file: LooseFile, config: ArchiveConfig) -> Annotation:
    noted, is_labelled = from_note(file.note)
    beside = []
    for extension in sidecar_extensions(file):
        try:
            content = _read(base, f"{stem_of(file.path)}.{extension}", size_cap(extension) + 1)
            beside.append((extension, read_sidecar(extension, content, config)))
        except OSError:
            continue
    others = merged(beside)
    if is_labelled:
        return noted.or_else(replace(others, label=None, label_class=None))
    folder = None if file.path.startswith("/") or "://" in file.path else class_folder(file.path)
    return noted.or_else(others).or_else(Annotation(label_text(folder) if folder else None))
