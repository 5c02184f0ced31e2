"""What a network returns, read as logits (images, outputs), and the scores people see.

Flows in: a module as its author wrote it. Flows out: the same module whose call gives logits, so that one
engine explains it: of several outputs the one of class scores, (B, 1, 1, 1) as (B, 1), and where a softmax
or sigmoid ends the network what went into it, because its gradient fades exactly where the model is sure.
Nothing is guessed: each reading is proved on probe images, and what cannot be read is refused.
"""

from __future__ import annotations

import math
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from camray.cam.split import pick_output
from camray.config import InputSpec
from camray.errors import ModelError, printable

Form = Literal["logits", "sigmoid", "softmax", "log_sigmoid", "log_softmax"]
Activation = Literal["softmax", "sigmoid", "none", "value"]

EPSILON = 1e-7  # a probability nearer to 0 or 1 than this is taken as this: float32 knows no better
PROBES = 4  # images: grey, noise, two with the spectrum of photographs
NORM_ONE = 1e-3  # lengths this near to each other, of every probe image, are those of an embedding
APART = 0.05  # of their size: outputs of the probe images that differ more are of one length by design
_RESHAPES = re.compile(
    r"(View|UnsafeView|ReshapeAlias|Squeeze|Unsqueeze|Clone|ToCopy|Alias|Select|Slice|Permute|Transpose|T)Back"
)
# What turns logits into the output, or into its exponential for log_softmax, whose -inf no logit gives.
_SQUASHES: Mapping[Form, Callable[[Tensor], Tensor]] = {
    "softmax": lambda z: z.softmax(1), "sigmoid": torch.sigmoid,
    "log_softmax": lambda z: z.softmax(1), "log_sigmoid": F.logsigmoid,
}  # fmt: skip
_CALLED = {"softmax", "log_softmax", "sigmoid", "logsigmoid", "log_sigmoid", "expit"}


@dataclass(frozen=True, slots=True)
class Reading:
    """How the output of a network is read."""

    form: Form  # what ends it
    count: int  # numbers per image
    activation: Activation  # how the numbers become scores
    before: int = 0  # the logits went into the softmax or sigmoid called so many before the end; 0: no such
    share: int | None = None  # which share of that softmax the one number is; None: all
    output: str | None = None  # which of several outputs
    told: tuple[str, ...] = ()  # what a person should know of it

    @property
    def classes(self) -> int:
        """A single number tells two classes apart: 0 where it is low, 1 where it is high."""
        return 1 if self.activation == "value" else max(2, self.count)

    def to_dict(self) -> dict[str, Any]:
        """Give the arguments of `as_logits`, as JSON knows them."""
        parts = {"before": self.before or None, "share": self.share, "output": self.output}
        return {"form": self.form, "count": self.count} | {k: v for k, v in parts.items() if v is not None}


def read_output(
    module: nn.Module,
    spec: InputSpec,
    activation: str = "auto",
    output: str | None = None,
    task: str = "classification",
) -> Reading:
    """Run the network on probe images and tell how its output is to be read.

    `activation` auto: sigmoid where the network ends in one or gives a single number, none where it gives
    shares that sum to 1, else softmax. `output`: which of several.

    Raises:
        ModelError: it cannot take such images, or its output is no classification.
    """
    calls = _Calls(None)
    with calls:
        raw = _run(module, spec, output)
    count = _count(module, raw)
    values = raw.detach().reshape(len(raw), count).float()
    if task == "regression":
        return _regression(count, activation, output)
    form, before, share = _ending(calls.inputs, raw, values)
    _refuse_sorted(raw)
    _refuse_embedding(values, form)
    if activation == "auto" and form == "logits":
        _refuse_parts_of_a_whole(values)
    chosen = _activation(activation, form, count, _are_shares(values))
    if chosen == "none" and count == 1:
        form, chosen = "sigmoid", "sigmoid"  # the probability of class 1
    told = _told(form, before, count, chosen, activation, values)
    if before and share is None and _are_shares(calls.inputs[-before].detach().reshape(values.shape).float()):
        told += (f"WARNING: what goes into the {form} is a softmax already: its shares are explained, whose "
                 "gradient fades; let it return the logits before both",)  # fmt: skip
    return Reading(form, count, chosen, before, share, output, told)


