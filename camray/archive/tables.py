"""Tables that name images: an archive that is a list of paths, and the `metadata` files inside a folder.

    csv, tsv, txt, jsonl, Parquet without images ──rows──> path, label, boxes, mask ──> Annotations by path

Text is in the encoding that `[archive] encoding` says, UTF-8 by itself; a byte order mark decides. Blank
lines count for nothing. A csv needs a header; comma, semicolon and tab separate. A txt holds one path a line,
a label behind a tab if there is one, and comments behind a `#` at the start. Several rows of one image are
several boxes.

`metadata.csv`, `.jsonl` or `.parquet` lies beside the images of a folder, as Hugging Face's image folders
have it; its `file_name` column is relative to its own folder. A file called so without that column is no
metadata and stays what it is for the listing.

No value ends a run. A row whose words on its image cannot be makes that image a failed one; a row without a
usable path is a failed member of a list, named after its line, and is counted where it is of metadata. A path
in metadata is relative and leads nowhere out of the archive; one in a list may be absolute or a URI, and a
URI chooses neither endpoint nor scheme of the store.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import posixpath
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from camray.archive.annotations import Annotation, from_row, join_boxes, label_columns, read_json
from camray.archive.columns import (
    PATHS,
    array_columns,
    cell_value,
    check_label_type,
    path_column,
    refuse_long,
)
from camray.archive.names import is_web, table_ending
from camray.archive.parquet import bounded_batches, layout_of, listed_texts, open_parquet
from camray.archive.places import leads_out, tidy
from camray.archive.readers import METADATA, buffered, packed_format
from camray.config import ArchiveConfig
from camray.errors import ShardError, UsageError, printable, redacted
from camray.storage import Entry, Folder, check_uri, open_folder

_METADATA_PATH = "file_name"
_JSON_LINES = ("jsonl", "ndjson")
_MAX_PATH_BYTES = 4096
_MARKS = (  # the longer first: one begins like another
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_HOST = re.compile(r"(anonymous@)?[A-Za-z0-9._-]*")
_SAFE_OPTIONS = re.compile(r"region=[a-z0-9-]+")
_ESCAPED = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of a byte that is no text
_UNREADABLE = (OSError, pa.ArrowException, csv.Error, UnicodeError, ShardError)

Cells = dict[str, Any]
Check = Callable[[str], tuple[str, str]]  # a path as written -> as the archive has it, why it may not be one


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its cells by lower-case name, where a person would look for it, and what is wrong with it."""

    where: str
    cells: Cells
    problem: str = ""


# ── what a table says, by path ───────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Listed:
    """What the rows of a list or metadata file say, by path, in the order of their first rows."""

    annotations: dict[str, Annotation] = field(default_factory=dict)
    unusable: dict[str, Annotation] = field(default_factory=dict)  # rows without a path to look at, by name
    left_out: Counter[str] = field(default_factory=Counter)
    is_labelled: bool = False  # it has a column of labels

    def add(self, path: str, annotation: Annotation) -> None:
        """Take a row; a further row of a path brings a further box, or nothing and is counted."""
        before = self.annotations.setdefault(path, annotation)
        if before is annotation:
            return
        if annotation.boxes is not None:
            edges = [*(before.boxes.edges if before.boxes else ()), *annotation.boxes.edges]
            problem = before.problem or annotation.problem
            self.annotations[path] = replace(before, boxes=join_boxes(edges), problem=problem)
        else:
            self.left_out["listed twice"] += 1
        if (annotation.label, annotation.label_class) != (before.label, before.label_class):
            self.left_out["other label for a listed file"] += 1


def is_list(place: Folder, config: ArchiveConfig) -> bool:
    """Tell whether a file is a list of paths: by its ending, and a Parquet file by its columns."""
    if table_ending(place.path) != "parquet":
        return bool(table_ending(place.path))
    try:
        schema = _parquet_schema(place)
        if config.reads_arrays and array_columns(schema) and config.image_column is None:
            return False
        return path_column(schema, config.image_column) is not None
    except (ShardError, OSError):
        return False  # told as a record, when the shard is read


