"""100 races for one OUT: of those who begin at once, one holds it, and the others are told.

Two users and two hosts on a local disk, as user ids and namespaces (needs root); the same in a store is in
`test_store_faults`. Who won holds until all have told how it went for them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

RACES = int(os.environ.get("CAMRAY_RACES", "100"))
RACER = """
import json, os, socket, sys
from camray.errors import OutputLockedError, UsageError
from camray.ledger import hold as holds
from camray.ledger.hold import hold
from camray.ledger.runs import new_run_id
from camray.storage import open_folder
holds.HEARTBEAT_S, holds.LOOK_S = 0.1, 0.02
place, uid, host, boot = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
if host: socket.gethostname = lambda: host
if boot:
    real = holds._here
    holds._here = lambda: real() | {"boot": boot}
if uid: os.setgroups([]); os.setgid(uid); os.setuid(uid); os.umask(0)
print("ready", flush=True)
while line := sys.stdin.readline():
    out = open_folder(place + line.strip(), "OUT")
    try:
        with hold(out, new_run_id()) as held:
            held.confirm()
            print(json.dumps({"won": True}), flush=True)
            sys.stdin.readline()
            held.confirm()
    except (OutputLockedError, UsageError) as error:
        print(json.dumps({"won": False, "why": str(error)}), flush=True)
"""


class Racer:
    """One process that races again and again, as a user on a host."""

    def __init__(self, place: str, uid: int = 0, host: str = "", boot: str = "", **environment: str) -> None:
        own = ["unshare", "--pid", "--fork", "--mount-proc", "--uts"] if host else []
        self._process = subprocess.Popen(
            [*own, sys.executable, "-c", RACER, place, str(uid), host, boot], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **environment},
            cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def go(self, name: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()

    def told(self) -> dict[str, Any]:
        return dict(json.loads(self._line()))

    def close(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()


def winners(racers: list[Racer], races: int, prepare: object = None) -> list[int]:
    """Race so often, each time for a new OUT; give how many held each at the same time."""
    found = []
    for number in range(races):
        if callable(prepare):
            prepare(f"/{number}")
        for racer in racers:
            racer.go(f"/{number}")
        said = [racer.told() for racer in racers]
        won = [racer for racer, told in zip(racers, said, strict=True) if told["won"]]
        for racer in won:
            racer.go("done")
        assert all(told["won"] or "holds" in told["why"] for told in said), said
        found.append(len(won))
    print(f"{races} races of {len(racers)}: {found.count(1)} with one winner")
    return found


def local(races: int, users: tuple[int, ...], hosts: tuple[str, ...]) -> list[int]:
    """Race in a folder that everybody may write in, which a folder of the tests is not."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o777)
        boots = {host: f"boot {i}" for i, host in enumerate(hosts)}
        given = zip(users, hosts, strict=True)
        racers = [Racer(place, uid, host, boots.get(host, "")) for uid, host in given]

        def prepare(name: str) -> None:
            for folder in (Path(place + name), Path(place + name) / "hold"):
                folder.mkdir()
                folder.chmod(0o777)

        try:
            return winners(racers, races, prepare)
        finally:
            for racer in racers:
                racer.close()


def test_one_winner_short() -> None:
    assert set(local(2, (0, 0), ("", ""))) == {1}


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and namespaces")
@pytest.mark.parametrize(
    ("users", "hosts"),
    [((4711, 4712), ("", "")), ((0, 0), ("node", "node")), ((4711, 4712, 0, 0), ("", "", "node", "other"))],
    ids=["two users", "two hosts of one name", "two users and two hosts"],
)
def test_one_winner_on_a_disk(users: tuple[int, ...], hosts: tuple[str, ...]) -> None:
    assert set(local(RACES, users, hosts)) == {1}
