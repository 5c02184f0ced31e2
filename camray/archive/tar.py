"""The members of a tar file, plain or gzip: images with the labels and boxes that lie beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO

from camray.archive.annotations import Annotation
from camray.archive.names import extension_of, name_kind
from camray.archive.sidecars import KeyGroup, failed, read_sidecar, size_cap, skipped
from camray.archive.streams import ForwardStream, GzipStream, PlainStream
from camray.archive.tar_headers import MAX_NAME_BYTES, TarEntry, walk_tar
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ShardError
from camray.records import Member, key_of

_WHAT = {
    "link": "a link; links are not followed",
    "device": "a device or pipe",
    "sparse": "a sparse file",
    "other": "an entry of unknown type",
}


def read_tar(
    file: IO[bytes], size: int, config: ArchiveConfig, wanted: Callable[[int], bool]
) -> Iterator[Member]:
    """Yield the members in order; return only when the end mark was seen.

    Raises:
        ShardError: after the last good member before damage or a cut.
    """
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream: ForwardStream
    stream = GzipStream(file) if packed else PlainStream(file, size)
    group = KeyGroup()
    entries = walk_tar(stream)
    while True:
        try:
            entry = next(entries, None)
            taken = _take(entry, stream, group, config, wanted) if entry else []
        except ShardError:
            yield from group.flush()
            raise
        yield from taken
        if entry is None:
            break
    yield from group.close()


def _take(
    entry: TarEntry,
    stream: ForwardStream,
    group: KeyGroup,
    config: ArchiveConfig,
    wanted: Callable[[int], bool],
) -> list[Member]:
    """Put one entry into the group of its key; give the members that are complete by that."""
    if entry.kind == "folder":
        return []
    name = entry.name.removeprefix("./")
    done = group.turn_to(key_of(name))
    if entry.kind == "file" and name_kind(name) == "sidecar":
        group.add_sidecar(_capped(name), _sidecar(entry, stream, config))
        return done
    return done + group.add(_member(entry, stream, group.next_index, config, wanted))


def _member(
    entry: TarEntry, stream: ForwardStream, index: int, config: ArchiveConfig, wanted: Callable[[int], bool]
) -> Member:
    name, kind = entry.name.removeprefix("./"), name_kind(entry.name)
    shown = _capped(name)
    if entry.kind != "file":
        return skipped(index, shown, _WHAT[entry.kind], ErrorCode.NOT_A_FILE)
    if kind != "image":
        what = "a hidden file" if kind == "junk" else f"a .{extension_of(name)} file"
        return skipped(index, shown, what)
    if entry.size > config.max_member_bytes:
        message = f"{entry.size:,} bytes, more than {config.max_member_bytes:,}"
        return failed(index, shown, ErrorCode.MEMBER_TOO_LARGE, message)
    return Member(index, shown, _data(entry, stream, entry.size) if wanted(index) else None)


def _sidecar(entry: TarEntry, stream: ForwardStream, config: ArchiveConfig) -> Annotation:
    extension = extension_of(entry.name)
    if extension == "json" and entry.size > size_cap("json"):  # half a JSON text is none
        return Annotation()
    return read_sidecar(extension, _data(entry, stream, size_cap(extension)), config)


def _data(entry: TarEntry, stream: ForwardStream, limit: int) -> bytes:
    """Read the entry's data, or its first `limit` bytes."""
    count = min(entry.size, limit)
    data = stream.read(count)
    if len(data) < count:
        raise ShardError(
            ErrorCode.SHARD_TRUNCATED,
            f"ends at byte {stream.position:,}, inside the data of the member at byte {entry.offset:,}",
        )
    return data


def _capped(name: str) -> str:
    """Cut a name of unreasonable length."""
    return name if len(name) <= MAX_NAME_BYTES else name[: MAX_NAME_BYTES - 1] + "…"
