"""The queue for other tools: a folder of files in their own format, with pictures beside them.

csv           one row an image: keys to run again, verdict, flags, score
imagefolder   overlays and metadata.parquet: `load_dataset("imagefolder", data_dir=...)`
label-studio  tasks.json with what the model said as a prediction; pictures by URL prefix
duckdb        views.sql: `records`, `audit`, `qa` over the committed files
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from camray.audit.night import read_summaries
from camray.audit.report_rows import audit_rows, written_rows
from camray.errors import ExitCode, UsageError, printable
from camray.ledger import log
from camray.ledger.out import open_out
from camray.storage import Folder, open_folder

Row = dict[str, Any]
Files = Iterator[tuple[str, bytes]]
_QUIET = ("ok",)  # verdicts that need nobody


def print_export(place: str, kind: str, to: str, limit: int, prefix: str, as_json: bool) -> ExitCode:
    """Write the queue in a tool's format into the folder `to`.

    Raises:
        UsageError: no audit, an unknown kind, or a folder that is not empty.
    """
    out, table = open_out(place)
    nights = read_summaries(out)
    if not nights:
        raise UsageError("OUT", f"{out.uri} holds no audit", "camray audit ARCHIVE OUT --model NAME")
    target = open_folder(to, "--to")
    if next(iter(target.entries()), None) is not None:
        raise UsageError("--to", f"{target.uri} is not empty", "give a new folder")
    explainer = nights[-1]["explainer"]
    names = json.loads(out.read(f"explainers/{explainer}.json"))["class_names"]
    judged = audit_rows(out, explainer, limit)
    rows = [json.loads(text) for text in written_rows(out, table, explainer, judged, names) if text]
    written = 0
    for name, content in _MAKERS[kind](out, rows, prefix):
        target.write(name, content)
        written += 1
    print(
        json.dumps({"to": target.uri, "files": written}) if as_json else f"{written:,} files in {target.uri}"
    )
    return ExitCode.DONE


def _csv(_out: Folder, rows: Sequence[Row], _prefix: str) -> Files:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = (
        "shard",
        "member",
        "index",
        "sha256",
        "verdict",
        "flags",
        "score",
        "predicted",
        "confidence",
        "label",
    )
    table.writerow(names)
    for row in rows:
        table.writerow([_cell(" ".join(row["flags"]) if n == "flags" else row.get(n)) for n in names])
    yield "queue.csv", text.getvalue().encode("utf-8", "surrogatepass")


def _cell(value: Any) -> Any:
    """Let no name become a formula where a spreadsheet opens the file."""
    return (
        f"'{value}"
        if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
        else value
    )


def _imagefolder(out: Folder, rows: Sequence[Row], _prefix: str) -> Files:
    shown = [row for row in rows if row.get("picture") and out.exists(row["picture"])]
    for number, row in enumerate(shown):
        yield _picture_name(number, row), out.read(row["picture"])
    columns = {
        "file_name": [_picture_name(number, row) for number, row in enumerate(shown)],
        **{
            name: [row.get(name) for row in shown]
            for name in ("member", "shard", "index", "verdict", "flags")
        },
        **{name: [row.get(name) for row in shown] for name in ("score", "predicted", "confidence", "label")},
    }
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), buffer)
    yield "metadata.parquet", buffer.getvalue().to_pybytes()


def _label_studio(_out: Folder, rows: Sequence[Row], prefix: str) -> Files:
    tasks = [
        {
            "data": {"image": prefix + row["picture"], "member": row["member"], "verdict": row["verdict"],
                     "why": " ".join(row["why"])},
            "predictions": [
                {"model_version": row["run"], "score": row.get("confidence"),
                 "result": [{"from_name": "label", "to_name": "image", "type": "choices",
                             "value": {"choices": [row.get("predicted") or str(row.get("class"))]}}]}
            ],
        }
        for row in rows
        if row.get("picture") and row["verdict"] not in _QUIET
    ]  # fmt: skip
    yield "tasks.json", json.dumps(tasks, indent=1).encode()


def _duckdb(out: Folder, _rows: Sequence[Row], _prefix: str) -> Files:
    views = []
    for name in ("records", "audit", "qa"):
        if log.exists(out, name):
            paths = log.opened(out, name).file_uris()
            files = ",\n  ".join("'" + path.replace("'", "''") + "'" for path in paths)
            listed = f"read_parquet([\n  {files}\n], hive_partitioning = true)"
            views.append(f"create or replace view {name} as select * from {listed};")
    yield (
        "views.sql",
        ("-- as committed now; write it anew after the next night\n" + "\n".join(views) + "\n").encode(),
    )


def _picture_name(number: int, row: Row) -> str:
    return f"images/{number:06d}-{PurePosixPath(row['picture']).name}"


_MAKERS: dict[str, Callable[[Folder, Sequence[Row], str], Files]] = {
    "csv": _csv, "imagefolder": _imagefolder, "label-studio": _label_studio, "duckdb": _duckdb,
}  # fmt: skip
KINDS = tuple(_MAKERS)


def check_kind(kind: str) -> str:
    """Refuse a kind that is none.

    Raises:
        UsageError: with the kinds there are.
    """
    if kind not in KINDS:
        raise UsageError("--export", printable(f"{kind!r} is no format"), f"give one of {', '.join(KINDS)}")
    return kind
