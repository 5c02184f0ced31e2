"""One run holds OUT at a time: by a file that one alone can make, and by no clock but the watcher's own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from camray import storage
from camray.errors import ExitCode, IncompleteError, OutputLockedError, UsageError
from camray.ledger import hold as holds
from camray.ledger.hold import Held, hold, last_hold, last_owner, process_start
from camray.storage import Folder
from tests.ledger.ledger_world import E1, finished, shard
from tests.ledger.test_ledger_table import Table

HERE = holds._here()
ELSEWHERE = {"boot": "another boot", "pid_space": "pid:[1]"}


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second for a minute."""
    monkeypatch.setattr(holds, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(holds, "LOOK_S", 0.02)
    monkeypatch.setattr(holds, "STALE_S", 1.0)


def leave(out: Folder, number: int = 1, beat: bytes | None = b'{"beats": 1}', **owner: Any) -> None:
    """Leave the hold of another run, whose owner is not known to be alive."""
    said = {
        "run_id": "r1", "host": "elsewhere", "pid": 4711, "process_started": "1",
        "started_at": "2026-01-01T00:00:00+00:00", **ELSEWHERE,
    } | owner  # fmt: skip
    out.write(f"hold/{number:06d}.json", json.dumps(said).encode())
    if beat is not None:
        out.write(f"hold/{number:06d}.beat", beat)


@pytest.fixture
def living(out: Folder) -> Iterator[None]:
    """Another machine's run, whose heart beats."""
    leave(out)
    ended = threading.Event()

    def beat() -> None:
        beats = 1
        while not ended.wait(0.1):
            beats += 1
            out.write("hold/000001.beat", json.dumps({"beats": beats}).encode())

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    ended.set()
    thread.join()


def waited(out: Folder, run_id: str = "r2") -> float:
    started = time.monotonic()
    with hold(out, run_id):
        return time.monotonic() - started


def test_a_hold_is_there_while_it_lasts(out: Folder) -> None:
    with hold(out, "r1") as held:
        about = last_owner(out)
        assert (held.number, about["run_id"], about["pid"], about["ended"]) == (1, "r1", os.getpid(), False)
        held.confirm()
    assert last_owner(out)["ended"]
    assert waited(out) < 0.5
    assert [e.path for e in out.entries("hold")] == ["000002.beat", "000002.json"]


def test_a_hold_ends_with_an_error_too(out: Folder) -> None:
    with pytest.raises(ZeroDivisionError), hold(out, "r1"):
        raise ZeroDivisionError
    assert last_owner(out)["ended"]


def test_a_second_run_is_refused_and_told_who_is_there(out: Folder, living: None) -> None:
    with pytest.raises(OutputLockedError) as caught, hold(out, "r2"):
        pass
    said = str(caught.value)
    for word in ("r1", "elsewhere", "4711", "2026-01-01T00:00:00+00:00", out.uri, "--force"):
        assert word in said
    assert "\n" not in said
    assert caught.value.exit_code == ExitCode.LOCKED
    assert last_hold(out) == 1  # the refused run leaves nothing


def test_the_age_of_the_heartbeat_decides_whatever_dates_say(out: Folder) -> None:
    """A machine that is gone; its files are dated a year ahead, or 1970."""
    for number, date in ((1, time.time() + 400 * 86400), (2, 0)):
        leave(out, number)
        for path in (Path(out.path) / "hold").glob("*"):
            os.utime(path, (date, date))
        assert waited(out) >= 1.0
        leave(out, number + 1)


def test_no_wrong_clock_lets_a_second_run_in(
    out: Folder, living: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong in (time.time() + 1e8, 0.0):
        monkeypatch.setattr(time, "time", lambda wrong=wrong: wrong)
        with pytest.raises(OutputLockedError), hold(out, "r2"):
            pass


def start(out: Folder) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from camray.ledger.hold import hold; from camray.storage import open_folder\n"
        f"with hold(open_folder({out.path!r}, 'OUT'), 'r1'): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    return other


def test_a_killed_run_of_this_machine_is_taken_over_at_once(
    out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = start(out)
    try:
        monkeypatch.setattr(holds, "STALE_S", 60)
        os.kill(other.pid, signal.SIGKILL)
        while process_start(other.pid) is not None:
            time.sleep(0.01)
        assert waited(out, "r2") < 30  # dead and not yet reaped
        leave(out, 3, pid=other.pid, process_started="1", **HERE)
        other.communicate()
        assert waited(out, "r3") < 30
    finally:
        other.kill()
        other.communicate()


@pytest.mark.parametrize(
    "owner",
    [
        HERE | {"pid": 2**22 + 1, "pid_space": "pid:[1]"},  # a container beside this one
        HERE | {"pid": 2**22 + 1, "boot": "another"},  # a machine of the same name
        HERE | {"pid": os.getpid(), "process_started": process_start(os.getpid())},  # alive, and silent
        HERE | {"pid": -1}, HERE | {"pid": 0}, HERE | {"pid": 2**70}, HERE | {"pid": "1"}, {"pid": None},
    ],
)  # fmt: skip
def test_a_process_id_says_nothing_where_it_may_mean_another_process(
    out: Folder, owner: dict[str, Any]
) -> None:
    leave(out, **owner)
    assert waited(out) >= 1.0


def test_a_process_id_in_use_again_is_no_life_sign(out: Folder) -> None:
    leave(out, pid=os.getpid(), process_started="1", **HERE)
    assert waited(out) < 0.9


def test_a_process_that_proc_hides_is_not_taken_for_dead(
    out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hidepid=2`: /proc shows no other user's process, and a signal is not permitted."""

    def refuse(_pid: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(holds, "_status", lambda _: [])
    monkeypatch.setattr(os, "kill", refuse)
    leave(out, pid=4711, process_started="1", **HERE)
    assert waited(out) >= 1.0


@pytest.mark.parametrize("text", [b"", b"{", b"{}", b"[]", b"[" * 100_000, b"\xff"])
def test_an_unreadable_hold_does_not_stop_a_run_for_ever(out: Folder, text: bytes) -> None:
    out.write("hold/000001.json", text)
    assert waited(out) >= 1.0


def test_force_does_not_wait_and_the_other_stops_at_its_next_commit(out: Folder) -> None:
    with hold(out, "r1") as first:
        table = Table(out)
        table.create()
        table.held = first
        with hold(out, "r2", force=True) as second:
            assert second.number == 2
            second.confirm()
            with pytest.raises(IncompleteError, match=r"run r2 took .* over"):
                table.commit(E1, "r1", [finished(out, shard("a"))])
        assert table.reopened().runs() == []


def test_a_run_that_stood_still_does_not_commit_when_it_wakes(out: Folder) -> None:
    leave(out, run_id="r1")
    asleep = Held(out, 1, "r1")
    asleep.confirm()
    assert waited(out) >= 1.0
    with pytest.raises(IncompleteError):
        asleep.confirm()


def test_a_number_that_was_removed_is_not_made_again_unnoticed(
    out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow run saw number 1 last; meanwhile 2 came and went, and 3 holds."""
    leave(out, 3, pid=os.getpid(), process_started=process_start(os.getpid()), **HERE)
    real, looks = holds.last_hold, []

    def look(of: Folder) -> int:
        looks.append(of)
        return 1 if len(looks) == 1 else real(of)

    monkeypatch.setattr(holds, "last_hold", look)
    with hold(out, "r2") as held:
        assert held.number == 4


def test_a_store_that_lost_its_answer_made_it_all_the_same(
    out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Folder.create
    monkeypatch.setattr(Folder, "create", lambda *args: real(*args) and False)
    assert waited(out, "r1") < 1.0


def test_another_users_folder_is_refused_by_name(out: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bool:
        raise PermissionError(13, "Permission denied", "/out/hold/000001.json")

    monkeypatch.setattr(Folder, "create", refuse)
    with pytest.raises(UsageError, match=r"OUT: /out/hold/000001.json: Permission denied"), hold(out, "r1"):
        pass


def test_the_heartbeat_goes_on_and_survives_a_store_that_fails(
    out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Folder.write, []

    def write(self: Folder, relative: str, data: bytes) -> None:
        calls.append(relative)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(self, relative, data)

    monkeypatch.setattr(Folder, "write", write)
    with hold(out, "r1"):
        deadline = time.monotonic() + 10
        while len(calls) < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert json.loads(out.read("hold/000001.beat"))["beats"] >= 3
    assert len(calls) >= 5


def test_of_many_that_make_a_file_at_once_one_does(out: Folder) -> None:
    made, gate = [], threading.Barrier(8)

    def make(text: bytes) -> None:
        gate.wait()
        if out.create("hold/000001.json", text):
            made.append(text)

    threads = [threading.Thread(target=make, args=(b"%d" % i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [out.read("hold/000001.json")] == made


def test_a_file_is_not_made_through_a_link(out: Folder, tmp_path: Path) -> None:
    (Path(out.path) / "hold").mkdir(parents=True)
    (Path(out.path) / "hold/000001.json").symlink_to(tmp_path / "elsewhere")
    assert not out.create("hold/000001.json", b"x")
    assert not (tmp_path / "elsewhere").exists()
    assert storage.PATIENCE_S  # the seam that stores share


def test_a_store_that_makes_what_is_there_is_refused(out: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def overwrite(self: Folder, relative: str, data: bytes) -> bool:
        self.write(relative, data)
        return True

    monkeypatch.setattr(Folder, "create", overwrite)
    with pytest.raises(UsageError, match="ignores If-None-Match"), hold(out, "run"):
        pass
