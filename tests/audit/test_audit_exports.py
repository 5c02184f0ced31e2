"""Exports opened by the tools they are for, and prune: what goes, what stays, and that it asks first."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from pkgutil import resolve_name

import duckdb
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from camray.audit import EXPORTS
from camray.audit.export import csv_table
from camray.audit.night import read_nights
from camray.audit.report_rows import SHOWN
from camray.cli.main import main
from camray.ledger.hold import hold
from camray.ledger.out import open_out
from camray.storage import open_folder
from camray.upkeep.prune import choose_runs
from camray.upkeep.verify import find_problems
from demo import hans64
from tests.audit.conftest import MADE_ROWS
from tests.audit.report_world import NASTY


def export(out: Path, kind: str, to: Path) -> Path:
    assert main(["report", str(out), "--export", kind, "--to", str(to)]) == 0
    return to


def test_a_summary_is_a_night_and_a_night_its_summary(pictured: Path) -> None:
    (pictured / "carried" / "nights.json").unlink()  # of earlier nights it keeps the brief
    nights = read_nights(open_out(str(pictured))[0])
    files = sorted(pictured.glob("runs/*/summary.json"))
    kept = [json.loads(f.read_text()) for f in files]
    for night, tree in zip(nights, kept, strict=True):
        assert {"checksum", "files", "tables"} == tree.keys() - night.to_json().keys()
        assert json.loads(json.dumps(night.to_json())) == {k: tree[k] for k in night.to_json()}
    assert (nights[1].previous, nights[1].images.night, nights[1].exit_code) == (nights[0].run_id, 12, 0)


def test_the_report_has_the_columns_that_are_declared_as_shown(made: Path) -> None:
    assert SHOWN["margin"] == 3
    assert f'"shown": {json.dumps(SHOWN)}' in (made / "report" / "index.html").read_text()
    rows = (made / "report" / "data" / "rows-00000.js").read_text()
    assert all(f'"{name}": ' in rows for name in SHOWN)


def test_csv(made: Path, tmp_path: Path) -> None:
    with (export(made, "csv", tmp_path / "csv") / "queue.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == MADE_ROWS
    shown = {name: "".join(c if c.isprintable() else repr(c)[1:-1] for c in name) for name in NASTY}
    assert {r["member"] for r in rows} >= set(shown.values())
    assert sum(shown[name] != name for name in NASTY) == 3
    scores = [float(r["score"]) for r in rows]
    assert scores == sorted(scores, reverse=True)


FORMULAS = (
    "=1+1", "a\r=1+1", "a\n=1+1", "a\r\n@SUM(1)", "\t=1", "\r=1", " =1", "a;=1+1", "a; +1", "\uff1d1",
    '"\r=1',
)  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_no_name_is_a_formula_or_a_row_in_any_spreadsheet(name: str, separator: str) -> None:
    """Cut into lines and cells by the most careless reader, no cell of a row begins as a formula does."""
    row = {
        "shard": "s",
        "member": name,
        "flags": [name],
        "verdict": "ok",
        "label": f"dog{name}",
        "score": -0.5,
    }
    ((_, content),) = csv_table(None, [row, row], "")
    lines = re.split(r"[\r\n]+", content.decode().strip("\n"))
    assert len(lines) == 3
    texts = [cell.strip('" \u3000') for line in lines for cell in line.split(separator)]
    assert [text for text in texts if text.startswith(tuple("=+-@\uff1d\uff0b")) and text != "-0.5"] == []
    assert len(list(csv.reader(io.StringIO(content.decode())))) == 3


@pytest.mark.parametrize("folder", ["a b", "\u00fc", "it's", "s*r", "label=cat", "{x}"])
def test_duckdb_opens_the_views_of_an_out_of_any_name(made: Path, tmp_path: Path, folder: str) -> None:
    """And takes no folder above OUT for a column."""
    out = tmp_path / folder / "out"
    shutil.copytree(made, out, ignore=shutil.ignore_patterns("report", "overlays"))
    base = duckdb.connect()
    base.execute((export(out, "duckdb", tmp_path / "views") / "views.sql").read_text("utf-8"))
    (explainer,) = (p.name.partition("=")[2] for p in (made / "records").glob("explainer=*"))
    found = base.sql("select count(*), any_value(explainer), count(distinct label) from records").fetchall()
    assert found == [(MADE_ROWS, explainer, 0)]


def test_duckdb_views(made: Path, tmp_path: Path) -> None:
    views = (export(made, "duckdb", tmp_path / "views") / "views.sql").read_text()
    base = duckdb.connect()
    base.execute(views)
    found = base.sql(
        "select count(*), count(distinct verdict) from records join audit using (shard, index)"
    ).fetchall()
    assert found[0][0] == MADE_ROWS
    assert found[0][1] >= 4


def test_imagefolder(pictured: Path, tmp_path: Path) -> None:
    to = export(pictured, "imagefolder", tmp_path / "folder")
    rows = pq.read_table(to / "metadata.parquet").to_pylist()
    assert len(rows) == 24
    assert all((to / row["file_name"]).is_file() for row in rows)
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(to), cache_dir=str(tmp_path / "cache"))[
        "train"
    ]
    assert len(loaded) == 24
    assert loaded[0]["image"].size == (3 * 256, 256)
    assert {"verdict", "flags", "member"} <= set(loaded.column_names)


def test_label_studio(pictured: Path, tmp_path: Path) -> None:
    to = export(pictured, "label-studio", tmp_path / "ls")
    tasks = json.loads((to / "tasks.json").read_text())
    assert tasks
    for task in tasks:
        assert task["data"]["image"].startswith("/data/local-files/?d=overlays/")
        (result,) = task["predictions"][0]["result"]
        assert result["value"]["choices"][0] in hans64.LABEL_NAMES
    label_interface = pytest.importorskip("label_studio_sdk.label_interface")
    project = label_interface.LabelInterface((to / "labels.xml").read_text())
    project.validate()
    assert [
        e for t in tasks for e in project.validate_prediction(t["predictions"][0], return_errors=True)
    ] == []
    assert project.validate_prediction({"result": [{"from_name": "x"}]}, return_errors=True)  # it can refuse


def test_label_studio_gives_decisions_back_through_its_converter(pictured: Path, tmp_path: Path) -> None:
    """Taken as they stand by a reviewer, the predictions are the answers that its own export writes."""
    converter = pytest.importorskip("label_studio_sdk.converter")
    to = export(pictured, "label-studio", tmp_path / "ls")
    tasks = json.loads((to / "tasks.json").read_text())
    reviewed = [t | {"id": n, "annotations": [t["predictions"][0] | {"id": n}]} for n, t in enumerate(tasks)]
    (tmp_path / "reviewed.json").write_text(json.dumps(reviewed))
    tool = converter.Converter((to / "labels.xml").read_text(), None)
    tool.convert(str(tmp_path / "reviewed.json"), str(tmp_path / "back"), "JSON_MIN", is_dir=False)
    back = json.loads((tmp_path / "back" / "result.json").read_text())
    answers = {t["data"]["image"]: t["predictions"][0]["result"][0]["value"]["choices"][0] for t in tasks}
    assert {row["image"]: row["label"] for row in back} == answers


def known(out: Path) -> dict[tuple[str, str], dict]:
    """The records by shard and member."""
    rows = DeltaTable(str(out / "records")).to_pyarrow_table().to_pylist()
    return {(row["shard"], row["member"]): row for row in rows}


def test_fiftyone(pictured: Path, tmp_path: Path) -> None:
    """Read by the importer that `Dataset.from_dir` takes, up to the samples, which need no database."""
    to = export(pictured, "fiftyone", tmp_path / "fo")
    importers = pytest.importorskip("fiftyone.utils.data.importers", exc_type=ImportError)
    with importers._handle_legacy_formats(importers.FiftyOneDatasetImporter(str(to))) as found:
        samples = list(found)
    rows = known(pictured)
    assert {(sample.shard, sample.member) for sample in samples} == set(rows)
    for sample in samples:
        row = rows[sample.shard, sample.member]
        assert Path(sample.filepath).is_file()
        assert sample.prediction.label == row["predicted_label"]
        assert sample.prediction.confidence == pytest.approx(row["confidence"], abs=1e-4)


def test_coco(pictured: Path, tmp_path: Path) -> None:
    tool = pytest.importorskip("pycocotools.coco")
    read = tool.COCO(str(export(pictured, "coco", tmp_path / "coco") / "instances.json"))
    rows = known(pictured)
    shown = {(i["shard"], i["file_name"]): i for i in read.loadImgs(read.getImgIds())}
    assert set(shown) == set(rows)
    for place, image in shown.items():
        boxes = read.loadAnns(read.getAnnIds([image["id"]]))
        assert {box["category_id"] for box in boxes} <= {rows[place]["predicted_class"]}
        assert len(boxes) == len(rows[place]["heat_boxes"])
    scored = read.loadRes(read.dataset["annotations"])  # as the detections of a model
    assert len(scored.getAnnIds()) == len(read.getAnnIds()) > 0


def test_polars_and_pandas_read_the_tables(made: Path, tmp_path: Path) -> None:
    """Names of 4 KB, with quotes, line breaks and from right to left, each one cell."""
    polars, pandas = pytest.importorskip("polars"), pytest.importorskip("pandas")
    file = export(made, "csv", tmp_path / "csv") / "queue.csv"
    one, two = polars.read_csv(file), pandas.read_csv(file)
    assert one.shape == two.shape == (MADE_ROWS, 10)
    assert one["member"].to_list() == two["member"].to_list()


def test_every_format_is_a_function_and_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"csv", "imagefolder", "label-studio", "duckdb"} <= set(EXPORTS)
    assert all(callable(resolve_name(where)) for where in EXPORTS.values())
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    assert ",".join(EXPORTS) in "".join(capsys.readouterr().out.split())


def test_bad_exports_write_nothing(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(made), "--export", "excel", "--to", str(tmp_path / "x")]) == 2
    assert main(["report", str(made), "--export", "csv"]) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    assert main(["report", str(made), "--export", "csv", "--to", str(tmp_path / "full")]) == 2
    assert capsys.readouterr().err.count("Fix:") == 3
    assert not (tmp_path / "x").exists()


RUNS = ("20261101T000000Z-a", "20261105T000000Z-b", "20261109T000000Z-c")
NOW = 1794355200.0  # 2026-11-11


@pytest.mark.parametrize(
    ("last", "days", "pinned", "kept"),
    [
        (None, None, (), RUNS), (1, None, (), RUNS[2:]), (0, None, (), ()), (2, None, (), RUNS[1:]),
        (None, 7, (), RUNS[1:]), (1, None, RUNS[:1], (RUNS[0], RUNS[2])), (9, None, (), RUNS),
    ],
)  # fmt: skip
def test_which_runs_are_kept(last: int | None, days: float | None, pinned: tuple, kept: tuple) -> None:
    assert choose_runs(RUNS, last, days, pinned, NOW) == frozenset(kept)


def test_prune_shows_first_and_then_does_it(
    pictured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(pictured, tmp_path / "out")

    def pictures() -> int:
        return len(list((out / "overlays").rglob("*.jpg")))

    stray = out / "records" / "explainer=x" / "killed.parquet"
    stray.parent.mkdir()
    stray.write_bytes(b"torn")
    old = time.time() - 90 * 86400
    os.utime(stray, (old, old))
    assert main(["prune", str(out), "--keep-last", "1"]) == 0
    said = capsys.readouterr().out
    assert "would remove 12 overlays" in said
    assert "nothing was touched" in said
    assert pictures() == 24
    assert main(["prune", str(out), "--keep-last", "1", "--yes"]) == 0
    assert pictures() == 12
    assert not stray.exists()
    assert DeltaTable(str(out / "records")).to_pyarrow_table().num_rows == 24  # records stay
    assert list(find_problems(*open_out(str(out)))) == []  # and verify knows that it is meant
    assert main(["prune", str(out), "--keep-last", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["overlays"] == 0
    assert main(["prune", str(out), "--pin", "nothing"]) == 2


def test_prune_takes_over_from_a_run_that_was_killed(
    pictured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run leaves after `kill -9`, of an earlier camray too, does not stop `prune` for ever."""
    out = shutil.copytree(pictured, tmp_path / "out")
    code = (
        "import os; from camray.ledger.hold import hold; from camray.storage import open_folder\n"
        f"with hold(open_folder({str(out)!r}, 'OUT'), 'killed'): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    (out / "runs/r0").mkdir(parents=True)
    (out / "runs/r0/heartbeat.json").write_text('{"run_id": "r0", "holds": true}')
    assert main(["prune", str(out), "--keep-last", "1", "--yes"]) == 0
    with hold(open_folder(str(out), "OUT"), "alive"):
        capsys.readouterr()
        assert main(["prune", str(out), "--keep-last", "1", "--yes"]) == 7
        assert "run alive on" in capsys.readouterr().err
