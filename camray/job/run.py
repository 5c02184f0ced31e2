"""One run, from config to exit code: prepare, hold, explain, commit, account."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from camray.archive.listing import LOST, UNSURE
from camray.config import Config
from camray.errors import CamrayError, ExitCode, IncompleteError, html_list, no_model, printable, said_by
from camray.flow.actor import Weights, network_of
from camray.flow.flow import Engine, Flow, explain_flow
from camray.flow.progress import Reporter, RunProgress
from camray.flow.stopping import Stopped, stoppable
from camray.job.canary import look
from camray.job.end import Ending, told
from camray.job.prepare import Inputs, Prepared, known_members, prepare
from camray.job.resolved import Resolved, keep
from camray.job.verdict import judge, left_of, over_budget, standing_failures, unjudged
from camray.ledger.commit import CommitDesk
from camray.ledger.hold import hold, last_hold
from camray.ledger.intake import remember
from camray.ledger.out import run_file
from camray.ledger.pack import unpack
from camray.ledger.plan import Plan, plan_again
from camray.ledger.runs import (
    RunReport,
    crashed_last,
    first_report,
    report_of,
    working_reports,
    write_explainer,
)
from camray.ledger.side import recovered
from camray.ledger.table import STORE_ERRORS, ShardCommit
from camray.records import Accounting, Receipt
from camray.storage import Folder

COMPLETE = (ExitCode.DONE, ExitCode.FAILURES_OVER_BUDGET)  # every shard is committed
BROKEN = (ExitCode.CRASH, ExitCode.INCOMPLETE)
HERE_IMAGES = 128
"""So few are done sooner by this process than by Ray, which takes seconds to start and loads torch anew."""
HERE_BYTES = 16 * 2**20  # where nobody has counted the images


Afterwards = Callable[[Prepared, Engine, str, Reporter], None]


@dataclass(frozen=True, slots=True)
class Work:
    """One pass of the pipeline over a plan, whichever job it is of; `owner` names its rows in the table."""

    owner: str
    plan: Plan
    flow: Callable[[Weights, str], Flow]  # takes the weights and the run id


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    code: ExitCode
    run_id: str
    accounting: Accounting
    out: str
    explainer: str
    report: RunReport = field(repr=False)
    pictures: int = 0
    undrawn: int = 0  # maps that got no picture

    def _repr_html_(self) -> str:
        lines = [f"run {self.run_id} of explainer {self.explainer}: {self.code.meaning}"]
        lines += [self.accounting.sentence(), f"{self.pictures:,} pictures drawn in {self.out}"]
        return html_list(lines)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a failure of a store, or inside a Ray task, into one line with the right exit code."""
    try:
        yield
    except Stopped as stop:
        if stop.why:
            raise IncompleteError(f"{stop.why}; what is committed stays, the same command resumes") from None
        raise
    except Exception as error:
        cause = _innermost(error)
        if isinstance(cause, CamrayError):
            raise cause from (None if cause is error else error)
        if isinstance(cause, STORE_ERRORS):
            full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = printable(said_by(cause))
            if "HTTP status 411" in reason:
                reason += ". Fix for older stores: export AWS_REQUEST_CHECKSUM_CALCULATION=WHEN_REQUIRED"
            if full or "No space left" in str(cause):
                reason = "no space left in OUT"
            raise IncompleteError(f"{reason}; what is committed stays, the same command resumes") from error
        raise


def _innermost(error: Exception) -> Exception:
    """Give what a Ray task really raised."""
    if "ray" not in sys.modules:
        return error
    import ray

    while isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    if isinstance(error, ray.exceptions.RaySystemError | ray.exceptions.NodeDiedError):
        return IncompleteError(f"the cluster is gone: {printable(str(error))}")
    if isinstance(error, ray.exceptions.ActorDiedError) and error.actor_init_failed:
        return no_model(str(error).strip().rpartition("\n")[2])  # below the traceback: what was raised
    return error


def explain(config: Config, reporter: Reporter) -> Outcome:
    """Explain what is left of the archive, commit it, and tell how that ended.

    Raises:
        CamrayError: with the exit code of its class.
    """
    with told(config, reporter) as ending:
        outcome = explain_new(config, reporter, ending)
        ending.code = outcome.code
        return outcome


