"""The command line: thin verbs over the package. Human lines on stderr, results and --json on stdout."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from camray import __version__
from camray.cli.arguments import Parser, PrintCompletion, Verb
from camray.cli.jobs import typed_config
from camray.errors import CamrayError, ExitCode, in_a_line, printable
from camray.flow.stopping import Stopped, stoppable
from camray.machine import on_this_machine
from camray.options import SETTINGS, to_toml

VERBS = (  # in the order of --help: module and function of `camray.cli`
    "first.demo",
    "first.init",
    "jobs.plan",
    "jobs.explain",
    "jobs.audit",
    "jobs.compare",
    "upkeep.status",
    "upkeep.verify",
    "upkeep.accept",
    "upkeep.report",
    "upkeep.serve",
    "upkeep.draw",
    "upkeep.diff",
    "upkeep.prune",
    "upkeep.forget",
    "jobs.layers",
    "jobs.doctor",
)
_EXITS = "exit codes:\n" + "\n".join(f"  {int(code):>3}  {code.meaning}" for code in ExitCode)
_EXIT_NAMES = "exit codes: " + " · ".join(f"{int(code)} {code.name.lower()}" for code in ExitCode)
_SHORT_EXITS = textwrap.fill(_EXIT_NAMES.replace("_", " ") + " (camray --help)", 98, subsequent_indent="  ")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a Ray notice
    if argv is None:
        sys.stdout, sys.stderr = _patient(sys.stdout), _patient(sys.stderr)
    typed = sys.argv[1:] if argv is None else argv
    args, unknown = build_parser(show_all="--help-all" in typed).parse_known_args(typed)
    if unknown:
        args.parser.refuse(unknown)
    shows, code = getattr(args, "print_config", False), ExitCode.DONE
    try:
        if shows:
            print(to_toml(typed_config(args)), end="")
        else:
            with stoppable(), on_this_machine():
                code = args.verb.run(args)
    except Stopped as stop:
        code = stop.code
    except (CamrayError, OSError) as error:
        if args.debug:
            raise
        print(f"camray: error: {printable(_as_typed(in_a_line(error)), 1000)}", file=sys.stderr)
        code = getattr(error, "exit_code", ExitCode.INCOMPLETE)
    except Exception:  # a bug: all of it is shown, and the last line all the same
        if args.debug:
            raise
        traceback.print_exc()
        code = ExitCode.CRASH
    if args.verb.is_job and not shows:
        _last_line(ExitCode(code), args)
    return int(code)


class _Patient(io.FileIO):
    """A stream whose reader may go, as of `| head`: the work and its exit code stay."""

    def write(self, data: Any) -> int:
        """Write, or drop what nobody reads."""
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            return memoryview(data).nbytes


def _patient(stream: Any) -> Any:
    """Give a stream of this process that never breaks; one that is none, or not open, as it is."""
    try:
        raw = _Patient(stream.fileno(), "w", closefd=False)
    except (AttributeError, OSError, ValueError):
        return stream
    at_once, by_line = stream.write_through, stream.line_buffering
    to = raw if at_once else io.BufferedWriter(raw)
    return io.TextIOWrapper(to, stream.encoding, stream.errors, None, by_line, at_once)


def _as_typed(message: str) -> str:
    """Name an option as people type it, where the library says `layer: ...` or `overlay.colormap: ...`."""
    field, colon, rest = message.partition(":")
    flags = {name: s.flag for s in SETTINGS.values() for name in (s.name, s.flag[2:].replace("-", "_"))}
    return f"{flags.get(field) or field}{colon}{rest}"


def _last_line(code: ExitCode, args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps({"exit": int(code), "meaning": code.meaning}), flush=True)
    else:
        print(f"camray: exit {int(code)}: {code.meaning}", file=sys.stderr)


def verbs() -> list[Verb]:
    """Give every command, in the order of --help."""
    places = (place.partition(".") for place in VERBS)
    return [getattr(import_module(f"camray.cli.{module}"), name) for module, _, name in places]


def build_parser(show_all: bool = False) -> argparse.ArgumentParser:
    """Build the parser of every verb; without `show_all` their --help has what most runs need."""
    parser = Parser(
        prog="camray",
        description="Explain every image of an archive: what the model said and where it looked.",
        epilog=_EXITS,
        usage="camray COMMAND ... (camray COMMAND --help)",
    )
    parser.add_argument("--version", action="version", version=f"camray {__version__}")
    said = "a script by which bash and zsh complete commands and options"
    parser.add_argument("--completion", nargs=0, action=PrintCompletion, help=said)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", prog="camray", parser_class=Parser
    )
    for verb in verbs():
        sub = commands.add_parser(
            verb.name, help=verb.text, description=verb.text, epilog=_SHORT_EXITS,
            usage=f"camray {verb.name} {verb.given} [options]",
        )  # fmt: skip
        sub.set_defaults(verb=verb, parser=sub)
        sub.add_verb(verb, show_all)
    return parser
