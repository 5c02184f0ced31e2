"""The Delta log as it lies on the disk: made durable, and told apart from what a power loss left of it."""

from __future__ import annotations

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from camray.errors import UsageError, printable, said_by
from camray.storage import Folder


def entry(folder: str, version: int) -> str:
    """Give the place of a log entry below OUT; `folder` is the table's."""
    return f"{folder}/_delta_log/{version:020d}.json"


def is_stillborn(out: Folder, folder: str) -> bool:
    """Tell whether a power loss came right at the table's birth: its first entry is there, and empty."""
    first, second = entry(folder, 0), entry(folder, 1)
    return out.is_local and out.exists(first) and not out.exists(second) and not out.read(first)


def flush(out: Folder, folder: str, version: int) -> None:
    """Make a log entry durable, and the checkpoint beside it: Delta Lake leaves that to chance."""
    checkpoint = (f"{version:020d}.checkpoint.parquet", "_last_checkpoint")
    out.flush([entry(folder, version), *(f"{folder}/_delta_log/{name}" for name in checkpoint)])


def opened(out: Folder, folder: str) -> DeltaTable:
    """Open a table that is there.

    Raises:
        UsageError: its log is damaged. In a store, which may only be away, the error stays as it is.
    """
    uri = out.child_uri(folder)
    try:
        return DeltaTable(uri)
    except DeltaError as error:
        if not out.is_local:
            raise
        why = printable(said_by(error), 160)
        fix = "restore its _delta_log; the record files beside it are whole, or done again"
        raise UsageError("OUT", f"the log of {uri} is damaged: {why}", fix) from None
