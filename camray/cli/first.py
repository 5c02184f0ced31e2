"""`camray init FILE`: a commented TOML of settings to begin with, from options or a few questions."""

from __future__ import annotations

import argparse
import os
import sys
from operator import attrgetter
from pathlib import Path

from camray.cli.arguments import verb
from camray.config import Config, Setting
from camray.errors import ExitCode, UsageError
from camray.options import SETTINGS, expected_of, in_toml, load

_ASKED = {  # option, its setting, and how it is asked for
    "--archive ARCHIVE": ("archive.path", "ARCHIVE: a folder, tars, a list, s3://..."),
    "--out OUT": ("out", "OUT: where records go"),
    "--model NAME": ("model.name", "model"),
    "--checkpoint FILE": ("model.checkpoint", "its weights (none: nothing)"),
}


@verb(
    Setting("the file to write", "FILE", name="file", default="camray.toml"),
    *(Setting(SETTINGS[name].text, option) for option, (name, _) in _ASKED.items()),
    given="[FILE]",
)  # fmt: skip
def init(args: argparse.Namespace) -> ExitCode:
    """Write a commented file of settings to begin with: camray.toml."""
    path = Path(args.file)
    typed = {name: getattr(args, option.split()[0][2:]) for option, (name, _) in _ASKED.items()}
    given = {name: value for name, value in typed.items() if value is not None}
    if sys.stdin.isatty() and not given:
        answers = {name: input(f"{question}: ").strip() for name, question in _ASKED.values()}
        given = {name: answer for name, answer in answers.items() if answer}
    text = commented({"archive.path": "ARCHIVE", "out": "OUT", "model.name": "resnet50"} | given)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError("FILE", f"{path} is there already", "another name, or remove it first") from None
    except OSError as error:
        raise UsageError("FILE", f"{path}: {error.strerror}", "a file in a folder of yours") from None
    print(f"{path} is written. Next: camray plan --config {path}, then camray audit --config {path}")
    return ExitCode.DONE


def commented(given: dict[str, str]) -> str:
    """Give TOML with the given settings, and what most audits set, commented out, with its default.

    Raises:
        UsageError: a value that will not do.
    """
    load(None, dict(given), "audit")
    defaults, section = Config(), ""
    lines = ["# Settings of `camray audit --config FILE`; options on the command line win.",
             "# Every setting: docs/settings.md. Remove the `# ` before a line to set it."]  # fmt: skip
    shown = [s for s in SETTINGS.values() if s.name in given or "audit" in s.common.split()]
    for setting in shown:
        head, _, leaf = setting.name.rpartition(".")
        if head != section:
            lines += ["", f"[{head}]"]
            section = head
        lines.append(f"# {setting.told.get('audit', setting.text)}")
        if setting.name in given:
            lines.append(f"{leaf} = {in_toml(setting.name, given[setting.name])}")
            continue
        value = setting.own.get("audit", attrgetter(setting.name)(defaults))
        form = in_toml(setting.name, value) if value is not None else f"  # {expected_of(setting.kind)}"
        lines.append(f"# {leaf} = {form}")
    return "\n".join(lines) + "\n"


@verb(Setting("a folder for what it makes", "OUT", name="out", default="camray-demo"), given="[OUT]")
def demo(args: argparse.Namespace) -> ExitCode:
    """Audit a bundled archive with a bundled model that cheats."""
    from camray.audit import job
    from camray.flow.progress import Reporter

    bundled, out = Path(__file__).resolve().parents[1] / "demo", args.out
    archive, model = bundled / "archive", bundled / "model"
    if not (archive / "hans64-00000.tar").is_file():
        raise UsageError(
            "camray demo", f"{archive} is not there", "install camray from its wheel or checkout"
        )
    given = {"archive.path": str(archive), "out": out, "model.name": str(model), "overlay.policy": "all"}
    code = job.audit(load(None, given, "audit"), Reporter(args.json)).code
    if not args.json:
        print(f"Triangles wear a barcode there, and the model reads it. The page: {out}/report/index.html")
        print(f"In a browser, with every record: camray serve {out}")
    return code
