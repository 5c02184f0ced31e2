"""What a network returns, read as logits (images, outputs), and the scores people see.

Flows in: a module as its author wrote it. Flows out: the same module whose call gives logits, so that one
engine explains it: a tuple or dict gives its logits, (B, 1, 1, 1) becomes (B, 1), and where the last
operation is a sigmoid or softmax it is undone, because its gradient fades exactly where the model is sure.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from camray.cam.split import pick_output
from camray.config import InputSpec
from camray.errors import ModelError, printable

Form = Literal["logits", "sigmoid", "softmax"]
Activation = Literal["softmax", "sigmoid"]

EPSILON = 1e-7  # a probability nearer to 0 or 1 than this is taken as this: float32 knows no better
_RESHAPES = re.compile(
    r"(View|UnsafeView|ReshapeAlias|Squeeze|Unsqueeze|Clone|ToCopy|Alias|Select|Slice|Permute|Transpose|T)Back"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """How the output of a network is read."""

    form: Form  # what its last operation is
    count: int  # numbers per image
    activation: Activation  # how the numbers become scores

    @property
    def classes(self) -> int:
        """A single number tells two classes apart: 0 where it is low, 1 where it is high."""
        return max(2, self.count)


def read_output(module: nn.Module, spec: InputSpec, activation: str = "auto") -> Reading:
    """Run the network on two grey images and tell how its output is to be read.

    `auto`: sigmoid where the network ends in one or gives a single number, else softmax.

    Raises:
        ModelError: it cannot take such images, or its output is no classification.
    """
    grey = torch.zeros(2, len(spec.mean), spec.height, spec.width, requires_grad=True)
    try:
        with torch.enable_grad():
            raw = pick_tensor(module(grey))
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - the user's own code may raise anything
        size = f"{len(spec.mean)} x {spec.height} x {spec.width}"
        raise ModelError(
            "--model", printable(f"it fails on an image of {size}: {type(error).__name__}: {error}"),
            "--input-size as the model was trained; for a model built for one size, --model-arg img_size=N",
        ) from None  # fmt: skip
    count = _count(module, raw)
    form = _form(raw)
    if form == "softmax" and (count == 1 or activation == "sigmoid"):
        raise ModelError("--activation", "sigmoid, but the network ends in a softmax", "leave it out")
    if activation == "auto":
        activation = "sigmoid" if form == "sigmoid" or count == 1 else "softmax"
    elif activation == "softmax" and (count == 1 or form == "sigmoid"):
        why = "gives one number an image" if count == 1 else "ends in a sigmoid"
        raise ModelError("--activation", f"softmax, but the network {why}", "leave it out")
    return Reading(form, count, "sigmoid" if activation == "sigmoid" else "softmax")


def as_logits(module: nn.Module, form: str, count: int) -> nn.Module:
    """Let every call of the module return logits (B, count)."""

    def read(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
        values = pick_tensor(output).reshape(len(args[0]), count)
        if form == "sigmoid":
            return values.logit(eps=EPSILON)
        return values.clamp(min=EPSILON**2).log() if form == "softmax" else values

    module.register_forward_hook(read)
    return module


def class_scores(logits: Tensor, activation: str) -> Tensor:
    """Scores 0..1 of each class (B, classes) from logits (B, outputs)."""
    if activation == "softmax":
        return logits.softmax(1)
    p = logits.sigmoid()
    return torch.cat([1 - p, p], 1) if p.shape[1] == 1 else p


def score_entropy(scores: Tensor, activation: str) -> Tensor:
    """Say how undecided scores (B, classes) are, 0..1: entropy over classes, or mean over yes-no answers."""
    whole = scores[:, None] if activation == "softmax" else torch.stack([scores, 1 - scores], 2)
    h: Tensor = torch.special.entr(whole).sum(2) / math.log(whole.shape[2])  # (B, questions)
    undecided: Tensor = h.mean(1)
    return undecided


def pick_tensor(output: Any) -> Tensor:
    """Find the tensor of logits in whatever a classifier returns."""
    output = pick_output(output)
    if not isinstance(output, Tensor):
        raise ModelError("--model", f"its output is {type(output).__name__}, no tensor", "give a classifier")
    return output


def _count(module: nn.Module, raw: Tensor) -> int:
    """Numbers per image of the output for two images."""
    if getattr(module, "num_classes", None) == 0:
        raise ModelError("--model", "it has no head: its output is features", "give a classifier")
    if raw.ndim == 0 or len(raw) != 2 or any(n != 1 for n in raw.shape[2:]):
        shape = "(images, " + ", ".join(str(n) for n in raw.shape[1:]) + ")" if raw.ndim else "one number"
        raise ModelError("--model", f"its output is {shape}, not (images, classes)", "give a classifier")
    return raw.numel() // 2


def _form(raw: Tensor) -> Form:
    """Tell the last operation by the graph, through reshapes: exact, whatever the code looks like."""
    node: Any = raw.grad_fn
    while node is not None and _RESHAPES.match(node.name()):
        node = node.next_functions[0][0]
    name = node.name() if node is not None else ""
    if name.startswith("SigmoidBackward"):
        return "sigmoid"
    return "softmax" if name.startswith("SoftmaxBackward") else "logits"
