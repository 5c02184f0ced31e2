"""The queue for other tools: a folder of files in their own format, with pictures beside them.

A format is one function, from OUT, the rows in order and a URL prefix to its files, and one line of
`camray.audit.EXPORTS`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import PurePosixPath
from pkgutil import resolve_name
from typing import Any
from urllib.parse import unquote
from xml.sax.saxutils import quoteattr

import pyarrow as pa
import pyarrow.parquet as pq

from camray.audit import EXPORTS, LOCAL_FILES
from camray.audit.night import latest_nights
from camray.audit.report_rows import audit_rows, written_rows
from camray.errors import ExitCode, UsageError, in_one_line, printable
from camray.ledger import log
from camray.ledger.out import AUDIT, QA, TABLE, open_out, read_explainer
from camray.storage import Folder, open_folder

Row = dict[str, Any]  # of the queue, as `report_rows.as_shown` gives it
Files = Iterator[tuple[str, bytes]]  # path in the new folder, content
_LABELS = """<View>
<Image name="image" value="$image"/>
<Text name="why" value="$why"/>
<Choices name="label" toName="image">
CHOICES</Choices>
</View>
"""
_GLOB = re.compile(r"[*?[]")  # of DuckDB, where a path holds one
_FORMULA = re.compile("(^|;)[ \u3000]*(?=[=+\\-@\uff1d\uff0b\uff0d\uff20])")  # also in full width
_SAID = ("score", "predicted", "confidence", "label")


def check_kind(kind: str) -> str:
    """Refuse a kind that is none.

    Raises:
        UsageError: with the kinds there are.
    """
    if kind not in EXPORTS:
        raise UsageError("--export", printable(f"{kind!r} is no format"), f"give one of {', '.join(EXPORTS)}")
    return kind


def print_export(place: str, kind: str, to: str, limit: int, prefix: str, as_json: bool) -> ExitCode:
    """Write the queue in a tool's format into the folder `to`.

    Raises:
        UsageError: no audit, an unknown kind, or a folder that is not empty.
    """
    out, table = open_out(place)
    explainer = latest_nights(out)[-1].explainer
    target = open_folder(to, "--to")
    if next(iter(target.entries()), None) is not None:
        raise UsageError("--to", f"{target.uri} is not empty", "give a new folder")
    names = read_explainer(out, explainer).class_names
    judged = audit_rows(out, explainer, limit)
    rows = [json.loads(text) for text in written_rows(out, table, explainer, judged, names) if text]
    written = 0
    for name, content in resolve_name(EXPORTS[kind])(out, rows, prefix):
        target.write(name, content)
        written += 1
    said = {"to": target.uri, "files": written}
    print(json.dumps(said) if as_json else f"{written:,} files in {target.uri}")
    return ExitCode.DONE


def csv_table(_out: Folder, rows: Sequence[Row], _prefix: str) -> Files:
    """One row an image: keys to run again, verdict, flags, score."""
    yield "queue.csv", b"".join(csv_lines(rows))


def csv_lines(rows: Iterable[Row]) -> Iterator[bytes]:
    """Give a CSV file line by line, the heading first."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    heading: Sequence[Any] = ("shard", "member", "index", "sha256", "verdict", "flags", *_SAID)
    said = ([row.get(n) for n in heading] for row in rows)
    for cells in chain([heading], ([" ".join(c) if isinstance(c, list) else c for c in row] for row in said)):
        table.writerow([_cell(value) for value in cells])
        yield text.getvalue().encode("utf-8", "surrogatepass")
        text.seek(0)
        text.truncate()


def _cell(value: Any) -> Any:
    """Let no name become a formula where a spreadsheet opens the file, nor a row of its own.

    Nor behind a semicolon, at which a spreadsheet of many countries begins a new cell, quoted or not.
    """
    return _FORMULA.sub(r"\1'", in_one_line(value)) if isinstance(value, str) else value


def imagefolder(out: Folder, rows: Sequence[Row], _prefix: str) -> Files:
    """Overlays and metadata.parquet: `load_dataset("imagefolder", data_dir=...)`."""
    return folder_of(_pictured(out, rows))


def _pictured(out: Folder, rows: Iterable[Row]) -> Iterator[tuple[Row, bytes]]:
    return (
        (row, out.read(row["picture"])) for row in rows if row.get("picture") and out.exists(row["picture"])
    )


def folder_of(pictures: Iterable[tuple[Row, bytes]]) -> Files:
    """Give the files of an image folder, the pictures first."""
    names, shown = list[str](), list[Row]()
    for row, picture in pictures:
        name = PurePosixPath(row.get("picture") or "picture.jpg").name
        names.append(f"images/{len(names):06d}-{name}")
        shown.append(row)
        yield names[-1], picture
    told = ("member", "shard", "index", "verdict", "flags", *_SAID)
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"file_name": names} | {n: [row.get(n) for row in shown] for n in told}), buffer)
    yield "metadata.parquet", buffer.getvalue().to_pybytes()


def fiftyone(out: Folder, rows: Iterable[Row], _prefix: str) -> Files:
    """Overlays and samples.json: `Dataset.from_dir(dataset_type=fiftyone.types.FiftyOneDataset, ...)`."""
    return samples_of(_pictured(out, rows))


