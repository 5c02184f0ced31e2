"""One comparison, from config to exit code: check, draw the sample, plan, measure, commit, report.

Flows in: an archive, a model, methods. Flows out: rows in OUT/scores, and a page in OUT/comparisons. The same
ledger as `camray.job.run`: a panel of methods stands where the explainer stands there, so that a killed
comparison resumes, and a method added later computes only itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from camray.compare.actor import score_flow
from camray.compare.panel import Panel
from camray.compare.prepare import Comparison, prepare, read_panels
from camray.config import Config
from camray.errors import EmptyArchiveError, ExitCode, UsageError
from camray.flow.guard import Guard
from camray.flow.progress import Reporter, spoken_duration
from camray.flow.stages import Decode, read_first
from camray.flow.stopping import SIGNALS
from camray.job.prepare import known_members
from camray.job.run import Work, choose_engine, execute, one_line_errors, writing
from camray.ledger.out import costs_file, panel_file
from camray.ledger.runs import installed_versions, new_run_id
from camray.ledger.side import recovered, write_side
from camray.records import Status

if TYPE_CHECKING:
    from camray.compare.scorer import Trial

HERE_S = 10  # of work, which this process does before Ray has started
TRIED = 2  # images on which the cost is measured before it is paid


@dataclass(frozen=True, slots=True)
class CompareOutcome:
    """How a comparison ended."""

    code: ExitCode
    out: str
    sample: str
    page: str


@one_line_errors()
def compare(config: Config, reporter: Reporter) -> CompareOutcome:
    """Measure what is left of the sample, commit it, and write the page.

    Raises:
        CamrayError: with the exit code of its class.
    """
    ready = prepare(config)
    for note in ready.notes:
        reporter.say(note)
    reporter.say(_sentence(ready), sample=ready.sample.id)
    code = ExitCode.DONE
    if ready.todo:
        prices = _prices(ready)
        _check_budget(ready, prices, reporter)
        code = _measure(ready, prices, reporter)
    else:
        reporter.say("nothing to measure: every method is committed for this sample")
    if code in SIGNALS.values():
        return CompareOutcome(code, ready.out.uri, ready.sample.id, "")
    page = _report(ready, code)
    shown = f"page: {page}" if page else "no page: no image could be measured"
    reporter.say(f"scores: {ready.out.uri}/scores   {shown}", page=page)
    return CompareOutcome(code, ready.out.uri, ready.sample.id, page)


def _report(ready: Comparison, code: ExitCode) -> str:
    """Write summary and page of everything measured on the sample; give the place of the page."""
    from camray.compare.page import write_page

    panels = [p for p in read_panels(ready.out) if p.sample == ready.sample.id]
    first = ready.panels[0][0].explainer
    facts = {
        "model": first.model,
        "weights": first.weights_sha256,
        "layer": first.target_layer,
        "input": f"{first.input.width} x {first.input.height}, {first.input.crop_mode} crop",
        "target": first.target,
        "archive": ready.config.archive.path,
        "sample": _sentence(ready).partition(";")[0] + f", seed {ready.config.archive.seed}",
        "baseline": ready.config.compare.baseline,
        "ended": "complete" if code == ExitCode.DONE else code.meaning,
        "versions": ", ".join(f"{name} {number}" for name, number in installed_versions().items()),
    }
    return write_page(ready.out, ready.sample, panels, facts)


def _measure(ready: Comparison, prices: Sequence[Price], reporter: Reporter) -> ExitCode:
    seconds = sum(
        (known_members(plan.tasks) or 0) * price.estimate["seconds"]
        for (_, plan), price in zip(ready.todo, prices, strict=True)
    )
    small = f"{seconds:.0f} s of work" if seconds < HERE_S else ""
    engine = choose_engine(ready.config, ready.out, small, reporter)
    worst = ExitCode.DONE
    with writing(ready, new_run_id()):
        ready.sample.write(ready.out)
        for price in prices:
            if price.trial is not None:
                costs = price.trial.costs() | {"estimate": price.estimate}
                write_side(ready.out, costs_file(price.panel.id), costs)
        for panel, plan in ready.todo:
            text = json.dumps(json.loads(panel.to_json()), indent=1, sort_keys=True)
            ready.out.write(panel_file(panel.id), text.encode())
            work = Work(panel.id, plan, partial(score_flow, ready.config, panel))
            worst = max(worst, execute(ready, work, new_run_id(), reporter, engine).code)
            if worst in SIGNALS.values():
                break
    return worst


def dry_run(config: Config, reporter: Reporter) -> None:
    """Tell what a comparison would cost; write nothing."""
    ready = prepare(config)
    reporter.say(_sentence(ready), sample=ready.sample.id)
    _check_budget(ready, _prices(ready), reporter)


@dataclass(frozen=True, slots=True)
class Price:
    """What a panel costs an image; `trial` is there unless an earlier run has measured it."""

    panel: Panel
    estimate: dict[str, Any]  # forwards, backwards, seconds, device
    trial: Trial | None


def _prices(ready: Comparison) -> list[Price]:
    """Try each incomplete panel on the first images of the sample, or recall what that gave."""
    from camray.compare.scorer import Trial

    prices, images = [], None
    for panel, _ in ready.todo:
        if known := recovered(ready.out, costs_file(panel.id), _estimate):
            prices.append(Price(panel, known, None))
            continue
        images = _first_images(ready) if images is None else images
        trial = Trial(panel, ready.model, images, ready.config.run.device)
        prices.append(Price(panel, trial.estimate(), trial))
    return prices


def _estimate(costs: Any) -> dict[str, Any]:
    one: dict[str, Any] = costs["estimate"]
    if [float(one[name]) for name in ("forwards", "backwards", "seconds")] and isinstance(one["device"], str):
        return one
    raise ValueError("no estimate")


def _first_images(ready: Comparison) -> pa.StructArray:
    """Decode the first images of the sample that can be decoded.

    Raises:
        EmptyArchiveError: there is none.
    """
    spec, max_pixels = ready.model.input, ready.config.archive.max_pixels
    decode = Decode(spec, max_pixels, False, Guard()).decode
    for shard in ready.shards:
        images = decode(read_first(shard, ready.config.archive, 4 * TRIED).images)
        images = images.filter(pc.equal(images.field("status"), str(Status.OK)))[:TRIED]
        if len(images):
            return images
    raise EmptyArchiveError("ARCHIVE: no image of the sample can be decoded. Fix: see `camray explain`")


def _check_budget(ready: Comparison, prices: Sequence[Price], reporter: Reporter) -> None:
    """Tell the cost before it is paid.

    Raises:
        UsageError: it is over the budget.
    """
    images = [known_members([*plan.tasks]) or 0 for _, plan in ready.todo]
    forwards = 0.0
    for count, price in zip(images, prices, strict=True):
        one = price.estimate
        each, whole = one["forwards"], count * one["forwards"]
        forwards, seconds = forwards + whole, count * one["seconds"]
        reporter.say(
            f"an image costs about {each:,.0f} forwards, {one['backwards']:,.0f} backwards and "
            f"{one['seconds']:.2f} s on one {one['device']}; {count:,} images about {whole:,.0f} "
            f"forwards and {spoken_duration(seconds)}",
            forwards=round(whole), images=count, seconds=round(seconds, 1),
        )  # fmt: skip
    allowed = ready.config.compare.budget.get("forwards")
    if allowed is not None and forwards > allowed:
        fits = int(ready.sample.size * allowed / forwards)
        raise UsageError(
            "--budget", f"forwards={allowed:,}, but about {forwards:,.0f} are needed",
            f"--sample {fits} fits, or fewer methods" if fits else "allow more, or ask for fewer methods",
        )  # fmt: skip


def _sentence(ready: Comparison) -> str:
    sample = ready.sample
    how = f"stratified by {', '.join(sample.stratified_by)}" if sample.stratified_by else "drawn at random"
    methods = [m for panel, _ in ready.panels for m in panel.methods]
    new = [m for panel, _ in ready.todo for m in panel.methods]
    return f"{sample.size:,} images {how}; {len(methods)} methods, {len(new)} to measure"
