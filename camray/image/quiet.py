"""Silence for libtiff, which prints to standard error whatever it thinks of a damaged file.

One fuzzed TIFF can print hundreds of lines, and a cluster forwards each to the driver's terminal. What
matters of it arrives as an exception anyway.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from pathlib import Path

import PIL


def silence_libtiff() -> bool:
    """Take away libtiff's message handlers in this process; tell whether it worked.

    Works on the copy that Pillow's wheels bring along, or else on the system's.
    """
    site = Path(PIL.__file__).parent
    bundled = [*site.parent.glob("pillow.libs/libtiff*"), *site.glob(".dylibs/libtiff*")]
    name = str(bundled[0]) if bundled else ctypes.util.find_library("tiff")
    if name is None:
        return False
    try:
        library = ctypes.CDLL(name)  # already loaded by Pillow: this gives the same copy
        for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)
    except (OSError, AttributeError):
        return False
    return True
