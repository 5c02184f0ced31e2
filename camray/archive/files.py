"""The members of a group of loose files. A sidecar's label counts before that of the class folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from camray.archive.listing import sidecar_extensions
from camray.archive.names import extension_of, name_kind, stem_of
from camray.archive.sidecars import (
    Label,
    failed,
    label_text,
    merged,
    read_label,
    size_cap,
    skipped,
    with_label,
)
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, printable
from camray.records import LooseFile, Member, Shard
from camray.storage import Folder, open_folder


def read_files(shard: Shard, config: ArchiveConfig, wanted: Callable[[int], bool]) -> Iterator[Member]:
    """Yield one member per file of the group. A file that vanished is a failed member."""
    root = open_folder(shard.root, "ARCHIVE")
    for index, file in enumerate(shard.files):
        yield _member(root, file, index, config, wanted)


def _member(
    root: Folder, file: LooseFile, index: int, config: ArchiveConfig, wanted: Callable[[int], bool]
) -> Member:
    kind = name_kind(file.path)
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
    label = _label_of(root, file)
    try:
        content = _read(root, file.path, limit + 1)
    except OSError as error:
        reason = printable(error.strerror or str(error))
        return with_label(failed(index, file.path, ErrorCode.MEMBER_UNREADABLE, reason), label)
    if len(content) > limit:
        return failed(index, file.path, ErrorCode.MEMBER_TOO_LARGE, f"grew to more than {limit:,} bytes")
    return with_label(Member(index, file.path, content), label)


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


def _label_of(root: Folder, file: LooseFile) -> Label:
    labels = []
    for extension in sidecar_extensions(file):
        try:
            content = _read(root, f"{stem_of(file.path)}.{extension}", size_cap(extension) + 1)
            labels.append((extension, read_label(extension, content)))
        except OSError:
            continue
    folder, slash, _ = file.path.partition("/")
    return merged(labels).or_else(Label(label_text(folder)) if slash else Label())
