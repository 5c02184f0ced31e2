"""What a machine lacks is named before anything is written; what is made is closed to others."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from deltalake import write_deltalake
from pyarrow import table

from camray.cli import main as cli
from camray.errors import ExitCode, UsageError
from camray.machine import on_this_machine


@pytest.mark.parametrize(("umask", "widest"), [(0o000, 0o755), (0o022, 0o755), (0o077, 0o700)])
def test_what_a_library_makes_is_closed_to_others(umask: int, widest: int, tmp_path: Path) -> None:
    """Under umask 000 Delta Lake made its log 0666 in 0777."""
    before = os.umask(umask)
    try:
        with on_this_machine():
            write_deltalake(tmp_path / "table", table({"a": [1], "b": [2]}), partition_by=["a"])
        assert os.umask(umask) == umask  # as it was
    finally:
        os.umask(before)
    made = list((tmp_path / "table").rglob("*"))
    assert {p.name for p in made} >= {"_delta_log", "a=1"}
    assert [p for p in made if p.stat().st_mode & 0o777 & ~widest] == []


def test_a_working_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UsageError, match="the working folder: No such file"), on_this_machine():
        pass


def test_no_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    with pytest.raises(UsageError, match="export TMPDIR="), on_this_machine():
        pass


def test_file_names_that_are_not_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    with (
        pytest.raises(UsageError, match=r"taken for iso8859-1 here\. Fix: export PYTHONUTF8=1"),
        on_this_machine(),
    ):
        pass


def test_a_crash_has_its_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it is, whoever watches reads how it ended."""

    def crash(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("camray.cli.jobs.typed_config", crash)
    assert cli.main(["explain", "archive", "out", "--model", "x"]) == ExitCode.CRASH
    said = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError: a bug" in said
    assert said[-1] == "camray: exit 1: crash: a bug; please report it"


@pytest.mark.parametrize("in_thread", [False, True])
def test_freed_memory_is_used_again_without_the_system(in_thread: bool) -> None:
    """A block of 40 MiB is 10,240 pages (20 of 2 MiB), and each round would be given all of them anew."""
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("this C library has no mallopt")
    code = f"""
import ctypes, resource, threading
from camray.machine import keep_freed_memory
keep_freed_memory()
malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
faults = []
def work():
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for block in [malloc(40 << 20) for _ in range(3)]:
            ctypes.memset(block, 1, 40 << 20)
            free(block)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
if {in_thread}:
    thread = threading.Thread(target=work)
    thread.start(), thread.join()
else:
    work()
print(*faults)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, *later = map(int, done.stdout.split())
    assert first >= 60
    assert max(later) < 20
