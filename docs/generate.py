"""The generated parts of the documents: each follows from the code that it describes.

`make docs` writes them into the pages, between `<!-- generated: NAME -->` and `<!-- end -->`;
`tests/test_docs.py` fails where a page is behind the code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# name of the block -> the page that holds it, and what gives its text
BLOCKS: dict[str, tuple[str, Callable[[], str]]] = {}


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
