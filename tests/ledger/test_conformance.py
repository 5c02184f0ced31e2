"""The real ledger does what the specification says, step by step, whatever the history.

Two runs, prune, kills, lost answers and races are drawn; each step is taken by `tests/model/spec.py` and by
the real `Table`, `CommitDesk`, hold, sink, plan and prune in a folder, and what is visible is compared.
Time is virtual: who waits for a heartbeat lets those who live beat.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from camray.errors import IncompleteError, OutputLockedError
from camray.ledger import commit as commits
from camray.ledger import hold as holds
from camray.ledger.commit import CommitDesk
from camray.ledger.committed import parse_name
from camray.ledger.hold import Held
from camray.ledger.log import sizes
from camray.ledger.out import beat_file
from camray.ledger.pack import unpack
from camray.ledger.plan import make_plan, plan_again
from camray.ledger.side import as_side
from camray.ledger.table import ShardCommit, Table
from camray.records import Chunk, Receipt, ShardEnd, account
from camray.storage import Folder, open_folder
from camray.upkeep.prune import print_prune
from tests.ledger.ledger_world import E1, rows, shard, write_chunk
from tests.model.spec import (
    CHUNK,
    CHUNKS,
    ENDS,
    RUNS,
    SHARDS,
    VERSIONS,
    Driver,
    Prune,
    Setting,
    World,
    drive,
    first,
    live,
    prune,
)

SIZE = 2  # members of a chunk
FORCE = (False, True)
MANY = Setting(FORCE, lost=10**6)
STEPS = int(os.environ.get("CAMRAY_CONFORMANCE_STEPS", "10000"))
STEPS_IN_A_STORE = int(os.environ.get("CAMRAY_CONFORMANCE_STORE_STEPS", "1000"))
TAKEN = itertools.count()
IDS = {shard(str(s), str(v)).id: (s, v) for s in range(SHARDS) for v in range(VERSIONS)}


class KilledError(BaseException):
    """The process ends here."""


class Clock:
    """Stands in for `time` in the hold: who sleeps lets the living beat."""

    def __init__(self, runs: dict[int, Run]) -> None:
        self.now, self._runs = 0.0, runs

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for run in self._runs.values():
            if run.beats and not run.frozen:
                run.beat()


class Run:
    """One real run, as far as the ledger goes."""

    def __init__(self, out: Folder, number: int, force: bool) -> None:
        self.out, self.run_id, self.force = out, f"run{number}", force
        self.beats = self.frozen = False
        self.sent: list[Chunk] = []
        self._beat = itertools.count(1)

    def open(self) -> None:
        self.table = Table(self.out)
        self.table.update()

    def list(self, archive: tuple[int, ...]) -> None:
        self.shards = [shard(str(s), str(v)) for s, v in enumerate(archive)]

    def plan(self) -> None:
        self.planned = make_plan(self.out, E1, self.shards, self.table.shards(E1), SIZE)

    def hold(self) -> None:
        owner = {"run_id": self.run_id, "alone": False}
        self.held = Held(self.out, holds._take(self.out, owner, self.force), self.run_id)
        self.beats = True
        self.beat()

    def beat(self, ended: bool = False) -> None:
        self.out.write(beat_file(self.held.number), as_side({"beats": next(self._beat), "ended": ended}))

    def plan_again(self) -> None:
        self.table.create()
        self.table.held = self.held
        self.table.update()
        unpack(self.table, E1, [task.shard.key for task in self.planned.tasks])
        self.planned = plan_again(self.planned, self.out, E1, self.table.shards(E1), SIZE)
        self.desk = CommitDesk(self.table, E1, self.run_id, self.planned.tasks)
        self.desk._last_commit_s = float("inf")  # it commits when it is told
        for task in self.planned.tasks:
            of = task.shard.id
            self.desk.take([Chunk(of, CHUNKS, ShardEnd(CHUNKS, CHUNKS * SIZE))])
            self.desk.take([Chunk(of, c, receipt) for c, receipt in task.finished.items()])

    def put(self, s: int, chunk: int) -> None:
        of = self.shards[s]
        table = rows(chunk * SIZE, SIZE, shard=[of.uri] * SIZE)
        receipt: Receipt = write_chunk(self.out, of, chunk, table, chunk_size=SIZE, run_id=self.run_id)
        self.sent.append(Chunk(of.id, chunk, receipt))

    def take(self) -> None:
        self.desk.take(self.sent)
        self.sent = []

    def end(self) -> None:
        if self.beats:
            self.beats = False
            self.beat(ended=True)


class Histories(RuleBasedStateMachine):
    """Draws histories; the specification and the ledger go side by side."""

    place: Callable[[], str]

    def __init__(self) -> None:
        super().__init__()
        self.out = open_folder(type(self).place(), "OUT")
        self.world: World = first(MANY)
        self.runs = {i: Run(self.out, i, FORCE[i]) for i in range(2)}
        self._time, holds.time = holds.time, Clock(self.runs)  # type: ignore[assignment]
        self._every_s, commits.COMMIT_EVERY_S = commits.COMMIT_EVERY_S, float("inf")

    def teardown(self) -> None:
        holds.time = self._time
        commits.COMMIT_EVERY_S = self._every_s

    def driver(self, i: int) -> Driver:
        return self.world.drivers[i]

    def go(self, i: int, name: str) -> None:
        """Take the step of this name in the specification."""
        found = [w for n, w in drive(self.world, i, MANY) if n.partition(": ")[2].startswith(name)]
        assert found, f"the specification does not know: {name}"
        self.world = found[0]

    def names(self, i: int) -> list[str]:
        return [name.partition(": ")[2] for name, _ in drive(self.world, i, MANY)]

    def ready(self, i: int) -> bool:
        d = self.driver(i)
        return d.at == "work" and not d.frozen and "begins a commit" in self.names(i)

    def can_step(self, i: int) -> bool:
        return self.driver(i).at not in ENDS and not self.driver(i).frozen

    @rule(i=st.integers(0, 1), many=st.integers(1, 14), chance=st.randoms(use_true_random=False))
    def go_on(self, i: int, many: int, chance: Any) -> None:
        for _ in range(many):
            if self.can_step(i):
                next(TAKEN)
                self.one(i, chance.choice(self.names(i)))
                self.look()

    def one(self, i: int, name: str) -> None:
        d, run = self.driver(i), self.runs[i]
        if d.at in ("open", "list", "plan"):
            self.go(i, name)
            {"open": run.open, "list": lambda: run.list(self.driver(i).want), "plan": run.plan}[d.at]()
        elif d.at == "look":
            self.take_hold(i)
        elif d.at == "end":
            self.go(i, "ends well")
            run.end()
        elif name == "takes receipts":
            self.go(i, name)
            run.take()
        elif name == "begins a commit":
            self.commit(i, "")
        elif name.startswith("puts chunk"):
            self.go(i, name.partition(",")[0])
            run.put(int(name.split()[5].rstrip(",")), int(name.split()[2]))
        else:
            self.go(i, name)

    def take_hold(self, i: int) -> None:
        self.go(i, "")
        if self.driver(i).at == "held":
            with pytest.raises(OutputLockedError):
                self.runs[i].hold()
            return
        self.go(i, "makes hold")
        while self.driver(i).at != "work" and self.driver(i).at != "end":
            self.go(i, "")
        self.runs[i].hold()
        self.runs[i].plan_again()

    @rule(i=st.integers(0, 1), how=st.sampled_from(["", "race", "lost", "killed before", "killed behind"]))
    def commits(self, i: int, how: str) -> None:
        if self.ready(i) and (how != "race" or self.ready(1 - i)):
            next(TAKEN)
            if not how.startswith("killed") or self.driver(i).run + 2 < RUNS - 1:
                self.commit(i, how)
                self.look()

    def commit(self, i: int, how: str) -> None:
        """Commit in both; `how` happens around the write of the entry."""
        self.go(i, "begins a commit")
        while self.driver(i).at in ("read", "confirm"):
            self.go(i, "")
        writes = self.driver(i).at == "put" and self.names(i)[0].startswith("puts")
        run, real = self.runs[i], self.runs[i].table._write

        def write(*about: Any) -> None:
            run.table._write = real  # type: ignore[method-assign]
            if how == "race":
                self.commit(1 - i, "")
            if how == "killed before":
                raise KilledError
            real(*about)
            if how == "killed behind":
                raise KilledError
            if how == "lost":
                raise OSError("Generic S3 error: the answer is lost")

        if writes and how:
            run.table._write = write  # type: ignore[method-assign]
        try:
            run.desk.flush()
            told = ""
        except IncompleteError:
            told = "stopped"
        except KilledError:
            told = "killed"
        if told == "killed":
            if how == "killed behind":
                self.go(i, "puts entry")
            self.again(i)
            return
        if how == "lost" and writes:
            self.world = next(w for n, w in drive(self.world, i, MANY) if n.endswith("the answer is lost"))
        while self.driver(i).at in ("read", "confirm", "put", "flush"):
            self.go(i, "")
        assert (told == "stopped") == (self.driver(i).at == "stopped"), (told, self.driver(i))
        if told:
            run.end()

    def again(self, i: int) -> None:
        """Start the command of a driver that is no more."""
        run = self.driver(i).run + 2
        drivers = list(self.world.drivers)
        drivers[i] = Driver(run)
        self.world = self.world._replace(drivers=tuple(drivers))
        self.runs[i] = Run(self.out, run, FORCE[i])

    @rule(i=st.integers(0, 1))
    def is_killed_or_has_ended(self, i: int) -> None:
        if self.driver(i).run + 2 < RUNS - 1 and self.driver(i).at != "open":
            next(TAKEN)
            self.again(i)

    @rule(i=st.integers(0, 1))
    def loses_a_worker(self, i: int) -> None:
        if self.driver(i).sent:
            next(TAKEN)
            self.change(i, sent=0)
            self.runs[i].sent = []

    @precondition(lambda self: self.driver(0).number > 0 and self.driver(0).at not in ENDS)
    @rule()
    def is_frozen_or_wakes(self) -> None:
        next(TAKEN)
        self.change(0, frozen=not self.driver(0).frozen)
        self.runs[0].frozen = self.driver(0).frozen

    def change(self, i: int, **what: Any) -> None:
        drivers = list(self.world.drivers)
        drivers[i] = drivers[i]._replace(**what)
        self.world = self.world._replace(drivers=tuple(drivers))

    @rule()
    def changes(self) -> None:
        self.world = self.world._replace(archive=(0, 1))

    @rule()
    def passes_a_day(self) -> None:
        if self.out.is_local:
            self.world = self.world._replace(old=self.world.files)
            for path in Path(self.out.path).glob("records/explainer=*/*.parquet"):
                os.utime(path, (10**9, 10**9))

    @precondition(lambda self: live(self.world.log))
    @rule(packs=st.booleans())
    def prunes(self, packs: bool) -> None:
        next(TAKEN)
        refused, world = False, self.world._replace(prune=Prune("open"))
        while world.prune.at != "end":
            name, world = next(prune(world, MANY._replace(packs=packs)))
            refused |= "refused" in name
        self.world = world
        with contextlib.redirect_stdout(io.StringIO()), contextlib.ExitStack() as stack:
            if refused:
                stack.enter_context(pytest.raises(OutputLockedError))
            print_prune(self.out.uri, None, None, [], True, True, packs)

    def paths(self, table: Table) -> list[str]:
        return list(sizes(table.delta)) if table.delta is not None else []

    @invariant()
    def look(self) -> None:
        """Compare what a reader of either sees, and that every file is there and whole."""
        mask = live(self.world.log)
        expected = sorted(
            (s, v, c) for s in range(SHARDS) for v in range(VERSIONS) for c in range(CHUNKS)
            for _ in range((mask & CHUNK[s][v][c]).bit_count())
        )  # fmt: skip
        table = Table(self.out)
        seen, total = [], 0
        for files in table.shards(E1).values():
            total += sum(file.rows for file in files)
            for file in files:
                if not file.is_packed:
                    key, content, chunk = parse_name(file.path)
                    seen.append((*IDS[f"{key}-{content}"], chunk))
        for parts in table.packs(self.paths(table)).values():
            seen += [(*IDS[part.id], part.chunk) for part in parts]
        assert sorted(seen) == expected
        if table.delta is not None:
            assert table.dataset(E1).to_table(["index"]).num_rows == total == SIZE * len(expected)


def histories(place: Callable[[], str], steps: int) -> int:
    """Draw histories, others in each round, until so many steps were compared; give their number."""
    few = settings(
        max_examples=max(1, min(steps // 60, 40)), stateful_step_count=50, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    start = next(TAKEN)
    for number in itertools.count():
        machine = seed(number)(type("Drawn", (Histories,), {"place": staticmethod(place)}))
        run_state_machine_as_test(machine, settings=few)
        if (taken := next(TAKEN) - start) >= steps:
            return taken
    raise AssertionError


@pytest.fixture
def folders() -> Iterator[Callable[[], str]]:
    """Give a new folder in memory each time."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as top:
        numbers = itertools.count()
        yield lambda: f"{top}/{next(numbers)}"


