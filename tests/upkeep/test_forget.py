"""A person's image goes: no row, picture, decision or old version is left of it, and the accounting holds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from PIL import Image

import camray
from camray.audit.reviewed import take_in
from camray.cli.main import main
from camray.ledger import hold as holds
from camray.storage import open_folder
from camray.upkeep import forget
from demo import hans64

ROOT = Path(__file__).resolve().parents[2]
MODEL = str(ROOT / "demo" / "models" / "hans64-poisoned")
COMPARE = ("--methods", "gradcam", "--sample", "5")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audited, decided and compared OUT of a folder of three images and a tar of two."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "archive").mkdir()
    for i in range(3):
        image = Image.fromarray(hans64.render(0, "audit", i).image)
        image.save(folder / "archive" / f"guest-{i}.jpg", quality=95)
    hans64.write_tar_shards([hans64.render(0, "audit", 20 + i) for i in range(2)], folder / "archive", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("camray.job.run._is_ray_up", lambda: False)
        assert run(folder, "audit", "--overlays", "all") == 0
        assert run(folder, "compare", *COMPARE) == 0
        decide(folder / "out", "guest-1.jpg")
        assert take_in(open_folder(str(folder / "out"), "OUT")) == 1
    return folder


def run(folder: Path, verb: str, *options: str) -> int:
    words = [verb, str(folder / "archive"), str(folder / "out"), "--model", MODEL, "--engine", "here"]
    return main([*words, *options])


def decide(out: Path, member: str) -> None:
    """A reviewer's file about an image."""
    rows = DeltaTable(str(out / "audit")).to_pyarrow_table().to_pylist()
    (row,) = [row for row in rows if row["member"] == member]
    names = ("explainer", "shard", "member", "index", "content_sha256", "verdict")
    said = {n: row[n] for n in names} | {"decision": "problem", "decided_at": "2026-11-01T07:00:00Z"}
    (out / "qa-inbox").mkdir()
    review = {"camray_review": 1, "decisions": [said]}
    (out / "qa-inbox" / "monday.json").write_text(json.dumps(review))


