"""An OUT that will not do, or is damaged: one line that names it and the fix; what is there stays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from camray import storage
from camray.cli.main import main
from camray.errors import UsageError
from camray.flow import cluster
from camray.storage import open_folder
from tests.ledger.ledger_world import E1, committed, rows, shard

ROOT = Path(__file__).resolve().parent.parent
ARCHIVE, MODEL = ROOT / "demo" / "archive", ROOT / "demo" / "models" / "hans64-clean"
Refused = Callable[..., str]


def tree(place: Path) -> dict[str, str]:
    """Every file and link below a place, and what it holds."""
    found = {}
    for path in sorted(place.rglob("*")):
        what = os.readlink(path) if path.is_symlink() else ""
        if path.is_file() and not path.is_symlink():
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(place))] = what
    return found


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    def go(out: Path | str, verb: str = "plan", code: int = 2) -> str:
        before = tree(tmp_path)
        given = [verb, str(ARCHIVE), str(out), "--model", str(MODEL)] if verb == "plan" else [verb, str(out)]
        assert main(given) == code
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1, said
        assert said[0].startswith("camray: error: ")
        assert ". Fix: " in said[0]
        assert said[0].isprintable()
        assert tree(tmp_path) == before, "something was written"
        return said[0]

    return go


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A small OUT with one committed shard."""
    folder = open_folder(str(tmp_path / "out"), "OUT")
    folder.write(f"explainers/{E1}.json", b"{}")
    committed(folder, shard("a"), [rows(0, 4)])
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["records", "overlays", "explainers", "records/_delta_log"])
def test_a_link_that_leads_elsewhere(refused: Refused, out: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    if (out / name).exists():
        shutil.move(out / name, elsewhere)
    else:
        elsewhere.mkdir()
    (out / name).symlink_to(elsewhere)
    found = refused(out)
    assert f"OUT: {out}/{name} is a link to {elsewhere}. Fix: remove the link" in found


def test_out_itself_may_be_a_link(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link").symlink_to(out)
    assert main(["plan", str(ARCHIVE), str(tmp_path / "link"), "--model", str(MODEL)]) == 0
    open_folder(str(tmp_path / "link"), "OUT").write("overlays/x/1.jpg", b"1")
    assert (out / "overlays/x/1.jpg").read_bytes() == b"1"


def links_lead_nowhere(place: Path) -> None:
    """Links at any depth, put there while a run is under way."""
    victim = place / "victim"
    victim.mkdir(parents=True)
    (victim / "1.jpg").write_bytes(b"mine")
    (place / "out/overlays").mkdir(parents=True)
    (place / "out/overlays/x").symlink_to(victim)
    folder = open_folder(str(place / "out"), "OUT")
    for relative in ("overlays/x/1.jpg", "overlays/x/deeper/2.jpg"):
        with pytest.raises(OSError, match="is a link to"):
            folder.write(relative, b"theirs")
    with pytest.raises(OSError, match="is a link to"):
        folder.delete("overlays/x/1.jpg")
    assert tree(victim) == {"1.jpg": hashlib.sha256(b"mine").hexdigest()}
    (place / "out/run.json").symlink_to(victim / "1.jpg")
    folder.write("run.json", b"theirs")  # the name is replaced, not what it led to
    assert tree(victim) == {"1.jpg": hashlib.sha256(b"mine").hexdigest()}


def test_links_lead_nowhere(tmp_path: Path) -> None:
    links_lead_nowhere(tmp_path)


def test_sabotage_of_the_look_at_links_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "refuse_links", lambda *_: None)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        links_lead_nowhere(tmp_path)


@pytest.mark.parametrize("content", [b"garbage", b'{"add":{"path":"x', b"\xff\xfe\x00"])
@pytest.mark.parametrize("verb", ["plan", "status", "verify"])
def test_a_damaged_log(refused: Refused, out: Path, verb: str, content: bytes) -> None:
    last = sorted((out / "records/_delta_log").glob("*.json"))[-1]
    last.write_bytes(content)
    found = refused(out, verb)
    assert f"the log of {out}/records is damaged" in found
    assert "restore its _delta_log" in found


def test_a_name_that_is_too_long(refused: Refused, tmp_path: Path) -> None:
    assert "File name too long" in refused(tmp_path / ("x" * 300))


def test_no_cluster_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray says of a cluster that is not there, or of other versions, becomes one line."""
    said = (
        "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\nThis process was started with: ..."
    )

    def refuse(**_: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(UsageError) as caught:
        cluster.connect()
    told = str(caught.value)
    assert told.startswith(
        "RAY_ADDRESS: 10.0.0.1:6379: Version mismatch: The cluster was started with: Ray: 2.59"
    )
    assert ". Fix: the address of a running cluster with the same versions of Python and Ray" in told


def test_nothing_depends_on_the_locale_or_the_clock_of_the_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LC_ALL=C, an odd time zone and another hash seed plan the same work with the same identity."""
    archive = tmp_path / "bilder ünïcode 図"
    archive.mkdir()
    shutil.copy(next(ARCHIVE.glob("*.tar")), archive / "größe 1.tar")
    command = ["plan", str(archive), str(tmp_path / "out"), "--model", str(MODEL), "--json"]
    assert main(command) == 0
    here = json.loads(capsys.readouterr().out)
    odd = {"LC_ALL": "C", "TZ": "Pacific/Chatham", "PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "camray.cli", *command], check=True, capture_output=True,
        env={**os.environ, **odd},
    )  # fmt: skip
    assert json.loads(done.stdout) == here
