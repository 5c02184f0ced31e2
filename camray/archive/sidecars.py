"""Labels that lie beside an image: `.cls` (a class number), `.txt` (a line of text), `.json`.

In a tar, members with the same key (the path up to the first dot of the base name) that follow each other
belong together, in any order. A sidecar with the image's own stem (`a.1.cls` for `a.1.jpg`) counts before
one with the bare key (`a.cls`). Of several kinds, `.cls` decides the class and `.txt` the text; `.json` fills
what they leave open.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from camray.archive.names import extension_of, stem_of
from camray.errors import ErrorCode
from camray.records import Member, Status

MAX_TEXT_BYTES = 1024
MAX_JSON_BYTES = 2**20
_MAX_HELD_BYTES = 64 * 2**20
_MAX_HELD_MEMBERS = 256
_JSON_KEYS = (
    "label",
    "class",
    "cls",
    "class_id",
    "label_id",
    "class_name",
    "label_name",
    "category",
    "target",
)
_ORDER = ("cls", "txt", "json")


@dataclass(frozen=True, slots=True)
class Label:
    """What an archive says an image shows: a text, a class number, or both."""

    text: str | None = None
    class_id: int | None = None

    def or_else(self, other: Label) -> Label:
        """Fill what is open from another label."""
        text = other.text if self.text is None else self.text
        return Label(text, other.class_id if self.class_id is None else self.class_id)


def size_cap(extension: str) -> int:
    """How many bytes of such a sidecar are read."""
    return MAX_JSON_BYTES if extension == "json" else MAX_TEXT_BYTES


def read_label(extension: str, content: bytes) -> Label:
    """Read a sidecar; what cannot be understood is an empty label, never an error."""
    text = content[: size_cap(extension)].decode("utf-8-sig", "replace")
    if extension == "json":
        return _from_json(text) if len(content) <= MAX_JSON_BYTES else Label()
    first = next(iter(text.strip().splitlines()), "").strip()
    if extension == "cls":
        return _label(int(first) if first.isascii() and first.lstrip("-").isdigit() else first)
    return _label(first)


def merged(labels: Iterable[tuple[str, Label]]) -> Label:
    """Merge labels given as (extension, label), by the order of precedence above."""
    found = Label()
    for _, label in sorted(labels, key=lambda item: _ORDER.index(item[0])):
        found = found.or_else(label)
    return found


def class_number(value: int) -> int | None:
    """Give a class number that a record can hold; a negative one means unlabelled."""
    return value if 0 <= value < 2**31 else None


def label_text(value: str) -> str | None:
    """Give a label text that a record can hold; None where it is empty."""
    return value.encode("utf-8", "backslashreplace").decode()[:MAX_TEXT_BYTES] or None


class KeyGroup:
    """The members of one key, held until their sidecars are known. Indices are given at once."""

    def __init__(self) -> None:
        self.next_index = 0
        self._key: str | None = None
        self._held: list[Member] = []
        self._held_bytes = 0
        self._has_member = False
        self._sidecars: dict[str, list[tuple[str, Label]]] = {}  # by name without extension
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

    def add_sidecar(self, name: str, label: Label) -> None:
        """Take a sidecar."""
        self._sidecars.setdefault(stem_of(name), []).append((extension_of(name), label))
        if not self._has_member:
            self._sidecar_names.append(name)

    def flush(self) -> list[Member]:
        """Give the members held, with the labels known so far."""
        held, self._held, self._held_bytes = self._held, [], 0
        shared = merged(self._sidecars.get(self._key or "", ()))
        return [with_label(m, merged(self._sidecars.get(stem_of(m.name), ())).or_else(shared)) for m in held]

    def close(self) -> list[Member]:
        """Give what is held; sidecars without any member become skipped members."""
        done = self.flush()
        if not self._has_member:
            for name in self._sidecar_names:
                done.append(skipped(self.next_index, name, "no image has this key"))
                self.next_index += 1
        self._sidecars, self._sidecar_names, self._has_member = {}, [], False
        return done


def with_label(member: Member, label: Label) -> Member:
    """Give a member its label."""
    return replace(member, label=label.text, label_class=label.class_id)


def skipped(index: int, name: str, message: str, code: ErrorCode = ErrorCode.NOT_AN_IMAGE_NAME) -> Member:
    """Make the row of a member that is not opened."""
    return Member(index, name, status=Status.SKIPPED, error_code=code, error_message=message)


def failed(index: int, name: str, code: ErrorCode, message: str) -> Member:
    """Make the row of an image that could not be read."""
    return Member(index, name, status=Status.FAILED, error_code=code, error_message=message)


def _from_json(text: str) -> Label:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return Label()
    found = Label()
    for key in _JSON_KEYS:
        if isinstance(tree, dict) and key in tree:
            found = found.or_else(_label(tree[key]))
    return found if isinstance(tree, dict) else _label(tree)


def _label(value: Any) -> Label:
    if isinstance(value, int) and not isinstance(value, bool):
        return Label(class_id=class_number(value))
    return Label(text=label_text(value)) if isinstance(value, str) else Label()
