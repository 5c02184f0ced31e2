"""Every method by name, and the written form of a method with options.

Flows in: `gradcam`, `scorecam(channels=64)`. Flows out: the function and what the engine must give it.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args, get_type_hints

from torch import Tensor

from camray.cam import (
    ablation,
    attention,
    contrast,
    controls,
    decompositions,
    gradients,
    perturbation,
    pixels,
)
from camray.cam.scene import Scene
from camray.errors import UsageError

Needs = Literal["activation", "gradient", "scene"]


@dataclass(frozen=True)
class Entry:
    """`run` takes A, or A and G, or the whole scene of an explanation.

    `graph`: a scene method that reads gradients of the shared forward. `cost` counts forwards of one
    image: C channels, K targets, n samples. `affine`: the head must be affine in the layer.
    """

    run: Callable[..., Any]
    needs: Needs
    cost: str
    per_class: bool = True
    graph: bool = False
    affine: bool = False
    biases: bool = False  # differentiates the whole network from the shared forward
    pixels: bool = False  # maps are born at the resolution of the image


def _from_inputs(scene: Scene) -> Tensor:
    return controls.sobel(scene.inputs)[:, None]


METHODS: Mapping[str, Entry] = MappingProxyType(
    {
        "cam": Entry(gradients.cam, "gradient", "1", affine=True),
        "gradcam": Entry(gradients.gradcam, "gradient", "1"),
        "gradcam++": Entry(gradients.gradcam_plus_plus, "gradient", "1"),
        "xgradcam": Entry(gradients.xgradcam, "gradient", "1"),
        "hirescam": Entry(gradients.hirescam, "gradient", "1"),
        "gradcam-elementwise": Entry(gradients.gradcam_elementwise, "gradient", "1"),
        "layercam": Entry(gradients.layercam, "gradient", "1"),
        "eigengradcam": Entry(decompositions.eigengradcam, "gradient", "1"),
        "segeigencam": Entry(decompositions.segeigencam, "gradient", "1"),
        "finercam": Entry(contrast.finercam, "scene", "1", graph=True),
        "shapleycam": Entry(contrast.shapleycam, "scene", "2"),
        "smoothgradcam++": Entry(contrast.smoothgradcam_plus_plus, "scene", "1 + n"),
        "eigencam": Entry(decompositions.eigencam, "activation", "1", per_class=False),
        "kpcacam": Entry(decompositions.kpcacam, "activation", "1", per_class=False),
        "fem": Entry(decompositions.fem, "activation", "1", per_class=False),
        "dff": Entry(decompositions.dff, "activation", "1", per_class=False),
        "scorecam": Entry(perturbation.scorecam, "scene", "1 + C"),
        "sscam": Entry(perturbation.sscam, "scene", "1 + n C"),
        "iscam": Entry(perturbation.iscam, "scene", "1 + n C"),
        "ablationcam": Entry(ablation.ablationcam, "scene", "1 to 1 + C tails", graph=True),
        "fullgrad": Entry(pixels.fullgrad, "scene", "1 + 2 K", biases=True, pixels=True),
        "guidedbackprop": Entry(pixels.guidedbackprop, "scene", "2 + 2 K", pixels=True),
        "guided-gradcam": Entry(pixels.guided_gradcam, "scene", "2 + 2 K", graph=True, pixels=True),
        "rollout": Entry(attention.rollout, "scene", "2", per_class=False),
        "chefer": Entry(attention.gradient_attention, "scene", "2 + 2 K"),
        "legrad": Entry(attention.legrad, "scene", "2 + K"),
        "random": Entry(controls.random, "activation", "1", per_class=False),
        "center": Entry(controls.center, "activation", "1", per_class=False),
        "sobel": Entry(_from_inputs, "scene", "1", per_class=False, pixels=True),
        "refinecam": Entry(contrast.refinecam, "gradient", "1"),  # over layers: see the engine
        "captum": Entry(pixels.captum_attribution, "scene", "captum's", pixels=True),
    }
)


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


def parse_method(text: str) -> Method:
    """Read `name` or `name(option=value, ...)`; refuses unknown names with the nearest known one."""
    name, bracket, rest = text.partition("(")
    name, _, inner = name.strip().partition(":")
    name, fixed = name.lower(), {"name": inner} if inner else {}
    if (name == "captum") != bool(inner):
        raise UsageError("method", f"{text!r} is unknown", "for example captum:IntegratedGradients")
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        fix = f"did you mean {near[0]}?" if near else f"one of {', '.join(METHODS)}"
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
    _check_options(text, METHODS[name].run, options)
    return Method(text, name, {**fixed, **options})


def _check_options(text: str, run: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that a method does not have, and values that are not what it takes."""
    parameters = inspect.signature(run).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):  # captum's own
        return
    hints = get_type_hints(run)
    known = {p.name: hints[p.name] for p in parameters if p.default is not p.empty}
    if known.pop("combine", None):
        known["eigen_smooth"] = bool
    known["aug_smooth"] = bool
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
