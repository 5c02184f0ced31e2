"""Names of classes: from a file, timm's tables or class folders; and a class found by its name.

txt      one name a line, in class order ("n01440764 tench, Tinca tinca" loses the id)
csv      a column of names (name, label, class ...), in order of a column index where there is one
json     a list; {"0": "tench"}; {"0": ["n01440764", "tench"]}; {"tench": 0}; {"n01440764": "tench"}
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from camray.errors import ModelError, printable
from camray.models.libraries import timm

IMAGENET_CLASSES = 1000
_TABLES = ("imagenet", "imagenet-12k", "imagenet-21k", "imagenet-21k-miil", "imagenet-22k")
_WNID = re.compile(r"n\d{8}")
_NAME_COLUMNS = ("name", "label", "class", "class_name", "label_name", "category", "description")
_INDEX_COLUMNS = ("index", "class_id", "idx", "id", "label_id", "class_index")
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "eval", "images"}


def read_class_names(written: str, num_classes: int) -> tuple[str, ...]:
    """Read the names from a file, or from timm's table of that name; their number must be that of the head.

    Raises:
        ModelError: no such file, no names in it, or another number of them.
    """
    path = Path(written).expanduser()
    if written in _TABLES and not path.exists():
        info = timm.data.ImageNetInfo("imagenet-1k" if written == "imagenet" else written)
        names = tuple(info.index_to_description(i) for i in range(info.num_classes()))
    else:
        names = _from_file(path, written)
    if len(names) != num_classes:
        raise ModelError(
            "--class-names", f"{len(names)} names for {num_classes} classes",
            "give one name for each class, in the order of the head",
        )  # fmt: skip
    return names


def names_of_folders(folders: Iterable[str], num_classes: int) -> tuple[str, ...]:
    """Take sorted top folders as class names where there are as many as classes, and they are no splits."""
    names = tuple(sorted(set(folders)))
    fits = len(names) == num_classes and not {n.lower() for n in names} & _SPLITS
    return names if fits else ()


@cache
def imagenet_names() -> tuple[str, ...]:
    """Name the 1000 classes of ImageNet, from timm's own table."""
    info = timm.data.ImageNetInfo()
    return tuple(info.index_to_description(i) for i in range(IMAGENET_CLASSES))


def label_lookup(class_names: tuple[str, ...]) -> dict[str, int]:
    """Map what an archive may call a class to its index: full name, first synonym, WordNet id.

    A name that several classes have is left out: ImageNet's `crane` is a bird and a machine.
    """
    firsts = [name.partition(",")[0] for name in class_names]
    shared, shared_first = (repeated(names) for names in (class_names, firsts))
    lookup = {name: i for i, name in enumerate(class_names) if name not in shared}
    if _is_imagenet(class_names):
        info = timm.data.ImageNetInfo()
        lookup |= {info.index_to_label_name(i): i for i in range(IMAGENET_CLASSES)}
    for index, name in enumerate(firsts):
        if name not in shared and name not in shared_first:
            lookup.setdefault(name, index)
    return lookup


def classes_named(label: str, class_names: tuple[str, ...]) -> list[int]:
    """Give every class of this name, in full or by its first synonym."""
    return [i for i, name in enumerate(class_names) if label in (name, name.partition(",")[0])]


def target_by_index(target: str, class_names: tuple[str, ...]) -> str:
    """Turn a class given by its name into its index; any other target stays as it is.

    Raises:
        ModelError: a name that several classes have.
    """
    if target.isdecimal() or target in ("predicted", "label") or not class_names:
        return target
    exact = [i for i, name in enumerate(class_names) if name == target]
    loose = [i for i, name in enumerate(class_names) if name.partition(",")[0].lower() == target.lower()]
    found = exact or loose
    if len(found) > 1:
        raise ModelError(
            "--target", f"{len(found)} classes are named {printable(target)!r}",
            f"give an index: {', '.join(str(i) for i in found[:5])}",
        )  # fmt: skip
    if found:
        return str(found[0])
    wnid = label_lookup(class_names).get(target)
    return target if wnid is None else str(wnid)


def _is_imagenet(names: tuple[str, ...]) -> bool:
    """Tell ImageNet's classes, in its order, whichever of the usual tables wrote their names."""
    if len(names) != IMAGENET_CLASSES:
        return False
    pairs = zip(names, imagenet_names(), strict=True)
    return sum(_first(a) == _first(b) for a, b in pairs) > 0.8 * IMAGENET_CLASSES