def as_logits(
    module: nn.Module,
    form: str,
    count: int,
    before: int = 0,
    share: int | None = None,
    output: str | None = None,
) -> nn.Module:
    """Let every call of the module return logits (B, count), as `Reading` says."""
    running = threading.local()

    def watch(_module: nn.Module, _args: tuple[Any, ...]) -> None:
        calls = _Calls(before)
        running.calls = [*getattr(running, "calls", ()), calls]
        calls.__enter__()

    def read(_module: nn.Module, args: tuple[Any, ...], given: Any) -> Tensor | None:
        calls = running.calls.pop() if before else None
        if calls is not None:
            calls.__exit__(None, None, None)
        if given is None:  # the network failed: its own error goes on
            return None
        if calls is not None:
            return _logits_before(calls, len(args[0]), count, share)
        values = pick_tensor(given, output).reshape(len(args[0]), count)
        if form == "sigmoid":
            return values.logit(eps=EPSILON)
        return values.clamp(min=EPSILON**2).log() if form == "softmax" else values

    if before:
        module.register_forward_pre_hook(watch)
    module.register_forward_hook(read, always_call=bool(before))
    return module


def class_scores(logits: Tensor, activation: str) -> Tensor:
    """Scores of each class (B, classes), 0..1 but for `none`, from logits (B, outputs)."""
    if activation in ("none", "value"):
        return logits
    if activation == "softmax":
        return logits.softmax(1)
    p = logits.sigmoid()
    return torch.cat([1 - p, p], 1) if p.shape[1] == 1 else p


def score_entropy(scores: Tensor, activation: str) -> Tensor:
    """Say how undecided scores (B, classes) are, 0..1: entropy over classes, or mean over yes-no answers."""
    if activation == "none":
        scores = scores.clamp(0, 1)
        of_one = (scores.sum(1) - 1).abs() < NORM_ONE
        return torch.where(of_one, score_entropy(scores, "softmax"), score_entropy(scores, "sigmoid"))
    whole = scores[:, None] if activation == "softmax" else torch.stack([scores, 1 - scores], 2)
    h: Tensor = torch.special.entr(whole).sum(2) / math.log(whole.shape[2])  # (B, questions)
    undecided: Tensor = h.mean(1)
    return undecided


def pick_tensor(output: Any, name: str | None = None) -> Tensor:
    """Find the tensor of logits in whatever a classifier returns."""
    output = pick_output(output, name)
    if not isinstance(output, Tensor):
        raise ModelError("--model", f"its output is {type(output).__name__}, no tensor", "give a classifier")
    if not output.is_floating_point():
        raise ModelError(
            "--model", f"its output is {output.dtype}: answers, no scores", "let it return logits"
        )
    return output


def probe_images(channels: int, height: int, width: int) -> Tensor:
    """Make grey, noise, and two images with the spectrum of photographs, normalised: (4, C, H, W)."""
    draw = torch.Generator().manual_seed(0)
    size = (height, width)
    scales = [
        nn.functional.interpolate(torch.randn(2, channels, n, n, generator=draw), size, mode="bilinear")
        for n in (2, 4, 8, 16)
    ]
    noise = torch.randn(1, channels, height, width, generator=draw)
    smooth = torch.stack(scales).mean(0) * 2
    return torch.cat([torch.zeros(1, channels, height, width), noise, smooth])


class _Calls(TorchFunctionMode):
    """Keeps what went into every softmax and sigmoid, or into the last `keep` of them."""

    def __init__(self, keep: int | None) -> None:
        super().__init__()
        self.inputs: deque[Tensor] = deque(maxlen=keep)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(getattr(func, "__name__", ""))
        if name.rstrip("_").removeprefix("special_") in _CALLED:
            z = args[0] if args else kwargs.get("input")
            if isinstance(z, Tensor):
                self.inputs.append(z.clone() if name.endswith("_") else z)  # in place: before it is gone
        return func(*args, **kwargs)