def test_the_ledger_is_as_specified(folders: Callable[[], str]) -> None:
    histories(folders, 60)


@pytest.mark.faults
def test_the_ledger_is_as_specified_long(folders: Callable[[], str]) -> None:
    print(f"{histories(folders, STEPS)} steps in folders, 0 differences")


@pytest.fixture
def buckets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Give a new folder of an S3 store each time; skipped where there is neither emulator nor store."""
    from tests.faults.test_store_faults import environment, running_store

    with running_store() as port:
        for name, value in environment(port).items():
            monkeypatch.setenv(name, value)
        numbers = itertools.count()
        start = os.urandom(4).hex()
        yield lambda: f"s3://bucket/{start}-{next(numbers)}"


@pytest.mark.faults
def test_the_ledger_is_as_specified_in_a_store(buckets: Callable[[], str]) -> None:
    print(f"{histories(buckets, STEPS_IN_A_STORE)} steps in a store, 0 differences")


def _forgets_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit takes nothing away, and looks at nothing."""
    monkeypatch.setattr(Table, "_current", lambda *_: [])


def _commits_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard with one receipt is taken for finished."""

    def finished(self: Any) -> ShardCommit | None:
        receipts = tuple(self.receipts.values())
        return ShardCommit(self.shard, receipts, account(receipts), self.before) if receipts else None

    monkeypatch.setattr("camray.ledger.commit._Open.finished", finished)


@pytest.mark.faults
@pytest.mark.parametrize("plant", [_forgets_what_is_there, _commits_before_the_end])
def test_a_planted_fault_is_found(
    folders: Callable[[], str], monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    plant(monkeypatch)
    start = next(TAKEN)
    machine = type("Planted", (Histories,), {"place": staticmethod(folders)})
    few = settings(
        max_examples=200, stateful_step_count=50, deadline=None, database=None, derandomize=True,
        phases=[Phase.generate], report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=few)
    steps = next(TAKEN) - start
    print(f"{plant.__name__}: found within {steps} steps")
    assert steps <= 1000
