"""timm and torchvision, imported without torch's compiler: its import takes longer than theirs together."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from huggingface_hub import constants

__all__ = ["offline", "timm", "torchvision"]
_COMPILER, _TESTS = "torch._dynamo", "torch._dynamo.utils"


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Answer the two things that are asked of it at import.

    To leave functions as they are, and for a test that `torchvision.ops.roi_align` makes when it is called.
    """
    stands_in: Any = {name: ModuleType(name) for name in (_COMPILER, _TESTS)}
    stands_in[_COMPILER].disable = lambda function=None, *_, **__: function or (lambda own: own)
    stands_in[_TESTS].is_compile_supported = lambda device: import_module(_TESTS).is_compile_supported(device)
    sys.modules.update(stands_in)
    torch._dynamo = stands_in[_COMPILER]
    try:
        yield
    finally:
        del torch._dynamo, sys.modules[_COMPILER], sys.modules[_TESTS]


if _COMPILER not in sys.modules:
    with _without_compiler(), suppress(ImportError, AttributeError):  # another version asks for more
        import_module("torchvision.ops.roi_align")  # first: timm goes on where it cannot have it
        import_module("timm")

import timm  # noqa: E402
import torchvision  # noqa: E402


@contextmanager
def offline() -> Iterator[None]:
    """Allow cached files only. The client's own switch is read at its import, so it is turned here."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
