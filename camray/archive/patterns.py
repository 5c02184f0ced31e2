"""ARCHIVE as a pattern: `data-{000..199}.tar`, `{train,val}/*.zip`, `photos/**/*.jpg`.

    pattern ──expand──> alternatives ──> the folder they share, and what of its files is meant

Braces are a shell's: a list, or a range whose zeros tell its width. `*`, `?` and `[…]` stay inside a folder,
`**` crosses folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import takewhile

from camray.errors import UsageError, printable

_WILD = re.compile(r"[*?]|\[[^]]+\]")
_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_MAX_ALTERNATIVES = 100_000


def is_pattern(path: str) -> bool:
    """Tell whether a path that is not there may be a pattern."""
    return bool(_WILD.search(path) or _BRACE.search(path))


def expand(pattern: str) -> list[str]:
    """Expand the braces; give each alternative once, in order.

    Raises:
        UsageError: there are too many.
    """
    found: dict[str, None] = {}
    pending = [pattern]
    while pending:
        text = pending.pop()
        brace = next((b for b in _BRACE.finditer(text) if len(_choices(b[1])) > 1), None)
        if brace is None:
            found[text] = None
        else:
            rest = (text[: brace.start()] + choice + text[brace.end() :] for choice in _choices(brace[1]))
            pending.extend(reversed(list(rest)))
        if len(found) + len(pending) > _MAX_ALTERNATIVES:
            problem = printable(f"{pattern} stands for more than {_MAX_ALTERNATIVES:,} paths")
            raise UsageError("ARCHIVE", problem, "use a * or a list of paths")
    return list(found)


def _choices(inside: str) -> list[str]:
    """Give what a brace offers; one choice means that it is no brace."""
    if span := _RANGE.fullmatch(inside):
        first, last, step = int(span[1]), int(span[2]), abs(int(span[3] or 1)) or 1
        has_zeros = any(re.match(r"-?0\d", text) for text in (span[1], span[2]))
        width = max(len(span[1]), len(span[2])) if has_zeros else 0
        numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
        return [f"{number:0{width}d}" for number in numbers[: _MAX_ALTERNATIVES + 1]]
    return inside.split(",")


def base_folder(alternatives: Iterable[str]) -> str:
    """Give the deepest folder that holds whatever the alternatives may match; empty: no such folder."""
    shared: list[str] | None = None
    for alternative in alternatives:
        wild = _WILD.search(alternative)
        parts = (alternative[: wild.start()] if wild else alternative).split("/")[:-1]
        shared = (
            parts
            if shared is None
            else [a for a, _ in takewhile(_are_equal, zip(shared, parts, strict=False))]
        )
    return "/".join(shared or [])


def _are_equal(pair: tuple[str, str]) -> bool:
    return pair[0] == pair[1]


def matched(paths: Iterable[str], alternatives: Iterable[str]) -> tuple[set[str], list[str]]:
    """Give the paths that are meant, and the alternatives that no path matches."""
    there, meant, unmatched = list(paths), set[str](), []
    names = set(there)
    for alternative in alternatives:
        if _WILD.search(alternative):
            form = re.compile("".join(_forms(alternative)), re.DOTALL)
            found = {path for path in there if form.fullmatch(path)}
        else:
            found = {alternative} & names
        meant |= found
        unmatched += [] if found else [alternative]
    return meant, unmatched


def _forms(pattern: str) -> Iterator[str]:
    """Translate a glob into a regular expression, part by part."""
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^]]*\]|.", pattern, re.DOTALL):
        if token == "**/":
            yield "(?:.*/)?"
        elif token == "**":
            yield ".*"
        elif token in "*?":
            yield "[^/]" + ("*" if token == "*" else "")
        elif token.startswith("[") and len(token) > 1:
            inside = token[1:-1].replace("\\", "\\\\").replace("[", "\\[").replace("^", "\\^")
            yield f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
        else:
            yield re.escape(token)
