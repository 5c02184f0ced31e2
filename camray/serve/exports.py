"""The current view for other tools, by the same formats as `camray report --export`, sent as it is made.

Flows in: a query. Flows out: name, kind and parts of a file.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from PIL import Image

from camray.audit.export import Files, coco, csv_lines, folder_of, samples_of, tasks_of
from camray.audit.report_rows import as_shown
from camray.errors import UsageError
from camray.ledger.committed import PARTITION
from camray.serve.answers import Pages
from camray.serve.draw import drawn_anew, write_sheet
from camray.serve.rows import Row, View

KINDS = ("csv", "imagefolder", "coco", "label-studio", "fiftyone", "pdf")
SHEET = 1_000  # pictures of a PDF, whose pages are held until it is written
MOST = 10_000  # rows of a format that reads each record, or its picture
_PACKED = {"imagefolder": folder_of, "fiftyone": samples_of, "label-studio": tasks_of}
_CSV = (
    PARTITION, "shard", "member", "index", "content_sha256", "verdict", "flags", "predicted_label",
    "predicted_class", "confidence", "label",
)  # fmt: skip
_PART = 2**18


def exported(kind: str, pages: Pages, query: Sequence[tuple[str, str]]) -> tuple[str, str, Iterator[bytes]]:
    """Give name, kind and content of the file that holds a view.

    Raises:
        UsageError: more rows than a format with pictures takes.
    """
    ids = pages.rows.order(View.of([(name, value) for name, value in query if value]))
    if kind == "csv":
        rows = (_plain(row) for part in pages.rows.parts(ids, _CSV) for row in part)
        return "view.csv", "text/csv; charset=utf-8", _gathered(csv_lines(rows))
    if len(ids) > (most := SHEET if kind == "pdf" else MOST):
        raise UsageError("view", f"{len(ids):,} rows, more than {most:,}", "filter further, or export CSV")
    if kind == "pdf":
        return "view.pdf", "application/pdf", _sheet(pages, ids.tolist())
    whole = _shown(pages, pages.rows.parts(ids, size=500))
    if kind in _PACKED:
        return f"{kind}.zip", "application/zip", _zipped(_PACKED[kind](_pictured(pages, whole)))
    return "coco.json", "application/json", (data for _, data in coco(pages.out, whole, ""))


def _gathered(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Join lines to parts that are worth sending."""
    part = bytearray()
    for line in lines:
        part += line
        if len(part) >= _PART:
            yield bytes(part)
            part.clear()
    yield bytes(part)


def _plain(row: Row) -> Row:
    return row | {
        "sha256": row["content_sha256"],
        "predicted": row["predicted_label"] or row["predicted_class"],
    }


def _shown(pages: Pages, parts: Iterable[list[Row]]) -> Iterator[Row]:
    for part in parts:
        rows = [row for row in part if row["member"] is not None]
        for row, record in zip(rows, pages.rows.records(rows), strict=True):
            names = pages.pictures.explainer(row[PARTITION]).class_names
            judged = row | {"verdict": row["verdict"] or "", "flags": row["flags"] or []}
            yield as_shown(record, judged, names) | {"id": row["id"]}


def _pictured(pages: Pages, rows: Iterable[Row]) -> Iterator[tuple[Row, bytes]]:
    for row in rows:
        found: Any = pages.picture_of(row["id"])
        if found is not None:
            yield row, found.jpeg


def _sheet(pages: Pages, ids: Sequence[int]) -> Iterator[bytes]:
    """Lay the pictures with their captions onto A4 pages; one empty page where nothing can be drawn."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "view.pdf"
        write_sheet(file, drawn_anew(pages.rows, pages.pictures, ids, {}))
        if not file.exists():
            Image.new("RGB", (1240, 1754), "white").save(file, resolution=150.0)
        with file.open("rb") as whole:
            yield from _parts(whole)


def _zipped(files: Files) -> Iterator[bytes]:
    """Pack files through a temporary one, so that no folder of pictures is held in memory."""
    with tempfile.TemporaryFile() as whole:
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as packed:
            for name, content in files:
                packed.writestr(name, content)
        whole.seek(0)
        yield from _parts(whole)


def _parts(file: IO[bytes]) -> Iterator[bytes]:
    while part := file.read(_PART):
        yield part
