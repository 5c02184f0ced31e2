"""Every method by name, and the written form of a method with options.

Flows in: formulas, each registered where it stands by `@method`; `gradcam`, `scorecam(channels=64)`. Flows
out: the function, what the engine must give it, and what a reader should know of it. A new method is a new
file in this folder: the package loads all of them.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from camray.errors import UsageError

Needs = Literal["activation", "gradient", "layers", "scene"]
Formula = TypeVar("Formula", bound=Callable[..., Any])
_METHODS: dict[str, Entry] = {}
METHODS: Mapping[str, Entry] = MappingProxyType(_METHODS)


@dataclass(frozen=True)
class Entry:
    """`run` takes A, or A and G, or both by layer for several layers, or the whole scene of an explanation.

    `graph`: a scene method that reads gradients of the shared forward. `cost` counts forwards of one
    image: C channels, K targets, n samples. `affine`: the head must be affine in the layer.
    """

    run: Callable[..., Any]
    needs: Needs
    cost: str
    doc: str  # what it is, in a few words
    when: str = ""  # to use it
    paper: str = ""
    per_class: bool = True
    graph: bool = False
    affine: bool = False
    biases: bool = False  # differentiates the whole network from the shared forward

    @property
    def options(self) -> dict[str, Any] | None:
        """The type of every option by its name; None where any option is passed on to another library."""
        parameters = inspect.signature(self.run).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return None
        hints = get_type_hints(self.run)
        known = {p.name: hints[p.name] for p in parameters if p.default is not p.empty}
        if known.pop("combine", None):
            known["eigen_smooth"] = bool
        return known | {"aug_smooth": bool}


def method(
    name: str, *, needs: Needs, cost: str, doc: str, when: str = "", paper: str = "", **kind: bool
) -> Callable[[Formula], Formula]:
    """Register a formula under this name; the arguments are the fields of its `Entry`."""

    def register(run: Formula) -> Formula:
        if name in _METHODS:
            raise ValueError(f"two methods are called {name}")
        _METHODS[name] = Entry(run, needs, cost, doc, when, paper, **kind)
        return run

    return register


@dataclass(frozen=True)
class Method:
    """A method as asked for; `text` is its written form and the key of its maps."""

    text: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spelled(self) -> str:
        """The one spelling of what was asked for: lower case, options sorted, as Python writes them."""
        name = f"{self.name}:{self.options['name']}" if self.name == "captum" else self.name
        options = {k: v for k, v in sorted(self.options.items()) if (self.name, k) != ("captum", "name")}
        return name + (f"({', '.join(f'{k}={v!r}' for k, v in options.items())})" if options else "")

    @property
    def entry(self) -> Entry:
        """What the registry says of it."""
        return METHODS[self.name]

    @property
    def averages_views(self) -> bool:
        """Whether its maps are a mean over altered images."""
        return bool(self.options.get("aug_smooth"))

    def of_one_view(self) -> Method:
        """Give the method that explains each of these images."""
        return replace(self, options={k: v for k, v in self.options.items() if k != "aug_smooth"})


def parse_method(text: str) -> Method:
    """Read `name` or `name(option=value, ...)`; refuses unknown names with the nearest known one."""
    name, bracket, rest = text.partition("(")
    name, _, inner = name.strip().partition(":")
    name, fixed = name.lower(), {"name": inner} if inner else {}
    if (name == "captum") != bool(inner):
        raise UsageError("method", f"{text!r} is unknown", "for example captum:IntegratedGradients")
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        fix = f"did you mean {near[0]}?" if near else f"one of {', '.join(sorted(METHODS))}"
        raise UsageError("method", f"{name!r} is unknown", fix)
    if not bracket:
        return Method(text, name, fixed)
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("options are NAME=VALUE")
        options = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise UsageError("method", f"{text!r} cannot be read", "for example scorecam(channels=64)") from None
    known = METHODS[name].options
    if known is not None:
        _check_options(text, known, options)
    return Method(text, name, {**fixed, **options})


def _check_options(text: str, known: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse options that a method does not have, and values that are not what it takes."""
    for name, value in options.items():
        if name not in known:
            raise UsageError("method", f"{text}: no option {name!r}", f"one of {', '.join(sorted(known))}")
        kind = known[name]
        fits = isinstance(value, float | int if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise UsageError("method", f"{text}: {name} is {value!r}", f"give {_spoken(kind)}")


def _spoken(kind: Any) -> str:
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "a name in quotes"}
    return words.get(kind) or words.get(get_args(kind)[0], str(kind))
