"""The records of an OUT in Python: a dataset of pyarrow, with what an analyst does next.

Flows in: an OUT. Flows out: tables of pandas, Polars, Arrow, answers to SQL, pictures, mean maps.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from camray.errors import UsageError, html_list, printable
from camray.ledger.out import open_out

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from camray.serve.diff import Difference

SHOWN = 9
_COUNTED = ["status", "error_code", "correct"]


class Records(ds.FileSystemDataset):  # type: ignore[misc]  # pyarrow has no types
    """The committed records of OUT, unread as yet: a pyarrow dataset that can do more.

    `explainer` is an id, "latest" or "all".

    Raises:
        UsageError: OUT holds no camray records, or none of that explainer.
    """

    def __init__(self, out: str | os.PathLike[str], explainer: str = "latest") -> None:
        self.out, table = open_out(os.fspath(_expect("OUT", out, (str, os.PathLike), "a path")))
        _expect("explainer", explainer, str, "an id")
        owner = table.latest_owner() if explainer == "latest" else explainer
        found = table.dataset("" if explainer == "all" else owner)
        if explainer not in ("latest", "all") and not found.files:
            problem = f"OUT holds no records of {printable(explainer)!r}"
            raise UsageError("explainer", problem, 'an id that `camray status` shows, "latest", or "all"')
        self.explainer = owner
        super().__init__(list(found.get_fragments()), found.schema, found.format, found.filesystem)

    def __reduce__(self) -> Any:
        """Travel as the place alone; the records are opened anew."""
        return type(self), (self.out.uri, self.explainer)

    def to_arrow(self, columns: list[str] | None = None) -> pa.Table:
        """Read the rows, or some columns of them, as an Arrow table."""
        return self.to_table(columns=columns)

    def to_pandas(self, columns: list[str] | None = None) -> Any:
        """Read them as a pandas DataFrame."""
        _library("pandas")
        return self.to_arrow(columns).to_pandas()

    def to_polars(self, columns: list[str] | None = None) -> Any:
        """Read them as a Polars DataFrame."""
        return _library("polars").from_arrow(self.to_arrow(columns))

    def sql(self, query: str) -> Any:
        """Ask in DuckDB's SQL, of the table `records`: a relation, with .fetchall(), .df(), .pl(), .arrow().

        The query reads the records alone: no file, no network, no variable of Python.
        """
        return _connected(self).sql(_expect("query", query, str, "a text"))

    def overlay(self, row: Mapping[str, Any], **style: Any) -> Picture:
        """Draw a row's map over its image, in the style of its run but for `style`: ``colormap="magma"``.

        `row`: a dict of all columns, as of `to_arrow().to_pylist()`.

        Raises:
            UsageError: the row has no map, or its image cannot be read any more.
        """
        from PIL import Image

        from camray.serve.redraw import Redraw

        if _expect("row", row, Mapping, "a dict, as of to_arrow().to_pylist()").get("heatmap") is None:
            raise UsageError("row", "it has no heatmap", "a row with heat_status 'ok'")
        (done,) = Redraw(self.out)([row], style)
        if done.picture is None:
            raise UsageError("row", done.why, "give the archive back to where it lay")
        return Image.fromarray(done.picture)

    def mean_map(self, of_class: int | str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Average the maps, each of sum 1, of the images predicted as a class (number or name): (h, w).

        Raises:
            UsageError: no image with a map is predicted so, or their maps have several sizes.
        """
        _expect("of_class", of_class, (int, str), "a class's number or name")
        name = "predicted_label" if isinstance(of_class, str) else "predicted_class"
        wanted = (ds.field(name) == of_class) & (ds.field("heat_status") == "ok")
        rows = self.to_table(columns=["heatmap", "heat_h", "heat_w"], filter=wanted)
        sizes = {*zip(rows["heat_h"].to_pylist(), rows["heat_w"].to_pylist(), strict=True)}
        if len(sizes) != 1:
            problem = f"{printable(str(of_class))}: maps of {len(sizes)} sizes" if sizes else "no map of it"
            raise UsageError("of_class", problem, "a predicted class; one explainer")
        values = rows["heatmap"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        maps = np.maximum(values.astype(np.float64).reshape(len(rows), *sizes.pop()), 0)
        mean: np.ndarray[Any, np.dtype[np.float64]] = (maps / maps.sum((1, 2), keepdims=True)).mean(0)
        return mean

    def compare(self, other: Records) -> Difference:
        """Compare with the records of a newer model of the same images, as `camray diff` does.

        Raises:
            UsageError: they have no image in common.
        """
        from camray.serve.diff import compared

        return compared(self, _expect("other", other, Records, "what open_records gives"))[0]

    def _repr_html_(self) -> str:
        said = self.to_table(columns=_COUNTED)
        counts = {row["values"]: row["counts"] for row in pc.value_counts(said["status"]).to_pylist()}
        failed = pc.value_counts(said["error_code"].filter(pc.equal(said["status"], "failed"))).to_pylist()
        right, known = pc.sum(said["correct"]).as_py(), len(said) - said["correct"].null_count
        lines = [f"{len(said):,} rows of {self.out.uri}"]
        lines += [f"{n:,} {status}" for status, n in sorted(counts.items())]
        lines += [f"{f['counts']:,} failed: {f['values']}" for f in failed]
        lines += [f"{right:,} of {known:,} labelled images right ({right / known:.1%})"] if known else []
        return f"{html_list(lines)}<div>{''.join(self._first_pictures())}</div>"

    def _first_pictures(self) -> list[str]:
        from PIL import Image

        from camray.serve.redraw import COLUMNS, Redraw

        wanted = self.scanner(columns=[*COLUMNS], filter=ds.field("heat_status") == "ok")
        pictures = []
        for done in Redraw(self.out)(wanted.head(SHOWN).to_pylist(), {"picture": "blend"}):
            name = escape(printable(done.row["member"], 80), quote=True)
            if done.picture is None:
                pictures.append(f'<span title="{name}">{escape(done.why)}</span>')
                continue
            data = io.BytesIO()
            Image.fromarray(done.picture).save(data, "JPEG", quality=85)
            source = base64.b64encode(data.getvalue()).decode()
            pictures.append(f'<img alt="{name}" title="{name}" src="data:image/jpeg;base64,{source}">')
        return pictures


def _expect(field: str, value: Any, kinds: Any, what: str) -> Any:
    """Give the value back, or name the argument that is of another kind."""
    if not isinstance(value, kinds):
        raise UsageError(field, f"is of type {type(value).__name__}", f"give {what}")
    return value


def _connected(records: Records) -> Any:
    """Give a DuckDB in memory that knows the records and may open nothing else."""
    held = _library("duckdb").connect()
    held.register("records", records)
    for name in ("enable_external_access", "python_enable_replacements"):
        held.execute(f"set {name} = false")
    held.execute("set lock_configuration = true")
    return held


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise UsageError(name, "is not installed", f"pip install {name}") from None
