"""The site of the documents builds without a warning and its links lead somewhere; the answers can be run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from camray.cli.main import main
from tests.cookbook_kitchen import ROOT, lay_out

ANSWERS = (ROOT / "docs" / "answers.md").read_text()


class Page(HTMLParser):
    """The ids of a page and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {i for i in (found.get("id"), found.get("name")) if i}
        self.links += [found[key] or "" for key in ("href", "src") if key in found]


def test_the_site_builds_without_a_warning_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path: Page(path.read_text()) for path in tmp_path.rglob("*.html") if path.name != "404.html"}
    assert len(pages) >= 20
    lost = [
        f"{path.name}: {link}" for path, page in pages.items() for link in page.links
        if not re.match(r"[a-z]+:", link) and not leads(path, link, pages)
    ]  # fmt: skip
    assert lost == []
    assert "explain_archive" in (tmp_path / "reference.html").read_text()


def leads(path: Path, link: str, pages: dict[Path, Page]) -> bool:
    """Tell whether a link of a page leads to a file of the site, and to a place on it."""
    target, _, anchor = unquote(link).partition("#")
    there = (path.parent / target).resolve() if target else path
    if there.is_dir():
        there = there / "index.html"
    return there.exists() and (not anchor or there not in pages or anchor in pages[there].ids)


COMMANDS = [
    pytest.param(line, marks=[pytest.mark.slow] if "--engine ray" in line else [], id=line[:60])
    for line in re.findall(r"```sh\n(.*?)\n```", ANSWERS)
]


def test_every_snippet_of_the_answers_runs() -> None:
    names: dict[str, object] = {}
    snippets = re.findall(r"```python\n(.*?)```", ANSWERS, re.S)
    assert len(snippets) >= 8
    for snippet in snippets:
        exec(snippet, names)
    assert names["alike"].logits.shape[0] == 2  # type: ignore[attr-defined]
    assert names["overlay"].shape == (2, 224, 224, 3)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_answers_runs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command)
    lay_out(tmp_path, words)
    monkeypatch.chdir(tmp_path)
    assert main(words[1:]) in (0, 3)  # 3 is "done, but ..."
