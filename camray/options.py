"""From what people write to a checked `Config`: defaults, then the TOML file, then options by dotted name.

Nothing else reads option text or configuration files.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
from typing import Any

from camray.config import Config
from camray.errors import UsageError, printable

_LARGEST_TOML = 2**20
_SPOKEN = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}


def load(path: str | None, overrides: dict[str, Any], defaults: dict[str, Any] | None = None) -> Config:
    """Build the config: defaults (`defaults` are a command's own), the TOML file, `overrides` by dotted name.

    Raises:
        UsageError: an unknown or ill-typed key, an unreadable file, a value out of range.
    """
    config = Config()
    for origin, values in (("default", defaults or {}), ("config", _read_toml(path)), ("option", overrides)):
        for name, value in values.items():
            config = _replaced(config, name, value, origin)
    _check(config)
    return config


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
    sections = {name.partition(".")[0] for name in _leaf_names() if "." in name}
    for key, value in tree.items():
        if isinstance(value, dict) and (value or key in sections):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    return flat


def _replaced(config: Config, name: str, value: Any, origin: str) -> Config:
    section, dot, leaf = name.rpartition(".")
    owner = getattr(config, section, None) if dot else config
    known = _leaf_names()
    if owner is None or name not in known:
        near = difflib.get_close_matches(name, known, 1)
        fix = f"did you mean {near[0]}?" if near else "see `camray explain --help`"
        raise UsageError(f"{origin} {name}", "no such setting", fix)
    value = _failure_budget(value) if name == "run.max_failed" else value
    change: dict[str, Any] = {leaf or name: _coerced(name, value, _annotation(owner, leaf or name))}
    if isinstance(change.get(leaf), dict):  # a table: options add to the file's
        change[leaf] = getattr(owner, leaf) | change[leaf]
    if dot:
        change = {section: dataclasses.replace(owner, **change)}
    return dataclasses.replace(config, **change)


def _leaf_names() -> list[str]:
    names = []
    for f in dataclasses.fields(Config):
        default = getattr(Config(), f.name)
        inner = dataclasses.fields(default) if dataclasses.is_dataclass(default) else ()
        names += [f"{f.name}.{g.name}" for g in inner] or [f.name]
    return names


def _annotation(owner: Any, leaf: str) -> str:
    return next(str(f.type) for f in dataclasses.fields(owner) if f.name == leaf)


def _coerced(name: str, value: Any, annotation: str) -> Any:
    """Check a value against the field's annotation; integers pass as floats, lists as tuples."""
    if value is None and "None" in annotation:
        return None
    if "tuple[int" in annotation or "tuple[float" in annotation:
        return _numbers(name, value, int if "int" in annotation else float)
    if "tuple" in annotation and isinstance(value, list | tuple):
        return tuple(str(v) for v in value)
    choices = re.findall(r"'([^']*)'", annotation) if "Literal" in annotation else []
    if value in choices or (annotation.startswith("dict") and isinstance(value, dict)):
        return value
    if name == "method.target" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    wanted = {"bool": bool, "int | float": (int, float), "int": int, "float": (int, float), "str": str}
    kind = next((k for k in wanted if annotation.startswith(k)), "")
    if kind and isinstance(value, wanted[kind]) and (kind == "bool" or not isinstance(value, bool)):  # type: ignore[arg-type]
        return float(value) if kind == "float" else value
    expected = f"one of {', '.join(choices)}" if choices else _SPOKEN.get(kind, "a list of texts")
    raise UsageError(name, printable(f"{value!r} will not do"), f"give {expected}")


def _failure_budget(value: Any) -> Any:
    """Read how many failures are fine: a whole number counts images, `1%` and `0.01` are shares of them."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        fix = "give a share (1% or 0.01) or a number of images (25)"
        raise UsageError("--max-failed", printable(f"{value!r} will not do"), fix) from None


def _numbers(name: str, value: Any, kind: type) -> tuple[Any, ...]:
    """Read one number or a list of them."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    wanted = int if kind is int else (int, float)
    if not values or any(isinstance(v, bool) or not isinstance(v, wanted) for v in values):
        raise UsageError(name, printable(f"{value!r} will not do"), "give one number or a list of them")
    return tuple(kind(v) for v in values)


def _check(config: Config) -> None:
    """Refuse values out of range, each by name."""
    a, r, o, p = config.archive, config.run, config.overlay, config.preprocess
    for name, value, low, high in (
        *(("--input-size", n, 1, 8192) for n in p.input_size or ()),
        *(("--resize", n, 1, 16384) for n in p.resize or ()),
        ("--crop-pct", p.crop_pct, 0.01, 1),
        *(("--mean", n, -1e6, 1e6) for n in p.mean or ()),
        *(("--std", n, 1e-6, 1e6) for n in p.std or ()),
        ("--limit", a.limit, 1, None),
        ("--sample", a.sample, 1, None),
        ("--actors", r.actors, 1, None),
        ("--max-actors", r.max_actors, r.actors or 1, None),
        ("--batch-size", r.batch_size, 1, 4096),
        ("--chunk-size", r.chunk_size, 1, 65536),
        ("--top-k", r.top_k, 1, 1000),
        ("--num-classes", config.model.num_classes, 1, None),
        ("--overlay-alpha", o.alpha, 0, 1),
        ("--overlay-gamma", o.gamma, 0.01, 10),
        ("overlay.quality", o.quality, 1, 100),
        ("--overlay-sample", o.sample_per_chunk, 0, None),
        ("--max-pixels", a.max_pixels, 1, None),
        ("archive.max_member_bytes", a.max_member_bytes, 1, None),
        ("--max-failed", r.max_failed, 0, None if isinstance(r.max_failed, int) else 1),
        ("--confirm", config.audit.confirm, 0, 1),
        ("audit.drop", config.audit.drop, 0, 1),
        ("audit.lift", config.audit.lift, 0, 10),
        ("audit.margin", config.audit.margin, 0, 1),
        ("audit.canary", config.audit.canary, 0, 10_000),
    ):
        if value is not None and not low <= value <= (math.inf if high is None else high):  # NaN is outside
            span = f"at least {low}" if high is None else f"between {low} and {high}"
            raise UsageError(name, f"{value} is out of range", f"give a value {span}")
    for name, value in config.compare.budget.items():
        if name != "forwards" or not isinstance(value, int) or value < 1:
            raise UsageError("--budget", printable(f"{name}={value!r} will not do"), "forwards=500000")
    if a.limit is not None and a.sample is not None:
        raise UsageError("--sample", "given together with --limit", "give one of the two")
    if p.resize is not None and p.crop_pct is not None:
        raise UsageError("--crop-pct", "given together with --resize", "give one of the two")
    for name, sizes in (("--input-size", p.input_size), ("--resize", p.resize)):
        if sizes is not None and len(sizes) > 2:
            raise UsageError(name, f"{len(sizes)} numbers", "give one, or HEIGHTxWIDTH")
