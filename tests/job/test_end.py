"""How a run ends is told: every night has a report, a line for Prometheus, and a verdict that stays."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from camray.cli.main import main
from camray.errors import ExitCode, UsageError
from camray.ledger import watch
from camray.ledger.runs import read_reports
from camray.ledger.watch import check_metrics_file
from camray.records import Accounting
from camray.storage import open_folder
from demo import hans64

ROOT = Path(__file__).resolve().parents[2]
MODEL = str(ROOT / "demo" / "models" / "hans64-poisoned")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """One tar of eight images."""
    folder = tmp_path / "archive"
    hans64.write_tar_shards([hans64.render(0, "audit", i) for i in range(8)], folder, 8)
    return folder


@pytest.fixture
def go(archive: Path, tmp_path: Path) -> Callable[..., int]:
    """Run a night into OUT, in this process; gives the exit code."""

    def night(*options: str, verb: str = "explain", out: str = "out") -> int:
        words = [verb, str(archive), str(tmp_path / out), "--model", MODEL, "--engine", "here"]
        return main([*words, "--overlays", "none", *options])

    return night


def reports(out: Path) -> list[dict[str, Any]]:
    return read_reports(open_folder(str(out), "OUT"))


def gauge(file: Path, name: str) -> float | None:
    found = re.search(rf"^{name}{{[^}}]*}} (\S+)$", file.read_text(), re.M)
    return float(found[1]) if found else None


def spoil(archive: Path) -> None:
    """Add a tar of four images of which two are no images."""
    (good,) = hans64.write_tar_shards([hans64.render(0, "audit", 90 + i) for i in range(2)], archive / "x", 2)
    good.rename(archive / "bad.tar")
    with tarfile.open(archive / "bad.tar", "a") as tar:
        for name in ("no-1.jpg", "no-2.jpg"):
            (archive / name).write_bytes(b"no image")
            tar.add(archive / name, name)
            (archive / name).unlink()
    (archive / "x").rmdir()


def test_a_night_with_nothing_new_has_a_report_and_is_good(
    go: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A monitor can tell a quiet night from one that did not run."""
    file = tmp_path / "camray.prom"
    assert go("--metrics-file", str(file)) == 0
    file.unlink()
    start = time.time()
    assert go("--metrics-file", str(file)) == 0
    first, quiet = reports(tmp_path / "out")
    assert (first["accounting"]["members"], quiet["accounting"]["members"]) == (8, 0)
    assert (quiet["exit"], quiet["shards"]) == (0, {"todo": 0, "committed": 1, "changed": 0})
    assert gauge(file, "camray_last_run_exit_code") == 0
    assert start - 1 <= (gauge(file, "camray_last_success_timestamp_seconds") or 0) <= time.time() + 1
    capsys.readouterr()
    assert main(["status", str(tmp_path / "out")]) == 0
    assert f"run {quiet['run_id']}  done  nothing new" in capsys.readouterr().out


def test_a_refused_night_is_told_and_keeps_when_it_last_went_well(
    go: Callable[..., int], archive: Path, tmp_path: Path
) -> None:
    """An archive that is suddenly empty (a mount that is gone) ends with 6; the alarm stays on."""
    file = tmp_path / "camray.prom"
    gate = ("--fail-on", "low_margin_rate>0", "--metrics-file", str(file))
    assert go("--metrics-file", str(file)) == 0
    good = gauge(file, "camray_last_success_timestamp_seconds")
    assert go(*gate, verb="audit", out="out") in (0, 5)
    fired = gauge(file, "camray_audit_gate_fired")
    assert fired is not None
    shutil.move(archive, tmp_path / "away")
    archive.mkdir()
    assert go(*gate, verb="audit") == ExitCode.EMPTY
    assert gauge(file, "camray_last_run_exit_code") == 6
    assert gauge(file, "camray_audit_gate_fired") == fired
    assert (gauge(file, "camray_last_success_timestamp_seconds") or 0) >= (good or 0) > 0
    assert reports(tmp_path / "out")[-1]["exit"] == 6


def test_a_new_out_that_was_refused_is_not_begun(go: Callable[..., int], tmp_path: Path) -> None:
    file = tmp_path / "camray.prom"
    assert go("--layer", "nowhere", "--metrics-file", str(file), out="new") == ExitCode.USAGE
    assert not (tmp_path / "new").exists()
    assert gauge(file, "camray_last_run_exit_code") == 2
    assert gauge(file, "camray_last_success_timestamp_seconds") is None  # so that absent() speaks


