"""The verbs that load a model: plan, explain, audit, compare, layers."""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any, Literal

from camray.cli.arguments import verb
from camray.config import Config, Setting
from camray.errors import ExitCode, UsageError, printable
from camray.options import SETTINGS, load

_GIVEN = "ARCHIVE... OUT --model NAME"
_PLANNED = Literal["explain", "audit"]
_job = partial(verb, given=_GIVEN, is_job=True)


def typed_config(args: argparse.Namespace) -> Config:
    """Read the config of a command; `plan` has the defaults of the command that it plans.

    Raises:
        UsageError: a bad setting, or one that the planned command does not have.
    """
    given = {name: value for name, value in vars(args).items() if name in SETTINGS}
    words = given.pop("archive.path", [])
    if words:
        *further, out = words[1:] or [None]
        more = {"archive.also": further, "out": out}
        given |= {"archive.path": words[0]} | {name: value for name, value in more.items() if value}
    command = planned(args)
    for name in given if args.command == "plan" else ():
        if command not in SETTINGS[name].verbs.split():
            raise UsageError(SETTINGS[name].flag, f"is no option of `camray {command}`", "add --for audit")
    return load(getattr(args, "config", None), given, command)  # `layers` reads no file of settings


def planned(args: argparse.Namespace) -> str:
    """Name the command whose settings are meant: of `plan` the one that it plans."""
    return str(getattr(args, "planned", args.command))


def _whole(args: argparse.Namespace) -> Config:
    """Read the config, and refuse one that does not say what is explained, where to, and by which model."""
    config = typed_config(args)
    named = {"ARCHIVE": config.archive.path, "OUT": config.out, "--model": config.model.name}
    for field, value in named.items():
        if not value:
            raise UsageError(field, "is missing", f"camray {args.command} {_GIVEN}")
    return config


@verb(
    Setting("the command that is planned", "--for", name="planned", kind=_PLANNED, default="explain"),
    Setting("explain N images here: speed, hours, bytes", "--pilot N", low=1, kind=int),
    given=_GIVEN,
)
def plan(args: argparse.Namespace) -> ExitCode:
    """Show what explain, or an audit, would do, how much, and why the rest is skipped."""
    from camray.audit.gate import parse_gate
    from camray.audit.looks import describe_looks
    from camray.job.prepare import describe_plan, known_members, prepare

    config, command = _whole(args), planned(args)
    if command == "audit":
        parse_gate(config.audit.fail_on)
    ready = prepare(config)
    facts: dict[str, Any] = {"command": command, **describe_plan(ready)}
    if config.audit.looks:
        facts["looks"] = describe_looks(known_members(ready.plan.tasks), config.audit.looks)
    if args.pilot and ready.plan.tasks:
        from camray.job.pilot import pilot

        tried = pilot(ready, args.pilot)
        facts |= {"pilot": tried.facts()} if args.json else tried.lines()
    if args.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            said = f"{value:,}" if isinstance(value, int) else printable(value, 2000)
            print(f"{name.replace('_', ' '):<18} {said}")
    return ExitCode.DONE


@_job()
def explain(args: argparse.Namespace) -> ExitCode:
    """Explain what is new in ARCHIVE and commit it to OUT; rerun to resume."""
    from camray.audit.gallery import show_gallery
    from camray.flow.progress import Reporter
    from camray.job import run

    reporter = Reporter(args.json)
    outcome = run.explain(_whole(args), reporter)
    reporter.say(f"records: {outcome.out}/records   overlays: {outcome.out}/overlays   run: {outcome.run_id}")
    show_gallery(outcome, reporter)
    return outcome.code


@_job(Setting("decisions saved in the report", "--reviewed FILE", kind=tuple[str, ...], group="audit"))
def audit(args: argparse.Namespace) -> ExitCode:
    """Explain what is new, then find where the model is right for the wrong reason."""
    from camray.audit import job
    from camray.flow.progress import Reporter

    return job.audit(_whole(args), Reporter(args.json), args.reviewed).code


@_job(Setting("try two images, tell the cost, write nothing", "--dry-run", kind=bool))
def compare(args: argparse.Namespace) -> ExitCode:
    """Measure methods on a sample of ARCHIVE; rerun to resume or to add."""
    from camray.compare import job
    from camray.flow.progress import Reporter

    config, reporter = _whole(args), Reporter(args.json)
    if args.dry_run:
        job.dry_run(config, reporter)
        return ExitCode.DONE
    return job.compare(config, reporter).code


@verb(
    Setting(SETTINGS["model.name"].text, "MODEL", name="model.name"),
    Setting("also list layers that cannot carry a map", "--all", kind=bool),
    Setting("draw its channels (repeatable)", "--maps LAYER", kind=tuple[str, ...]),
    Setting("the image that --maps shows the channels of", "--image FILE"),
    Setting("where --maps writes its pictures", "--save FOLDER", default="feature-maps"),
    given="MODEL",
)
def layers(args: argparse.Namespace) -> ExitCode:
    """List the layers of a model and mark the one camray would choose."""
    from camray.models.layers import draw_maps, print_layers

    config = typed_config(args)
    if args.maps:
        return draw_maps(config, args.maps, args.image, args.save)
    return print_layers(config, show_all=args.all, as_json=args.json)


@verb(Setting("also try this place, as a run would", "OUT", name="out", default=""), given="[OUT]")
def doctor(args: argparse.Namespace) -> ExitCode:
    """Check that this machine, and the place of OUT, can do the work."""
    from camray.job.doctor import print_doctor

    return print_doctor(args.out or None, args.json)
