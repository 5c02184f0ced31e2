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
    b"P6long..": lambda _: os.write(int(sys.argv[1]), b"\xff" * 100),
}
LIES = {  # answers that no decoder gives: a mad code, too few pixels, no UTF-8, a cut geometry
    b"P6code..": [b"no_such_code", b"?"],
    b"P6mute..": [b"corrupt_image\xff"],
    b"P6short.": [b"", bytes(40), b"PNG", b"", b"", bytes(3)],
    b"P6text..": [b"", bytes(40), b"\xff", b"", b"", bytes(3 * 32 * 32)],
    b"P6where.": [b"", bytes(7), b"PNG", b"", b"", bytes(3 * 32 * 32)],
    b"P6edges.": [b"", bytes(40), b"PNG", b"", bytes(33), bytes(3 * 32 * 32)],
    b"P6none..": [],
}


def misbehave(content: bytes) -> None:
    deed = DEEDS.get(content[:8])
    if deed is not None:
        deed(content[8:].decode())


real = guarded._answer


def answer(max_pixels, content, *about):
    try:
        misbehave(content)
    except (OSError, ValueError) as error:
        return [b"corrupt_image", f"{type(error).__name__}: {error}".encode()]
    except MemoryError:
        return [b"corrupt_image", b"no memory"]
    if content[:8] in LIES:
        return LIES[content[:8]]
    return real(max_pixels, content, *about)


if __name__ == "__main__":
    guarded._answer = answer
    guarded.serve(int(sys.argv[1]), int(sys.argv[2]))
