"""Decoding in a process of its own, which may crash, hang or eat memory without harm to anybody else.

    encoded bytes ──socket──> decoder process ──socket──> Decoded, or the code and message of the failure

The process has no credentials in its environment, no open files of its parent, nothing to print to, a bound
on memory and on the CPU time of each image. It is asked in pickles; it answers in byte strings of a fixed
layout, which are checked, never in pickles. An image that ends it twice, or takes too long, is a failed
record; the next finds a new process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from camray.config import InputSpec
from camray.errors import ErrorCode, ImageError, printable
from camray.image.decode import Decoded, Edges, decode, upright
from camray.image.frames import count_frames
from camray.records import Boxes, Geometry

CPU_LIMIT_S = 30.0
"""Of one image. The largest allowed, 100 million pixels of float TIFF, takes 8 s."""
WALL_LIMIT_S = 180.0
"""Of one image, twice; for what hangs without working. A crowded machine must not fail images."""
BYTES_A_PIXEL = 40
"""Of memory, for each pixel allowed: float pixels stretched from minimum to maximum need 32."""
_OWN_BYTES = 2**30  # of address space: the interpreter and its libraries, of which 0.3 GB are used
_TRIES = 2
_MODULE = "camray.image.guarded"
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")

Bytes: TypeAlias = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one image: seconds of CPU time, and seconds by the clock."""

    cpu_s: float = CPU_LIMIT_S
    wall_s: float = WALL_LIMIT_S


class _Question(TypedDict, total=False):
    """What is asked of an image: the model's input; without `spec`, its own size; or its number of frames."""

    spec: InputSpec
    picture_of: InputSpec | None
    boxes: Boxes | None
    has_mask: bool
    frame: int | None
    is_count: bool


class GuardedDecoder:
    """Holds one decoder process and starts another where it ended. Safe to share between threads."""

    def __init__(self, max_pixels: int, limits: Limits = Limits(), module: str = _MODULE) -> None:
        self.limits = limits
        self._max_pixels, self._module = max_pixels, module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def decode(
        self,
        content: Bytes,
        spec: InputSpec,
        boxes: Boxes | None = None,
        mask: Bytes | None = None,
        frame: int | None = None,
    ) -> Decoded:
        """Decode an image to the model's input, as `decode` does, with what the archive says of it.

        Raises:
            ImageError: as `decode`, and WORKER_CRASHED, DECODE_TIMEOUT.
        """
        parts = self._ask(
            content, _Question(spec=spec, boxes=boxes, has_mask=mask is not None, frame=frame), mask
        )
        with _checked():
            return _read_decoded(parts, spec, mask is not None)

    def upright(
        self, content: Bytes, frame: int | None = None, spec: InputSpec | None = None
    ) -> NDArray[np.uint8]:
        """Decode an image at its own size, EXIF applied: uint8 (h, w, 3), as `decode.upright` does.

        Raises:
            ImageError: as `decode`.
        """
        parts = self._ask(content, _Question(frame=frame, picture_of=spec))
        with _checked():
            shape, pixels, *_ = parts
            return np.frombuffer(pixels, np.uint8).reshape(*_SHAPE.unpack(shape), 3)

    def count_frames(self, content: Bytes) -> int:
        """Give the number of frames, at least 1; 1 also of what no decoder can open: decoding says why.

        Raises:
            ImageError: WORKER_CRASHED, DECODE_TIMEOUT.
        """
        parts = self._ask(content, _Question(is_count=True))
        with _checked():
            count, _ = _SHAPE.unpack(parts[0])
            return max(1, int(count))

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _ask(self, content: Bytes, question: _Question, mask: Bytes | None = None) -> list[memoryview]:
        """Give the parts of the answer."""
        about = pickle.dumps((self.limits.cpu_s, question))
        code, reason = ErrorCode.WORKER_CRASHED, ""
        for _ in range(_TRIES):
            try:
                with self._lock:
                    failure, *parts = self._exchange([about, content, mask or b""])
                break
            except TimeoutError:
                seconds = f"{self.limits.wall_s:g} s"
                code, reason = ErrorCode.DECODE_TIMEOUT, f"no answer for {seconds}, {_TRIES} times"
            except (OSError, EOFError, ValueError) as error:
                code, reason = ErrorCode.WORKER_CRASHED, f"it ended the decoder {_TRIES} times ({error})"
                if str(error) == "SIGPROF":  # more work than allowed: a second try would end the same way
                    seconds = f"{self.limits.cpu_s:g} s"
                    raise ImageError(ErrorCode.DECODE_TIMEOUT, f"more than {seconds} of CPU time") from None
        else:
            raise ImageError(code, reason)
        if not failure:
            return parts
        with _checked():
            raise ImageError(ErrorCode(str(failure, "utf-8")), printable(str(parts[0], "utf-8")))

    def _exchange(self, question: list[Bytes]) -> list[memoryview]:
        """Ask once. EOFError says how the process ended; TimeoutError: it gave no answer."""
        connection = self._connected()
        try:
            connection.settimeout(self.limits.wall_s)
            _send(connection, question)
            return _receive(connection, 4 * self._max_pixels + 2**24)
        except TimeoutError:
            self._end(patience_s=0)
            raise
        except (OSError, EOFError, ValueError):
            raise EOFError(self._end()) from None
        except BaseException:  # a signal's: the answer to come would be taken for that of the next image
            self._end(patience_s=0)
            raise

    def _connected(self) -> socket.socket:
        """Give the connection to a living process; start one where there is none.

        Raises:
            RuntimeError: it does not start, which no image is to blame for.
        """
        if self._socket is not None and self._process is not None and self._process.poll() is None:
            return self._socket
        self._end()
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-m", self._module, str(theirs.fileno()), str(self._max_pixels)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()], env=_environment(),
            )  # fmt: skip
        self._socket = ours
        ours.settimeout(WALL_LIMIT_S)
        try:
            _receive(ours, 0)
        except (OSError, EOFError, ValueError) as error:
            raise RuntimeError(f"the decoder process does not start: {self._end() or error}") from None
        return ours

    def _end(self, patience_s: float = 0.5) -> str:
        """End the process where it lives; say how it ended: a signal's name, or an exit code."""
        process, self._process = self._process, None
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()
        if process is None:
            return ""
        try:
            process.wait(patience_s)  # it may be dying: its own end says more than ours
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        code = process.returncode
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


