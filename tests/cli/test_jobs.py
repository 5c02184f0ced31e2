"""The verbs that explain: which options they have, what `plan` plans, and `--print-config`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import camray
from camray.cli.main import _patient, main
from camray.config import Config
from camray.errors import ExitCode
from camray.options import load

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE, MODEL = str(ROOT / "demo" / "archive"), str(ROOT / "demo" / "models" / "hans64-clean")


class Handed(BaseException):
    """Stands in for the work, which these tests are not about; no crash, which the command would tell."""


def config_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Config:
    """Give the config that a command hands to its job."""
    handed: list[Config] = []

    def take(config: Config, *_: Any) -> None:
        handed.append(config)
        raise Handed

    jobs = [import_module(f"camray.{name}") for name in ("job.run", "audit.job", "compare.job")]
    for job, name in zip(jobs, ("explain", "audit", "compare"), strict=True):  # imported before: they import
        monkeypatch.setattr(job, name, take)  # each other's functions by name
    with pytest.raises(Handed):
        main(arguments)
    return handed[0]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    try:
        code = main(arguments)
    except SystemExit as left:
        code = int(str(left.code))
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    (line, *rest) = said.err.splitlines()
    assert all(other.startswith("camray: exit 2") for other in rest)
    return line.removeprefix("camray: error: ")


def explainer(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Give the id that `camray plan` names."""
    capsys.readouterr()
    assert main(["plan", *arguments, "--json"]) == 0
    return str(json.loads(capsys.readouterr().out)["explainer"]).split()[0]


@pytest.mark.parametrize(("text", "read"), [("1%", 0.01), ("25", 25), ("0.5", 0.5), ("0", 0)])
@pytest.mark.parametrize("verb", ["explain", "audit", "compare"])
def test_failures_that_are_fine_are_written_alike_everywhere(
    monkeypatch: pytest.MonkeyPatch, verb: str, text: str, read: float
) -> None:
    config = config_of(monkeypatch, verb, "a", "o", "--model", "m", "--max-failed", text)
    assert config.run.max_failed == read
    assert isinstance(config.run.max_failed, type(read))


@pytest.mark.parametrize("options", [[], ["--confirm", "0.3"], ["--method", "layercam", "--top-k", "3"]])
def test_plan_names_the_explainer_of_the_command_that_it_plans(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str]
) -> None:
    from camray.job.prepare import prepare

    line = [ARCHIVE, str(tmp_path / "out"), "--model", MODEL, *options]
    used = {}
    for verb in ("explain", "audit"):
        with monkeypatch.context() as patch:
            used[verb] = prepare(config_of(patch, verb, *line)).explainer.id
        assert explainer(capsys, *line, "--for", verb) == used[verb]
    assert explainer(capsys, *line) == used["explain"]
    assert (used["explain"] == used["audit"]) == ("--confirm" in options)  # an audit looks again by itself


@pytest.mark.parametrize(
    "options",
    [["--fail-on", "drift=major"], ["--fail-on", "nonsense"], ["--against", "RUN"], ["--reviewed", "f"]],
)
@pytest.mark.parametrize("verb", ["explain", "compare"])
def test_an_option_that_would_do_nothing_is_refused(
    capsys: pytest.CaptureFixture[str], verb: str, options: list[str]
) -> None:
    line = refusal(capsys, verb, "a", "o", "--model", "m", *options)
    assert line == f"unrecognized arguments: {' '.join(options)}. Fix: see `camray {verb} --help-all`"


def test_a_misspelt_option_is_told_what_it_may_have_meant(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "audit", "a", "o", "--modle", "m")
    assert line.endswith("--modle m. Fix: did you mean --model? see `camray audit --help-all`")


