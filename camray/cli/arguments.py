"""How the command line is read: verbs, their options from the declarations, errors in one line."""

from __future__ import annotations

import argparse
import ast
import difflib
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args, get_origin

from camray.config import EVERY, JOBS, Setting
from camray.errors import ExitCode, printable
from camray.options import SETTINGS


@dataclass(frozen=True, slots=True)
class Verb:
    """One command: `camray NAME`."""

    name: str
    text: str
    run: Callable[[argparse.Namespace], ExitCode]
    given: str  # what follows the name in the usage
    options: tuple[Setting, ...]  # those that are no settings; --help always shows them
    is_job: bool  # its last line says how it ended


def verb(*options: Setting, given: str = "OUT", is_job: bool = False) -> Callable[..., Verb]:
    """Make a verb of the function that runs it; its docstring's first line is what --help says."""

    def declare(run: Callable[[argparse.Namespace], ExitCode]) -> Verb:
        line = (run.__doc__ or "").partition("\n")[0].removesuffix(".")
        return Verb(run.__name__, line[:1].lower() + line[1:], run, given, options, is_job)

    return declare


class Parser(argparse.ArgumentParser):
    """Errors in camray's own form, without the usage dump; `whole` is the option that shows every option."""

    whole = "--help"

    def __init__(self, *args: Any, **options: Any) -> None:
        options["formatter_class"] = partial(argparse.RawDescriptionHelpFormatter, max_help_position=28)
        super().__init__(*args, **options)
        self.register("action", None, Once)

    def error(self, message: str, fix: str = "") -> Any:
        """Say it in one line and leave."""
        fix += f"see `{self.prog} {self.whole}`"
        print(f"camray: error: {printable(message.removeprefix('argument '))}. Fix: {fix}", file=sys.stderr)
        raise SystemExit(int(ExitCode.USAGE))

    def refuse(self, unknown: Sequence[str]) -> None:
        """Refuse arguments that the command does not have; name what the first may have meant."""
        near = difflib.get_close_matches(unknown[0].partition("=")[0], self._option_string_actions, 1, 0.75)
        fix = f"did you mean {near[0]}? " if near else ""
        self.error(f"unrecognized arguments: {' '.join(unknown)}", fix)

    def add_verb(self, verb: Verb, show_all: bool) -> None:
        """Add a verb's options, under their headings; without `show_all` the help shows the common ones."""
        settings = [s for s in SETTINGS.values() if s.option and verb.name in s.verbs.split()]
        settings.sort(key=lambda s: s.option == "OUT")  # ARCHIVE stands before it
        if settings:
            self.whole = "--help-all"
            self.add_argument(self.whole, action="help", help="every option, with its default")
        groups: dict[str, Any] = {"": self}
        common = [option for option in _COMMON if verb.name in (option.verbs or verb.name).split()]
        for option in (*common, *verb.options, *settings):
            group = option.group if option.flag else ""
            groups[group] = groups.get(group) or self.add_argument_group(group)
            is_known = option in verb.options or verb.name in option.common.split()
            is_shown = show_all or is_known or not settings
            _add(groups[group], option, option.help(verb.name).replace("%", "%%"), is_shown)


def _add(parser: Any, option: Setting, text: str, is_shown: bool) -> None:
    """Add one option; its value is stored under the setting's dotted name."""
    first, _, metavar = option.option.partition(" ")
    dest = option.name or first.removeprefix("--").replace("-", "_")
    how: dict[str, Any] = {"default": argparse.SUPPRESS}  # of a setting only what is typed is taken
    if option is not SETTINGS.get(option.name):
        empty = {bool: False, tuple[str, ...]: []}.get(option.kind)
        how["default"] = empty if option.default is None else option.default
    if not option.flag:
        count = "*" if first == "ARCHIVE" else None if option.default is None else "?"
        parser.add_argument(dest, metavar=first, help=text, nargs=count, **how)
        return
    how |= {"metavar": metavar} if metavar else {}
    if get_origin(option.kind) is Literal and len(get_args(option.kind)) <= 4:  # colour maps are too many
        how["choices"] = get_args(option.kind)
    is_list = "," in metavar and option.kind == tuple[str, ...]
    how |= {"type": names} if is_list else _FORMS.get(option.kind, {})
    if option.low is not None and "." not in option.name:  # of a setting it is said with its other faults
        how["type"] = partial(_in_range, option)
    parser.add_argument(first, dest=dest, help=text if is_shown else argparse.SUPPRESS, **how)


