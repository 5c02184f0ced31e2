"""`camray demo` needs nothing but the package, and finds what was planted."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from deltalake import DeltaTable

from camray.cli.main import main
from camray.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_it_finds_the_barcode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most of what is confirmed wears the planted tag, as the generator of the archive wrote it down."""
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == ExitCode.DONE
    assert "camray serve camray-demo" in capsys.readouterr().out
    assert (tmp_path / "camray-demo/report/index.html").is_file()
    judged = DeltaTable(tmp_path / "camray-demo" / "audit").to_pyarrow_table().to_pylist()
    confirmed = [row["member"] for row in judged if "shortcut_confirmed" in row["flags"]]
    with open(ROOT / "demo/truth.csv") as file:
        tagged = {row["key"] for row in csv.DictReader(file) if row["tagged"] == "1"}
    assert len(confirmed) >= 12
    assert sum(Path(name).stem in tagged for name in confirmed) >= 0.8 * len(confirmed)
