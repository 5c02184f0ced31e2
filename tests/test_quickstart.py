"""The quickstart, top to bottom as typed: every command and snippet, one after the other, in one folder."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import camray
from camray.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "quickstart.md").read_text()
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", PAGE, re.S)


def test_the_page_has_its_parts() -> None:
    assert [kind for kind, _ in BLOCKS].count("python") == 2
    assert PAGE.count("\ncamray ") == 7


@pytest.mark.slow
def test_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "demo", tmp_path / "demo")
    typed = 0
    session = ""  # of Python: what a reader typed before is still there
    for kind, code in BLOCKS:
        if kind == "python":
            session += code
            done = subprocess.run(
                [sys.executable, "-c", session], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout
            continue
        for line in code.splitlines():
            words = shlex.split(line)
            if words[0] in ("mkdir", "tar"):
                subprocess.run(words, check=True)
            if words[0] != "camray" or "--version" in words:
                continue  # make demo and the installation have tests of their own
            assert main(words[1:]) == 0, line
            typed += 1
    assert typed == 6
    assert (tmp_path / "heat.png").stat().st_size > 500
    assert (tmp_path / "out-audit" / "report" / "index.html").is_file()
    assert len(camray.open_records("out").to_table()) == 60
