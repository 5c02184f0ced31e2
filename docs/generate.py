"""The generated parts of the documents: each follows from the code that it describes.

`make docs` writes them into the pages, between `<!-- generated: NAME -->` and `<!-- end -->`;
`tests/test_docs.py` fails where a page is behind the code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from camray.archive.columns import PATHS
from camray.archive.names import TABLE_ENDINGS
from camray.archive.readers import readers
from camray.cli.main import verbs
from camray.options import SETTINGS, expected_of
from camray.records import COLUMNS

ROOT = Path(__file__).resolve().parents[1]

_COLUMNS = ("setting", "option", "value", "default", "range", "commands", "decides a result", "what it is")
_ROW = "| " + " | ".join(["{}"] * len(_COLUMNS)) + " |"


def settings_tables() -> str:
    """Give the settings by section, as `camray.config` declares them."""
    lines: list[str] = []
    heading = ""
    for s in SETTINGS.values():
        section = s.name.rpartition(".")[0] or "at the top"
        if section != heading:
            lines += ["", f"## {section}", "", _ROW.format(*_COLUMNS), _ROW.format(*["---"] * len(_COLUMNS))]
            heading = section
        default = ", ".join(s.default) if isinstance(s.default, tuple) else s.shown("explain")
        own = [f"{verb}: {s.shown(verb)}" for verb in s.own]
        told = [f"{verb}: {text}" for verb, text in s.told.items()]
        cells = (
            f"`{s.name}`", f"`{s.option}`" if s.option else "", expected_of(s.kind),
            "; ".join([default, *own]), s.span, s.verbs.replace(" ", ", ") if s.option else "",
            "yes" if s.result else "", "; ".join([s.text, *told]),
        )  # fmt: skip
        lines.append(_ROW.format(*(cell.replace("|", "\\|") for cell in cells)))
    return "\n".join(lines)


def methods() -> str:
    """Tell of every method: what it is, what it costs, its options; then the papers."""
    from camray.cam import METHODS

    needs = ("gradient", "layers", "scene", "activation")
    entries = sorted(METHODS.items(), key=lambda m: (not m[1].per_class, needs.index(m[1].needs)))
    lines = ["| method | what it is | cost | when | options |", "|---|---|---|---|---|"]
    for name, entry in entries:
        written = f"`{name}`" if entry.options is not None else f"`{name}:<Name>`"
        free = "" if entry.per_class else " (free)"
        options = ", ".join(f"`{o}`" for o in entry.options or () if o not in ("aug_smooth", "eigen_smooth"))
        lines.append(f"| {written}{free} | {entry.doc} | {entry.cost} | {entry.when} | {options} |")
    papers = [f"* `{name}`: {entry.paper}." for name, entry in entries if entry.paper]
    return "\n".join([*lines, "", "The papers:", "", *papers])


def record_columns() -> str:
    """Give the table of the columns of a record."""
    rows = [f"| `{c.name}` | {_type_name(c.type)} | {c.unit} | {c.doc} |" for c in COLUMNS]
    return "\n".join(["| column | type | unit, range | meaning |", "|---|---|---|---|", *rows])


def _type_name(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_type_name(kind.value_type)}"
    if pa.types.is_struct(kind):
        return f"({', '.join(field.name for field in kind)})"
    return str(kind)


def metrics() -> str:
    """Tell of every metric: its formula, range, good direction, price, and how it misleads."""
    from camray.measure.catalogue import METRICS
    from camray.measure.localisation import INSIDE
    from camray.measure.scores import Settings

    lines = ["| metric | group | formula | range | | F | how it misleads |", "|---|---|---|---|---|---|---|"]
    for name, metric in METRICS.items():
        low, high = ("∞" if end == math.inf else f"{end:g}" for end in metric.range)
        arrow = {"high": "↑", "low": "↓", None: ""}[metric.direction]
        price = metric.cost(Settings()) or ""
        weakness = metric.weakness.removeprefix(f"{INSIDE}; ").rstrip(".")
        facts = (metric.group, metric.formula, f"{low} .. {high}", arrow, price, weakness)
        lines.append(f"| `{name}` | {' | '.join(map(str, facts))} |")
    return "\n".join(lines)


def formats() -> str:
    """Say what an archive may be: a folder, each format of packed files, a list."""
    tables = ", ".join(f"`.{ending}`" for ending in TABLE_ENDINGS if ending != "parquet")
    metadata = "`metadata.csv`, `.jsonl`, `.parquet` with a `file_name` column; sidecars; the class folder"
    paths = ", ".join(f"`{name}`" for name in PATHS[:3])
    rows = [("a folder", "every file below it, and every packed file", metadata)]
    rows += [(", ".join(f"`{s}`" for s in r.suffixes), r.images, r.annotations) for r in readers().values()]
    rows.append(
        (
            f"a list: {tables}, `.parquet` without a column of images",
            f"the paths in the column {paths}, …",
            "its columns",
        )
    )
    head = ["| ARCHIVE | images | label, boxes, mask |", "|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


def commands() -> str:
    """Give every command with the line that its --help begins with."""
    rows = [f"| `camray {verb.name} {verb.given}` | {verb.text} |" for verb in verbs()]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


# name of the block -> the page that holds it, and what gives its text
BLOCKS: dict[str, tuple[str, Callable[[], str]]] = {
    "formats": ("docs/archives.md", formats),
    "commands": ("README.md", commands),
    "settings": ("docs/settings.md", settings_tables),
    "methods": ("docs/methods.md", methods),
    "record columns": ("docs/format.md", record_columns),
    "metrics": ("docs/comparison.md", metrics),
}


def filled(name: str) -> tuple[Path, str, str]:
    """Give the page of a block, its text as it is, and its text with the block as it must be."""
    place, text_of = BLOCKS[name]
    page = ROOT / place
    before = page.read_text("utf-8")
    pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.S)
    if not pattern.search(before):
        raise ValueError(f"{place} has no block {name}")
    return page, before, pattern.sub(lambda m: f"{m[1]}{text_of().strip()}\n{m[2]}", before)


def main() -> None:
    """Write every block."""
    for name in BLOCKS:
        page, _, after = filled(name)
        page.write_text(after, "utf-8")


if __name__ == "__main__":
    main()
