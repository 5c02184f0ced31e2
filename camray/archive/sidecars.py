"""What lies beside an image: `.cls` (a class number), `.txt` (a line of text), `.json`.

In a tar, members with the same key (the path up to the first dot of the base name) that follow each other
belong together, in any order. A sidecar with the image's own stem (`a.1.cls` for `a.1.jpg`) counts before
one with the bare key (`a.cls`). Of several kinds, `.cls` decides the class and `.txt` the text; `.json` fills
what they leave open, and brings the boxes. A `.txt` is a caption and no label where the `.json` holds a
`caption` (img2dataset), where it has more than one line, and where `[archive] captions` says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from camray.archive.annotations import (
    MAX_TEXT_BYTES,
    Annotation,
    annotated,
    from_object,
    label_of,
    number_or_text,
)
from camray.archive.names import extension_of, stem_of
from camray.config import ArchiveConfig
from camray.errors import ErrorCode
from camray.records import Member, Status

MAX_JSON_BYTES = 2**20
_MAX_HELD_BYTES = 64 * 2**20
_MAX_HELD_MEMBERS = 256
_ORDER = ("cls", "txt", "json")


def size_cap(extension: str) -> int:
    """How many bytes of such a sidecar are read."""
    return MAX_JSON_BYTES if extension == "json" else MAX_TEXT_BYTES


def read_sidecar(extension: str, content: bytes, config: ArchiveConfig) -> Annotation:
    """Read a sidecar; what cannot be understood is an empty annotation, never an error."""
    text = content[: size_cap(extension)].decode("utf-8-sig", "replace")
    if extension == "json":
        return _from_json(text, config.bbox) if len(content) <= MAX_JSON_BYTES else Annotation()
    lines = text.strip().splitlines()
    if extension == "cls":
        return label_of(number_or_text(lines[0].strip())) if lines else Annotation()
    return label_of(lines[0].strip()) if len(lines) == 1 and not config.captions else Annotation()


def merged(found: Iterable[tuple[str, Annotation]]) -> Annotation:
    """Merge annotations given as (extension, annotation), by the order of precedence above."""
    found = sorted(found, key=lambda item: _ORDER.index(item[0]))
    is_captioned = any(annotation.is_captioned for _, annotation in found)
    whole = Annotation()
    for extension, annotation in found:
        if not (is_captioned and extension == "txt"):
            whole = whole.or_else(annotation)
    return whole


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
        return [annotated(m, merged(self._sidecars.get(stem_of(m.name), ())).or_else(shared)) for m in held]

    def close(self) -> list[Member]:
        """Give what is held; sidecars without any member become skipped members."""
        done = self.flush()
        if not self._has_member:
            for name in self._sidecar_names:
                done.append(skipped(self.next_index, name, "no image has this key"))
                self.next_index += 1
        self._sidecars, self._sidecar_names, self._has_member = {}, [], False
        return done


def skipped(index: int, name: str, message: str, code: ErrorCode = ErrorCode.NOT_AN_IMAGE_NAME) -> Member:
    """Make the row of a member that is not opened."""
    return Member(index, name, status=Status.SKIPPED, error_code=code, error_message=message)


def failed(index: int, name: str, code: ErrorCode, message: str) -> Member:
    """Make the row of an image that could not be read."""
    return Member(index, name, status=Status.FAILED, error_code=code, error_message=message)


def _from_json(text: str, bbox: str) -> Annotation:
    try:
        tree: Any = json.loads(text)
    except (ValueError, RecursionError):
        return Annotation()
    return from_object(tree, bbox) if isinstance(tree, dict) else label_of(tree)
