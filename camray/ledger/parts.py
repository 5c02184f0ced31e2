"""What a record file holds, read from it: of a pack its parts, and the rows of one part.

A pack is what `camray prune --compact` makes of the small files of many shards. Its footer says of each
part the shard and content that it is of, and how many rows it has; the rows lie in this order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from camray.errors import UsageError, printable
from camray.ledger.committed import Part, RecordFile
from camray.storage import Folder

FOOTER_KEY = b"camray"
PACK_ROWS = 8192  # of a row group: what is read for the rows of one shard, twice at most


def read_parts(out: Folder, path: str) -> list[Part]:
    """Read what is in a pack.

    Raises:
        UsageError: it is damaged, or not camray's.
    """
    try:
        with out.open(path) as file:
            metadata = pq.read_metadata(file)
        parts = [Part(*part) for part in json.loads((metadata.metadata or {})[FOOTER_KEY])["parts"]]
    except (pa.ArrowInvalid, FileNotFoundError, ValueError, LookupError, TypeError) as error:
        why = printable(f"{path} is damaged: {error}", 300)
        raise UsageError("OUT", why, "restore it, or the version of the table before it was made") from None
    return parts


def read_rows(out: Folder, folder: str, file: RecordFile, columns: Sequence[str]) -> pa.Table:
    """Read columns of a committed file, or of a shard's part of a pack."""
    with out.open(f"{folder}/{file.path}") as source:
        parquet = pq.ParquetFile(source)
        if not file.is_packed:
            return parquet.read(list(columns), use_threads=False)
        groups = range(file.first // PACK_ROWS, (file.first + max(file.rows, 1) - 1) // PACK_ROWS + 1)
        rows: Any = parquet.read_row_groups(list(groups), list(columns), use_threads=False)
        return rows.slice(file.first - groups.start * PACK_ROWS, file.rows)