def test_plan_refuses_what_the_planned_command_would(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["plan", "a", "o", "--model", "m", "--fail-on", "nonsense"]
    assert refusal(capsys, *line) == "--fail-on: is no option of `camray explain`. Fix: add --for audit"
    assert refusal(capsys, *line, "--for", "audit").startswith("--fail-on: 'nonsense' is no condition. Fix: ")
    assert "invalid choice: 'prune'" in refusal(capsys, *line, "--for", "prune")


@pytest.mark.parametrize("verb", ["explain", "audit", "compare", "plan"])
def test_print_config_writes_toml_and_nothing_else(
    verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ["a/ä", "o\t\"'\\", "--model", "m.py:Net", "--model-arg", "deep=[1, {'a': 2.5}]", "--std", "0.5"]
    out = tmp_path / "c.toml"
    assert main([verb, *given, "--print-config"]) == ExitCode.DONE
    said = capsys.readouterr()
    assert said.err == ""
    out.write_text(said.out, "utf-8")
    config = load(str(out), {}, verb)
    assert (config.archive.path, config.out, config.model.name) == ("a/ä", "o\t\"'\\", "m.py:Net")
    assert config.model.args == {"deep": [1, {"a": 2.5}]}
    assert config.preprocess.std == (0.5,)
    assert config.audit.confirm == (0.15 if verb == "audit" else 0)
    assert main([verb, "--config", str(out), "--print-config"]) == ExitCode.DONE
    assert capsys.readouterr().out == said.out


def test_print_config_of_nothing_is_a_template(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--print-config"]) == ExitCode.DONE
    assert '\nfail_on = ""\n' in capsys.readouterr().out


def test_print_config_refuses_what_the_command_would(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "explain", "--print-config", "--overlay-alpha", "2")
    assert line == "--overlay-alpha: 2.0 is out of range. Fix: give a value between 0 and 1"


def test_what_nobody_reads_is_dropped() -> None:
    """A disk that is full is still told."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as pipe, open("/dev/full", "w", encoding="utf-8") as full:
        print("x" * 100_000, file=_patient(pipe), flush=True)
        with pytest.raises(OSError, match="No space left"):
            print("x" * 100_000, file=_patient(full), flush=True)


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True])
def test_who_reads_may_go_and_the_work_stays(tmp_path: Path, as_json: bool) -> None:
    """`camray explain ... | head -1` is no crash: all is committed, and the exit code is the run's own."""
    out, form = tmp_path / "out", "--json" if as_json else "--debug"
    call = f"{sys.executable} -m camray.cli explain {ARCHIVE} {out} --model {MODEL} --engine here --limit 2"
    line = f"{call} {form} {'' if as_json else '2>&1 >/dev/null'} | head -1 | wc -l; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, check=False, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, "1")
    assert camray.open_records(str(out)).count_rows() == 2


@pytest.mark.parametrize(("arguments", "said"), [
    (["prune", "OUT", "--keep-last", "-1"], "--keep-last: -1 is out of range: give a value at least 0"),
    (["prune", "OUT", "--keep-within", "nan"], "--keep-within: nan is out of range: give a value at least 0"),
    (["report", "OUT", "--limit", "-3"], "--limit: -3 is out of range"),
    (["draw", "OUT", "--limit", "0"], "--limit: 0 is out of range: give a value at least 1"),
    (["serve", "OUT", "--port", "65536"], "--port: 65536 is out of range: give a value between 0 and 65535"),
    (["plan", ARCHIVE, "OUT", "--pilot", "0"], "--pilot: 0 is out of range: give a value at least 1"),
    (["init", "no such folder/c.toml"], "FILE: no such folder/c.toml: No such file or directory"),
])  # fmt: skip
def test_numbers_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """-1 runs to keep took away the pictures of every run."""
    assert said in refusal(capsys, *arguments)


def test_diff_takes_two_explainers(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []

    def take(*about: Any) -> ExitCode:
        taken.extend(about)
        return ExitCode.DONE

    monkeypatch.setattr("camray.serve.diff.print_diff", take)
    assert main(["diff", "OUT", "--explainers", "a,b"]) == 0
    assert taken[1] == ["a", "b"]
