"""Protections taken out, one each: the test of the promise must notice."""

from __future__ import annotations

import contextlib
import json
import os
import tarfile
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from camray import storage
from camray.archive import members
from camray.archive.names import name_kind
from camray.errors import ErrorCode
from camray.flow import stages
from camray.ledger import commit, committed, hold, plan, table
from camray.ledger.out import hold_file
from camray.records import Member, Status, account
from camray.upkeep import verify


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


# ── protections of the small job, by name ────────────────────────────────────────────────────────


def apply(name: str) -> None:
    """Take out one protection of this process; an empty name takes out none."""
    if name:
        SMALL_JOB[name]()


def _receipt_before_file() -> None:
    """The file is written a moment after its receipt was given."""
    real = storage.Folder.write

    def later(self: storage.Folder, relative: str, data: bytes) -> None:
        if not relative.startswith("records/"):
            real(self, relative, data)
            return
        threading.Timer(0.1, real, (self, relative, data)).start()

    storage.Folder.write = later  # type: ignore[method-assign]


def _in_place() -> None:
    """Files are written under their final name, bit by bit, without a temporary one."""

    def write_all(_self: storage.Folder, files: Mapping[str, bytes]) -> None:
        for relative, data in files.items():
            path = Path(_self.at(relative))
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb", buffering=0) as file:
                for start in range(0, len(data), 2000):
                    file.write(bytes(data)[start : start + 2000])
                    time.sleep(0.001)

    storage.Folder.write_all = write_all  # type: ignore[method-assign]


def _without_failures() -> None:
    """Failed members get no row, and nobody compares rows with members."""
    real = stages.Sink._records

    def fewer(self: Any, shard_id: str, columns: Any, size: int) -> Any:
        table = real(self, shard_id, columns, size)
        return table.filter(pc.field("status") != "failed")

    stages.Sink._records = fewer  # type: ignore[method-assign]
    commit._Open.finished = _finished_without_identity  # type: ignore[method-assign]


def _finished_without_identity(self: Any) -> Any:
    if self.end is None or not all(i in self.receipts for i in range(self.end.chunks)):
        return None
    receipts = tuple(self.receipts[i] for i in range(self.end.chunks))
    return table.ShardCommit(self.shard, receipts, account(receipts))


def _forget_what_is_committed() -> None:
    """Neither the plan nor the commit looks at what is there; no transaction id stands in the way."""
    committed.CommittedFiles.holds = lambda *_: False  # type: ignore[method-assign]
    commit.CommitDesk.confirm = _nothing  # type: ignore[assignment,method-assign]
    table.is_committed = lambda *_: False  # type: ignore[assignment]
    table.Table._current = lambda *_: []  # type: ignore[method-assign]


def _nothing(*_: object) -> None:
    return None


def _blind_commit() -> None:
    """The log entry is written without looking whether another run was first."""
    table.is_committed = lambda *_: False  # type: ignore[assignment]
    table.Table._current = lambda *_: []  # type: ignore[method-assign]
    real = table.Table._write

    def write(self: Any, *about: Any) -> None:
        self._delta.update_incremental()
        real(self, *about)

    table.Table._write = write  # type: ignore[method-assign]


def _tar_by_the_standard_library() -> None:
    """A damaged header is taken for the end of the archive."""

    def read(file: Any, _size: int, config: Any, wanted: Any) -> Any:
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            for index, entry in enumerate(archive):
                kind = name_kind(entry.name)
                if kind != "image":
                    yield Member(index, entry.name, None, status=Status.SKIPPED,
                                 error_code=ErrorCode.NOT_AN_IMAGE_NAME)  # fmt: skip
                else:
                    yield Member(index, entry.name, archive.extractfile(entry).read())  # type: ignore[union-attr]

    members.read_tar = read


def _forget_chunks() -> None:
    """What an interrupted run left finished is done again."""
    plan._finished_chunks = lambda *_: {}  # type: ignore[assignment]


def _without_hold() -> None:
    """A second run is not refused."""
    hold._wait_for_end = _nothing  # type: ignore[assignment]


def _hold_by_own_clock() -> None:
    """A hold that began more than a minute ago by this machine's clock, a day ahead, does not count."""
    _clock(90_000)()
    real = hold._wait_for_end

    def wait(out: storage.Folder, number: int) -> None:
        started = datetime.fromisoformat(json.loads(out.read(hold_file(number)))["started_at"])
        if time.time() - started.timestamp() < hold.STALE_S:
            real(out, number)

    hold._wait_for_end = wait


def _without_flush() -> None:
    """Nothing waits until the disk has it."""
    os.fsync = lambda _: None  # type: ignore[assignment]


def _without_flush_of_the_log() -> None:
    """What Delta Lake wrote reaches the disk when the system likes."""
    storage.Folder.flush = _nothing  # type: ignore[assignment,method-assign]


def _full_disk_unnoticed() -> None:
    """A file that could not be written is not missed."""
    write, make = storage.Folder.write_all, storage.Folder.create

    def write_all(self: storage.Folder, files: Mapping[str, bytes]) -> None:
        with contextlib.suppress(OSError):
            write(self, files)

    def create(self: storage.Folder, relative: str, data: bytes) -> bool:
        with contextlib.suppress(OSError):
            return make(self, relative, data)
        return True

    storage.Folder.write_all = write_all  # type: ignore[method-assign]
    storage.Folder.create = create  # type: ignore[method-assign]


def _without_a_second_look() -> None:
    """What was committed is taken to be in the table."""
    commit.CommitDesk.confirm = _nothing  # type: ignore[assignment,method-assign]


def _without_a_second_create() -> None:
    """The store is not asked whether it makes what is there already."""
    hold._check_conditional = _nothing  # type: ignore[assignment]


def _without_either() -> None:
    _without_a_second_create()
    _without_a_second_look()


def _clock(by_s: float) -> Callable[[], None]:
    def skew() -> None:
        real = time.time
        time.time = lambda: real() + by_s  # type: ignore[assignment]

    return skew


SMALL_JOB: dict[str, Callable[[], None]] = {
    "receipt before file": _receipt_before_file,
    "written in place": _in_place,
    "rows only for what went well": _without_failures,
    "committed work forgotten": _forget_what_is_committed,
    "commit without looking": _blind_commit,
    "tar by the standard library": _tar_by_the_standard_library,
    "finished chunks forgotten": _forget_chunks,
    "no hold": _without_hold,
    "hold by this machine's clock": _hold_by_own_clock,
    "no flush": _without_flush,
    "no flush of the log": _without_flush_of_the_log,
    "a full disk goes unnoticed": _full_disk_unnoticed,
    "no second create": _without_a_second_create,
    "no second create, no second look at the table": _without_either,
    "clock a day ahead": _clock(90_000),
    "clock a day behind": _clock(-90_000),
}
