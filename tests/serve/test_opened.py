"""What `open_records` gives: tables, SQL that reads the records alone, pictures, mean maps."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

import camray
from camray.cli.main import main
from camray.errors import ExitCode, UsageError
from camray.serve.opened import Records

HOSTILE = (
    "member in (select * from read_csv('/etc/passwd'))",
    "exists (from '/etc/passwd')",
    "true; copy records to 'x.csv'",
    "index in (select 1 from other)",
    "no_such_column > 1",
)


@pytest.fixture(scope="module")
def records(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Of 24 images of the demonstration."""
    out = str(tmp_path_factory.mktemp("opened") / "out")
    words = ["explain", str(demo / "archive" / "hans64-00001.tar"), out, "--engine", "here", "--limit", "24"]
    model = ["--model", str(demo / "models" / "hans64-poisoned"), "--overlays", "all"]
    assert main([*words, *model]) == ExitCode.DONE
    return camray.open_records(out)


def test_an_overlay_is_that_of_the_run(records: Records) -> None:
    row = next(r for r in records.to_arrow().to_pylist() if r["overlay_path"])
    drawn = np.asarray(records.overlay(row), np.int16)
    file = np.asarray(Image.open(f"{records.out.uri}/{row['overlay_path']}"), np.int16)
    assert np.abs(drawn - file).max() <= 32  # what a JPEG of quality 90 loses of sharp colours
    assert np.abs(drawn - file).mean() < 3
    with pytest.raises(UsageError, match="no heatmap"):
        records.overlay({**row, "heatmap": None})


def test_a_value_of_another_kind_is_refused_by_the_name_of_its_argument(records: Records) -> None:
    """Not by errors of Python, pyarrow or DuckDB; a path may be a Path."""
    assert camray.open_records(Path(records.out.uri)).count_rows() == 24  # type: ignore[arg-type]
    anything: Any = [1]
    asked: dict[str, Callable[[Any], Any]] = {
        "OUT": camray.open_records, "row": records.overlay, "query": records.sql,
        "of_class": records.mean_map, "other": records.compare,
        "explainer": lambda value: camray.open_records(records.out.uri, value),
    }  # fmt: skip
    for argument, ask in asked.items():
        with pytest.raises(UsageError, match=f"^{argument}: is of type list. Fix: give "):
            ask(anything)


def test_all_tables_say_the_same(records: Records) -> None:
    files = Path(records.out.path).glob("records/explainer=*/**/*.parquet")
    plain = pa.concat_tables([pq.ParquetFile(file).read() for file in files])
    assert isinstance(records, ds.Dataset)
    assert len(plain) == len(records.to_pandas(["member"])) == records.to_polars(["member"]).height == 24
    assert records.sql("select count(*) from records where correct").fetchall() == [
        (plain["correct"].to_pylist().count(True),)
    ]
    assert pickle.loads(pickle.dumps(records)).count_rows() == 24


@pytest.mark.parametrize("condition", HOSTILE)
def test_a_query_reads_the_records_alone(
    records: Records, condition: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(duckdb.Error):
        records.sql(f"select member from records where {condition}").fetchall()
    assert list(tmp_path.iterdir()) == []


def test_mean_map_is_the_mean_of_the_maps(records: Records) -> None:
    rows = [r for r in records.to_arrow().to_pylist() if r["heat_status"] == "ok"]
    of_class = rows[0]["predicted_class"]
    maps = [np.maximum(r["heatmap"], 0) for r in rows if r["predicted_class"] == of_class]
    mean = np.mean([m / m.sum() for m in maps], 0)
    assert records.mean_map(of_class).ravel() == pytest.approx(mean, abs=1e-6)
    with pytest.raises(UsageError, match="no map"):
        records.mean_map("no such class")


def test_the_notebook_shows_counts_and_nine_pictures_and_no_markup_of_names(
    records: Records,
) -> None:
    shown = records._repr_html_()
    assert "24 rows" in shown
    assert shown.count("<img ") + shown.count("<span ") == 9
    assert "<script" not in shown
