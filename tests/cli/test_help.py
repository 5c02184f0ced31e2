"""--help: one screen for each command, with its exit codes, and nothing that the documents do not know."""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import shutil
import subprocess
from pathlib import Path

import pytest

from camray.cli import main as cli
from camray.cli.arguments import Parser
from camray.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]
SCREEN = (40, 100)  # lines, columns
MODEL = "--config --model --checkpoint --class-names --download --device --actors --target"
COMMON = {  # what --help shows beside --help, --help-all and --json; --help-all shows the rest
    "explain": f"{MODEL} --method --layer --limit --sample --overlays --max-failed",
    "audit": f"{MODEL} --method --overlays --max-failed --reviewed --fail-on --full",
    "plan": f"{MODEL} --method --layer --limit --sample --pilot --for",
    "compare": f"{MODEL} --methods --layer --sample --dry-run --budget",
    "layers": "--checkpoint --class-names --download --model-arg --num-classes --layer --all --maps --image "
    "--save",
}


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


def options(text: str) -> set[str]:
    return set(re.findall(r"^  (?:-h, )?(--[\w-]+)", text, re.M))


@pytest.mark.parametrize("name", sorted(COMMON))
def test_every_option_is_in_the_long_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = verbs()[name]
    every = {text for action in parser._actions for text in action.option_strings if text != "-h"}
    assert options(parser.format_help()) == {*COMMON[name].split(), "--help", "--help-all", "--json"}
    with pytest.raises(SystemExit) as left:
        cli.main([name, "--help-all"])
    assert left.value.code == 0
    assert options(capsys.readouterr().out) == every


def test_every_option_is_explained() -> None:
    for name, parser in verbs().items():
        for action in parser._actions:
            assert action.help or action.dest == "out", (name, action.dest)


def test_the_readme_has_a_line_for_every_command() -> None:
    told = set(re.findall(r"^\| `camray (\w+)", (ROOT / "README.md").read_text(), re.M))
    assert told == set(verbs())


TYPED = [  # what is typed, what it becomes, what is said when it is run
    ("camray aud\t", "camray audit ", "<audit>"),
    ("camray audit --fail\t", "camray audit --fail-on ", "<audit --fail-on>"),
    ("camray compare A O --engine h\t", "--engine here ", "<compare A O --engine here>"),
    ("camray verify OUT --ch\t", "--chain ", "<verify OUT --chain>"),
    ("camray audit --config set\t", "--config settings.toml", "<audit --config settings.toml>"),
]


@pytest.mark.parametrize("shell", [["bash", "--norc", "-i"], ["zsh", "-f", "-i"]], ids=lambda s: s[0])
def test_a_real_shell_completes(
    shell: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a terminal of its own, in which a command is typed up to Tab, and only echoed when it is run."""
    if shutil.which(shell[0]) is None:
        pytest.skip(f"needs {shell[0]}")
    with pytest.raises(SystemExit) as left:
        cli.main(["--completion"])
    assert left.value.code == 0
    (tmp_path / "script").write_text(capsys.readouterr().out + 'camray() { echo "<$*>"; }\n')
    (tmp_path / "settings.toml").touch()
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "dumb", "HOME": str(tmp_path)}
    run = subprocess.Popen(
        shell, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, cwd=tmp_path, env=environment
    )
    os.close(slave)
    shown = ""
    for keys, completed, said in [("source ./script; echo re''ady\n", "ready", ""), *TYPED]:
        for typed, wanted in ((keys, completed), ("\n", said)):  # what comes early would be part of the word
            os.write(master, typed.encode())
            while wanted not in shown and select.select([master], [], [], 10)[0]:
                shown += os.read(master, 65536).decode()
            assert wanted in shown
    run.kill()
    run.wait()
    os.close(master)
