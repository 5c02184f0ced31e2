"""The rows of a table that names images: csv, tsv, txt, jsonl or Parquet, one after the other.

Text is UTF-8, with or without a byte order mark; blank lines count for nothing. A csv needs a header; comma,
semicolon and tab separate. A txt holds one path a line, a label behind a tab if there is one, and comments
behind a `#` at the start. Keys are given in lower case.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from camray.archive.parquet_columns import PATHS
from camray.archive.parquet_footer import open_parquet
from camray.archive.streams import buffered
from camray.errors import ShardError, UsageError, printable
from camray.storage import Folder

ENDINGS = ("csv", "tsv", "txt", "jsonl", "ndjson", "parquet")
_JSON_LINES = ("jsonl", "ndjson")
_BATCH_ROWS = 4096

Row = dict[str, Any]


def ending(name: str) -> str:
    """Give the ending that makes a file a table of rows; empty for any other."""
    last = name.rpartition("/")[2].rpartition(".")[2].lower()
    return last if last in ENDINGS and "." in name else ""


def read_rows(place: Folder, paths: Sequence[str] = PATHS) -> Iterator[tuple[str, str, Row]]:
    """Yield `(where, path, row)` of each row, `where` as a person would look for it: `line 7`.

    Raises:
        UsageError: no column of paths, a row without a path, or text that cannot be read.
    """
    kind = ending(place.path)
    try:
        if kind == "parquet":
            rows = _parquet(place)
        else:
            rows = _txt(place) if kind == "txt" else (_jsonl if kind in _JSON_LINES else _csv)(place)
        for where, row in rows:
            key = next((name for name in paths if name in row), None)
            if key is None:
                there = ", ".join(name for name in row if name) or "none"
                raise _refused(
                    place, where, f"no column of paths; there are: {there}", f"name one {paths[0]}"
                )
            path = row[key]
            if not isinstance(path, str) or not path.strip():
                raise _refused(place, where, f"{key} is empty or no text", "give a path")
            yield where, path.strip(), row
    except (OSError, pa.ArrowException, csv.Error, ShardError) as error:
        raise _refused(place, "", str(error)) from None


def has_column(place: Folder, column: str) -> bool:
    """Tell whether a table has a column, by its header or first row; False where it cannot be read."""
    try:
        if ending(place.path) == "parquet":
            with place.open() as file:
                return column in [n.lower() for n in open_parquet(file, file.size()).schema_arrow.names]
        first = next((line for line in _lines(place) if line.strip()), "")
        if ending(place.path) in _JSON_LINES:
            return f'"{column}"' in first.lower()
        return column in _header(first)[0]
    except (OSError, pa.ArrowException, csv.Error, ShardError):
        return False


def _refused(place: Folder, where: str, problem: str, fix: str = "") -> UsageError:
    name = place.uri.rpartition("/")[2]
    return UsageError("ARCHIVE", printable(f"{name}{' ' if where else ''}{where}: {problem}"), fix)


def _lines(place: Folder) -> Iterator[str]:
    with place.open() as file:
        text = io.TextIOWrapper(buffered(file), "utf-8-sig", "surrogateescape", newline="")
        yield from text


def _csv(place: Folder) -> Iterator[tuple[str, Row]]:
    lines = _lines(place)
    head = next((line for line in lines if line.strip()), "")
    if not head:
        return
    names, separator = _header(head)
    reader = csv.reader(lines, delimiter=separator)
    before = 1
    for cells in reader:
        where, before = f"line {before + 1}", reader.line_num + 1
        if any(cell.strip() for cell in cells):
            if len(cells) > len(names) and any(cell.strip() for cell in cells[len(names) :]):
                raise _refused(place, where, f"{len(cells)} cells under {len(names)} names", "quote the cell")
            yield where, dict(zip(names, (cell.strip() for cell in cells), strict=False))


def _header(line: str) -> tuple[list[str], str]:
    """Give the names in a csv's first line, and what separates them."""
    separator = max(",;\t", key=line.count)
    return [name.strip().lower() for name in next(csv.reader([line], delimiter=separator), [])], separator


def _txt(place: Folder) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(_lines(place), 1):
        path, _, label = line.strip("\r\n").partition("\t")
        if path.strip() and not path.startswith("#"):
            yield f"line {number}", {"path": path} | ({"label": label.strip()} if label.strip() else {})


def _jsonl(place: Folder) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(_lines(place), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _refused(place, f"line {number}", f"not JSON: {error}") from None
        if not isinstance(row, dict):
            raise _refused(place, f"line {number}", "not a JSON object")
        yield f"line {number}", {str(name).lower(): value for name, value in row.items()}


def _parquet(place: Folder) -> Iterator[tuple[str, Row]]:
    number = 0
    with place.open() as file:
        for batch in open_parquet(file, file.size()).iter_batches(_BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", {name.lower(): value for name, value in row.items()}
