"""From what people write to a checked `Config`: defaults, then the TOML file, then options by dotted name.

`to_toml` goes back. Nothing else reads option text or configuration files.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import tomllib
from collections.abc import Iterable
from operator import attrgetter
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from camray.config import Config, Setting
from camray.errors import UsageError, printable

_LARGEST_TOML = 2**20
_NUMBERS = "one number or a list of them"
_EXPECTED = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", dict[str, Any]: "a table",
    tuple[str, ...]: "a list of texts", tuple[int, ...]: _NUMBERS, tuple[float, ...]: _NUMBERS,
    int | float: "a share (1% or 0.01) or a number of images (25)",
}  # fmt: skip


def _declared() -> dict[str, Setting]:
    """Find what `camray.config` says of every setting, by dotted name."""
    found: dict[str, Setting] = {}
    sections = get_type_hints(Config)
    for top in dataclasses.fields(Config):
        in_section = dataclasses.is_dataclass(sections[top.name])
        owner = sections[top.name] if in_section else Config
        kinds, defaults = get_type_hints(owner), owner()
        for leaf in dataclasses.fields(owner) if in_section else (top,):
            name, said = f"{top.name}.{leaf.name}" if in_section else leaf.name, leaf.metadata["setting"]
            found[name] = dataclasses.replace(
                said, name=name, kind=_without_none(kinds[leaf.name]), default=getattr(defaults, leaf.name),
                group=top.metadata.get("group", ""), verbs=said.verbs or top.metadata["verbs"],
                result=top.metadata.get("result", False) if said.result is None else said.result,
            )  # fmt: skip
    return found


def _without_none(kind: Any) -> Any:
    parts = [part for part in get_args(kind) if part is not NoneType]
    return parts[0] if NoneType in get_args(kind) else kind


SETTINGS = _declared()


def load(path: str | None, overrides: dict[str, Any], verb: str = "explain") -> Config:
    """Build a command's config: its defaults, the TOML file, `overrides` by dotted name.

    Raises:
        UsageError: an unknown or ill-typed key, an unreadable file, a value out of range.
    """
    config = Config()
    own = {name: setting.own[verb] for name, setting in SETTINGS.items() if verb in setting.own}
    for origin, values in (("default", own), ("config", _read_toml(path)), ("option", overrides)):
        for name, value in values.items():
            config = _replaced(config, name, value, origin)
    _check(config)
    return config


def check_use(names: Iterable[str], verb: str) -> None:
    """Refuse settings that a command would take and ignore.

    Raises:
        UsageError: a setting of other commands.
    """
    for name in names:
        if name in SETTINGS and verb not in SETTINGS[name].verbs.split():
            said = f"is no setting of `camray {verb}`, where it would do nothing"
            raise UsageError(name, said, f"leave it out: it is of {SETTINGS[name].verbs}")


def to_toml(config: Config) -> str:
    """Write every setting that has a value, so that `load` reads the same config back.

    Raises:
        UsageError: an argument of the model that TOML has no form for.
    """
    lines, section = [], ""
    for name in SETTINGS:
        head, _, leaf = name.rpartition(".")
        if head != section:
            lines += ["", f"[{head}]"]
            section = head
        value = attrgetter(name)(config)
        if value is not None:
            lines.append(f"{leaf} = {in_toml(name, value)}")
    return "\n".join(lines) + "\n"


def in_toml(name: str, value: Any) -> str:
    """Write a value as TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(in_toml(name, item) for item in value)}]"
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return f"{{{', '.join(f'{in_toml(name, k)} = {in_toml(name, v)}' for k, v in value.items())}}}"
    raise UsageError(name, printable(f"{value!r} has no form in TOML"), "give it as an option")


def _read_toml(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_TOML + 1)
        if len(content) > _LARGEST_TOML:
            raise UsageError("--config", f"{path}: more than {_LARGEST_TOML:,} bytes", "give a TOML file")
        tree = tomllib.loads(content.decode())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or f"not TOML: {error}"
        raise UsageError("--config", printable(f"{path}: {why}"), "give a TOML file of settings") from None
    except RecursionError:
        raise UsageError("--config", f"{path}: nested too deeply", "give a TOML file of settings") from None
    flat: dict[str, Any] = {}
    sections = {name.partition(".")[0] for name in SETTINGS if "." in name}
    for key, value in tree.items():
        is_section = isinstance(value, dict) and (value or key in sections)
        flat |= {f"{key}.{leaf}": item for leaf, item in value.items()} if is_section else {key: value}
    return flat


