"""Decoding in a process of its own, which may crash, hang or eat memory without harm to anybody else.

    encoded bytes ──socket──> decoder process ──socket──> pixels, or the code and message of the failure

The process has no credentials in its environment, no open files of its parent, nothing to print to, a bound
on memory and on the CPU time of each image. It answers in JSON and raw bytes, which are checked, never in
pickles. An image that ends it twice, or takes too long, is a failed record; the next finds a new process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camray.config import InputSpec
from camray.errors import ErrorCode, ImageError, printable
from camray.image.decode import decode, upright
from camray.image.regions import regions_of
from camray.records import Geometry

CPU_LIMIT_S = 30.0
"""Of one image. The largest allowed, 100 million pixels of float TIFF, takes 8 s."""
WALL_LIMIT_S = 180.0
"""Of one image, twice; for what hangs without working. A crowded machine must not fail images."""
BYTES_A_PIXEL = 40
"""Of memory, for each pixel allowed: float pixels stretched from minimum to maximum need 32."""
_OWN_BYTES = 2**30  # of address space: the interpreter and its libraries, of which 0.3 GB are used
_TRIES = 2
_LARGEST_NOTE = 2**24  # a hundred thousand boxes
_MODULE = "camray.image.guarded"
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")

Note = dict[str, Any]


class GuardedDecoder:
    """Holds one decoder process and starts another where it ended. Safe to share between threads."""

    def __init__(self, max_pixels: int, cpu_s: float = CPU_LIMIT_S, wall_s: float = WALL_LIMIT_S) -> None:
        self._max_pixels, self._cpu_s, self._wall_s = max_pixels, cpu_s, wall_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def to_input(self, content: bytes, item: Note, spec: InputSpec) -> Note:
        """Decode an image to the model's input: the columns of `DECODED` that this decides.

        `item` has the `boxes`, `boxes_in_pixels` and `mask` that the archive tells of the image.

        Raises:
            ImageError: as `decode`, and WORKER_CRASHED, DECODE_TIMEOUT.
        """
        about = {
            "spec": dataclasses.asdict(spec),
            "boxes": item["boxes"],
            "boxes_in_pixels": item["boxes_in_pixels"],
        }
        mask = item["mask"]
        note, blobs = self._ask("input", about, [content] if mask is None else [content, mask])
        area = spec.height * spec.width
        with _made_sense():
            if [len(b) for b in blobs] != [3 * area, *([area] if mask is not None else [])]:
                raise ValueError("pixels of another size")
            columns = dataclasses.asdict(Geometry(**note["geometry"]))
            columns |= {name: note[name] for name in ("format", "pixel_rule", "boxes")}
        return columns | {"pixels": blobs[0], "mask": blobs[1] if mask is not None else None}

    def upright(self, content: bytes) -> NDArray[np.uint8]:
        """Decode an image at its own size, EXIF applied: uint8 (h, w, 3).

        Raises:
            ImageError: as `to_input`.
        """
        note, blobs = self._ask("upright", {}, [content])
        with _made_sense():
            return np.frombuffer(blobs[0], np.uint8).reshape(*note["shape"], 3)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._bury()

    def _ask(self, what: str, about: Note, blobs: list[bytes]) -> tuple[Note, list[bytes]]:
        request = {"what": what, "max_pixels": self._max_pixels, "cpu_s": self._cpu_s, **about}
        code, ended = ErrorCode.WORKER_CRASHED, ""
        for _ in range(_TRIES):
            try:
                with self._lock:
                    note, found = self._exchange(request, blobs)
            except TimeoutError:
                code, ended = ErrorCode.DECODE_TIMEOUT, f"no answer for {self._wall_s:g} s, {_TRIES} times"
            except (OSError, EOFError, ValueError) as error:
                code, ended = ErrorCode.WORKER_CRASHED, f"it ended the decoder {_TRIES} times ({error})"
                if str(error) == "SIGPROF":  # more work than allowed: a second try would end the same way
                    code, ended = ErrorCode.DECODE_TIMEOUT, f"more than {self._cpu_s:g} s of CPU time"
                    break
            else:
                if "error" in note:
                    raise _told(note["error"])
                return note, found
        raise ImageError(code, ended)

    def _exchange(self, request: Note, blobs: list[bytes]) -> tuple[Note, list[bytes]]:
        """Ask once. EOFError says how the process ended; TimeoutError: it gave no answer."""
        connection = self._connected()
        try:
            _send(connection, request, blobs)
            return _receive(connection, 4 * self._max_pixels + 2**24)
        except TimeoutError:
            self._bury()
            raise
        except (OSError, EOFError, ValueError):
            raise EOFError(self._bury()) from None
        except BaseException:  # a signal's: the answer to come would be taken for that of the next image
            self._bury()
            raise

    def _connected(self) -> socket.socket:
        """Give the connection to a living process; start one where there is none.

        Raises:
            RuntimeError: it does not start, which no image is to blame for.
        """
        if self._socket is not None and self._process is not None and self._process.poll() is None:
            return self._socket
        self._bury()
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno()), str(self._max_pixels)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()], env=_environment(),
            )  # fmt: skip
        self._socket = ours
        ours.settimeout(self._wall_s)
        try:
            _receive(ours, 0)
        except (OSError, EOFError, ValueError) as error:
            raise RuntimeError(f"the decoder process does not start: {self._bury() or error}") from None
        return ours

    def _bury(self) -> str:
        """End the process where it lives; say how it ended: a signal's name, or an exit code."""
        process, self._process = self._process, None
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()
        if process is None:
            return ""
        try:
            process.wait(0.5)  # it may be dying: its own end says more than ours
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


