"""A decoder process whose PPM codec misbehaves, as the first bytes of the image ask for."""

import ctypes
import os
import signal
import sys
import time

import numpy as np

from camray.image import guarded


def spin(_: str) -> None:
    while True:
        pass


def die_the_first_time(marker: str) -> None:
    if not os.path.exists(marker + ".seen"):
        os.rename(marker, marker + ".seen")
        os._exit(3)


def chat(_: str) -> None:
    for _line in range(100_000):
        os.write(2, b"libsomething: warning: bad data at 0x1234\n")


def write(path: str) -> None:
    with open(path, "wb") as file:
        file.write(b"x")


def tell_environment(_: str) -> None:
    raise ValueError(" ".join(k for k, v in os.environ.items() if "canary" in v) or "nothing secret")


DEEDS = {
    b"P6segv..": lambda _: ctypes.string_at(0),
    b"P6abort.": lambda _: os.abort(),
    b"P6spin..": spin,
    b"P6sleep.": lambda _: time.sleep(3600),
    b"P6stop..": lambda _: os.kill(os.getpid(), signal.SIGSTOP),
    b"P6once..": die_the_first_time,
    b"P6eat...": lambda _: np.ones(2**34, np.uint8),  # 16 GiB
    b"P6chat..": chat,
    b"P6file..": write,
    b"P6env...": tell_environment,
    b"P6lie...": lambda _: os.write(int(sys.argv[1]), b"\xff\xff\xff\xff" + b"{}" * 100),
}


def misbehave(content: bytes) -> None:
    deed = DEEDS.get(content[:8])
    if deed is not None:
        deed(content[8:].decode())


real = guarded._answer


def answer(request, blobs):
    try:
        misbehave(blobs[0])
    except (OSError, ValueError) as error:
        return {"error": ["corrupt_image", f"{type(error).__name__}: {error}"]}, []
    except MemoryError:
        return {"error": ["corrupt_image", "no memory"]}, []
    return real(request, blobs)


if __name__ == "__main__":
    guarded._answer = answer
    guarded.serve(int(sys.argv[1]), int(sys.argv[2]))
