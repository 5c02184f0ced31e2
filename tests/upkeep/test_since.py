"""`verify --since RUN` looks at what is new, and at all of it; what is older costs nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from camray.cli.main import main
from camray.config import Config
from camray.errors import ExitCode
from camray.ledger.out import QA
from camray.ledger.runs import first_report
from camray.records import Accounting
from camray.storage import Folder, open_folder
from tests.ledger.ledger_world import E1, committed, described, rows, shard

NIGHTS = 12


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve nights, each with a shard, an overlay, a decision and a report."""
    out = open_folder(str(tmp_path_factory.mktemp("nights") / "out"), "OUT")
    described(out)
    for night in range(NIGHTS):
        run = f"run{night:02}"
        picture = f"overlays/{E1}/s/{night}.jpg"
        out.write(picture, b"a picture")
        table = rows(0, 4, overlay_path=[picture, None, None, None], overlay_size=[9, None, None, None])
        committed(out, shard(run), [table], run_id=run)
        write_deltalake(out.child_uri(QA), pa.table({"night": [night]}), mode="append")
        report = first_report(run, E1, Config(), {})
        report.ended(ExitCode.DONE, Accounting(ok=4), 1.0, {}).write(out)
    return Path(out.path)


@pytest.fixture
def out(nights: Path, tmp_path: Path) -> Folder:
    return open_folder(str(shutil.copytree(nights, tmp_path / "out")), "OUT")


def verified(out: Folder, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
    code = main(["verify", out.uri, "--json", *more])
    return code, json.loads(capsys.readouterr().out)


def test_of_twelve_nights_two_are_read(
    out: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verified(out, capsys)[1] == {"shards": 12, "members": 48, "problems": []}
    read = list[str]()
    real = Folder.read

    def noted(out: Folder, path: str) -> bytes:
        read.append(path)
        return real(out, path)

    monkeypatch.setattr(Folder, "read", noted)
    code, said = verified(out, capsys, "--since", "run10")
    assert (code, said) == (0, {"shards": 2, "members": 8, "problems": []})
    assert sum(path.startswith("records/explainer") for path in read) == 2
    assert sum(path.startswith("qa/part") for path in read) == 2
    assert {path.split("/")[1] for path in read if path.startswith("runs/")} == {"run09", "run10", "run11"}


@pytest.mark.parametrize(
    "what",
    [
        "records/explainer=*/*.parquet",
        pytest.param(f"overlays/{E1}/s/*.jpg", marks=pytest.mark.slow),
        pytest.param("runs/*/run.json", marks=pytest.mark.slow),
        pytest.param("qa/part-*.parquet", marks=pytest.mark.slow),
    ],
)
def test_damage_is_found_where_it_is_new(out: Folder, capsys: pytest.CaptureFixture[str], what: str) -> None:
    files = sorted(Path(out.path).glob(what), key=lambda path: path.stat().st_mtime_ns)
    files[0].write_bytes(b"other")
    assert verified(out, capsys, "--since", "run10")[0] == 0
    assert verified(out, capsys)[0] == ExitCode.GATE
    files[-1].write_bytes(b"other")
    code, said = verified(out, capsys, "--since", "run10")
    assert code == ExitCode.GATE
    (problem,) = said["problems"]
    assert files[-1].name in problem or files[-1].parent.name in problem


def test_where_the_run_before_was_killed_more_is_looked_at(
    out: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    first_report("run09", E1, Config(), {}).write(out)
    assert verified(out, capsys, "--since", "run10")[1]["shards"] == 3


def test_an_unknown_run_is_refused(out: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", out.uri, "--since", "../run10"]) == ExitCode.USAGE
    assert "--since: ../run10 is no run of OUT. Fix: see `camray status OUT`" in capsys.readouterr().err


def test_a_file_of_another_tool_is_named(out: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    odd = pa.table({"explainer": [E1], "member": ["0.jpg"]})
    write_deltalake(out.child_uri("records"), odd, mode="append", schema_mode="merge")
    code, said = verified(out, capsys, "--since", "run11")
    assert code == ExitCode.GATE
    assert "which camray did not write" in str(said["problems"])