def read_list(place: Folder, config: ArchiveConfig) -> Listed:
    """Read a list whole; `[archive] image_column` may name its column of paths.

    Raises:
        UsageError: no row names a path, or the file cannot be read: naming the line and what is wrong there.
    """
    listed, first, columns = Listed(), "", set[str]()
    paths = (config.image_column.lower(),) if config.image_column else PATHS
    for row, path, problem, said in _said(place, paths, partial(_listed_or_url, config.allow_http), config):
        columns |= row.cells.keys()
        listed.is_labelled = listed.is_labelled or bool(label_columns(row.cells, config.label_column))
        if problem:
            first = first or f"{_named(place, row)}: {problem}"
            is_path = 0 < len(path) <= _MAX_PATH_BYTES and not path.startswith("data:")
            listed.unusable.setdefault(redacted(path) if is_path else _named(place, row), said)
        else:
            listed.add(path, said)
    if first and not listed.annotations:
        raise UsageError("ARCHIVE", printable(first), "give each image a path or URI of its own")
    _check_groups(place, columns, config)
    return listed


def _check_groups(place: Folder, columns: set[str], config: ArchiveConfig) -> None:
    """Refuse a column of `--group-by` that a table does not have."""
    missing = [name for name in config.group_by if name.lower() not in columns]
    if columns and missing:
        problem = printable(f"{place.uri.rpartition('/')[2]} has no column {missing[0]}")
        raise UsageError("--group-by", problem, printable(f"one of {', '.join(sorted(columns))}"))


def read_metadata(folder: Folder, entries: Sequence[Entry], config: ArchiveConfig) -> tuple[Listed, set[str]]:
    """Read every metadata file among `entries`: what they say, by path of the archive; and their own paths.

    Raises:
        UsageError: a file that cannot be read, by its name.
    """
    whole, used = Listed(), set()
    for entry in entries:
        where, _, name = entry.path.rpartition("/")
        if name in METADATA:
            place = open_folder(folder.child_uri(entry.path), "ARCHIVE")
            used |= {entry.path} if _take_metadata(place, where, config, whole) else set()
    return whole, used


def metadata_of(place: Folder, where: str, config: ArchiveConfig) -> dict[str, Annotation] | None:
    """Read one metadata file, which lies in the folder `where`: annotations by path; None where it is none.

    Raises:
        UsageError: naming the file, the line and what is wrong there.
    """
    whole = Listed()
    return whole.annotations if _take_metadata(place, where, config, whole) else None


def _take_metadata(place: Folder, where: str, config: ArchiveConfig, whole: Listed) -> bool:
    if not _has_column(place, _METADATA_PATH, config):
        return False
    columns = set[str]()
    for row, path, problem, said in _said(place, (_METADATA_PATH,), partial(path_inside, where), config):
        columns |= row.cells.keys()
        if problem:
            whole.left_out["unusable row of metadata"] += 1
        else:
            whole.add(path, said)
    _check_groups(place, columns, config)
    return True


def said_of_files(
    said: Mapping[str, Annotation], paths: Iterable[str], left_out: Counter[str]
) -> dict[str, Annotation]:
    """Give each file what metadata says of it, however its name and its mask's are spelled there."""
    masks = [annotation.mask for annotation in said.values() if annotation.mask]
    found, unclear = match_spellings([*said, *masks], paths)
    left_out["in metadata for several files"] += len(unclear & said.keys())
    left_out["in metadata only"] += len(said.keys() - found.keys() - unclear)
    annotations: dict[str, Annotation] = {}
    for path in sorted(said.keys() & found.keys(), key=lambda path: path != found[path]):  # exact ones first
        mask = said[path].mask
        annotation = replace(said[path], mask=mask and found.get(mask, mask))
        annotations.setdefault(found[path], annotation)
    return annotations