def _told(error: Any) -> ImageError:
    with _made_sense():
        code, message = error
        return ImageError(ErrorCode(code), printable(message))


@contextlib.contextmanager
def _made_sense() -> Iterator[None]:
    """Take an answer that breaks the rules for a crash: whoever wrote it is no longer our decoder."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError):
        raise ImageError(ErrorCode.WORKER_CRASHED, "it made the decoder answer nonsense") from None


def _environment() -> dict[str, str]:
    """Give what a process needs to find its libraries, and nothing that is secret."""
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


# ── what travels: the length of a JSON note, the note, and the blobs it tells the lengths of ─────


def _send(connection: socket.socket, note: Note, blobs: list[bytes]) -> None:
    text = json.dumps(note | {"blobs": [len(b) for b in blobs]}).encode()
    connection.sendall(struct.pack("!I", len(text)) + text)
    for blob in blobs:
        connection.sendall(blob)


def _receive(connection: socket.socket, most_bytes: int) -> tuple[Note, list[bytes]]:
    """Receive a note and its blobs; EOFError at the end, ValueError where it breaks the rules."""
    (length,) = struct.unpack("!I", _exactly(connection, 4))
    if length > _LARGEST_NOTE:
        raise ValueError("a note of unreasonable length")
    note = json.loads(_exactly(connection, length))
    lengths = note.pop("blobs") if isinstance(note, dict) and "blobs" in note else [-1]
    if any(not isinstance(n, int) or n < 0 for n in lengths) or sum(lengths) > most_bytes:
        raise ValueError("blobs of unreasonable length")
    return note, [bytes(_exactly(connection, n)) for n in lengths]


def _exactly(connection: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view, place = memoryview(data), 0
    while place < count:
        got = connection.recv_into(view[place:])
        if not got:
            raise EOFError
        place += got
    return data


# ── the decoder process ──────────────────────────────────────────────────────────────────────────


def serve(descriptor: int, max_pixels: int) -> None:
    """Answer requests until the other side is gone."""
    _set_limits(max_pixels)
    with socket.socket(fileno=descriptor) as connection:
        _send(connection, {}, [])
        with contextlib.suppress(EOFError):
            while True:
                request, blobs = _receive(connection, sys.maxsize)
                signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])  # its signal ends the process
                note, found = _answer(request, blobs)
                signal.setitimer(signal.ITIMER_PROF, 0)
                _send(connection, note, found)


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


def _answer(request: Note, blobs: list[bytes]) -> tuple[Note, list[bytes]]:
    try:
        if request["what"] == "upright":
            picture = upright(blobs[0], request["max_pixels"])
            return {"shape": picture.shape[:2]}, [picture.tobytes()]
        return _input(request, blobs)
    except ImageError as error:
        return {"error": [str(error.code), error.message]}, []
    except MemoryError:
        message = "the decoder asked for more memory than there is"
        return {"error": [str(ErrorCode.CORRUPT_IMAGE), message]}, []


def _input(request: Note, blobs: list[bytes]) -> tuple[Note, list[bytes]]:
    fields: Note = {name: tuple(v) if isinstance(v, list) else v for name, v in request["spec"].items()}
    spec, most = InputSpec(**fields), request["max_pixels"]
    decoded = decode(blobs[0], spec, most)
    item = {"boxes": request["boxes"], "boxes_in_pixels": request["boxes_in_pixels"]}
    item["mask"] = blobs[1] if len(blobs) > 1 else None
    regions = regions_of(item, decoded.geometry, spec, most)
    note = {
        "geometry": dataclasses.asdict(decoded.geometry),
        "format": decoded.format,
        "pixel_rule": decoded.pixel_rule,
        "boxes": regions["boxes"],
    }
    mask = regions["mask"]
    return note, [decoded.pixels.tobytes(), *([mask] if mask is not None else [])]


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