def _run(module: nn.Module, spec: InputSpec, output: str | None) -> Tensor:
    images = probe_images(len(spec.mean), spec.height, spec.width).requires_grad_()
    try:
        with torch.enable_grad():
            return pick_tensor(module(images), output)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - the user's own code may raise anything
        size = f"{len(spec.mean)} x {spec.height} x {spec.width}"
        fix = "--input-size as the model was trained; for a model built for one size, --model-arg img_size=N"
        if _runs(module, images.movedim(1, 3)):
            fix = "it takes the channels last: a class whose forward permutes (0, 2, 3, 1) first"
        said = printable(f"it fails on an image of {size}: {type(error).__name__}: {error}")
        raise ModelError("--model", said, fix) from None


def _runs(module: nn.Module, images: Tensor) -> bool:
    try:
        module(images)
    except Exception:  # noqa: BLE001 - the user's own code may raise anything
        return False
    return True


def _logits_before(calls: _Calls, images: int, count: int, share: int | None) -> Tensor:
    if len(calls.inputs) < (calls.inputs.maxlen or 0):
        raise ModelError("--model", "its softmax ran at start, but not for these images", "give the logits")
    z = calls.inputs[0]
    if share is None:
        return z.reshape(images, count)
    z = z.reshape(images, -1)
    others = torch.cat([z[:, :share], z[:, share + 1 :]], 1)
    return z[:, share : share + 1] - others.logsumexp(1, keepdim=True)


def _count(module: nn.Module, raw: Tensor) -> int:
    """Numbers per image of the output for the probe images."""
    if getattr(module, "num_classes", None) == 0:
        raise ModelError("--model", "it has no head: its output is features", "give a classifier")
    if raw.ndim == 0 or len(raw) != PROBES or any(n != 1 for n in raw.shape[2:]):
        shape = "(images, " + ", ".join(str(n) for n in raw.shape[1:]) + ")" if raw.ndim else "one number"
        fix = "--task segmentation where each pixel has a class" if raw.ndim == 4 else "give a classifier"
        raise ModelError("--model", f"its output is {shape}, not (images, classes)", fix)
    return raw.numel() // PROBES


def _ending(inputs: deque[Tensor], raw: Tensor, values: Tensor) -> tuple[Form, int, int | None]:
    """Tell what ends the network, and which of the recorded calls it is: proved by the values.

    Where no recorded call gives them (compiled code), the graph still tells the last operation.
    """
    count, ends = values.shape[1], last_operation(raw)
    forms = {f: squash for f, squash in _SQUASHES.items() if ends in ("logits", f)}
    for back, z in enumerate(reversed(inputs), 1):
        if z.numel() == values.numel():
            flat = z.detach().reshape(values.shape).float()
            for form, squash in forms.items():
                given = values.exp() if form == "log_softmax" else values
                if (count > 1 or "softmax" not in form) and _same(squash(flat), given):
                    return form, back, None
        elif count == 1 and z.ndim and z.numel() % PROBES == 0 and z.numel() > PROBES:
            shares = z.detach().reshape(PROBES, -1).float().softmax(1)
            for k, p in enumerate(shares.unbind(1)):
                if len(shares[0]) <= 1000 and _same(p, values[:, 0]):
                    return "softmax", back, k
    return ("sigmoid" if count == 1 and ends == "softmax" else ends), 0, None


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def last_operation(raw: Tensor) -> Form:
    """Tell what the network ends in, by the graph."""
    name = _operation(raw)
    if name.startswith("SigmoidBackward"):
        return "sigmoid"
    return "softmax" if name.startswith("SoftmaxBackward") else "logits"


def _operation(raw: Tensor) -> str:
    """Name the last operation by the graph, through reshapes: exact, whatever the code looks like."""
    node: Any = raw.grad_fn
    while node is not None and _RESHAPES.match(node.name()):
        node = node.next_functions[0][0]
    return node.name() if node is not None else ""


def _are_shares(values: Tensor) -> bool:
    """Whether each image's numbers are probabilities of which exactly one is true."""
    sums = values.sum(1)
    return values.shape[1] > 1 and bool((values >= 0).all()) and bool(((sums - 1).abs() < 1e-4).all())


def _refuse_embedding(values: Tensor, form: Form) -> None:
    count, lengths = values.shape[1], values.norm(dim=1)
    length = float(lengths.mean())
    of_one_length = count > 1 and bool(((lengths / length - 1).abs() < NORM_ONE).all())
    differ = bool((values - values[0]).norm(dim=1).max() > APART * length)
    is_unit = abs(length - 1) < NORM_ONE
    if form == "logits" and of_one_length and (is_unit or (count > 2 and differ)) and not _are_shares(values):
        raise ModelError(
            "--model", f"its output is an embedding of {count} numbers, each image's of length {length:.4g}",
            "give a classifier, --head FILE, or --target similarity:IMAGE",
        )  # fmt: skip


