"""Double precision for the length of a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cam.tolerance import double_precision


@pytest.fixture
def double() -> Iterator[None]:
    with double_precision():
        yield
