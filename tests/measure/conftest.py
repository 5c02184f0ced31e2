"""Double precision for the length of a test, as in tests/cam."""

from tests.cam.conftest import double

__all__ = ["double"]
