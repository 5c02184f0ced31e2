"""The command line: thin verbs over the package. Human lines on stderr, results and --json on stdout."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from camray import __version__, config
from camray.cli import compare_options
from camray.cli.arguments import Parser
from camray.cli.run_options import COMMON, add_model_options, add_places, add_run_options
from camray.errors import CamrayError, ExitCode, in_a_line, printable
from camray.flow.stopping import Stopped, stoppable
from camray.options import load

_EXITS = "exit codes:\n" + "\n".join(f"  {int(code):>3}  {code.meaning}" for code in ExitCode)
_EXIT_NAMES = "exit codes: " + " · ".join(f"{int(code)} {code.name.lower()}" for code in ExitCode)
_SHORT_EXITS = textwrap.fill(_EXIT_NAMES.replace("_", " ") + " (camray --help)", 98, subsequent_indent="  ")
# Option name -> dotted config name. Only what the user typed overrides the TOML file.
_SETTINGS = {
    "archive": "archive.path", "out": "out", "include": "archive.include", "exclude": "archive.exclude",
    "limit": "archive.limit", "sample": "archive.sample", "seed": "archive.seed",
    "image_column": "archive.image_column", "label_column": "archive.label_column", "bbox": "archive.bbox",
    "captions": "archive.captions", "max_pixels": "archive.max_pixels",
    "model": "model.name", "checkpoint": "model.checkpoint", "num_classes": "model.num_classes",
    "class_names": "model.class_names", "download": "model.download", "model_arg": "model.args",
    "trust_pickle": "model.trust_pickle", "partial": "model.partial", "activation": "model.activation",
    "input_size": "preprocess.input_size", "resize": "preprocess.resize",
    "crop_pct": "preprocess.crop_pct", "crop_mode": "preprocess.crop_mode",
    "interpolation": "preprocess.interpolation", "fast_decode": "preprocess.fast_decode",
    "mean": "preprocess.mean", "std": "preprocess.std",
    "method": "method.name", "target": "method.target", "layer": "method.layer",
    "overlays": "overlay.policy", "overlay_sample": "overlay.sample_per_chunk", "overlay_on": "overlay.on",
    "overlay_alpha": "overlay.alpha", "overlay_gamma": "overlay.gamma", "overlay_picture": "overlay.picture",
    "colormap": "overlay.colormap", "caption": "overlay.caption",
    "confirm": "audit.confirm", "fail_on": "audit.fail_on", "against": "audit.baseline",
    "engine": "run.engine", "device": "run.device", "actors": "run.actors", "max_actors": "run.max_actors",
    "batch_size": "run.batch_size", "chunk_size": "run.chunk_size", "top_k": "run.top_k",
    "max_failed": "run.max_failed", "allow_empty": "run.allow_empty", "force": "run.force",
    **compare_options.SETTINGS,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a Ray notice
    args = build_parser().parse_args(argv)
    try:
        with stoppable():
            code = args.run(args)
    except Stopped as stop:
        code = stop.code
    except BrokenPipeError:
        return int(ExitCode.DONE)
    except (CamrayError, OSError) as error:
        if args.debug:
            raise
        print(f"camray: error: {printable(_as_typed(in_a_line(error)), 1000)}", file=sys.stderr)
        code = getattr(error, "exit_code", ExitCode.INCOMPLETE)
    if code is not None and args.command in ("explain", "audit", "compare"):
        _last_line(ExitCode(code), args)
    return int(code or 0)


def _as_typed(message: str) -> str:
    """Name an option as people type it, where the library says `layer: ...` or `overlay.colormap: ...`."""
    field, colon, rest = message.partition(":")
    option = next((name for name, dotted in _SETTINGS.items() if field in (name, dotted)), None)
    if option is None or option in ("archive", "out"):
        return message
    return f"--{option.replace('_', '-')}{colon}{rest}"


def _last_line(code: ExitCode, args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps({"exit": int(code), "meaning": code.meaning}), flush=True)
    else:
        print(f"camray: exit {int(code)}: {code.meaning}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of every verb."""
    parser = Parser(
        prog="camray",
        description="Explain every image of an archive: what the model said and where it looked.",
        epilog=_EXITS,
        usage="camray COMMAND ... (camray COMMAND --help)",
    )
    parser.add_argument("--version", action="version", version=f"camray {__version__}")
    verbs = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", prog="camray", parser_class=Parser
    )

    def verb(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        common = frozenset(COMMON[name]) if name in COMMON else None
        given = "MODEL" if name == "layers" else "ARCHIVE OUT --model NAME" if common else "OUT"
        sub: argparse.ArgumentParser = verbs.add_parser(
            name, help=text, description=text, epilog=_SHORT_EXITS, common=common,
            usage=f"camray {name} {given} [options]", argument_default=argparse.SUPPRESS,
        )  # fmt: skip
        sub.set_defaults(run=run, debug=False, json=False)
        sub.add_argument("--json", action="store_true", help="JSON lines on stdout")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    planned = verb("plan", _plan, "show what explain would do, how much, and why the rest is skipped")
    planned.add_argument("--pilot", type=int, metavar="N", help="explain N images here: speed, hours, bytes")
    add_run_options(planned)
    for name, run, text in (
        ("explain", _explain, "explain what is new in ARCHIVE and commit it to OUT; rerun to resume"),
        ("audit", _audit, "explain what is new, then find where the model is right for the wrong reason"),
    ):
        add_run_options(verb(name, run, text))
    compared = verb("compare", _compare, "measure methods on a sample of ARCHIVE; rerun to resume or to add")
    add_places(compared)
    add_model_options(compared)
    compare_options.add_compare_options(compared)
    for name, run, text in (
        ("status", _status, "show what OUT holds and how its runs ended"),
        ("verify", _verify, "check that every committed member is accounted for and every file readable"),
    ):
        verb(name, run, text).add_argument("out", metavar="OUT")
    report = verb("report", _report, "write the pages of the latest audit: OUT/report/index.html")
    report.add_argument("out", metavar="OUT")
    kinds = "csv, imagefolder (Hugging Face), label-studio, duckdb"
    report.add_argument("--export", metavar="FORMAT", help=f"write the queue for another tool: {kinds}")
    report.add_argument("--to", metavar="FOLDER", help="where --export writes; a new folder")
    report.add_argument("--prefix", metavar="URL", help="label-studio: what stands before a picture's path")
    report.add_argument("--limit", type=int, metavar="N", help="rows of the queue to keep (100,000)")
    prune = verb("prune", _prune, "remove overlays of old runs and files that no commit names; --yes does it")
    prune.add_argument("out", metavar="OUT")
    prune.add_argument("--keep-last", type=int, metavar="N", help="keep the overlays of the last N runs")
    prune.add_argument("--keep-within", type=float, metavar="DAYS", help="and those of the last DAYS")
    prune.add_argument("--pin", action="append", metavar="RUN", help="keep this run's too (repeatable)")
    prune.add_argument("--yes", action="store_true", help="do it; without, only say what would go")
    layers = verb("layers", _layers, "list the layers of a model and mark the one camray would choose")
    add_model_options(layers, positional=True)
    layers.add_argument("--layer", metavar="NAME", help="check this layer")
    layers.add_argument("--all", action="store_true", help="also list layers that cannot carry a map")
    layers.add_argument("--maps", action="append", metavar="LAYER", help="draw its channels (repeatable)")
    layers.add_argument("--image", metavar="FILE", help="the image that --maps shows the channels of")
    layers.add_argument("--save", metavar="FOLDER", help="where --maps writes its pictures (feature-maps)")
    return parser


def _settings(args: argparse.Namespace, defaults: dict[str, Any] | None = None) -> config.Config:
    from camray.errors import UsageError

    typed = {dotted: getattr(args, name) for name, dotted in _SETTINGS.items() if hasattr(args, name)}
    typed = {k: v for k, v in typed.items() if v is not None}
    settings = load(getattr(args, "config", None), typed, defaults)
    named = {"ARCHIVE": settings.archive.path, "OUT": settings.out, "--model": settings.model.name}
    for field, value in named.items():
        if not value:
            raise UsageError(field, "is missing", f"camray {args.command} ARCHIVE OUT --model NAME")
    return settings


def _explain(args: argparse.Namespace) -> ExitCode:
    from camray.flow.progress import Reporter
    from camray.job.run import explain

    reporter = Reporter(args.json)
    outcome = explain(_settings(args), reporter)
    reporter.say(f"records: {outcome.out}/records   overlays: {outcome.out}/overlays   run: {outcome.run_id}")
    return outcome.code


def _audit(args: argparse.Namespace) -> ExitCode:
    from camray.audit.job import DEFAULTS, audit
    from camray.flow.progress import Reporter

    return audit(_settings(args, DEFAULTS), Reporter(args.json), getattr(args, "reviewed", [])).code


def _plan(args: argparse.Namespace) -> ExitCode:
    from camray.job.prepare import describe_plan, prepare

    ready = prepare(_settings(args))
    facts: dict[str, Any] = {**describe_plan(ready)}
    if hasattr(args, "pilot") and ready.plan.tasks:
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


def _compare(args: argparse.Namespace) -> ExitCode:
    from camray.compare.job import compare, dry_run
    from camray.flow.progress import Reporter

    reporter = Reporter(args.json)
    if getattr(args, "dry_run", False):
        dry_run(_settings(args), reporter)
        return ExitCode.DONE
    return compare(_settings(args), reporter).code


def _status(args: argparse.Namespace) -> ExitCode:
    from camray.upkeep.status import print_status

    return print_status(args.out, args.json)


def _verify(args: argparse.Namespace) -> ExitCode:
    from camray.upkeep.verify import print_verify

    return print_verify(args.out, args.json)


def _report(args: argparse.Namespace) -> ExitCode:
    from camray.audit.report import LARGEST, print_report

    if hasattr(args, "export"):
        from camray.audit.export import check_kind, print_export
        from camray.errors import UsageError

        kind, to = check_kind(args.export), getattr(args, "to", "")
        if not to:
            raise UsageError("--to", "is missing", "--to FOLDER says where the export goes")
        prefix = getattr(args, "prefix", "/data/local-files/?d=")
        return print_export(args.out, kind, to, getattr(args, "limit", LARGEST), prefix, args.json)
    return print_report(args.out, getattr(args, "limit", LARGEST), args.json)


def _prune(args: argparse.Namespace) -> ExitCode:
    from camray.upkeep.prune import print_prune

    last, within = getattr(args, "keep_last", None), getattr(args, "keep_within", None)
    return print_prune(args.out, last, within, getattr(args, "pin", []), hasattr(args, "yes"), args.json)


def _layers(args: argparse.Namespace) -> ExitCode:
    from camray.models.layers import draw_maps, print_layers

    typed = {_SETTINGS[n]: getattr(args, n) for n in vars(args) if n in _SETTINGS}
    settings = load(None, typed)
    if hasattr(args, "maps"):
        folder = getattr(args, "save", "feature-maps")
        return draw_maps(settings, args.maps, getattr(args, "image", None), folder)
    return print_layers(settings, show_all=hasattr(args, "all"), as_json=args.json)