def repeated(names: Iterable[str]) -> set[str]:
    """Give the names that occur more than once."""
    return {name for name, count in Counter(names).items() if count > 1}


def _first(name: str) -> str:
    return name.partition(",")[0].replace("_", " ").strip().lower()


def _from_file(path: Path, written: str) -> tuple[str, ...]:
    try:
        text = path.read_text("utf-8-sig")
        kind = path.suffix.lower()
        if kind == ".json":
            names = _from_json(json.loads(text))
        elif kind in (".csv", ".tsv"):
            names = _from_rows(list(csv.reader(text.splitlines(), delimiter="\t" if kind == ".tsv" else ",")))
        else:
            names = _from_lines(text.splitlines())
        empty = next((i for i, name in enumerate(names) if not name.strip()), None)
        if empty is not None:
            raise ValueError(f"the name of class {empty} is empty")
    except (OSError, ValueError, TypeError, csv.Error, RecursionError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ModelError(
            "--class-names", printable(f"{written}: {why}"),
            f"give a txt, csv or json of names, or {', '.join(_TABLES[:2])} ...",
        ) from None  # fmt: skip
    return names


def _from_lines(lines: list[str]) -> tuple[str, ...]:
    kept = [line.strip() for line in lines if line.strip()]
    if kept and all(_WNID.match(line) and " " in line for line in kept):
        return tuple(line.partition(" ")[2].strip() for line in kept)
    return tuple(kept)


def _from_rows(rows: list[list[str]]) -> tuple[str, ...]:
    rows = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    if not rows:
        return ()
    name, index, body = next(found for rule in _TABLE_RULES if (found := rule(rows)))
    if any(len(row) <= max(name, index or 0) for row in body):
        raise ValueError("a line has too few cells")
    if index is None:
        return tuple(row[name] for row in body)
    return _in_order({row[index]: row[name] for row in body}, len(body))


_Columns = tuple[int, int | None, list[list[str]]]  # of the names, of the indices, and the rows to read


def _by_header(rows: list[list[str]]) -> _Columns | None:
    header = [cell.lower() for cell in rows[0]]
    name, index = (
        next((header.index(known) for known in names if known in header), None)
        for names in (_NAME_COLUMNS, _INDEX_COLUMNS)
    )
    return None if name is None else (name, index, rows[1:])


def _by_numbers(rows: list[list[str]]) -> _Columns | None:
    """Take the one of two columns that holds nothing but numbers as the indices of the other."""
    for index in (0, 1):
        if len(rows[0]) == 2 and all(len(row) > index and row[index].isdecimal() for row in rows):
            return 1 - index, index, rows
    return None


def _by_place(rows: list[list[str]]) -> _Columns:
    """Take the last of one or two columns."""
    if len(rows[0]) > 2:
        raise ValueError(f"no column is named {', '.join(_NAME_COLUMNS[:3])}")
    return len(rows[0]) - 1, None, rows


_TABLE_RULES: tuple[Callable[[list[list[str]]], _Columns | None], ...] = (_by_header, _by_numbers, _by_place)


def _from_json(tree: Any) -> tuple[str, ...]:
    if isinstance(tree, list):
        return tuple(_name(item) for item in tree)
    if not isinstance(tree, dict):
        raise ValueError("it is neither a list nor a dict")
    keys, values = list(tree), list(tree.values())
    if all(isinstance(v, int) and not isinstance(v, bool) for v in values):  # class_to_idx
        return _in_order({str(v): k for k, v in tree.items()}, len(tree))
    if keys and all(_WNID.fullmatch(k) for k in keys):
        return tuple(_name(tree[k]) for k in sorted(keys))
    return _in_order({k: _name(v) for k, v in tree.items()}, len(tree))


def _in_order(by_index: dict[str, str], count: int) -> tuple[str, ...]:
    """Sort by index; indices must be 0..count-1."""
    missing = [i for i in range(count) if str(i) not in by_index]
    if missing:
        raise ValueError(f"{count} names, but none for class {missing[0]}: indices must run 0..{count - 1}")
    return tuple(by_index[str(i)] for i in range(count))


def _name(value: Any) -> str:
    """Take a name, or the last of [wnid, name]."""
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return str(value[-1])
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no name")
    return value