@pytest.fixture
def folder(world: Path, tmp_path: Path) -> Path:
    """A copy, to be changed; the archive keeps its place, so that its shards keep their names."""
    shutil.copytree(world / "out", tmp_path / "out")
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_rows_that_a_run_wrote_while_it_waited_go_too(
    world: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of another explainer ends between the look and the hold: no row of the image may be left."""
    out = folder / "out"
    words = ["explain", str(world / "archive"), str(out), "--model", MODEL, "--engine", "here"]
    monkeypatch.setattr("camray.job.run._is_ray_up", lambda: False)

    @contextmanager
    def hold_after_a_run(*about: Any, **more: Any) -> Iterator[Any]:
        assert main([*words, "--method", "layercam", "--overlays", "none"]) == 0
        with holds.hold(*about, **more) as held:
            yield held

    monkeypatch.setattr(forget, "hold", hold_after_a_run)
    assert told(capsys, "forget", str(out), "--member", "guest-1.jpg", "--yes")["rows"] > 1
    assert camray.open_records(str(out), explainer="all").count_rows() == 2 * 4
    assert {path.partition("/")[0] for path in holding(out, "guest-1.jpg")} == {"intake"}
    assert told(capsys, "verify", str(out))["problems"] == []


def holding(out: Path, member: str) -> list[str]:
    """Every file that holds the name, Parquet read by PyArrow, the rest as bytes."""
    found = []
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        if path.suffix == ".parquet":
            text = json.dumps(pq.read_table(path).to_pylist(), default=str)
        else:
            text = path.read_bytes().decode("utf-8", "replace")
        if member in text:
            found.append(path.relative_to(out).as_posix())
    return found


def test_nothing_is_touched_without_yes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "out"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    said = told(capsys, "forget", str(out), "--member", "guest-1.jpg")
    assert (said["done"], said["overlays"], len(said["shards"])) == (False, 1, 1)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_an_image_goes_from_everything_that_tells_of_it(
    world: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    rows = camray.open_records(str(out)).to_table(columns=["member", "overlay_path", "content_sha256"])
    (row,) = [row for row in rows.to_pylist() if row["member"] == "guest-1.jpg"]
    before = holding(out, "guest-1.jpg")
    kinds = {path.partition("/")[0] for path in before}
    assert {"records", "scores", "audit", "qa", "qa-inbox", "report", "intake"} <= kinds
    assert "canary" in {path.partition("/")[0] for path in holding(out, row["content_sha256"])}
    said = told(capsys, "forget", str(out), "--member", "guest-1.jpg", "--yes")
    assert said["still_named"] == ["intake"]  # the list that its group of files stands on
    assert {path.partition("/")[0] for path in holding(out, "guest-1.jpg")} == {"intake"}
    assert holding(out, row["content_sha256"]) == []
    assert not (out / row["overlay_path"]).exists()


def test_the_accounting_is_true_afterwards(
    world: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    others = camray.open_records(str(out)).to_table().to_pylist()
    others = [row for row in others if row["member"] != "guest-1.jpg"]
    told(capsys, "forget", str(out), "--member", "guest-1.jpg", "--yes")
    assert told(capsys, "verify", str(out))["problems"] == []
    ((_, counted),) = told(capsys, "status", str(out))["explainers"].items()
    assert (counted["shards"], counted["members"], counted["ok"]) == (2, 4, 4)
    assert camray.open_records(str(out)).to_table().to_pylist() == others
    plan = told(capsys, "plan", str(world / "archive"), str(out), "--model", MODEL, "--for", "audit")
    assert plan["shards_to_do"] == 0
    words = [str(world / "archive"), str(out), "--model", MODEL, "--engine", "here"]
    assert main(["audit", *words]) == 0
    assert main(["compare", *words, *COMPARE]) == 0
    assert "nothing to measure" in capsys.readouterr().err
    assert len(camray.open_records(str(out)).to_table()) == 4


def test_the_last_image_of_a_shard_goes_too(
    world: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    for i in range(3):
        told(capsys, "forget", str(out), "--member", f"guest-{i}.jpg", "--yes")
    assert told(capsys, "verify", str(out)) == {"shards": 4, "members": 4, "problems": []}
    assert told(capsys, "plan", str(world / "archive"), str(out), "--model", MODEL, "--for", "audit")[
        "shards_to_do"
    ] == 0  # fmt: skip


def test_a_file_goes_with_all_its_frames_and_a_frame_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "archive").mkdir()
    pages = [Image.fromarray(hans64.render(0, "audit", i).image) for i in range(3)]
    for name in ("guest.tif", "other.tif"):
        pages[0].save(tmp_path / "archive" / name, save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "archive" / "guest.tif#no-frame.png")
    assert run(tmp_path, "explain", "--frames", "all", "--overlays", "none") == 0
    out = str(tmp_path / "out")
    assert told(capsys, "forget", out, "--member", "other.tif#1", "--yes")["rows"] == 1
    assert told(capsys, "forget", out, "--member", "guest.tif", "--yes")["rows"] == 3
    left = camray.open_records(out).to_table(columns=["member"])["member"].to_pylist()
    assert sorted(left) == ["guest.tif#no-frame.png", "other.tif#0", "other.tif#2"]
    assert told(capsys, "verify", out)["problems"] == []


def test_a_name_that_no_row_has_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--member", "guest-9.jpg"], ["--member", "guest-1.jpg", "--shard", "elsewhere"], []):
        assert main(["forget", str(folder / "out"), *words, "--yes"]) == 2
        assert "Fix: " in capsys.readouterr().err


def test_rows_that_another_tool_deleted_are_refused_with_one_true_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    code = "import sys, deltalake; deltalake.DeltaTable(sys.argv[1]).delete(\"member = 'guest-1.jpg'\")"
    subprocess.run([sys.executable, "-c", code, str(out / "records")], check=True)
    for verb in ("status", "forget"):
        words = ["--member", "guest-2.jpg", "--yes"] if verb == "forget" else []
        assert main([verb, str(out), *words]) == 2
        said = capsys.readouterr().err
        assert "which camray did not write (a compaction? rows deleted?)" in said
        assert "camray forget OUT --member NAME" in said
    assert main(["verify", str(out)]) == 5
