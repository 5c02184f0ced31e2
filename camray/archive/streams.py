"""Forward reading with a known position: a plain file, or a gzip file unpacked on the way.

Skipping over a plain file costs a seek; over gzip, the unpacking. A gzip bomb is stopped by a ratio cap.
"""

from __future__ import annotations

import gzip
import io
import zlib
from typing import IO, Protocol, cast

from pyarrow import NativeFile

from camray.errors import ErrorCode, ShardError

BUFFER_BYTES = 4 * 2**20
"""One request to an object store per this much, where members are read one after the other."""

_STEP_BYTES = 2**20
_MAX_RATIO = 200  # images hardly shrink; a gigabyte of zeros shrinks 1000 times
_RATIO_FREE_BYTES = 64 * 2**20


class ForwardStream(Protocol):
    """Bytes read from front to back. `size` is the length where it is known."""

    position: int
    size: int | None

    def read(self, count: int) -> bytes:
        """Read `count` bytes; fewer only at the end."""

    def skip(self, count: int) -> int:
        """Pass over `count` bytes; return how many there were."""


class _Buffered(io.BufferedReader):
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError as error:  # Arrow's word for what every other file calls an OSError
            raise OSError(str(error)) from None


def buffered(file: NativeFile) -> io.BufferedReader:
    """Put a read buffer before a file of any store; seeks inside the buffer are free."""
    return _Buffered(cast(io.RawIOBase, file), BUFFER_BYTES)


class PlainStream:
    """A file as it is."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._end, self.position = file, size, 0
        self.size: int | None = size

    def read(self, count: int) -> bytes:
        """Read `count` bytes; fewer only at the end."""
        data = self._file.read(min(count, max(self._end - self.position, 0)))
        self.position += len(data)
        return data

    def skip(self, count: int) -> int:
        """Pass over `count` bytes; return how many there were."""
        passed = min(count, max(self._end - self.position, 0))
        self._file.seek(passed, io.SEEK_CUR)
        self.position += passed
        return passed


class GzipStream:
    """A gzip file, unpacked.

    Raises:
        ShardError: on reading, where the gzip data is cut, damaged, or grows beyond all reason.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._packed, self._file = file, gzip.GzipFile(fileobj=file)
        self.size: int | None = None
        self.position = 0

    def read(self, count: int) -> bytes:
        """Read `count` unpacked bytes; fewer only at the end."""
        parts = []
        while count > 0 and (part := self._step(min(count, _STEP_BYTES))):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def skip(self, count: int) -> int:
        """Pass over `count` unpacked bytes; return how many there were."""
        start = self.position
        while (left := count - (self.position - start)) > 0 and self._step(min(left, _STEP_BYTES)):
            pass
        return self.position - start

    def _step(self, count: int) -> bytes:
        try:
            data = self._file.read(count)
        except EOFError:
            raise ShardError(
                ErrorCode.SHARD_TRUNCATED, f"the gzip data ends early, after {self.position:,} unpacked bytes"
            ) from None
        except (OSError, zlib.error) as error:
            raise ShardError(
                ErrorCode.SHARD_CORRUPT,
                f"the gzip data is damaged after {self.position:,} unpacked bytes: {error}",
            ) from None
        self.position += len(data)
        if self.position > _MAX_RATIO * self._packed.tell() + _RATIO_FREE_BYTES:
            raise ShardError(
                ErrorCode.SHARD_CORRUPT, f"the gzip data unpacks to more than {_MAX_RATIO} times its size"
            )
        return data