@one_line_errors()
def explain_new(
    config: Config, reporter: Reporter, ending: Ending, afterwards: Afterwards | None = None
) -> Outcome:
    """Explain what is left of the archive and commit it; judge this run, and what is left of those before.

    `afterwards` is done with the engine that is up, once something new is committed.

    Raises:
        CamrayError: with the exit code of its class.
    """
    ready = prepare(config)
    _announce(ready, reporter)
    before = working_reports(ready.out, ready.explainer.id)
    _tell_kept_pictures(ready, before, reporter)
    work = partial(_explain_tasks, afterwards) if ready.plan.tasks else _quiet
    outcome = work(ready, ending.run_id, reporter)
    if (killed := unjudged(before)) and outcome.code in COMPLETE:
        outcome = _judged_with(ready, outcome, killed, reporter)
    ending.report, ending.accounting = outcome.report, outcome.accounting
    ending.said = outcome.accounting.sentence() if ready.plan.tasks else "Nothing new."
    standing = standing_failures(ready.out, ready.table, ready.explainer.id, before, config.run.max_failed)
    for run in standing:
        said = f"run {run} had more failures than --max-failed allows, and they are still there"
        reporter.say(f"{said}: mend them, or camray accept {config.out} {run}")
    if standing and outcome.code in COMPLETE:
        return replace(outcome, code=ExitCode.FAILURES_OVER_BUDGET)
    return outcome


def _judged_with(ready: Prepared, outcome: Outcome, killed: Sequence[str], reporter: Reporter) -> Outcome:
    """Judge a run together with what killed and stopped runs before it committed, which nobody has judged."""
    total = outcome.accounting + left_of(ready.table.reopened(), ready.explainer.id, killed)
    code = judge(total, ready.config.run.max_failed)
    if code == ExitCode.FAILURES_OVER_BUDGET:
        reporter.say(f"with {len(killed)} runs before it, which did not end: {total.sentence()}")
    report = replace(outcome.report, over_budget=code == ExitCode.FAILURES_OVER_BUDGET, covers=tuple(killed))
    report = report.exited(code)
    _write_last(report, ready.out, reporter)
    return replace(outcome, code=code, report=report)


def _quiet(ready: Prepared, run_id: str, reporter: Reporter) -> Outcome:
    """End a run that has nothing to do. It has a report too: a night that did not run has none."""
    unloaded = "; the model is as it was, and was not loaded" * ready.is_remembered
    reporter.say(f"nothing to do: every shard is committed for this explainer{unloaded}")
    report = _report_of(ready, ready.explainer.id, ready.plan, run_id)
    report = replace(report, number=last_hold(ready.out))  # it holds nothing: its place is behind the last
    ended = report.ended(ExitCode.DONE, Accounting(), 0.0, {})
    if ready.table.delta is not None:  # an empty archive that is allowed: OUT stays as it is
        write_explainer(ready.out, ready.explainer)  # where it is gone or damaged
        keep(ready.out, ready.origin, Resolved(ready.explainer, ready.notes))
        _write_last(ended, ready.out, reporter)
    return Outcome(ExitCode.DONE, run_id, Accounting(), ready.out.uri, ready.explainer.id, ended)


def _explain_tasks(
    afterwards: Afterwards | None, ready: Prepared, run_id: str, reporter: Reporter
) -> Outcome:
    config = ready.config
    images, size = known_members(ready.plan.tasks), ready.plan.size_bytes
    small = size <= HERE_BYTES if images is None else images <= HERE_IMAGES
    amount = f"{size / 1e6:,.1f} MB" if images is None else f"{images:,} images"
    engine = choose_engine(config, ready.out, amount if small else "", reporter)  # before the first write
    work = Work(ready.explainer.id, ready.plan, partial(explain_flow, config, ready.explainer))
    with writing(ready, run_id):
        write_explainer(ready.out, ready.explainer)
        keep(ready.out, ready.origin, Resolved(ready.explainer, ready.notes))
        if config.run.compile:
            ready = _compiled(ready, engine.pool.device, reporter)
        outcome = execute(ready, work, run_id, reporter, engine)
        reporter.say(_said_of_pictures(outcome, config), pictures=outcome.pictures)
        if config.audit.canary and outcome.code in COMPLETE:
            look(ready, engine, run_id, config.audit.canary)
        if afterwards and outcome.code in COMPLETE:
            afterwards(ready, engine, run_id, reporter)
    return outcome


def _compiled(ready: Prepared, device: str, reporter: Reporter) -> Prepared:
    """Compile the network, or say why it runs as it is."""
    from camray.explain.compiling import compile_front

    model = ready.model
    library, said = compile_front(model, ready.explainer, device)
    reporter.say(f"network {said}")
    model = replace(model, library=library)
    return replace(ready, notes=(*ready.notes, f"network {said}"), load=lambda: model)


@contextmanager
def writing(inputs: Inputs, run_id: str) -> Iterator[None]:
    """Hold OUT for a run, its table made and the groups of loose images remembered."""
    with hold(inputs.out, run_id, inputs.config.run.force) as held:
        inputs.table.create()
        inputs.table.held = held
        for grouping in inputs.groupings:
            remember(inputs.out, grouping.root, grouping.new)
        yield


