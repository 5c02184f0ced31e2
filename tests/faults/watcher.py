"""A reader that is not camray: follows the Delta log by its specification, while jobs run and are killed.

It counts as wrong: a file of the log that is missing, of another size or torn; two rows of one member; a row
that was visible and is gone; a log with a gap.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet as pq

from tests.faults.small_archive import CUT, Expected, Oracle

COLUMNS = ["shard", "member", "index", "status", "error_code", "predicted_class", "run_id"]
Rows = dict[tuple[str, str], dict[str, Any]]


class Reader:
    """Reads one table again and again; files are read once."""

    def __init__(self, out: Path) -> None:
        self._table = out / "records"
        self._versions: list[list[dict[str, Any]]] = []
        self._files: dict[str, list[dict[str, Any]]] = {}
        self._seen: Rows = {}
        self.reads = 0

    def look(self) -> Rows:
        """Give every visible row by (shard, member); AssertionError where something is wrong."""
        while (log := self._table / f"_delta_log/{len(self._versions):020d}.json").exists():
            self._versions.append([json.loads(line) for line in log.read_text().splitlines()])
        live: dict[str, dict[str, Any]] = {}
        for version in self._versions:
            for action in version:
                if "remove" in action:
                    live.pop(action["remove"]["path"], None)
            live |= {action["add"]["path"]: action["add"] for action in version if "add" in action}
        rows: Rows = {}
        for path, about in live.items():
            for row in self._rows(path, about):
                key = (str(row["shard"]).rpartition("/")[2], row["member"])
                assert key not in rows, f"{key} has two rows"
                rows[key] = row
        for key, row in self._seen.items():
            assert rows.get(key) == row, f"{key} was visible, then {'changed' if key in rows else 'gone'}"
        self._seen = rows
        self.reads += 1
        return rows

    def _rows(self, path: str, about: dict[str, Any]) -> list[dict[str, Any]]:
        if path not in self._files:
            file = self._table / unquote(path)
            assert file.exists(), f"{path} is committed but not there"
            assert file.stat().st_size == about["size"], f"{path} is not of its size"
            table = pq.read_table(file, columns=COLUMNS, page_checksum_verification=True, partitioning=None)
            assert table.num_rows == json.loads(about["stats"])["numRecords"], f"{path} is torn"
            self._files[path] = table.to_pylist()
        return self._files[path]


@contextlib.contextmanager
def watched(out: Path, every_s: float = 0.05) -> Iterator[Reader]:
    """Poll in a thread; raise at the end what the reader found wrong."""
    reader, done, wrong = Reader(out), threading.Event(), list[BaseException]()

    def poll() -> None:
        try:
            while not done.is_set():
                reader.look()
                time.sleep(every_s)
        except BaseException as error:  # noqa: BLE001 - told at the end
            wrong.append(error)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield reader
    finally:
        done.set()
        thread.join()
    if wrong:
        raise AssertionError(f"a reader saw: {wrong[0]!r}") from wrong[0]


SEALED = frozenset({(CUT, "shard_truncated")})


def check(rows: Rows, oracle: Oracle, broken: frozenset[tuple[str, str]] = SEALED) -> None:
    """Compare the table with what the generator of the archive knows; `broken` are shards and why."""
    members = {key: row for key, row in rows.items() if key[1] is not None}
    assert members.keys() == oracle.keys(), "rows lost or invented"
    for key, row in members.items():
        said = Expected(row["status"], row["error_code"], row["predicted_class"])
        assert said == oracle[key], key
    assert broken == {(shard, row["error_code"]) for (shard, member), row in rows.items() if member is None}
