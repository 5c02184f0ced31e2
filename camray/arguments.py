"""How the command line is read: errors in one line, options once, and the forms of their values."""

from __future__ import annotations

import argparse
import ast
import sys
from typing import Any

from camray.errors import ExitCode, printable


class Parser(argparse.ArgumentParser):
    """Errors in camray's own form, without the usage dump."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("action", None, Once)

    def error(self, message: str) -> Any:
        """Say it in one line and leave."""
        print(
            f"camray: error: {printable(message.removeprefix('argument '))}. Fix: see `{self.prog} --help`",
            file=sys.stderr,
        )
        raise SystemExit(int(ExitCode.USAGE))


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