def choose_engine(config: Config, out: Folder, small: str, reporter: Reporter) -> Engine:
    """Start what is to drive the flow; `small` says how much there is to do where that is little.

    Little work is done by this process, unless Ray is there already. Where the last run into OUT was killed
    or crashed, Ray does it: only Ray finds the image that ends its process.

    Raises:
        UsageError: the engine, the device or the actors that are asked for are not there.
    """
    run = config.run
    chosen = run.engine != "auto" or run.actors or run.max_actors or "RAY_ADDRESS" in os.environ
    if small and not chosen and not _is_ray_up() and not crashed_last(out):
        reporter.say(f"engine here: {small}, starting Ray would cost more (--engine ray)", engine="here")
        config = replace(config, run=replace(run, engine="here"))
    if config.run.engine == "here":
        from camray.flow.here import here

        return here(config)
    from camray.flow.ray import on_ray

    if not _is_ray_up():  # it takes seconds, on a busy machine a minute
        address = os.environ.get("RAY_ADDRESS")
        reporter.say(f"engine ray: joining {address}" if address else "engine ray: starting on this machine")
    return on_ray(config, out)


def _is_ray_up() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _report_of(inputs: Inputs, owner: str, plan: Plan, run_id: str) -> RunReport:
    shards = {"todo": len(plan.tasks), "committed": plan.committed, "changed": plan.changed}
    return first_report(run_id, owner, inputs.config, shards, inputs.notes)


def execute(inputs: Inputs, work: Work, run_id: str, reporter: Reporter, engine: Engine) -> Outcome:
    """Drive the pipeline over the plan, commit, account; write the run's report before and after."""
    work = replace(work, plan=_still_to_do(inputs, work))
    plan, out, max_failed = work.plan, inputs.out, inputs.config.run.max_failed
    report = _report_of(inputs, work.owner, plan, run_id)
    report = replace(report, number=inputs.table.held.number if inputs.table.held else 0)
    if engine.warning:
        reporter.say(engine.warning)
        report = replace(report, notes=(*report.notes, engine.warning))
    report.write(out)
    started = time.monotonic()
    total, pictures, undrawn, code = Accounting(), 0, 0, ExitCode.CRASH
    progress = RunProgress(reporter, len(plan.tasks), known_members(plan.tasks))
    try:
        for done in _commits(inputs, work, run_id, progress, engine):
            total += done.accounting
            pictures += sum(receipt.overlays for receipt in done.receipts)
            undrawn += sum(_undrawn(receipt) for receipt in done.receipts)
        code = judge(total, max_failed)
        report = replace(report, over_budget=code == ExitCode.FAILURES_OVER_BUDGET)
    except Stopped as stop:
        code = stop.code
        if stop.why:
            raise
    except CamrayError as error:
        code = error.exit_code
        raise
    finally:
        duration = time.monotonic() - started
        ended = report.ended(code, total, duration, dict(progress.stage_seconds), progress.bottleneck())
        _write_last(replace(ended, notes=(*ended.notes, *progress.notes())), out, reporter)
        if engine.logs and (code in BROKEN or "worker_crashed" in total.failed):
            reporter.say(f"Ray's own words are in {engine.logs}")
    _summarise(total, code, duration, progress, reporter)
    if ended.over_budget and total.n_failed:
        reporter.say(over_budget(total, max_failed))
    return Outcome(code, run_id, total, out.uri, work.owner, ended, pictures, undrawn)


def _still_to_do(inputs: Inputs, work: Work) -> Plan:
    """Plan again now that OUT is held, where another run wrote meanwhile or files of one are built upon.

    What is to be replaced and lies in a pack has files of its own from here on.
    """
    table, planned_at = inputs.table, inputs.table.version
    table.update()
    unpack(table, work.owner, (task.shard.key for task in work.plan.tasks))
    if table.version == planned_at and not any(task.finished for task in work.plan.tasks):
        return work.plan
    committed = table.shards(work.owner)
    return plan_again(
        work.plan, inputs.out, work.owner, committed, inputs.config.run.chunk_size, table.kind
    )  # fmt: skip


def _write_last(report: RunReport, out: Folder, reporter: Reporter) -> None:
    """Write the last report; where that fails too, it must not hide why the run ended."""
    try:
        report.write(out)
    except OSError as error:
        reporter.say(f"run.json keeps its first state: {error}")