def _replaced(config: Config, name: str, value: Any, origin: str) -> Config:
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, 1)
        fix = f"did you mean {near[0]}?" if near else "see `camray explain --help`"
        raise UsageError(f"{origin} {name}", "no such setting", fix)
    section, _, leaf = name.rpartition(".")
    coerced = _coerced(SETTINGS[name], value)
    if isinstance(coerced, dict):  # a table: options add to the file's
        coerced = attrgetter(name)(config) | coerced
    if not section:
        return dataclasses.replace(config, **{leaf: coerced})
    owner: Any = getattr(config, section)
    return dataclasses.replace(config, **{section: dataclasses.replace(owner, **{leaf: coerced})})


def _coerced(setting: Setting, value: Any) -> Any:
    """Check a value against its type: integers pass as floats, lists as tuples, a number as a list of one."""
    from pydantic import TypeAdapter, ValidationError  # late: --help needs none of it

    if value is None and setting.default is None:
        return None
    if setting.kind == int | float and isinstance(value, str):
        return _failure_budget(value)
    given = tuple(value) if isinstance(value, list) else value
    given = os.fspath(given) if isinstance(given, os.PathLike) else given
    if expected_of(setting.kind) == _NUMBERS and not (isinstance(given, tuple) and given):
        given = (given,)  # an empty list is no number either
    if (
        setting.name in ("method.target", "archive.frames")
        and isinstance(value, int)
        and not isinstance(value, bool)
    ):
        given = str(value)
    try:
        return TypeAdapter(setting.kind, config={"strict": True}).validate_python(given)
    except ValidationError:
        fix = f"give {expected_of(setting.kind)}"
        raise UsageError(setting.name, printable(f"{value!r} will not do"), fix) from None


def expected_of(kind: Any) -> str:
    """Say what values a type has."""
    return f"one of {', '.join(get_args(kind))}" if get_origin(kind) is Literal else _EXPECTED[kind]


def _failure_budget(text: str) -> int | float:
    """Read how many failures are fine: a whole number counts images, `1%` and `0.01` are shares of them."""
    number = text.strip()
    try:
        if number.endswith("%"):
            return float(number[:-1]) / 100
        return int(number) if number.lstrip("+-").isdecimal() else float(number)
    except ValueError:
        fix = f"give {_EXPECTED[int | float]}"
        raise UsageError("--max-failed", printable(f"{text!r} will not do"), fix) from None


def _check(config: Config) -> None:
    """Refuse values out of range, each by name, and settings that do not go together."""
    for name, setting in SETTINGS.items():
        value = attrgetter(name)(config)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None:
                _check_range(setting, number)
    a, r, p = config.archive, config.run, config.preprocess
    if r.max_actors is not None:
        _check_range(dataclasses.replace(SETTINGS["run.max_actors"], low=r.actors or 1), r.max_actors)
    for name, value in config.compare.budget.items():
        if name != "forwards" or not isinstance(value, int) or value < 1:
            raise UsageError("--budget", printable(f"{name}={value!r} will not do"), "forwards=500000")
    if a.limit is not None and a.sample is not None:
        raise UsageError("--sample", "given together with --limit", "give one of the two")
    if not re.fullmatch("first|middle|all|[0-9]{1,9}", a.frames):
        raise UsageError(
            "--frames", printable(f"{a.frames!r} will not do"), "first, middle, all, or a number from 0"
        )
    if p.resize is not None and p.crop_pct is not None:
        raise UsageError("--crop-pct", "given together with --resize", "give one of the two")
    for name, sizes in (("--input-size", p.input_size), ("--resize", p.resize)):
        if sizes is not None and len(sizes) > 2:
            raise UsageError(name, f"{len(sizes)} numbers", "give one, or HEIGHTxWIDTH")


def _check_range(setting: Setting, number: float) -> None:
    if setting.kind == int | float and isinstance(number, int):
        setting = dataclasses.replace(setting, high=None)  # a count of images; only a share ends at 1
    low, high = setting.low, setting.high
    if low is not None and not low <= number <= (math.inf if high is None else high):  # NaN is outside
        name, fix = setting.flag or setting.name, f"give a value {setting.span}"
        raise UsageError(name, f"{number} is out of range", fix)