class Once(argparse.Action):
    """Store a value; the same option a second time is refused, as one of the two would be lost."""

    def __call__(self, _parser: Any, names: argparse.Namespace, value: Any, option: Any = None) -> None:
        """Take one use of the option."""
        if option and getattr(names, self.dest, self.default) is not self.default:
            raise argparse.ArgumentError(self, f"is given twice: {getattr(names, self.dest)!r} and {value!r}")
        setattr(names, self.dest, value)


class PrintCompletion(argparse.Action):
    """Print what makes a shell complete commands, options and choices, from the parser itself."""

    def __call__(self, parser: Any, _names: Any, _value: Any, _option: Any = None) -> None:
        """Print it and leave."""
        (verbs,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        found = {":*": [*verbs, *parser._option_string_actions]}  # verb:word before -> what may come next
        for name, sub in verbs.items():
            choices = {f"*:{flag}": a.choices for a in sub._actions if a.choices for flag in a.option_strings}
            found = choices | found | {f"{name}:*": list(sub._option_string_actions)}
        lines = [f"{before}) found={shlex.quote(' '.join(words))} ;;" for before, words in found.items()]
        print(_COMPLETION.replace("CASES", "\n        ".join(lines)), end="")
        parser.exit()


_COMPLETION = """\
# camray's commands, options and choices, for bash and zsh; files are completed where none of them fits.
[[ -n ${ZSH_VERSION-} ]] && autoload -Uz compinit bashcompinit && compinit && bashcompinit
_camray() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} verb= found=
    ((COMP_CWORD > 1)) && verb=${COMP_WORDS[1]}
    case "$verb:$before" in
        CASES
    esac
    [[ -n $verb && $found == -* && $word != -* ]] && found=
    COMPREPLY=($(compgen -W "$found" -- "$word"))
}
complete -o default -F _camray camray
"""


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


def _in_range(option: Setting, text: str) -> float:
    try:
        number: float = option.kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid {option.kind.__name__} value: {text!r}") from None
    if not (option.low or 0) <= number <= (math.inf if option.high is None else option.high):
        raise argparse.ArgumentTypeError(f"{text} is out of range: give a value {option.span}")
    return number


def sizes(text: str) -> list[int]:
    """Read `256` or `256x320`, height and width; or numbers with commas."""
    return [int(part) for part in text.lower().replace(",", "x").split("x")]


def numbers(text: str) -> list[float]:
    """Read `0.5` or `0.5,0.5,0.5`."""
    return [float(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    """Read `gradcam,scorecam(channels=64,seed=1)`: commas between brackets belong to the name."""
    found, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [name.strip() for name in found if name.strip()]


# How the text of an option becomes a value of the type; texts and choices stay as they are.
_FORMS: dict[Any, dict[str, Any]] = {
    bool: {"action": "store_true"}, int: {"type": int}, float: {"type": float},
    tuple[str, ...]: {"action": "append"}, tuple[int, ...]: {"type": sizes},
    tuple[float, ...]: {"type": numbers}, dict[str, Any]: {"action": Pairs},
}  # fmt: skip
_COMMON = (
    Setting("JSON lines on stdout", "--json", kind=bool, common=EVERY),
    Setting("show the traceback of an error", "--debug", kind=bool),
    Setting("settings; options on the command line win", "--config TOML", verbs=JOBS, common=JOBS),
    Setting(
        "write every setting as TOML on stdout, do nothing else", "--print-config", verbs=JOBS, kind=bool
    ),
)