def _commits(
    inputs: Inputs, work: Work, run_id: str, progress: RunProgress, engine: Engine
) -> Iterator[ShardCommit]:
    """Drive the pipeline; yield each committed shard."""
    desk = CommitDesk(inputs.table, work.owner, run_id, work.plan.tasks)
    progress.actors = engine.pool.actors if engine.name == "ray" else 0
    flow = work.flow(engine.share(network_of(inputs.model)), run_id)
    with stoppable(), progress, engine.metrics(work.owner, progress):
        for chunks in engine.run(work.plan.tasks, flow, engine.pool) if work.plan.tasks else ():
            commits = desk.take(chunks)
            progress.take(chunks, len(commits))
            yield from commits
        commits = desk.flush()
        progress.take([], len(commits))
        yield from commits
    if not inputs.out.is_local:
        desk.confirm()
    if desk.open_shards:
        why = "".join(f"; {reason}" for reason in desk.unread()[:3])
        raise IncompleteError(
            f"{desk.open_shards} shards did not reach their end{why}. Fix: the same command tries again"
        )


def _said_of_pictures(outcome: Outcome, config: Config) -> str:
    """Say how many images have a picture, and the way to the rest."""
    said, policy = f"{outcome.pictures:,} pictures drawn", config.overlay.policy
    if policy in ("all", "none") or not outcome.undrawn:
        return said
    which = {"sample": "a sample of", "flagged": "the flagged and"}[policy]
    few = f"{which} {config.overlay.sample_per_chunk:,} of each {config.run.chunk_size:,}"
    return f"{said} of {outcome.accounting.ok:,} images: {few}; all with --overlays all into a new OUT"


def _undrawn(receipt: Receipt) -> int:
    """Count the maps without a picture; a member that failed, or was skipped, has one row and no map."""
    return receipt.rows - receipt.skipped - sum(receipt.failed.values()) - receipt.overlays


def _announce(ready: Prepared, reporter: Reporter) -> None:
    e, plan = ready.explainer, ready.plan
    for note in ready.notes:
        reporter.say(note)
    for reason in LOST:
        if count := ready.listing.left_out.get(reason):
            reporter.say(f"of no effect: {count:,} {reason}")
    for reason in UNSURE:
        if count := ready.listing.left_out.get(reason):
            reporter.say(f"{count:,} {reason}")
    reporter.say(
        f"explainer {e.id}: {e.model}, {e.method} at {e.target_layer}, target {e.target}, "
        f"input {e.input.width}x{e.input.height}, weights {e.weights_sha256[:12]}",
        explainer=e.id,
    )
    parts = [
        f"{len(plan.tasks):,} shards to do ({plan.size_bytes / 1e6:,.1f} MB)",
        f"{plan.committed:,} committed",
    ]
    parts += [f"{plan.changed:,} changed"] * bool(plan.changed)
    parts += [f"{plan.resumed:,} resumed"] * bool(plan.resumed)
    parts += [f"{plan.more:,} keep rows of other commands"] * bool(plan.more)
    reporter.say(", ".join(parts), todo=len(plan.tasks), committed=plan.committed)
    if plan.tasks and plan.gone and not plan.committed + plan.changed:
        said = f"OUT holds {plan.gone:,} shards, none of this archive; if it is one of them that was moved,"
        reporter.say(f"{said} --archive-name WHERE/IT/LAY keeps its records: else all is done again")


def _tell_kept_pictures(ready: Prepared, before: Sequence[Mapping[str, Any]], reporter: Reporter) -> None:
    """Say so where other overlays are asked for than those that committed images have."""
    if not ready.plan.committed or not before:
        return
    path = run_file(before[-1]["run_id"], "run.json")
    last = recovered(ready.out, path, partial(report_of, path)) or {}
    drawn = last.get("config", {}).get("overlay", {})
    asked = asdict(ready.config.overlay)
    other = sorted(name for name, value in asked.items() if drawn.get(name, value) != value)
    if other:
        reporter.say(
            f"overlay settings changed ({', '.join(other)}): they hold for new images, "
            f"{ready.plan.committed:,} committed shards keep their pictures. A new OUT draws all of them so"
        )


def _summarise(
    total: Accounting, code: ExitCode, duration: float, progress: RunProgress, reporter: Reporter
) -> None:
    reused = f", {progress.reused} finished chunks reused" if progress.reused else ""
    speed = f"{duration:.1f} s ({total.members / max(duration, 1e-9):.1f} images/s)"
    reporter.say(
        f"{total.sentence()} in {speed}{reused}",
        members=total.members, ok=total.ok, failed=total.failed, skipped=total.skipped,
    )  # fmt: skip
    for note in progress.notes():
        reporter.say(note)
    for error, count in sorted(total.shard_errors.items()):
        reporter.say(f"{count} shards with {error}: see the records whose member is null")
    if progress.bottleneck() and code in COMPLETE:
        reporter.say(progress.bottleneck())