@cache
def decoder_of(max_pixels: int) -> GuardedDecoder:
    """Give this process's decoder for images of at most so many pixels."""
    return GuardedDecoder(max_pixels)


def memory_limit(max_pixels: int) -> int:
    """Give the bytes of address space that a decoder process may take."""
    return _OWN_BYTES + BYTES_A_PIXEL * max_pixels


def _environment() -> dict[str, str]:
    """Give what a process needs to find its libraries, and nothing that is secret."""
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


# ── what travels: the lengths of eight parts, and the parts; what is not needed is empty ─────────

_LENGTHS = struct.Struct("!8Q")
_GEOMETRY = struct.Struct("!2i4d")
_SHAPE = struct.Struct("!2I")
_SMALL_BYTES = 2**16


def _pack_edges(boxes: Sequence[Edges]) -> bytes:
    return np.array(boxes, np.float64).tobytes()


def _read_edges(data: Bytes) -> tuple[Edges, ...]:
    return tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in np.frombuffer(data).reshape(-1, 4).tolist())


def _pack_decoded(decoded: Decoded) -> list[Bytes]:
    where = _GEOMETRY.pack(*dataclasses.astuple(decoded.geometry))
    texts = [decoded.format.encode(), (decoded.pixel_rule or "").encode()]
    mask = b"" if decoded.mask is None else decoded.mask.data
    bands = b"" if decoded.bands is None else decoded.bands.data
    return [where, *texts, _pack_edges(decoded.boxes), decoded.pixels.data, mask, bands]


