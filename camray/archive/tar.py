"""The members of a tar file, plain or packed: images with the labels and boxes that lie beside them.

Members with the same key (the path up to the first dot of the base name) that follow each other belong
together, in any order. A sidecar with the image's own stem (`a.1.cls` for `a.1.jpg`) counts before one with
the bare key (`a.cls`); what neither gives, the class folder does. A tar is read once, front to back: a
`metadata` file in it may come behind its images, so it is not used, and a run says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pyarrow import NativeFile

from camray.archive.annotations import Annotation, annotated, merged, read_sidecar, size_cap, whole_of
from camray.archive.names import extension_of, name_kind, stem_of
from camray.archive.readers import (
    METADATA,
    IsNeeded,
    Reader,
    buffered,
    failed,
    not_opened,
    size_problem,
    skipped,
)
from camray.archive.tar_headers import (
    MAX_NAME_BYTES,
    PACKED,
    ForwardStream,
    TarEntry,
    open_stream,
    walk_tar,
)
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ShardError
from camray.records import Member, Status, key_of

_MAX_HELD_BYTES = 64 * 2**20
_MAX_HELD_MEMBERS = 256

_UNUSED = "metadata file inside a tar, not used: unpack the tar, or make it a zip"

_NO_FILE = {
    "link": "a link; links are not followed",
    "device": "a device or pipe",
    "sparse": "a sparse file",
    "other": "an entry of unknown type",
}


def _read(file: NativeFile, size: int, config: ArchiveConfig, is_needed: IsNeeded) -> Iterator[Member]:
    """Yield the members in order; return only when the end mark was seen.

    Raises:
        ShardError: after the last good member before damage or a cut.
    """
    packed = buffered(file)
    stream = open_stream(packed, size)
    group = KeyGroup()
    entries = walk_tar(stream)
    while True:
        try:
            entry = next(entries, None)
            taken = _take(entry, stream, group, config, is_needed) if entry else []
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
    is_needed: IsNeeded,
) -> list[Member]:
    """Put one entry into the group of its key; give the members that are complete by that."""
    if entry.kind == "folder":
        return []
    name = entry.name.removeprefix("./")
    done = group.turn_to(key_of(name))
    if entry.kind == "file" and name_kind(name) == "sidecar":
        group.add_sidecar(_capped(name), _sidecar(entry, stream, config))
        return done
    return done + group.add(_member(entry, stream, group.next_index, config, is_needed))


def _member(
    entry: TarEntry, stream: ForwardStream, index: int, config: ArchiveConfig, is_needed: IsNeeded
) -> Member:
    name, kind = entry.name.removeprefix("./"), name_kind(entry.name, config.reads_arrays)
    shown = _capped(name)
    if entry.kind != "file":
        return skipped(index, shown, _NO_FILE[entry.kind], ErrorCode.NOT_A_FILE)
    if name.rpartition("/")[2] in METADATA:
        return replace(skipped(index, shown, _UNUSED), note=_UNUSED)
    if kind != "image":
        return skipped(index, shown, not_opened(name))
    if problem := size_problem(entry.size, config.max_member_bytes):
        return failed(index, shown, ErrorCode.MEMBER_TOO_LARGE, problem)
    return Member(index, shown, _data(entry, stream, entry.size) if is_needed(index) else None)


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


class KeyGroup:
    """The members of one key, held until their sidecars are known. Indices are given at once."""

    def __init__(self) -> None:
        self.next_index = 0
        self._key: str | None = None
        self._held: list[Member] = []
        self._held_bytes = 0
        self._has_member = False
        self._sidecars: dict[str, list[tuple[str, Annotation]]] = {}  # by name without extension
        self._sidecar_names: list[str] = []

    def turn_to(self, key: str) -> list[Member]:
        """Let go of the group when another key begins."""
        if key == self._key:
            return []
        done, self._key = self.close(), key
        return done

    def add(self, member: Member) -> list[Member]:
        """Take a member whose index is `next_index`; lets go early of a group that grows large."""
        self.next_index += 1
        self._held.append(member)
        self._held_bytes += len(member.content or b"")
        self._has_member = True
        is_large = self._held_bytes > _MAX_HELD_BYTES or len(self._held) > _MAX_HELD_MEMBERS
        return self.flush() if is_large else []

    def add_sidecar(self, name: str, annotation: Annotation) -> None:
        """Take a sidecar."""
        self._sidecars.setdefault(stem_of(name), []).append((extension_of(name), annotation))
        if not self._has_member:
            self._sidecar_names.append(name)

    def flush(self) -> list[Member]:
        """Give the members held, with the labels known so far."""
        held, self._held, self._held_bytes = self._held, [], 0
        shared = merged(self._sidecars.get(self._key or "", ()))
        done = []
        for m in held:
            beside = merged(self._sidecars.get(stem_of(m.name), ())).or_else(shared)
            is_image = m.status != Status.SKIPPED
            done.append(annotated(m, whole_of(m.name if is_image else "", Annotation(), False, beside)))
        return done

    def close(self) -> list[Member]:
        """Give what is held; sidecars without any member become skipped members."""
        done = self.flush()
        if not self._has_member:
            for name in self._sidecar_names:
                done.append(skipped(self.next_index, name, "no image has this key"))
                self.next_index += 1
        self._sidecars, self._sidecar_names, self._has_member = {}, [], False
        return done


READER = Reader(
    format="tar",
    suffixes=(".tar", *(e for ends in PACKED.values() for e in ends)),
    read=_read,
    images="its members",
    annotations="sidecars with the same name or key: `.cls`, `.txt`, `.json`; the class folder",
)
