"""Protections taken out, one each: the test of the promise must notice."""

from __future__ import annotations

import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from camray.review import verify


def without_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the file's own checksum nor those of its pages are compared."""
    monkeypatch.setattr(verify, "checksum", lambda _: AlwaysEqual())
    real_file, real_options = pq.ParquetFile, pads.ParquetFragmentScanOptions

    def unchecked_file(source: object, **_: object) -> pq.ParquetFile:
        return real_file(source)

    def unchecked_options(**_: object) -> pads.ParquetFragmentScanOptions:
        return real_options()

    monkeypatch.setattr(verify.pq, "ParquetFile", unchecked_file)
    monkeypatch.setattr(pads, "ParquetFragmentScanOptions", unchecked_options)


class AlwaysEqual:
    """Equal to everything."""

    def __eq__(self, _: object) -> bool:
        return True

    def __ne__(self, _: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]
