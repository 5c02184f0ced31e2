"""Double precision for the length of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cam.tolerance import double_precision


@pytest.fixture(scope="module")
def double() -> Iterator[None]:
    with double_precision():
        yield
