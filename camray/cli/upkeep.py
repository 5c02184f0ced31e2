"""The verbs that read and tend an OUT: status, verify, accept, report, serve, prune, forget."""

from __future__ import annotations

import argparse
from dataclasses import replace

from camray.audit import EXPORTS, LOCAL_FILES
from camray.cli.arguments import verb
from camray.config import Setting
from camray.errors import ExitCode, UsageError
from camray.options import SETTINGS, load

_OUT = Setting("", "OUT", name="out")
_STYLE = {  # of pictures drawn anew; else they are as their run drew them
    name: replace(SETTINGS[f"overlay.{name}"], name="", default=None, own={})
    for name in ("on", "picture", "colormap", "alpha", "contour", "legend", "caption")
}


@verb(
    _OUT,
    Setting("also for Prometheus' textfile collector: how the last run ended", "--metrics-file FILE.prom"),
)
def status(args: argparse.Namespace) -> ExitCode:
    """Show what OUT holds and how its runs ended."""
    from camray.upkeep.prune import print_disk
    from camray.upkeep.status import print_status

    code = print_status(args.out, args.json, args.metrics_file)
    if not (args.json or args.metrics_file):
        print_disk(args.out)
    return code


@verb(
    _OUT,
    Setting("only what this run, and those after it, wrote", "--since RUN"),
    Setting("also the hashes that chain the logs, and what runs said they did", "--chain", kind=bool),
)
def verify(args: argparse.Namespace) -> ExitCode:
    """Check that every committed member is accounted for and every file readable."""
    from camray.upkeep.verify import print_verify

    return print_verify(args.out, args.json, args.since, args.chain)


@verb(_OUT, Setting("the run whose verdict is taken as it is", "RUN", name="run"), given="OUT RUN")
def accept(args: argparse.Namespace) -> ExitCode:
    """Take the verdict of a run (exit 3 or 5) as it is: it fails no run after it."""
    from camray.upkeep.accept import print_accept

    return print_accept(args.out, args.run, args.json)


@verb(
    _OUT,
    Setting(f"write the queue for another tool: {', '.join(EXPORTS)}", "--export FORMAT"),
    Setting("where --export writes; a new folder", "--to FOLDER"),
    Setting("label-studio: what stands before a picture's path", "--prefix URL", default=LOCAL_FILES),
    Setting("rows to keep; default: the night's and 1,000 of the queue", "--limit N", low=0, kind=int),
)
def report(args: argparse.Namespace) -> ExitCode:
    """Write the pages of the latest audit: OUT/report/index.html."""
    from camray.audit.report import LARGEST, print_report

    if args.export is None:
        return print_report(args.out, args.limit, args.json)
    from camray.audit.export import check_kind, print_export

    kind = check_kind(args.export)
    if not args.to:
        raise UsageError("--to", "is missing", "--to FOLDER says where the export goes")
    limit = LARGEST if args.limit is None else args.limit
    return print_export(args.out, kind, args.to, limit, args.prefix, args.json)


@verb(
    _OUT,
    Setting("let people decide on images and causes; without, nothing is written", "--review", kind=bool),
    Setting("listen there, on 127.0.0.1 alone; 0: any free one", "--port N", 0, 65535, kind=int, default=0),
)
def serve(args: argparse.Namespace) -> ExitCode:
    """Show all records in a browser; --review saves decisions as they are made."""
    from camray.serve.server import serve as serve_out

    return serve_out(args.out, args.port, args.review, args.json)


@verb(
    _OUT,
    Setting("keep the overlays of the last N runs", "--keep-last N", low=0, kind=int),
    Setting("and those of the last DAYS", "--keep-within DAYS", low=0, kind=float),
    Setting("keep this run's too (repeatable)", "--pin RUN", kind=tuple[str, ...]),
    Setting("also put small files of many shards together", "--compact", kind=bool),
    Setting("do it; without, only say what would go", "--yes", kind=bool),
)
def prune(args: argparse.Namespace) -> ExitCode:
    """Remove overlays of old runs and files that no commit names; --yes does it."""
    from camray.upkeep.prune import print_prune

    kept = args.keep_last, args.keep_within, args.pin
    return print_prune(args.out, *kept, args.yes, args.json, args.compact)


@verb(
    _OUT,
    Setting("the image, as the column `member` names it", "--member NAME"),
    Setting("only the one in this shard, as the column `shard` names it", "--shard URI"),
    Setting("do it; without, only say what would go", "--yes", kind=bool),
    given="OUT --member NAME",
)
def forget(args: argparse.Namespace) -> ExitCode:
    """Take an image out of OUT: rows, overlays, decisions, old versions; --yes does it."""
    from camray.upkeep.forget import print_forget

    if args.member is None:
        raise UsageError("--member", "is missing", "camray forget OUT --member NAME")
    return print_forget(args.out, args.member, args.shard, args.yes, args.json)


@verb(
    _OUT,
    Setting("which records, as SQL: verdict = 'wrong' and confidence > 0.9", "--where SQL"),
    Setting("of which explainer; default: the latest", "--explainer ID"),
    Setting("the N most suspicious of them", "--limit N", low=1, kind=int, default=1_000),
    Setting("a folder for the pictures", "--to FOLDER"),
    Setting("a contact sheet instead: FILE.pdf or FILE.png", "--sheet FILE"),
    *_STYLE.values(),
)
def draw(args: argparse.Namespace) -> ExitCode:
    """Draw pictures of any records anew, without a model."""
    typed = {name: s.flag.removeprefix("--").replace("-", "_") for name, s in _STYLE.items()}
    said = {f"overlay.{name}": getattr(args, dest) for name, dest in typed.items()}
    given = {name: value for name, value in said.items() if value is not None and value is not False}
    overlay = load(None, given).overlay
    style = {name: getattr(overlay, name) for name in typed if f"overlay.{name}" in given}
    try:
        from camray.serve.draw import print_draw
    except ModuleNotFoundError as error:
        raise UsageError(
            "camray draw", f"{error.name} is not installed", "pip install 'camray[serve]'"
        ) from None
    where, explainer, to, sheet = (getattr(args, n) or "" for n in ("where", "explainer", "to", "sheet"))
    return print_draw(args.out, where, explainer, args.limit, to, sheet, style, args.json)


@verb(
    _OUT,
    Setting("which two, old and new; default: the two of OUT", "--explainers OLD,NEW", kind=tuple[str, ...]),
    Setting("write the page: what changed, by class, and the worst 50 side by side", "--to FILE.html"),
    Setting("exit 5: worse,flip_rate>5%,broken_rate>1%,moved_rate>20%", "--fail-on WHAT"),
)
def diff(args: argparse.Namespace) -> ExitCode:
    """Compare the answers of an old and a new model, image by image."""
    from camray.serve.diff import print_diff

    return print_diff(args.out, args.explainers, args.to or "", args.fail_on or "", args.json)
