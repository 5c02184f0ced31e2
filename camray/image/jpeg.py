"""What the marks of a JPEG say: why a decoder may refuse it, and whether one without its end is whole.

FF D8 ── FF C0 frame: bits, size, components ── FF DA scan, entropy-coded data ── ... ── FF D9
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

END = b"\xff\xd9"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_PLAIN_FRAMES = frozenset(
    (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
)  # Huffman and arithmetic, sequential and progressive
_ALONE = frozenset((0x01, *range(0xD0, 0xDA)))  # marks that no length follows
_SCAN = 0xDA
_FILLERS = (b"\x55\xaa" * 64, b"\xa6" * 128)


def unread_kind(content: bytes) -> str | None:
    """Name the kind of a JPEG that is not decoded: deeper than 8 bits, lossless; None for any other."""
    for mark, body in _segments(content):
        if mark in _FRAMES and len(body) >= 6:
            if mark == 0xF7:
                return "JPEG-LS"
            if mark not in _PLAIN_FRAMES:
                return f"lossless or hierarchical JPEG (frame type {mark - 0xC0})"
            if body[0] != 8:
                return f"JPEG of {body[0]} bits a sample"
            return None if body[5] in (1, 3, 4) else f"JPEG of {body[5]} components"
    return None


def lacks_only_its_end(content: bytes) -> bool:
    """Tell whether all that is missing is the end mark: every scan is there, and its data to the last block.

    Data that follow a complete scan change nothing; where blocks are missing, they would be taken for them.
    """
    whole = content.rstrip(b"\xff")
    if not _has_all_scans(whole):
        return False
    plain = _pixels(whole + END)
    return all(np.array_equal(plain, _pixels(whole + filler + END)) for filler in _FILLERS)


def _pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        return np.asarray(image)


def _has_all_scans(content: bytes) -> bool:
    """Tell whether scans bring each coefficient of each component to its last bit."""
    missing: set[tuple[int, int]] | None = None  # component, coefficient
    for mark, body in _segments(content):
        if mark in _PLAIN_FRAMES and len(body) >= 6:
            missing = {(body[6 + 3 * at], place) for at in range(body[5]) for place in range(64)}
        elif mark == _SCAN and missing is not None and len(body) >= 1:
            first, last, approximation = body[1 + 2 * body[0] :][:3]
            if approximation & 15 == 0:
                seen = body[1 : 1 + 2 * body[0] : 2]
                missing -= {(name, place) for name in seen for place in range(first, last + 1)}
    return missing == set()


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Give mark and body of each segment; entropy-coded data are passed over."""
    at = 2
    while (at := content.find(b"\xff", at)) >= 0 and at + 4 <= len(content):
        mark = content[at + 1]
        if mark in (0x00, 0xFF) or mark in _ALONE:
            at += 1 if mark == 0xFF else 2
            continue
        length = struct.unpack_from(">H", content, at + 2)[0]
        yield mark, content[at + 4 : at + 2 + length]
        at += 2 + length
