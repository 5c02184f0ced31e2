"""Tables that name images: an archive that is a list of paths, and the `metadata` files inside a folder.

    csv, tsv, txt, jsonl, Parquet without images ──rows──> path, label, boxes, mask ──> Annotations by path

Text is UTF-8, with or without a byte order mark; blank lines count for nothing. A csv needs a header; comma,
semicolon and tab separate. A txt holds one path a line, a label behind a tab if there is one, and comments
behind a `#` at the start. Several rows of one image are several boxes.

`metadata.csv`, `.jsonl` or `.parquet` lies beside the images of a folder, as Hugging Face's image folders
have it; its `file_name` column is relative to its own folder. A file called so without that column is no
metadata and stays what it is for the listing.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from camray.archive.annotations import Annotation, from_row, join_boxes, label_columns
from camray.archive.columns import PATHS, path_column
from camray.archive.names import table_ending
from camray.archive.parquet import open_parquet
from camray.archive.places import tidy
from camray.archive.readers import METADATA, buffered
from camray.config import ArchiveConfig
from camray.errors import ShardError, UsageError, printable
from camray.storage import Entry, Folder, open_folder

_METADATA_PATH = "file_name"
_JSON_LINES = ("jsonl", "ndjson")
_BATCH_ROWS = 4096
_UNREADABLE = (OSError, pa.ArrowException, csv.Error, ShardError)

Row = dict[str, Any]


# ── what a table says, by path ───────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Listed:
    """What the rows of a list or metadata file say, by path, in the order of their first rows."""

    annotations: dict[str, Annotation] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    is_labelled: bool = False  # it has a column of labels

    def add(self, path: str, annotation: Annotation) -> None:
        """Take a row; a further row of a path brings a further box, or nothing and is counted."""
        before = self.annotations.setdefault(path, annotation)
        if before is annotation:
            return
        if annotation.boxes is not None:
            edges = [*(before.boxes.edges if before.boxes else ()), *annotation.boxes.edges]
            self.annotations[path] = replace(before, boxes=join_boxes(edges))
        else:
            self.left_out["listed twice"] += 1
        if (annotation.label, annotation.label_class) != (before.label, before.label_class):
            self.left_out["other label for a listed file"] += 1


def is_list(place: Folder, config: ArchiveConfig) -> bool:
    """Tell whether a file is a list of paths: by its ending, and a Parquet file by its columns."""
    if table_ending(place.path) != "parquet":
        return bool(table_ending(place.path))
    try:
        return path_column(_parquet_schema(place), config.image_column) is not None
    except (ShardError, OSError):
        return False  # told as a record, when the shard is read


def read_list(place: Folder, config: ArchiveConfig, paths: tuple[str, ...] = PATHS) -> Listed:
    """Read a list or metadata file whole; `[archive] image_column` may name its column of paths.

    Raises:
        UsageError: naming the line and what is wrong there.
    """
    listed = Listed()
    paths = (config.image_column.lower(),) if config.image_column else paths
    for where, path, row in read_rows(place, paths):
        try:
            annotation = from_row(row, config.label_column, config.bbox)
        except ValueError as error:
            raise _refused(place, where, str(error), "correct the row") from None
        listed.is_labelled = listed.is_labelled or bool(label_columns(row, config.label_column))
        listed.add(tidy(path), annotation)
    return listed


def read_metadata(
    folder: Folder, entries: Iterable[Entry], config: ArchiveConfig
) -> tuple[dict[str, Annotation], set[str]]:
    """Read every metadata file among `entries`: annotations by path, and the paths of these files.

    Raises:
        UsageError: naming the file, the line and what is wrong there.
    """
    annotations: dict[str, Annotation] = {}
    used = set()
    for entry in entries:
        where, _, name = entry.path.rpartition("/")
        if name in METADATA:
            found = metadata_of(open_folder(folder.child_uri(entry.path), "ARCHIVE"), where, config)
            annotations |= found or {}
            used |= {entry.path} if found is not None else set()
    return annotations, used


def metadata_of(place: Folder, where: str, config: ArchiveConfig) -> dict[str, Annotation] | None:
    """Read one metadata file, which lies in the folder `where`: annotations by path; None where it is none.

    Raises:
        UsageError: naming the file, the line and what is wrong there.
    """
    if not _has_column(place, _METADATA_PATH):
        return None
    annotations = {}
    listed = read_list(place, replace(config, image_column=None), (_METADATA_PATH,))
    for path, annotation in listed.annotations.items():
        mask = annotation.mask and posixpath.join(where, annotation.mask)
        annotations[tidy(posixpath.join(where, path))] = replace(annotation, mask=mask)
    return annotations


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def read_rows(place: Folder, paths: Sequence[str] = PATHS) -> Iterator[tuple[str, str, Row]]:
    """Yield `(where, path, row)` of each row, its keys in lower case, `where` as a person would look for it.

    Raises:
        UsageError: no column of paths, a row without a path, or text that cannot be read.
    """
    try:
        for where, row in _rows(place):
            key = next((name for name in paths if name in row), None)
            if key is None:
                columns = ", ".join(name for name in row if name) or "none"
                problem = f"no column of paths; there are: {columns}"
                raise _refused(place, where, problem, f"name one {paths[0]}")
            path = row[key]
            if not isinstance(path, str) or not path.strip():
                raise _refused(place, where, f"{key} is empty or no text", "give a path")
            yield where, path.strip(), row
    except _UNREADABLE as error:
        raise _refused(place, "", str(error)) from None


def _has_column(place: Folder, column: str) -> bool:
    """Tell whether a table has a column, by its header or first row; False where it cannot be read."""
    ending = table_ending(place.path)
    try:
        if ending == "parquet":
            return column in [name.lower() for name in _parquet_schema(place).names]
        first = next((line for line in _lines(place) if line.strip()), "")
        return f'"{column}"' in first.lower() if ending in _JSON_LINES else column in _header(first)[0]
    except _UNREADABLE:
        return False


def _refused(place: Folder, where: str, problem: str, fix: str = "") -> UsageError:
    name = place.uri.rpartition("/")[2]
    return UsageError("ARCHIVE", printable(f"{name}{' ' if where else ''}{where}: {problem}"), fix)


def _rows(place: Folder) -> Iterator[tuple[str, Row]]:
    ending = table_ending(place.path)
    if ending == "parquet":
        return _parquet(place)
    if ending in _JSON_LINES:
        return _jsonl(place)
    return _txt(place) if ending == "txt" else _csv(place)


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


def _parquet_schema(place: Folder) -> pa.Schema:
    with place.open() as file:
        return open_parquet(file, file.size()).schema_arrow
