"""What would do as a text from outside says: in a browser, a spreadsheet, a terminal, a data base.

Each gives findings, one line each; none is what there must be.
"""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser

import duckdb

from tests.hostile.pack import FORGED, MARK

_STRINGS = re.compile(r'"(?:\\.|[^"\\])*"')
_METRIC = re.compile(r'(#.*|[a-z_]+(\{([a-z_]+="(\\.|[^"\\\n])*",?)*\})? [-+0-9.eInfNa]+( \d+)?|)')
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def terminal(text: str) -> list[str]:
    """Characters that a terminal obeys, or that turn a line around; lines that a name began."""
    lines = text.split("\n")
    found = [f"control in {line[:80]!r}" for line in lines if not line.replace("\r", "\x00").isprintable()]
    return found + [f"forged line {line[:80]!r}" for line in lines if line.lstrip().startswith(FORGED[:6])]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self.is_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.is_script = tag == "script"
        self.found += [f"<{tag}>"] if MARK in tag else []
        for name, value in attrs:
            text = (value or "").strip().lower()
            loads = name in ("href", "src", "action", "formaction", "xlink:href", "data", "srcdoc", "poster")
            runs = name.startswith("on") or (loads and re.match(r"(javascript|data:text|vbscript):", text))
            if MARK in name or (runs and MARK in text):
                self.found.append(f"<{tag} {name}={text[:60]!r}>")

    def handle_endtag(self, tag: str) -> None:
        self.is_script = False

    def handle_comment(self, data: str) -> None:
        if "<script" in data.lower() and MARK in data:
            self.found.append(f"in a comment: {data[:60]!r}")

    def handle_data(self, data: str) -> None:
        if self.is_script and MARK in _STRINGS.sub("", data):
            self.found.append(f"in a script: {data[:60]!r}")


def page(text: str) -> list[str]:
    """Elements, handlers, addresses and scripts of a page that a text from outside made."""
    reader = _Page()
    reader.feed(text)
    reader.close()
    return reader.found


def script(text: str) -> list[str]:
    """What a file of data in JavaScript holds outside of its strings, or what ends a line of it."""
    found = [f"outside of a string: {text[:60]!r}"] if MARK in _STRINGS.sub("", text) else []
    return found + [f"{c!r} in a script" for c in "\u2028\u2029" if c in text]


def spreadsheet(text: str) -> list[str]:
    """Cells that begin as a formula, for any reader: by lines and separators, quoted or not."""
    found = []
    for separator in ",;\t":  # quotes hold only where the separator is the file's own
        cells = [
            cell for row in csv.reader(io.StringIO(text, newline=None), delimiter=separator) for cell in row
        ]
        if separator != ",":
            cells += [cell for line in re.split(r"[\r\n]+", text) for cell in line.split(separator)]
        shown = (cell.lstrip('" \u3000') for cell in cells)
        found += [cell[:60] for cell in shown if cell.startswith(_FORMULA) and MARK in cell]
    return found


def sql(text: str) -> list[str]:
    """What statements do beside making views of their own names; run in a base of its own."""
    base = duckdb.connect()
    base.execute("create table canary (x int)")
    found = [f"outside of a string: {text[:60]!r}"] if MARK in re.sub(r"'(?:''|[^'])*'", "", text) else []
    try:
        base.execute(text)
    except duckdb.Error as error:
        found.append(str(error)[:200])
    names = {row[0] for row in base.sql("select table_name from information_schema.tables").fetchall()}
    return found + (
        [f"tables are {sorted(names)}"] if names - {"records", "audit", "qa"} != {"canary"} else []
    )


def metrics(text: str) -> list[str]:
    """Lines that are no metric."""
    return [line[:80] for line in text.split("\n") if not _METRIC.fullmatch(line)]


def json_lines(text: str) -> list[str]:
    """Lines that are no JSON, or hold what a terminal obeys."""
    found = terminal(text)
    for line in filter(None, text.split("\n")):
        try:
            json.loads(line)
        except ValueError:
            found.append(f"no JSON: {line[:80]!r}")
    return found


def name(path: str) -> list[str]:
    """Characters that no name of a file should have that is made here."""
    return [] if re.fullmatch(r"[\w./=-]+", path, re.ASCII) else [path]
