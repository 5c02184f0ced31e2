"""One run holds OUT at a time, by the store's clock; every run leaves its report."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from camray.config import Config, Explainer, InputSpec
from camray.errors import ExitCode, OutputLockedError
from camray.ledger import runs
from camray.ledger.out import explainer_file, read_explainer
from camray.ledger.runs import (
    STALE_S,
    first_report,
    hold,
    new_run_id,
    process_start,
    read_reports,
    write_explainer,
)
from camray.records import Accounting
from camray.storage import Folder

SPEC = InputSpec(8, 8, (8, 8), "center", "bicubic", (0.5,) * 3, (0.5,) * 3)
EXPLAINER = Explainer("m", {}, "ab", ("é",), 2, SPEC, "gradcam", "predicted", "l", {}, 1, 1, 1)


HERE = {"pid_space": os.readlink("/proc/self/ns/pid")} if os.path.exists("/proc/self/ns/pid") else {}


def beat_of(out: Folder, run_id: str, age_s: float = 0.0, **owner: Any) -> Path:
    """Leave the heartbeat of another run, so many seconds old by the store's clock."""
    said = {
        "holds": True, "run_id": run_id, "host": "elsewhere", "pid": 4711, "process_started": "1",
        "started_at": "2026-01-01T00:00:00+00:00",
    } | owner  # fmt: skip
    out.write(f"runs/{run_id}/heartbeat.json", json.dumps(said).encode())
    path = Path(out.path) / f"runs/{run_id}/heartbeat.json"
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def beats(out: Folder) -> list[str]:
    return [e.path for e in out.entries("runs") if e.path.endswith("heartbeat.json")]


