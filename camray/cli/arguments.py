"""How the command line is read: errors in one line, options once, and the forms of their values."""

from __future__ import annotations

import argparse
import ast
import sys
from functools import partial
from typing import Any

from camray.errors import ExitCode, printable


class Parser(argparse.ArgumentParser):
    """Errors in camray's own form, without the usage dump; a help that fits a screen.

    `common` names the options that --help shows; the others come with --help-all. None: it shows all.
    """

    def __init__(self, *args: Any, common: frozenset[str] | None = None, **options: Any) -> None:
        options["formatter_class"] = partial(argparse.RawDescriptionHelpFormatter, max_help_position=28)
        super().__init__(*args, **options)
        self.register("action", None, Once)
        self.common = common
        if common is not None:
            self.add_argument("--help-all", action=HelpAll, nargs=0, help="every option, with its default")

    def format_help(self) -> str:
        """Give the help, without the options that are not common."""
        shown = {action: action.help for action in self._actions}
        for action in self._actions:
            if self.common is not None and action.option_strings and not self._is_common(action):
                action.help = argparse.SUPPRESS
        try:
            return super().format_help()
        finally:
            for action, text in shown.items():
                action.help = text

    def _is_common(self, action: argparse.Action) -> bool:
        names = {name.removeprefix("--") for name in action.option_strings}
        return bool(names & ((self.common or frozenset()) | {"help", "help-all", "json"}))

    def error(self, message: str) -> Any:
        """Say it in one line and leave."""
        whole = "--help" if self.common is None else "--help-all"
        print(
            f"camray: error: {printable(message.removeprefix('argument '))}. Fix: see `{self.prog} {whole}`",
            file=sys.stderr,
        )
        raise SystemExit(int(ExitCode.USAGE))


class HelpAll(argparse.Action):
    """Print the help with every option, and leave."""

    def __call__(self, parser: Any, _names: argparse.Namespace, _values: Any, _option: Any = None) -> None:
        """Take the option."""
        parser.common = None
        parser.print_help()
        parser.exit()


class Once(argparse.Action):
    """Store a value; the same option a second time is refused, as one of the two would be lost."""

    def __call__(self, _parser: Any, names: argparse.Namespace, value: Any, option: Any = None) -> None:
        """Take one use of the option."""
        if option and hasattr(names, self.dest):
            raise argparse.ArgumentError(self, f"is given twice: {getattr(names, self.dest)!r} and {value!r}")
        setattr(names, self.dest, value)


class Pairs(argparse.Action):
    """Collect NAME=VALUE options; a value is a Python literal, or else text."""

    def __call__(self, _parser: Any, names: argparse.Namespace, value: Any, _option: Any = None) -> None:
        """Take one use of the option."""
        key, equals, text = str(value).partition("=")
        if not equals or not key.isidentifier():
            raise argparse.ArgumentError(self, f"{value!r} is not NAME=VALUE")
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found = text
        setattr(names, self.dest, getattr(names, self.dest, {}) | {key: found})


def sizes(text: str) -> list[int]:
    """Read `256` or `256x320`, height and width."""
    return [int(part) for part in text.lower().split("x")]


def numbers(text: str) -> list[float]:
    """Read `0.5` or `0.5,0.5,0.5`."""
    return [float(part) for part in text.split(",")]
