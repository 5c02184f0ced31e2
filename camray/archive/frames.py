"""Files with several frames as members: which of them, by what name, at what index.

    x.gif of 3 frames ──first──> x.gif ──middle──> x.gif#1 ──all──> x.gif#0, x.gif#1, x.gif#2

What one frame is in a file, and how many there are, `image.frames` knows; a file of one frame keeps its name.
A selection (`--limit`, `--sample`, files that are gone) counts files. The index of a member tells its file
without a look at the others: its place among them, with `all` times 4096, plus the frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from camray.errors import ErrorCode, ShardError
from camray.records import Member, Status

FIRST, MIDDLE, ALL = "first", "middle", "all"
MOST_FRAMES = 4096
"""Of one file, with `all`: what has more is a failed member, never a part of it."""


def version_mark(frames: str) -> str:
    """Give what the version of a file or shard ends in: other frames are another content."""
    return "" if frames == FIRST else f"#{frames}"


def file_index(index: int, frames: str) -> int:
    """Give the place among the shard's files of the member with this index."""
    return index // MOST_FRAMES if frames == ALL else index


def expanded(member: Member, frames: str, count: int) -> Iterator[Member]:
    """Yield the members that a file of `count` frames becomes; all have its content, label, boxes and mask.

    Raises:
        ShardError: `all` of a shard of more files than an index can tell apart.
    """
    start = member.index * (MOST_FRAMES if frames == ALL else 1)
    if start >= 2**31:
        message = f"more than {2**31 // MOST_FRAMES:,} files in one shard are too many for --frames all"
        raise ShardError(ErrorCode.SHARD_UNREADABLE, message)
    if count == 1:
        yield replace(member, index=start)
    elif frames == ALL and count > MOST_FRAMES:
        message = f"{count:,} frames, more than {MOST_FRAMES:,}; one of them: --frames N"
        yield _failed(member, start, ErrorCode.MEMBER_TOO_LARGE, message)
    elif frames not in (ALL, MIDDLE) and int(frames) >= count:
        message = f"no frame {frames}: it has {count:,}, counted from 0"
        yield _failed(member, start, ErrorCode.NO_SUCH_FRAME, message)
    else:
        wanted = range(count) if frames == ALL else [count // 2 if frames == MIDDLE else int(frames)]
        for place, frame in enumerate(wanted):
            yield replace(member, index=start + place, name=f"{member.name}#{frame}", frame=frame)


def _failed(member: Member, index: int, code: ErrorCode, message: str) -> Member:
    return replace(
        member, index=index, content=None, status=Status.FAILED, error_code=code, error_message=message
    )