def test_too_many_failures_stay_until_accepted(
    go: Callable[..., int], archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command again, a retry for example, must not end with 0 where the first ended with 3."""
    spoil(archive)
    assert go() == 3
    assert go() == 3  # nothing new
    assert "camray accept" in capsys.readouterr().err
    hans64.write_tar_shards([hans64.render(0, "audit", 50 + i) for i in range(3)], archive / "more", 3)
    assert go() == 3  # new images, all well
    assert go("--max-failed", "2") == 0  # two failures are fine
    assert go() == 3


def test_too_many_failures_go_with_their_images(
    go: Callable[..., int], archive: Path, tmp_path: Path
) -> None:
    spoil(archive)
    assert go() == 3
    time.sleep(0.01)
    hans64.write_tar_shards([hans64.render(0, "audit", 90 + i) for i in range(4)], archive / "y", 4)
    next((archive / "y").glob("*.tar")).replace(archive / "bad.tar")
    (archive / "y").rmdir()
    assert go() == 0


def test_what_a_killed_run_committed_is_judged_by_the_next(
    go: Callable[..., int], archive: Path, tmp_path: Path
) -> None:
    """Killed after its last commit: the run that resumes finds nothing to do; two of twelve had failed."""
    spoil(archive)
    assert go() == 3
    (path,) = (tmp_path / "out").glob("runs/*/run.json")
    said = json.loads(path.read_text())  # as it is before the end
    path.write_text(json.dumps(said | {"exit": None, "over_budget": None, "accounting": {}}))
    assert go("--max-failed", "2") == 0
    shutil.rmtree(max((tmp_path / "out" / "runs").iterdir(), key=lambda run: run.stat().st_mtime_ns))
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(said | {"exit": None, "over_budget": None, "accounting": {}}))
    assert go() == 3
    assert go() == 3
    assert reports(tmp_path / "out")[-1]["exit"] == 3


def test_new_overlay_settings_are_told_where_they_do_nothing(
    go: Callable[..., int], archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go() == 0
    capsys.readouterr()
    assert go("--overlay-alpha", "0.2") == 0
    said = capsys.readouterr().err
    assert "overlay settings changed (alpha): they hold for new images, 1 committed shards keep" in said
    assert go() == 0
    assert "overlay settings changed" not in capsys.readouterr().err


def test_accepting_names_a_run_of_out(go: Callable[..., int], archive: Path, tmp_path: Path) -> None:
    spoil(archive)
    assert go() == 3
    out = str(tmp_path / "out")
    assert main(["accept", out, "20260101T000000Z-0"]) == 2
    assert main(["accept", out, "../runs"]) == 2
    assert main(["accept", out, reports(tmp_path / "out")[0]["run_id"]]) == 0
    assert go() == 0


@pytest.mark.parametrize("name", ["x.txt", "no/folder/x.prom", "s3://bucket/x.prom"])
def test_a_metrics_file_that_nobody_would_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"--metrics-file: .*Fix: "):
        check_metrics_file(name if "://" in name else str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_a_label_can_hold_any_path() -> None:
    text = watch.gauges('/a "b"\\c', 0, 1.0, 1.0, Accounting(ok=1))
    assert 'camray_last_run_exit_code{out="/a \\"b\\"\\\\c"} 0\n' in text


# ── hooks ────────────────────────────────────────────────────────────────────────────────────────


def test_a_command_at_the_end_reads_how_it_ended(
    go: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "said.json"
    assert go("--on-end", f"cat > {file}; exit 7", verb="audit") == 0
    said = json.loads(file.read_text())
    assert (said["exit"], said["meaning"], said["members"], said["ok"]) == (0, "done", 8, 8)
    assert said["audit"]["images"]["night"] == 8
    assert said["text"].startswith("camray: exit 0: done. 8 new images explained")
    err = capsys.readouterr().err
    assert "could not run the command of --on-end: exit 7" in err
    assert go("--on-end", f"cat > {file}", "--layer", "nowhere", out="other") == 2
    assert json.loads(file.read_text())["exit"] == 2


def test_a_command_that_does_not_end_is_ended(
    go: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("camray.job.end.HOOK_S", 0.2)
    start = time.monotonic()
    assert go("--on-end", "exec sleep 600") == 0
    assert time.monotonic() - start < 300
    assert "no end within" in capsys.readouterr().err


@pytest.fixture
def hook() -> Iterator[tuple[str, list[bytes]]]:
    """A chat's web hook: its address, and what it was sent."""
    bodies: list[bytes] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(500 if "broken" in self.path else 200)
            self.end_headers()
            if "slow" in self.path:
                time.sleep(5)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", bodies
    server.shutdown()
    server.server_close()


def test_a_chat_is_told_and_its_address_nowhere(
    go: Callable[..., int], tmp_path: Path, hook: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Slack's form; the path of the address is the permission to write there, so it stands in no file."""
    address, bodies = hook
    assert go("--notify", f"{address}/services/T0/B0/sesame") == 0
    monkeypatch.setenv("CHAT", f"{address}/broken/sesame")
    assert go("--notify", "$CHAT") == 0
    assert [list(json.loads(body)) for body in bodies] == [["text"], ["text"]]
    assert json.loads(bodies[0])["text"].startswith("camray: exit 0: done. 8 members = 8 ok")
    said = capsys.readouterr()
    assert "could not post to the address of --notify: HTTP Error 500" in said.err
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in files if b"sesame" in path.read_bytes()]
    assert "sesame" not in said.err + said.out


@pytest.mark.parametrize("address", ["ftp://host/x", "host/x", "$NO_SUCH_VARIABLE", "https://"])
def test_an_address_that_is_none_is_refused(go: Callable[..., int], tmp_path: Path, address: str) -> None:
    assert go("--notify", address, out="new") == 2
    assert not (tmp_path / "new").exists()


def test_nobody_answers(go: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """A chat that is away is one line, and never an exit code."""
    assert go("--notify", "http://127.0.0.1:9/sesame") == 0
    err = capsys.readouterr().err
    assert "could not post to the address of --notify: " in err
    assert "sesame" not in err
