"""A whole OUT under 24 odd paths: it works to the end and is verified, or is refused with nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

import camray
from camray.cli.main import main
from tests.faults.test_damage import ROOT

WORK = (
    "a b", "50%", "ü", "図 e\u0301", "a+b", "'q'", '"q"', "{x} $y `z`", "*&;!", "~x", "a:b@c", "<x>", " ends",
)  # fmt: skip
REFUSED = (
    "run #3", "a%20b", "%41", "what?", "a?b=c", "new\nline", "tab\t", "[x]", "a|b", "a^b", "back\\slash",
)  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("name", [*WORK, *REFUSED])
def test_a_whole_out_under_an_odd_path(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    archive, out = tmp_path / "archive", tmp_path / name / "out"
    archive.mkdir()
    tars = sorted((ROOT / "demo/archive").glob("*.tar"))
    (archive / "0.tar").write_bytes(tars[0].read_bytes())
    (tmp_path / name).mkdir()
    model = str(ROOT / "demo/models/hans64-poisoned")
    given = [str(archive), str(out), "--model", model]
    if name not in WORK:
        for verb in ("plan", "explain", "audit"):
            assert main([verb, *given]) == 2
            (line,) = [text for text in capsys.readouterr().err.splitlines() if "error" in text]
            assert "Delta Lake keeps no table under a name with" in line
            assert line.isprintable()
        assert main(["verify", str(out)]) == main(["status", str(out)]) == 2
        assert not out.exists()
        return
    assert main(["audit", *given, "--engine", "here"]) == 0
    (archive / "1.tar").write_bytes(tars[1].read_bytes())
    assert main(["audit", *given, "--engine", "here"]) == 0
    assert main(["prune", str(out), "--keep-last", "1", "--yes"]) == 0
    assert main(["report", str(out)]) == 0
    capsys.readouterr()
    assert main(["verify", str(out)]) == 0
    assert capsys.readouterr().out.startswith("2 shards, 120 members: all accounted for")
    assert camray.open_records(str(out)).count_rows() == 120
    next(out.glob("records/explainer=*/*.parquet")).unlink()
    assert main(["verify", str(out)]) == 5
    assert [path.name for path in (tmp_path / name).iterdir()] == ["out"]