def test_run_ids_sort_by_time_and_never_repeat() -> None:
    ids = {new_run_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(len(i) == len("20260101T000000Z-") + 16 for i in ids)


def test_a_hold_is_there_while_it_lasts(out: Folder) -> None:
    with hold(out, "r1"):
        (path,) = beats(out)
        owner = json.loads(out.read(f"runs/{path}"))
        assert (owner["holds"], owner["run_id"], owner["pid"]) == (True, "r1", os.getpid())
    assert beats(out) == []
    with hold(out, "r2"):
        pass


def test_a_hold_ends_with_an_error_too(out: Folder) -> None:
    with pytest.raises(ZeroDivisionError), hold(out, "r1"):
        raise ZeroDivisionError
    assert beats(out) == []


def test_a_second_run_is_refused_and_told_who_is_there(out: Folder) -> None:
    beat_of(out, "r1", age_s=20)
    with pytest.raises(OutputLockedError) as caught, hold(out, "r2"):
        pass
    said = str(caught.value)
    for word in ("r1", "elsewhere", "4711", "2026-01-01T00:00:00+00:00", out.uri, "--force"):
        assert word in said
    assert "\n" not in said
    assert caught.value.exit_code == ExitCode.LOCKED
    assert beats(out) == ["r1/heartbeat.json"]  # the refused run leaves nothing, the owner keeps its own


def test_a_live_run_in_another_process_is_respected(out: Folder) -> None:
    code = (
        "import sys; from camray.ledger.runs import hold; from camray.storage import open_folder\n"
        f"with hold(open_folder({out.path!r}, 'OUT'), 'r1'): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(OutputLockedError, match=f"process {other.pid}"), hold(out, "r2"):
            pass
    finally:
        other.kill()
        other.communicate()
    with hold(out, "r3"):  # killed: its heartbeat is fresh, but its process is gone
        assert "r1/heartbeat.json" in beats(out)


def test_force_goes_in_beside_a_live_run(out: Folder) -> None:
    beat_of(out, "r1")
    with hold(out, "r2", force=True):
        assert len(beats(out)) == 2


@pytest.mark.parametrize(("age", "free"), [(STALE_S - 20, False), (STALE_S + 20, True)])
def test_a_heartbeat_is_stale_by_the_stores_clock(out: Folder, age: float, free: bool) -> None:
    beat_of(out, "r1", age_s=age)
    if free:
        with hold(out, "r2"):
            pass
    else:
        with pytest.raises(OutputLockedError), hold(out, "r2"):
            pass


def test_this_machines_own_clock_does_not_matter(out: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    beat_of(out, "r1", age_s=10)
    for wrong in (time.time() + 1e6, time.time() - 1e6):
        monkeypatch.setattr(time, "time", lambda wrong=wrong: wrong)
        with pytest.raises(OutputLockedError), hold(out, "r2"):
            pass


def test_a_dead_process_of_this_machine_is_taken_over_at_once(out: Folder) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    beat_of(out, "r1", host=socket.gethostname(), pid=int(done.stdout), process_started="1", **HERE)
    with hold(out, "r2"):
        pass


def test_a_process_id_in_use_again_is_no_life_sign(out: Folder) -> None:
    mine = process_start(os.getpid())
    assert mine is not None
    beat_of(out, "r1", host=socket.gethostname(), pid=os.getpid(), process_started=str(int(mine) - 1), **HERE)
    with hold(out, "r2"):
        pass
    beat_of(out, "r3", host=socket.gethostname(), pid=os.getpid(), process_started=mine, **HERE)
    with pytest.raises(OutputLockedError), hold(out, "r4"):
        pass


def test_a_container_that_shares_the_host_name_is_another_machine(out: Folder) -> None:
    beat_of(out, "r1", host=socket.gethostname(), pid=2**22 + 1, pid_space="pid:[1]")
    with pytest.raises(OutputLockedError), hold(out, "r2"):
        pass


def test_the_earlier_of_the_two_stays_when_the_later_gives_way(
    out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other side of that race: r1 took the hold and finds r2 holding as well, which will give way."""
    real, looks = runs._live_other, []

    def look(*args: Any, **options: Any) -> dict[str, Any] | None:
        found = real(*args, **options)
        looks.append(args)
        if len(looks) == 1:
            beat_of(out, "r2")
        return found

    monkeypatch.setattr(runs, "_live_other", look)
    with hold(out, "r1"):
        assert len(looks) == 2


def test_the_same_process_id_on_another_machine_says_nothing(out: Folder) -> None:
    beat_of(out, "r1", host="elsewhere", pid=2**22 + 1)
    with pytest.raises(OutputLockedError), hold(out, "r2"):
        pass


def test_of_two_that_start_together_the_first_by_name_goes(out: Folder) -> None:
    beat_of(out, "r1", holds=False)
    with pytest.raises(OutputLockedError), hold(out, "r2"):
        pass
    with hold(out, "r0"):
        pass


def test_a_candidate_that_was_not_seen_at_first_is_seen_before_the_work(
    out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """r2 looks, then r1 writes and looks (r2 does not hold yet, so r1 goes), then r2 takes the hold."""
    real, looks = runs._live_other, []

    def look(*args: Any, **options: Any) -> dict[str, Any] | None:
        found = real(*args, **options)
        looks.append(args)
        if len(looks) == 1:
            beat_of(out, "r1")
        return found

    monkeypatch.setattr(runs, "_live_other", look)
    with pytest.raises(OutputLockedError), hold(out, "r2"):
        pass


@pytest.mark.parametrize("text", [b"", b"{", b"{}", b"[]"])
def test_an_unreadable_heartbeat_does_not_stop_a_run_for_ever(out: Folder, text: bytes) -> None:
    out.write("runs/r1/heartbeat.json", text)
    with hold(out, "r2"):
        pass


def test_the_heartbeat_goes_on_and_survives_a_store_that_fails(
    out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "HEARTBEAT_S", 0.05)
    real, calls = Folder.write, []

    def write(self: Folder, relative: str, data: bytes) -> None:
        calls.append(relative)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(self, relative, data)

    monkeypatch.setattr(Folder, "write", write)
    with hold(out, "r1"):
        path = Path(out.path) / "runs/r1/heartbeat.json"
        first = path.stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while len(calls) < 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert path.stat().st_mtime_ns > first
    assert len(calls) >= 6


def test_a_report_says_how_the_run_went(out: Folder) -> None:
    report = first_report("r1", EXPLAINER.id, Config(), {"todo": 1})
    report.write(out)
    (alive,) = read_reports(out)
    assert (alive["exit"], alive["exit_meaning"], alive["explainer"]) == (None, "running", EXPLAINER.id)
    assert alive["versions"]["python"] == sys.version.split()[0]
    assert {"torch", "ray", "deltalake", "pyarrow"} <= set(alive["versions"])
    report.ended(ExitCode.DONE, Accounting(8, 1, {"empty_file": 1}), 4.0, {"read": 1.23456}).write(out)
    (ended,) = read_reports(out)
    assert (ended["exit"], ended["exit_meaning"], ended["images_per_s"]) == (0, "done", 2.5)
    assert ended["accounting"] == {
        "ok": 8, "skipped": 1, "failed": {"empty_file": 1}, "shard_errors": {}, "members": 10,
    }  # fmt: skip
    assert ended["stage_seconds"] == {"read": 1.235}


def test_reports_come_oldest_first(out: Folder) -> None:
    for run_id in ("20260102T000000Z-a", "20260101T000000Z-b", "20251231T000000Z-c"):
        first_report(run_id, EXPLAINER, Config(), {}).write(out)
    assert [r["run_id"][:8] for r in read_reports(out)] == ["20251231", "20260101", "20260102"]


def test_an_explainer_is_written_once_in_full(out: Folder) -> None:
    write_explainer(out, EXPLAINER)
    path = Path(out.path) / f"explainers/{EXPLAINER.id}.json"
    said = json.loads(path.read_text("utf-8"))
    assert said == json.loads(EXPLAINER.to_json())
    path.write_text("kept")
    write_explainer(out, EXPLAINER)
    assert path.read_text() == "kept"


def test_what_an_explainer_stands_for_is_read_as_it_was_written(out: Folder) -> None:
    write_explainer(out, EXPLAINER)
    assert read_explainer(out, EXPLAINER.id) == EXPLAINER
    told = json.loads(out.read(explainer_file(EXPLAINER.id)))
    del told["activation"]  # of a table from before there was a choice
    out.write(explainer_file("older"), json.dumps(told | {"of a later camray": 1}).encode())
    assert read_explainer(out, "older") == EXPLAINER


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"input": {}}', '{"input": 3}'])
def test_a_damaged_description_is_a_value_error(out: Folder, text: str) -> None:
    out.write(explainer_file("e"), text.encode())
    with pytest.raises(ValueError, match=r"."):
        read_explainer(out, "e")
