"""What a command needs of the machine it runs on, and what it must not leave open there."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from camray.errors import UsageError


@contextmanager
def on_this_machine() -> Iterator[None]:
    """Refuse a machine that cannot do it; within the body nobody but the owner may change what is made.

    Raises:
        UsageError: no working folder, no folder for temporary files, or file names that are not UTF-8.
    """
    _check()
    warnings.filterwarnings("ignore", "IProgress not found")  # of tqdm in notebooks: camray uses no such bar
    before = os.umask(0o077)  # it can only be read by setting it
    os.umask(before | 0o022)
    try:
        yield
    finally:
        os.umask(before)


def _check() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError("the working folder", str(error.strerror), "cd to one that is there") from None
    try:
        tempfile.gettempdir()
    except OSError:
        why = "no folder for temporary files can be written"
        raise UsageError("TMPDIR", why, "export TMPDIR=FOLDER, of some 100 MB") from None
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        why = f"file names are taken for {encoding} here"
        raise UsageError("the locale", why, "export PYTHONUTF8=1, or LC_ALL=C.UTF-8")


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for its next batch (glibc; elsewhere nothing happens).

    glibc gives large blocks, as activations are, back to the system, which clears the same pages again for
    the next layer: up to 5 of 20 ms an image (MobileNetV2, batches of 8). Heaps of threads end at 64 MiB and
    come and go as well, so all threads share the first heap.
    """
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # malloc.h
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(m_mmap_max, 0)
        mallopt(m_arena_max, 1)
        mallopt(m_trim_threshold, 2**31 - 1)
