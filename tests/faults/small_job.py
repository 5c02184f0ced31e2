"""The real reading, decoding, writing, planning and committing, driven by plain processes instead of Ray.

    driver ──shard──> worker: run_here, with a stand-in for a model ──receipts──> driver

The driver commits through `CommitDesk`. A job takes less than a second, so that hundreds of kills fit into
minutes. Left out: Ray, the model, and the process around the decoder. A server process imports everything
once; each job is a fork of it (`Jobs`).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from camray import storage
from camray.archive.listing import list_archive
from camray.config import ArchiveConfig, Config, Explainer, InputSpec, RunConfig
from camray.errors import CamrayError, ExitCode
from camray.flow import stages
from camray.flow.flow import Flow, Pool
from camray.flow.here import run_here
from camray.image.decode import Decoded, decode
from camray.job.run import one_line_errors
from camray.ledger import commit
from camray.ledger import hold as holds
from camray.ledger.hold import hold
from camray.ledger.plan import ShardTask, make_plan
from camray.ledger.runs import first_report, new_run_id, write_explainer
from camray.ledger.table import Table
from camray.records import EXPLAINED, Accounting, Chunk, Data, struct_array
from camray.storage import open_folder
from tests.faults import sabotage

SPEC = InputSpec(8, 8, (8, 8), "center", "nearest", (0.5,) * 3, (0.5,) * 3)
EXPLAINER = Explainer(
    "stand-in", {}, "0" * 64, (), 256, SPEC, "gradcam", "predicted", "none", {}, 1, 10**6, 1,
)  # fmt: skip
POOL = Pool(1, 1, "cpu", 1, 0, 1, 8)
CHUNK = 3
HEARTBEAT_S = 0.3
WORKERS, SPARE = 2, 2


@dataclass(frozen=True)
class Order:
    """One job: what to explain, where to, and which protection to take out."""

    archive: str
    out: str
    force: bool = False
    sabotage: str = ""
    pause_s: float = 0.0  # before each chunk is written
    commit_every_s: float = 0.03
    patience_s: float = 120.0


class _Direct:
    """Decodes without a process around it."""

    def decode(self, content: memoryview, spec: InputSpec, *about: Any) -> Decoded:
        return decode(bytes(content), spec, 10**6, *about)


class StandIn:
    """Stands in for the model: the class is the red value."""

    def __init__(self, pause_s: float, **_: Any) -> None:
        self._pause_s = pause_s

    def __call__(self, row: pa.Table) -> pa.Table:
        chunk = Chunk.from_row(row)
        time.sleep(self._pause_s)
        if isinstance(chunk.note, Data):
            chunk = replace(chunk, images=_explained(chunk.images.to_pylist()))
        return chunk.to_row(EXPLAINED)


def _explained(items: list[dict[str, Any]]) -> pa.StructArray:
    columns: dict[str, Any] = {f.name: [item.get(f.name) for item in items] for f in EXPLAINED}
    ok = [item["status"] == "ok" for item in items]
    reds = [item["pixels"][0] if good else None for item, good in zip(items, ok, strict=True)]
    columns |= {
        "predicted_class": reds,
        "heatmap": [[0.0, 1.0, 2.0, float(red)] if red is not None else None for red in reds],
        "heat_h": [2 if good else None for good in ok],
        "heat_w": [2 if good else None for good in ok],
        "heat_status": ["ok" if good else None for good in ok],
        "overlay": [False] * len(items),
        "content": [None] * len(items),
    }
    return struct_array(columns, EXPLAINED)


# ── a worker ─────────────────────────────────────────────────────────────────────────────────────


def _work(order: Order, orders: int, answers: int) -> None:
    decode, settings = partial(stages.Decode, SPEC, 10**6, False), _settings(order)
    with os.fdopen(orders) as lines, os.fdopen(answers, "wb") as out:
        for line in lines:
            task, run_id = pickle.loads(base64.b64decode(line))
            sink = partial(stages.Sink, settings, EXPLAINER, run_id)
            flow = Flow(settings, decode, StandIn, {"pause_s": order.pause_s}, sink)
            try:
                for chunks in run_here([task], flow, POOL):
                    _tell(out, chunks)
                _tell(out, None)
            except OSError as error:  # as a Ray task would: the driver hears of it
                _tell(out, error)


def _settings(order: Order) -> Config:
    return Config(order.out, ArchiveConfig(order.archive), run=RunConfig(chunk_size=CHUNK))


def _tell(out: Any, what: object) -> None:
    out.write(base64.b64encode(pickle.dumps(what)) + b"\n")
    out.flush()


@dataclass
class _Worker:
    pid: int
    orders: int
    answers: int
    buffer: bytes = b""
    shard: str | None = None


def _hire(order: Order) -> _Worker:
    there, here = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            for other in {int(fd) for fd in os.listdir("/proc/self/fd")} - {0, 1, 2, there[0], here[1]}:
                with contextlib.suppress(OSError):  # the other workers' pipes: they must end with the driver
                    os.close(other)
            _work(order, there[0], here[1])
        except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(there[0])
    os.close(here[1])
    return _Worker(pid, there[1], here[0])


# ── the driver ───────────────────────────────────────────────────────────────────────────────────


def drive(order: Order) -> ExitCode:
    """Do what `camray explain` does, in its order."""
    commit.COMMIT_EVERY_S = order.commit_every_s
    holds.HEARTBEAT_S = HEARTBEAT_S
    stages.decoder_of = lambda _: _Direct()  # type: ignore[assignment,return-value]
    sabotage.apply(order.sabotage)
    storage.PATIENCE_S = order.patience_s
    crew = [_hire(order) for _ in range(WORKERS + SPARE)]  # before any library starts threads
    config = _settings(order)
    out = open_folder(order.out, "OUT")
    shards = list_archive(config.archive).shards
    table = Table(out)
    plan = make_plan(out, EXPLAINER.id, shards, table.shards(EXPLAINER.id), CHUNK)
    if not plan.tasks:
        return ExitCode.DONE
    run_id = new_run_id()
    with hold(out, run_id, order.force) as held:
        # Forced ones go on side by side here: the table has to stand it alone.
        table.held = None if order.force else held
        write_explainer(out, EXPLAINER)
        table.create()
        report = first_report(run_id, EXPLAINER, config, {"todo": len(plan.tasks)})
        report.write(out)
        desk = commit.CommitDesk(table, EXPLAINER.id, run_id, plan.tasks)
        total = _run(crew, run_id, {t.shard.id: t for t in plan.tasks}, desk)
        code = ExitCode.INCOMPLETE if desk.open_shards else ExitCode.DONE
        report.ended(code, total, 1.0, {}).write(out)
        return code


def _run(
    crew: list[_Worker], run_id: str, tasks: dict[str, ShardTask], desk: commit.CommitDesk
) -> Accounting:
    """Hand out shards, take receipts; a shard whose worker died is done again by another, from its start."""
    idle, busy = crew[:], list[_Worker]()
    todo, total = list(tasks), Accounting()
    while todo or busy:
        while todo and len(busy) < WORKERS:
            if not idle:
                raise RuntimeError("no worker is left")
            worker = idle.pop(0)
            worker.shard = todo.pop(0)
            try:
                task = base64.b64encode(pickle.dumps((tasks[worker.shard], run_id)))
                os.write(worker.orders, task + b"\n")
            except BrokenPipeError:
                todo.insert(0, worker.shard)
                continue
            busy.append(worker)
        ready, _, _ = select.select([w.answers for w in busy], [], [], 5)
        for worker in [w for w in busy if w.answers in ready]:
            data = os.read(worker.answers, 65536)
            if not data:  # dead; what it has told counts, the rest is done again
                busy.remove(worker)
                todo.insert(0, str(worker.shard))
                continue
            *lines, worker.buffer = (worker.buffer + data).split(b"\n")
            for line in lines:
                chunks = pickle.loads(base64.b64decode(line))
                if chunks is None:
                    busy.remove(worker)
                    idle.append(worker)
                    continue
                if isinstance(chunks, OSError):
                    raise chunks
                for done in desk.take(chunks):
                    total += done.accounting
    for done in desk.flush():
        total += done.accounting
    for worker in crew:
        os.close(worker.orders)
    desk.confirm()  # the job does so where OUT is in a store
    return total


def _job(order: Order) -> int:
    os.setpgid(0, 0)
    try:
        with one_line_errors():
            return int(drive(order))
    except CamrayError as error:
        print(f"{error}", file=sys.stderr, flush=True)
        return int(error.exit_code)
    except BaseException:  # noqa: BLE001 - as above
        traceback.print_exc()
        return 1


# ── the server and its client ────────────────────────────────────────────────────────────────────


def _serve() -> None:
    """Fork one job per line; say its process id, and its exit status when it ends."""
    jobs: set[int] = set()
    pending = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.005)
        if ready:
            data = os.read(0, 65536)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    os._exit(_job(Order(**json.loads(line))))
                jobs.add(pid)
                print(json.dumps({"started": pid}), flush=True)
        for pid in list(jobs):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                jobs.discard(pid)
                print(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}), flush=True)


class Jobs:
    """Starts jobs and tells how they ended: ``with Jobs() as jobs: pid = jobs.start(order)``."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        log, name = tempfile.mkstemp(prefix="camray-small-job-")
        self._log = Path(name)
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.small_job"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            env={**os.environ, **(environment or {})}, cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        os.close(log)
        self._codes: dict[int, int] = {}

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)
        self._log.unlink()

    def said(self) -> str:
        """Give all that jobs wrote to standard error."""
        return self._log.read_text(errors="replace")

    def start(self, order: Order) -> int:
        """Start a job; give the process id of its driver, which is also that of its process group."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order.__dict__).encode() + b"\n")
        self._server.stdin.flush()
        while "started" not in (told := self._line()):
            pass
        return int(told["started"])

    def wait(self, pid: int) -> int:
        """Wait for the end of a job; give its exit code, negative for a signal."""
        while pid not in self._codes:
            self._line()
        return self._codes.pop(pid)

    def ended(self, pid: int) -> bool:
        """Tell whether a job has ended."""
        assert self._server.stdout is not None
        while pid not in self._codes and select.select([self._server.stdout], [], [], 0)[0]:
            self._line()
        return pid in self._codes

    def _line(self) -> dict[str, int]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError("the server of small jobs has ended: " + self.said()[-2000:])
        told: dict[str, int] = json.loads(line)
        if "ended" in told:
            self._codes[told["ended"]] = told["code"]
        return told


if __name__ == "__main__":
    _serve()
