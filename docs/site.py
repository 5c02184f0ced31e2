"""The site of the documents: pages that lie outside docs/ become its pages, links to code become plain words.

`mkdocs.yml` names this file as a hook; `make site` builds the site.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
    "deploy/RUNBOOK.md": "RUNBOOK.md",
    "demo/README.md": "demo.md",
}
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#:\s]+)((?:#[^)]*)?)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie elsewhere in the repository."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=led(source, (ROOT / source).read_text())))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Mend the links of a page of docs/ that lead out of it."""
    return markdown if page.file.src_uri in OUTSIDE.values() else led(f"docs/{page.file.src_uri}", markdown)


def led(source: str, markdown: str) -> str:
    """Turn the links of `source`, a path of the repository, into links of the site."""

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found.groups()
        there = (ROOT / source).parent.joinpath(target).resolve().relative_to(ROOT)
        if there.parts[0] == "docs" and there.suffix != ".py":
            return f"[{text}]({PurePosixPath(*there.parts[1:])}{anchor})"
        page = OUTSIDE.get(there.as_posix())
        return f"[{text}]({page}{anchor})" if page else f"`{there.as_posix()}`" if "`" not in text else text

    return _LINK.sub(link, markdown)