def samples_of(pictures: Iterable[tuple[Row, bytes]]) -> Files:
    """Give the files of a FiftyOne dataset, the pictures first."""
    samples = list[Row]()
    for row, picture in pictures:
        said = {
            "prediction": (row.get("predicted"), row.get("confidence")),
            "label": (row.get("label"), None),
        }
        samples.append(
            {"filepath": f"data/{len(samples):06d}.jpg", "tags": [row["verdict"], *row["flags"]],
             "member": row["member"], "shard": row["shard"], "score": row.get("score")}
            | {name: {"_cls": "Classification", "label": text, "confidence": sure}
               for name, (text, sure) in said.items() if text}
        )  # fmt: skip
        yield samples[-1]["filepath"], picture
    yield "samples.json", json.dumps({"samples": samples}).encode()


def coco(_out: Folder, rows: Iterable[Row], _prefix: str) -> Files:
    """instances.json: the boxes of the heat, of the class that was answered; pictures by name."""
    images, boxes, classes = list[Any](), list[Any](), dict[int, str]()
    for row in rows:
        if "size" not in row or "class" not in row:
            continue
        classes[row["class"]] = row.get("predicted") or f"class {row['class']}"
        width, height = row["size"]
        place = {"file_name": row["member"], "shard": row["shard"]}
        images.append(place | {"id": len(images) + 1, "width": width, "height": height})
        for x0, y0, x1, y1 in row.get("boxes", ()):
            boxes.append(
                {"id": len(boxes) + 1, "image_id": len(images), "category_id": row["class"], "iscrowd": 0,
                 "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
                 "score": row.get("confidence")}
            )  # fmt: skip
    kinds = [{"id": number, "name": name} for number, name in sorted(classes.items())]
    tree = {"info": {"description": "camray: where the model looked"}, "images": images, "annotations": boxes}
    yield "instances.json", json.dumps(tree | {"categories": kinds}).encode()


def label_studio(_out: Folder, rows: Iterable[Row], prefix: str) -> Files:
    """tasks.json with what the model said as a prediction, and labels.xml; pictures by URL prefix."""
    return _tasks((r, prefix + r["picture"]) for r in rows if r.get("picture") and r["verdict"] != "ok")


def tasks_of(pictures: Iterable[tuple[Row, bytes]]) -> Files:
    """Give the files of a Label Studio project whose local storage they are, the pictures first."""
    shown = list[tuple[Row, str]]()
    for row, picture in pictures:
        name = f"data/{len(shown):06d}.jpg"
        shown.append((row, LOCAL_FILES + name))
        yield name, picture
    yield from _tasks(shown)


def _tasks(shown: Iterable[tuple[Row, str]]) -> Files:
    """Give the tasks of rows and the places of their pictures, and the labels of a project for them."""
    tasks, choices = [], set[str]()
    for row, place in shown:
        answer = row.get("predicted") or str(row.get("class"))
        choices |= {answer, row.get("label") or answer}
        tasks.append(
            {"data": {"image": place, "member": row["member"], "verdict": row["verdict"],
                      "why": " ".join(row["why"])},
             "predictions": [
                 {"model_version": row["run"], "score": row.get("confidence"),
                  "result": [{"from_name": "label", "to_name": "image", "type": "choices",
                              "value": {"choices": [answer]}}]}]}
        )  # fmt: skip
    yield "tasks.json", json.dumps(tasks, indent=1).encode()
    lines = "".join(f"<Choice value={quoteattr(printable(choice))}/>\n" for choice in sorted(choices))
    yield "labels.xml", _LABELS.replace("CHOICES", lines).encode()


def duckdb_views(out: Folder, _rows: Sequence[Row], _prefix: str) -> Files:
    """views.sql: `records`, `audit`, `qa` over the committed files."""
    views = ["-- as committed now; write it anew after the next night"]
    for name in (TABLE, AUDIT, QA):
        if log.exists(out, name):
            views += _view(out, name)
    yield "views.sql", ("\n".join(views) + "\n").encode()


def _view(out: Folder, name: str) -> Iterator[str]:
    """Give the view of a table; one without files has none.

    The columns that its folders stand for are written out: DuckDB would take any folder above OUT that has a
    `=` in its name for one as well.
    """
    folders: dict[str, list[str]] = {}
    for file in log.dataset(out, name, log.opened(out, name)).files:
        folders.setdefault(file.rpartition("/")[0], []).append(file)
    scheme = "" if out.is_local else out.uri.partition("://")[0] + "://"
    selects = []
    for folder, files in sorted(folders.items()):
        parts = (part.partition("=") for part in folder.split("/") if "=" in part)
        columns = "".join(f", {_quoted(unquote(value))} as {key}" for key, _, value in parts)
        places = ",\n  ".join(_quoted(_GLOB.sub(r"[\g<0>]", scheme + out.at(f"{name}/{f}"))) for f in files)
        selects.append(f"select *{columns} from read_parquet([\n  {places}\n], hive_partitioning = false)")
    if selects:
        yield f"create or replace view {name} as " + "\nunion all by name ".join(selects) + ";"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
