"""--help: one screen for each command, with its exit codes, and nothing that the documents do not know."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from camray.cli import main as cli
from camray.cli.arguments import Parser
from camray.cli.run_options import COMMON
from camray.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]
SCREEN = (40, 100)  # lines, columns


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(SCREEN[1]))


def verbs() -> dict[str, Parser]:
    actions = cli.build_parser()._actions
    (found,) = (a.choices for a in actions if isinstance(a, argparse._SubParsersAction))
    return dict(found)


def fits(text: str) -> None:
    lines = text.splitlines()
    assert len(lines) <= SCREEN[0]
    assert max(map(len, lines)) <= SCREEN[1]


def test_the_first_help_says_what_every_exit_code_means() -> None:
    text = cli.build_parser().format_help()
    fits(text)
    for code in ExitCode:
        assert re.search(rf"^ +{int(code)}  {re.escape(code.meaning)}$", text, re.M), code
    assert set(re.findall(r"^    ([a-z]+) ", text, re.M)) == set(verbs())


@pytest.mark.parametrize("name", sorted(verbs()))
def test_each_command_fits_and_names_the_codes(name: str) -> None:
    text = verbs()[name].format_help()
    fits(text)
    codes = " ".join(text.partition("exit codes: ")[2].split())
    assert codes.startswith(" · ".join(f"{int(c)} {c.name.lower().replace('_', ' ')}" for c in ExitCode))
    assert text.startswith(f"usage: camray {name} ")


@pytest.mark.parametrize("name", sorted(COMMON))
def test_every_option_is_in_the_long_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = verbs()[name]
    options = {text for action in parser._actions for text in action.option_strings if text != "-h"}
    short = set(re.findall(r"^  (?:-h, )?(--[\w-]+)", parser.format_help(), re.M))
    assert {f"--{common}" for common in COMMON[name]} | {"--help", "--help-all", "--json"} == short
    with pytest.raises(SystemExit) as left:
        parser.parse_args(["--help-all"])
    assert left.value.code == 0
    assert set(re.findall(r"^  (?:-h, )?(--[\w-]+)", capsys.readouterr().out, re.M)) == options


def test_every_setting_can_be_typed_and_every_option_is_explained() -> None:
    options = {a.dest for p in verbs().values() for a in p._actions if a.option_strings}
    assert set(cli._SETTINGS) - {"archive", "out"} <= options
    for name, parser in verbs().items():
        for action in parser._actions:
            assert action.help or action.dest in ("out", "interpolation"), (name, action.dest)


def test_the_readme_has_a_line_for_every_command() -> None:
    told = set(re.findall(r"^\| `camray (\w+)", (ROOT / "README.md").read_text(), re.M))
    assert told == set(verbs())
