"""`camray init`: the file it writes is read back as what was asked, and every line in it may be set."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from camray.cli.main import main
from camray.errors import ExitCode
from camray.job import doctor
from camray.options import load

GIVEN = {"archive.path": 'a "b"\\c', "out": "s3://b/out", "model.name": "my net"}
OPTIONS = ["--archive", GIVEN["archive.path"], "--out", GIVEN["out"], "--model", GIVEN["model.name"]]


def test_what_was_asked_is_read_back_and_each_comment_may_be_set(tmp_path: Path) -> None:
    file = tmp_path / "night.toml"
    assert main(["init", str(file), *OPTIONS]) == ExitCode.DONE
    assert load(str(file), {}, "audit") == load(None, dict(GIVEN), "audit")
    text = file.read_text()
    set_to_default = re.sub(r"^# (\w+ = [^ ].*)$", r"\1", text, flags=re.M)
    assert set_to_default.count("\n#") < text.count("\n#") - 5
    file.write_text(set_to_default)
    assert load(str(file), {}, "audit") == load(None, dict(GIVEN), "audit")


def test_a_file_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "night.toml").write_text("mine")
    assert main(["init", str(tmp_path / "night.toml"), *OPTIONS]) == ExitCode.USAGE
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "night.toml").read_text() == "mine"


def test_at_a_terminal_it_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["photos", "out", "resnet18", ""])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == ExitCode.DONE
    found = load("camray.toml", {}, "audit")
    assert (found.archive.path, found.out, found.model.name) == ("photos", "out", "resnet18")
    assert found.model.checkpoint is None


def test_doctor_needs_no_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "ray", lambda: doctor.Check("Ray", "not asked"))
    assert main(["doctor"]) == ExitCode.DONE
    assert "OUT" not in capsys.readouterr().out