def _read_decoded(parts: list[memoryview], spec: InputSpec, has_mask: bool) -> Decoded:
    where, name, rule, edges, pixels, mask, bands = parts
    shape = (spec.height, spec.width, len(spec.mean))
    return Decoded(
        pixels=np.frombuffer(pixels, np.uint8).reshape(spec.height, spec.width, 3),
        geometry=Geometry(*_GEOMETRY.unpack(where)),
        format=printable(str(name, "utf-8")),
        pixel_rule=printable(str(rule, "utf-8")) or None,
        boxes=_read_edges(edges),
        mask=np.frombuffer(mask, np.uint8).reshape(spec.height, spec.width) if has_mask else None,
        bands=np.frombuffer(bands, np.float32).reshape(shape) if spec.bands else None,
    )


@contextlib.contextmanager
def _checked() -> Iterator[None]:
    """Take an answer that breaks the rules for a crash: whoever wrote it is no longer our decoder."""
    try:
        yield
    except (LookupError, ValueError, struct.error):
        raise ImageError(ErrorCode.WORKER_CRASHED, "it made the decoder answer nonsense") from None


def _send(connection: socket.socket, parts: Sequence[Bytes]) -> None:
    lengths = [memoryview(part).nbytes for part in parts] + [0] * (8 - len(parts))
    small = _LENGTHS.pack(*lengths)  # small parts go together: the other side wakes once for them
    for part, length in zip(parts, lengths, strict=False):
        if length < _SMALL_BYTES:
            small += part
        else:
            connection.sendall(small)
            connection.sendall(part)
            small = b""
    connection.sendall(small)


def _receive(connection: socket.socket, most_bytes: int) -> list[memoryview]:
    """Receive the parts; EOFError at the end, ValueError where they are longer than they can be."""
    lengths = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size))
    if sum(lengths) > most_bytes:
        raise ValueError("an answer of unreasonable length")
    data = _exactly(connection, sum(lengths))
    ends = itertools.accumulate(lengths)
    return [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _exactly(connection: socket.socket, count: int) -> memoryview:
    view, place = memoryview(bytearray(count)), 0
    while place < count:
        received = connection.recv_into(view[place:])
        if not received:
            raise EOFError
        place += received
    return view


# ── the decoder process ──────────────────────────────────────────────────────────────────────────


def serve(descriptor: int, max_pixels: int) -> None:
    """Answer requests until the other side is gone."""
    _set_limits(max_pixels)
    with socket.socket(fileno=descriptor) as connection:
        _send(connection, [])
        with contextlib.suppress(EOFError):
            while True:
                about, content, mask, *_ = _receive(connection, sys.maxsize)
                cpu_s, question = pickle.loads(about)
                signal.setitimer(signal.ITIMER_PROF, cpu_s)  # its signal ends the process
                parts = _answer(max_pixels, bytes(content), question, bytes(mask))
                signal.setitimer(signal.ITIMER_PROF, 0)
                _send(connection, parts)


def _set_limits(max_pixels: int) -> None:
    """Bound memory; no core dumps, no files written, few files open."""
    limits = {
        resource.RLIMIT_AS: memory_limit(max_pixels),
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        least = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        with contextlib.suppress(ValueError, OSError):  # a limit this system does not know
            resource.setrlimit(kind, (least, least))


def _answer(max_pixels: int, content: bytes, asked: _Question, mask: bytes) -> list[Bytes]:
    """Give an empty part and the result, or the code of a failure and its message."""
    try:
        if asked.get("is_count"):
            return [b"", _SHAPE.pack(_count(content), 0)]
        if "spec" not in asked:
            picture = upright(content, max_pixels, asked.get("frame"), asked.get("picture_of"))
            return [b"", _SHAPE.pack(*picture.shape[:2]), picture.data]
        given = mask if asked["has_mask"] else None
        decoded = decode(content, asked["spec"], max_pixels, asked["boxes"], given, asked["frame"])
        return [b"", *_pack_decoded(decoded)]
    except ImageError as error:
        return [error.code.encode(), error.message.encode()]
    except MemoryError:
        message = b"the decoder asked for more memory than there is"
        return [ErrorCode.CORRUPT_IMAGE.encode(), message]


def _count(content: bytes) -> int:
    try:
        return min(count_frames(content), 2**31)
    except Exception:  # noqa: BLE001 - decoding raises it again, and tells
        return 1


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