def _refuse_sorted(raw: Tensor) -> None:
    name = _operation(raw)
    if name.startswith(("TopkBack", "SortBack")):
        what = name.partition("Back")[0].lower()
        said = f"its output is sorted ({what}): which class a number is of is lost"
        raise ModelError("--model", said, "let it return the scores before that")


def _refuse_parts_of_a_whole(values: Tensor) -> None:
    """Refuse percents, and several groups of shares side by side: none negative, of one sum that is not 1."""
    sums = values.sum(1)
    whole = float(sums.mean())
    one_sum = bool(((sums / whole - 1).abs() < NORM_ONE).all()) if whole else False
    differ = bool((values - values[0]).abs().max() > APART * values.max())
    if len(values[0]) > 1 and bool((values >= 0).all()) and one_sum and differ and abs(whole - 1) > NORM_ONE:
        said = f"its outputs sum to {whole:.4g} for every image: percents or groups of shares, not logits"
        raise ModelError(
            "--model", said, "let it return the logits, or shares that sum to 1; --activation softmax takes "
            "them as logits all the same",
        )  # fmt: skip


def _regression(count: int, activation: str, output: str | None) -> Reading:
    if count != 1:
        raise ModelError("--task", f"regression, but the network gives {count} numbers an image",
                         "a network that gives one; --output where it has several outputs")  # fmt: skip
    if activation not in ("auto", "none"):
        raise ModelError("--activation", f"{activation}, but a value has none", "leave it out")
    return Reading(
        "logits", 1, "value", output=output, told=("regression: the value is explained, no class",)
    )


def _activation(asked: str, form: Form, count: int, shares: bool) -> Activation:
    """Settle how the numbers become scores; refuse what contradicts the network."""
    ends_in = form.removeprefix("log_")
    if ends_in == "softmax" and (count == 1 or asked == "sigmoid") and asked not in ("auto", "none"):
        raise ModelError("--activation", f"{asked}, but the network ends in a softmax", "leave it out")
    if asked == "softmax" and (count == 1 or ends_in == "sigmoid"):
        why = "gives one number an image" if count == 1 else "ends in a sigmoid"
        raise ModelError("--activation", f"softmax, but the network {why}", "leave it out")
    if asked == "none" and form == "logits":
        return "none"
    if asked in ("sigmoid", "softmax"):
        return "sigmoid" if asked == "sigmoid" else "softmax"
    if form == "logits" and shares:
        return "none"
    return "sigmoid" if ends_in == "sigmoid" or count == 1 else "softmax"


def _told(
    form: Form, before: int, count: int, activation: Activation, asked: str, values: Tensor
) -> tuple[str, ...]:
    """Say what people should know of the reading."""
    notes = []
    if form != "logits":
        undone = "it is undone for the explanation, whose gradient fades where the network is sure"
        done = "the logits before it are explained" if before else undone
        notes.append(f"the network ends in a {form}: {done}")
    if activation == "none" and asked == "auto":
        notes.append("its outputs are shares that sum to 1, though no softmax ends it: they are taken as "
                     "scores and explained as they are (--activation none)")  # fmt: skip
    low, high = float(values.min()), float(values.max())
    is_plain = asked == "auto" and activation != "none" and form == "logits"
    if is_plain and 0 <= low < high and (high <= 1 or count > 1):
        within, more = "lie between 0 and 1", ""
        if high > 1:
            within, more = (
                "are never negative",
                "; where less is better (distances), let it return their negative",
            )
        notes.append(f"WARNING: its outputs {within}, though no sigmoid or softmax ends it: taken as logits; "
                     f"--activation none where they are probabilities{more}")  # fmt: skip
    if count == 1:
        notes.append("one output: class 1 where it is high, class 0 where it is low")
        if form == "logits":
            notes.append("where the one output is a measured value, not a class: --task regression")
    elif activation == "sigmoid":
        notes.append("scores are independent (sigmoid): they do not sum to 1")
    return tuple(notes)
