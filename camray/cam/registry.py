"""Every method by name, and the written form of a method with options.

Flows in: `gradcam`, `scorecam(channels=64)`. Flows out: the function and what the engine must give it.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from camray.cam import gradients
from camray.errors import UsageError

Needs = Literal["activation", "gradient", "scene"]


@dataclass(frozen=True)
class Entry:
    """`run` takes A, or A and G, or the whole scene of an explanation."""

    run: Callable[..., Any]
    needs: Needs
    per_class: bool = True
    cost: str = "1"  # in forwards, for the table of methods
    affine_head: bool = False


METHODS: Mapping[str, Entry] = MappingProxyType(
    {
        "cam": Entry(gradients.cam, "gradient", affine_head=True),
        "gradcam": Entry(gradients.gradcam, "gradient"),
        "gradcam++": Entry(gradients.gradcam_plus_plus, "gradient"),
        "xgradcam": Entry(gradients.xgradcam, "gradient"),
        "hirescam": Entry(gradients.hirescam, "gradient"),
        "gradcam-elementwise": Entry(gradients.gradcam_elementwise, "gradient"),
        "layercam": Entry(gradients.layercam, "gradient"),
    }
)


@dataclass(frozen=True)
class Method:
    """A method as asked for; `text` is its written form and the key of its maps."""

    text: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def entry(self) -> Entry:
        """What the registry says of it."""
        return METHODS[self.name]


def parse_method(text: str) -> Method:
    """Read `name` or `name(option=value, ...)`; refuses unknown names with the nearest known one."""
    name, _, rest = text.partition("(")
    name = name.strip().lower()
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        fix = f"did you mean {near[0]}?" if near else f"one of {', '.join(METHODS)}"
        raise UsageError("method", f"{name!r} is unknown", fix)
    if not rest:
        return Method(text, name)
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        keywords = call.keywords if isinstance(call, ast.Call) and not call.args else []
        options = {str(k.arg): ast.literal_eval(k.value) for k in keywords}
    except (SyntaxError, ValueError):
        raise UsageError("method", f"{text!r} cannot be read", "for example scorecam(channels=64)") from None
    return Method(text, name, options)