def spellings(path: str) -> tuple[str, ...]:
    """Give the ways in which a file system may spell a listed path, itself first.

    Windows separates by backslashes; `\u00fc` is one character or two, as the system that wrote it has it;
    a `file://` URI has `%20` for a space.
    """
    if is_web(path):
        return (path,)
    texts = [path, tidy(path.replace("\\", "/"))]
    if path.startswith("file://"):
        texts.append(unquote(path))
    forms = [form(text) for text in texts for form in (str, _composed, _decomposed)]
    return tuple(dict.fromkeys(forms))


def match_spellings(paths: Iterable[str], there: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """Find the file that each path means: `(file by path, paths that several files could be)`.

    The file of exactly this name comes first; else the only one that is spelled like it.
    """
    found, unclear = {}, set()
    exact = set(there)
    alike: dict[str, list[str]] = {}
    for name in exact:
        alike.setdefault(_composed(name), []).append(name)
    for path in paths:
        if path in exact:
            found[path] = path
            continue
        twins = {twin for spelled in spellings(path) for twin in alike.get(_composed(spelled), ())}
        if len(twins) == 1:
            found[path] = twins.pop()
        elif twins:
            unclear.add(path)
    return found, unclear


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def _said(
    place: Folder, paths: Sequence[str], check: Check, config: ArchiveConfig
) -> Iterator[tuple[Row, str, str, Annotation]]:
    """Yield of each row itself, its path, why that may not be one, and what it says of the image."""
    for row, written in _written_paths(place, paths, config):
        path, problem = check(written) if written else ("", row.problem)
        if problem or row.problem:
            yield row, path, problem, _cannot_be(place, row, problem or row.problem)
            continue
        try:
            said = from_row(row.cells, config.label_column, config.bbox, config.group_by)
        except (ValueError, RecursionError) as error:
            said = _cannot_be(place, row, str(error))
        mask, mask_problem = check(said.mask) if said.mask else (None, "")
        said = replace(said, mask=mask)
        yield row, path, "", _cannot_be(place, row, f"mask {mask} {mask_problem}") if mask_problem else said


def _cannot_be(place: Folder, row: Row, problem: str) -> Annotation:
    return Annotation(problem=printable(f"{_named(place, row)}: {problem}"))


# ── paths ────────────────────────────────────────────────────────────────────────────────────────


def _path_problem(path: str) -> str:
    """Say why a text is no path at all; empty where it may be one."""
    if path.startswith("data:"):
        return f"holds an image itself ({printable(path, 40)}), not a path"
    if len(path) > _MAX_PATH_BYTES:
        return f"{len(path):,} characters are more than a path has; an image itself is no path"
    return "a path with a zero byte" if "\0" in path else ""


def _listed(path: str) -> tuple[str, str]:
    """Give a path of a list in one spelling, and why it may not be one.

    A URI may not choose the store's endpoint, nor be what no store has.
    """
    problem = _path_problem(path)
    address, mark, options = path.partition("?")
    if problem or "://" not in address:
        return path if problem else tidy(path), problem
    if mark and not _SAFE_OPTIONS.fullmatch(options):
        return path, f"{redacted(address)} has options behind `?`, which are not for a list to choose"
    scheme, _, rest = address.partition("://")
    host = rest.partition("/")[0]
    if scheme == "file" and host:
        return path, "names a file of another machine"
    try:
        check_uri(f"{scheme}://{host}", "ARCHIVE")
    except UsageError as error:
        return path, error.problem
    if not _HOST.fullmatch(host):
        return path, f"no bucket is called {printable(host, 60)!r}"
    return tidy(path), ""


def _listed_or_url(allow_http: bool, path: str) -> tuple[str, str]:
    """Give a path of a list, or a URL as it is, and why it may not be one."""
    if not is_web(path) or _path_problem(path):
        return _listed(path)
    if not allow_http:
        return path, "a URL is read only with --allow-http"
    if packed := packed_format(path.partition("?")[0]):
        return path, f"a {packed} file is not read from a web server; fetch it"
    from camray.archive.web import url_problem  # with what it loads, where it is needed

    return path, url_problem(path)


def path_inside(where: str, path: str) -> tuple[str, str]:
    """Give a path of metadata in the folder `where` as one of the archive, and why it may not be one."""
    if problem := _path_problem(path):
        return path, problem
    whole, slashed = tidy(posixpath.join(where, path)), path.replace("\\", "/")
    if "://" in path or slashed.startswith("/") or leads_out(posixpath.join(where, slashed)):
        return path, "leads out of the archive; in metadata a path is relative and stays inside"
    return whole, ""


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def _written_paths(place: Folder, paths: Sequence[str], config: ArchiveConfig) -> Iterator[tuple[Row, str]]:
    """Yield `(row, path)` as written; an empty path where there is none, and then the row says why.

    Raises:
        UsageError: no column of paths, or text that cannot be read.
    """
    seen: dict[str, str] = {}  # names of columns, and where each was first
    try:
        for row in _rows(place, config):
            key = next((name for name in paths if name in row.cells), None)
            seen = dict.fromkeys(row.cells, row.where) | seen
            path = row.cells[key] if key else None
            if key and isinstance(path, str) and path.strip():
                _refuse_undecoded(place, row, key, config)
                yield row, path.strip()
            else:
                why = f"{key} is empty or no text" if key else "no column of paths"
                yield replace(row, problem=row.problem or why), ""
    except _UNREADABLE as error:
        raise _refused(place, "", str(error)) from None
    if seen and not seen.keys() & {*paths}:
        columns = ", ".join(name for name in seen if name) or "none"
        first = next(iter(seen.values()))
        raise _refused(place, first, f"no column of paths; there are: {columns}", f"name one {paths[0]}")


def _has_column(place: Folder, column: str, config: ArchiveConfig) -> bool:
    """Tell whether a table has a column, by its header or first row; False where it cannot be read."""
    ending = table_ending(place.path)
    try:
        if ending == "parquet":
            return column in [name.lower() for name in _parquet_schema(place).names]
        first = next((line for line in _lines(place, config) if line.strip()), "")
        return f'"{column}"' in first.lower() if ending in _JSON_LINES else column in _header(first)[0]
    except _UNREADABLE:
        return False


def _named(place: Folder, row: Row) -> str:
    return f"{place.uri.partition('?')[0].rpartition('/')[2]} {row.where}".strip()


def _refused(place: Folder, where: str, problem: str, fix: str = "") -> UsageError:
    return UsageError("ARCHIVE", printable(f"{_named(place, Row(where, {}))}: {problem}"), fix)


def _undecoded(place: Folder, where: str, config: ArchiveConfig) -> UsageError:
    problem = f"bytes that are no text in {config.encoding}"
    return _refused(place, where, problem, "--encoding, such as cp1252, or write the file in UTF-8")


def _refuse_undecoded(place: Folder, row: Row, key: str, config: ArchiveConfig) -> None:
    """Refuse bytes that are no text; in a path they are fine where a file is called so."""
    odd = [name for name, cell in row.cells.items() if isinstance(cell, str) and _ESCAPED.search(cell)]
    if not odd or table_ending(place.path) in (*_JSON_LINES, "parquet"):
        return
    named = os.path.join(os.path.dirname(place.path), row.cells[key].strip())
    if odd != [key] or not (place.is_local and os.path.isabs(named) and os.path.lexists(named)):
        raise _undecoded(place, row.where, config)


def _rows(place: Folder, config: ArchiveConfig) -> Iterator[Row]:
    ending = table_ending(place.path)
    if ending == "parquet":
        return _parquet(place, config)
    if ending in _JSON_LINES:
        return _jsonl(place, config)
    return _txt(place, config) if ending == "txt" else _csv(place, config)


def _lines(place: Folder, config: ArchiveConfig) -> Iterator[str]:
    """Yield the lines; a byte order mark decides the encoding. Bytes that are no text become surrogates."""
    with place.open() as file:
        packed = buffered(file)
        head = packed.peek(4)
        encoding = next((name for mark, name in _MARKS if head.startswith(mark)), config.encoding)
        yield from io.TextIOWrapper(packed, encoding, "surrogateescape", newline="")


def _csv(place: Folder, config: ArchiveConfig) -> Iterator[Row]:
    lines = _lines(place, config)
    head = next((line for line in lines if line.strip()), "")
    if _ESCAPED.search(head):
        raise _undecoded(place, "line 1", config)
    names, separator = _header(head)
    for number, cells, problem in _csv_cells(lines, separator):
        stripped = [cell.strip() for cell in cells]
        is_ragged = any(stripped[len(names) :])
        why = problem or (f"{len(cells)} cells under {len(names)} names; quote the cell" if is_ragged else "")
        if why or any(stripped):
            yield Row(f"line {number}", dict(zip(names, stripped, strict=False)), why)


def _csv_cells(lines: Iterator[str], separator: str) -> Iterator[tuple[int, list[str], str]]:
    """Yield `(line, cells, problem)` of each row below the header; an open quote ends with its line."""
    number, again = 2, deque[str]()
    taken: list[str] = []

    def feed() -> Iterator[str]:
        while (line := again.popleft() if again else next(lines, None)) is not None:
            taken.append(line)
            yield line

    while True:
        taken.clear()
        problem = ""
        try:
            cells = next(csv.reader(feed(), delimiter=separator), None)
        except csv.Error as error:
            cells, problem = [], f"{error}; a path has at most {_MAX_PATH_BYTES:,} characters"
        if cells is None:
            return
        if len(taken) > 1 and (problem or sum(line.count('"') for line in taken) % 2):
            cells, problem = [], "a quote that is not closed"
            again.extendleft(reversed(taken[1:]))
            del taken[1:]
        yield number, cells, problem
        number += len(taken)


def _header(line: str) -> tuple[list[str], str]:
    """Give the names in a csv's first line, and what separates them."""
    separator = max(",;\t", key=line.count)
    return [name.strip().lower() for name in next(csv.reader([line], delimiter=separator), [])], separator


def _txt(place: Folder, config: ArchiveConfig) -> Iterator[Row]:
    for number, line in enumerate(_lines(place, config), 1):
        path, _, label = line.strip("\r\n").partition("\t")
        if path.strip() and not path.startswith("#"):
            yield Row(f"line {number}", {"path": path} | ({"label": label.strip()} if label.strip() else {}))


def _jsonl(place: Folder, config: ArchiveConfig) -> Iterator[Row]:
    for number, line in enumerate(_lines(place, config), 1):
        where, problem, cells = f"line {number}", "", None
        if not line.strip():
            continue
        if _ESCAPED.search(line):
            raise _undecoded(place, where, config)
        try:
            cells = read_json(line)
            problem = "" if isinstance(cells, dict) else "not a JSON object"
        except (ValueError, RecursionError) as error:
            problem = f"not JSON: {error}"
        named = cells.items() if isinstance(cells, dict) else ()
        yield Row(where, {str(name).lower(): value for name, value in named}, problem)


def _parquet(place: Folder, config: ArchiveConfig) -> Iterator[Row]:
    number = 0
    with place.open() as file:
        parquet = open_parquet(file, file.size())
        schema = parquet.schema_arrow
        check_label_type(schema, label_columns({n.lower(): n for n in schema.names}, config.label_column))
        names = [name.lower() for name in schema.names]
        parquet = open_parquet(file, file.size(), listed_texts(parquet, schema.names))
        for group, told in enumerate(layout_of(file, file.size())):
            for batch in bounded_batches(file, parquet, group, told, schema.names):
                columns = batch.columns
                for i in range(batch.num_rows):
                    number += 1
                    try:
                        for column in columns:
                            refuse_long(column, i)
                    except ValueError as error:
                        yield Row(f"row {number}", {}, str(error))
                        continue
                    cells = (cell_value(column[i]) for column in columns)
                    yield Row(f"row {number}", dict(zip(names, cells, strict=True)))


def _parquet_schema(place: Folder) -> pa.Schema:
    with place.open() as file:
        return open_parquet(file, file.size()).schema_arrow
