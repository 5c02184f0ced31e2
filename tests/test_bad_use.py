"""Bad use: one line that names the field, what is wrong and the fix; exit 2; nothing written."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from camray.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
MODEL = str(ROOT / "demo" / "models" / "hans64-clean")
ARCHIVE = str(ROOT / "demo" / "archive")


def camray(*arguments: str) -> tuple[int, str, float]:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "camray.cli", *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    return done.returncode, done.stderr, time.monotonic() - started


def camray_here(*arguments: str) -> tuple[int, str, float]:
    """Run the same command line in this process."""
    said, started = io.StringIO(), time.monotonic()
    with contextlib.redirect_stderr(said):
        code = main(arguments)
    return code, said.getvalue(), time.monotonic() - started


def refused(tmp_path: Path, arguments: list[str], *words: str, code: int = 2) -> float:
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    status, stderr, seconds = camray(*arguments)
    assert status == code, stderr
    lines = [line for line in stderr.splitlines() if not line.startswith("camray: exit")]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("camray: error: "), stderr
    for word in words:
        assert word in lines[0], stderr
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before, "something was written"
    return seconds


CPU_ONLY = [  # arguments after `explain`, words of the message; none of these loads a model
    ([ARCHIVE, "OUT"], ["--model", "missing", "Fix"]),
    ([ARCHIVE], ["OUT", "missing"]),
    (["no/such/folder", "OUT", "--model", MODEL], ["ARCHIVE", "no/such/folder"]),
    (["ftp://host/a", "OUT", "--model", MODEL], ["ARCHIVE", "ftp", "s3"]),
    ([ARCHIVE, "s3://key:secret@bucket/x", "--model", MODEL], ["OUT", "credentials"]),
    ([ARCHIVE, "OUT", "--model", MODEL, "--batch-size", "0"], ["--batch-size", "0", "between 1"]),
    ([ARCHIVE, "OUT", "--model", MODEL, "--batch-size", "many"], ["--batch-size", "many"]),
    ([ARCHIVE, "OUT", "--model", MODEL, "--max-failed", "1.5"], ["--max-failed", "between 0 and 1"]),
    ([ARCHIVE, "OUT", "--model", MODEL, "--limit", "3", "--sample", "4"], ["--sample", "--limit"]),
    ([ARCHIVE, "OUT", "--model", MODEL, "--batchsize", "4"], ["--batchsize", "Fix"]),
    ([ARCHIVE, "OUT", "--model", MODEL, "--overlays", "some"], ["--overlays", "some", "flagged"]),
    ([ARCHIVE, "OUT", "--config", "no.toml"], ["--config", "no.toml"]),
    ([ARCHIVE, ARCHIVE + "/out", "--model", MODEL], ["OUT", "inside the archive"]),
]


@pytest.mark.parametrize(("arguments", "words"), CPU_ONLY, ids=lambda v: " ".join(v)[-50:])
def test_refused_before_any_model(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    given = [str(tmp_path / "out") if a == "OUT" else a for a in arguments]
    assert refused(tmp_path, ["explain", *given], *words) < 20  # 5 s on an idle machine


MODELS = [
    (["--model", "resnet51"], ["--model", "resnet51", "resnet50"]),
    (["--model", MODEL, "--layer", "layer9"], ["layer", "layer9", "layer4"]),
    (["--model", MODEL, "--layer", "fc"], ["layer", "fc", "layer4"]),
    (["--model", MODEL, "--target", "6"], ["--target", "6", "0..5"]),
    (["--model", MODEL, "--target", "cat"], ["target", "cat", "predicted"]),
    (["--model", MODEL, "--target", "top:x"], ["target", "top:x"]),
    (["--model", MODEL, "--method", "magic"], ["method", "magic"]),
    (["--model", "resnet18"], ["--model", "not on this machine", "--checkpoint"]),
    (["--model", "resnet18", "--checkpoint", "no.pth"], ["--checkpoint", "no.pth"]),
]


@pytest.mark.parametrize(("options", "words"), MODELS, ids=lambda v: " ".join(v)[-50:])
def test_refused_with_a_model(
    tmp_path: Path, options: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two as a command; the others in this process, which has the libraries loaded."""
    if MODELS.index((options, words)) > 1:
        monkeypatch.setattr(f"{__name__}.camray", camray_here)
    refused(tmp_path, ["explain", ARCHIVE, str(tmp_path / "out"), *options], *words)


def test_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("mine")
    refused(tmp_path, ["explain", ARCHIVE, str(tmp_path), "--model", MODEL], "OUT", "thesis.docx", "Fix")


def test_out_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    refused(tmp_path, ["explain", ARCHIVE, str(tmp_path / "out"), "--model", MODEL], "OUT", "is a file")


def test_no_permission(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    place = "/proc" if os.geteuid() == 0 else str(closed)  # permission bits do not stop root
    refused(
        tmp_path, ["explain", ARCHIVE, f"{place}/camray-out", "--model", MODEL], "OUT", "permission", "Fix"
    )


def test_empty_archive(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ["explain", str(tmp_path / "empty"), str(tmp_path / "out"), "--model", MODEL]
    refused(tmp_path, arguments, "ARCHIVE", "no image", code=6)


def test_status_and_verify_of_nothing(tmp_path: Path) -> None:
    for verb in ("status", "verify"):
        assert refused(tmp_path, [verb, str(tmp_path / "nothing")], "OUT", "no camray records") < 20
