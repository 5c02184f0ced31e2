"""Weights made to fit a model: names undone, head sized, every difference listed.

Flows in: the tensors of a checkpoint and a bare model. Flows out: tensors by the model's own names, and in
words what was done to them. What does not fit is refused by name, unless the user asked for a partial load.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from camray.errors import ModelError
from camray.models import hugging_face

_COUNTER = "num_batches_tracked"  # of batch norm: only training reads it, old files lack it
_COUNTS = ("n_averaged", "total_ops", "total_params")  # that torch's AveragedModel and profilers add
# Parts of a name that a wrapper around a module inserts: compile, DDP, FSDP, checkpointing, Opacus, peft.
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module",
             "_module", "base_layer")  # fmt: skip
_AVERAGES = re.compile(r"(^|[._])(ema|averaged?|swa|shadow)([._]|$)")
# First parts of names by which trainers keep what is no part of the network.
_TRAINERS = re.compile(
    r"(?:\w+_)?(?:criterion|loss|loss_fn|loss_func|losses|metrics?|acc|accuracy|auroc|f1|confusion_matrix|"
    r"precision|recall|kappa|confmat|cross_entropy|b?ce|class_weights?|pos_weights?|"
    r"optimi[sz]er|scheduler|teacher|normali[sz]e|augment|augmentation|mixup|queue|queue_ptr)(?:_\w+)?"
)
_OLD_DENSENET = re.compile(r"\.(norm|relu|conv)\.([12])\.")  # torchvision's files of 2017


@dataclass(frozen=True, slots=True)
class Fitted:
    """Tensors by the model's names; what was done; what the model keeps of its random start."""

    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    random: tuple[str, ...] = ()


def rename(module: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Give the tensors the model's own names, where wrappers or other authors changed them."""
    own, notes = module.state_dict(), list[str]()
    raw = {k: v for k, v in state.items() if k.rpartition(".")[2] not in _COUNTS}
    state, said = _unprefixed(own, raw)
    if _missing(own, state):
        inner, told = _unwrapped(own, raw)
        fewer, undone = _unprefixed(own, inner)
        if len(_missing(own, fewer)) < len(_missing(own, state)):
            state, said = fewer, [*told, *undone]
    notes += said
    if own.keys() - state.keys():
        for note, candidate in filter(None, [rule(module, state) for rule in _REWRITINGS]):
            if len(own.keys() - candidate.keys()) < len(own.keys() - state.keys()):
                state = candidate
                notes.append(note)
    return dict(state), notes


def _unprefixed(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Cut the prefix that the network's names have; leave out what trainers keep beside a whole network."""
    prefix, notes = _prefix(own, state), list[str]()
    if prefix:
        inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        extras = {k: v for k, v in state.items() if not k.startswith(prefix) and k not in inside}
        state = extras | inside
        notes.append(f"prefix {prefix!r} of the weights' names undone")
    else:
        extras = {k: v for k, v in state.items() if _TRAINERS.fullmatch(k.partition(".")[0])}
    extras = {k: v for k, v in extras.items() if k not in own}
    if extras and not _missing(own, state):
        state = {k: v for k, v in state.items() if k not in extras}
        notes.append(f"{len(extras)} tensors outside the network left out: {_some(sorted(extras))}")
    return dict(state), notes


def _unwrapped(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Take out of the names what wrappers put in anywhere: parts that none of the model's own names has."""
    kept = {part for name in own for part in name.split(".")}
    parts = [w for w in _WRAPPERS if w not in kept and any(w in k.split(".") for k in state)]
    renamed = {".".join(p for p in k.split(".") if p not in parts): v for k, v in state.items()}
    if len(renamed) < len(state):  # two tensors of one name: both are not the network's
        return dict(state), []
    return renamed, [f"{part!r} taken out of the weights' names" for part in parts]


def _missing(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    return [k for k in own if k not in state and not k.endswith(_COUNTER)]


def stem_channels(module: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Read the number of input channels from the weights, where one convolution differs in that alone."""
    own = module.state_dict()
    pairs = [(own[k].shape, v.shape) for k, v in state.items() if k in own and own[k].shape != v.shape]
    found = {have[1] for want, have in pairs if len(have) == len(want) == 4 and have[0] == want[0]
             and have[2:] == want[2:] and want[1] == 3}  # fmt: skip
    return int(next(iter(found))) if len(found) == 1 else None


def head_size(module: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Read the size of the head from the weights, where nothing but the head's first axis differs."""
    own = module.state_dict()
    pairs = [(own[k].shape, v.shape) for k, v in state.items() if k in own and own[k].shape != v.shape]
    pairs = [(want, have) for want, have in pairs if want[:1] != have[:1]]
    sizes = {(have[:1], want[:1]) for want, have in pairs if have[1:] == want[1:] and len(have)}
    alike = len(sizes) == 1 and all(have[1:] == want[1:] and len(have) for want, have in pairs)
    return int(next(iter(sizes))[0][0]) if alike else None


def without_head(module: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Leave out the head that a timm network was trained with, where it is built without one."""
    named = (getattr(module, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads, own = (named,) if isinstance(named, str) else tuple(named), module.state_dict()
    left = sorted(k for k in state if k not in own and k.startswith(tuple(f"{head}." for head in heads)))
    told = [f"the head it was trained with is left out: {_some(left)}"] if left else []
    return {k: v for k, v in state.items() if k not in left}, told


def misfits(module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Name the tensors whose shape is not that of the model's own."""
    own = module.state_dict()
    return [k for k in own if k in state and own[k].shape != state[k].shape]


def fit(module: nn.Module, state: Mapping[str, Tensor], file: str, partial: bool = False) -> Fitted:
    """Check the tensors against the model.

    Raises:
        ModelError: other shapes, missing or unexpected weights, and no `partial`.
    """
    own = module.state_dict()
    shapes = misfits(module, state)
    missing = _missing(own, state)
    unexpected = [k for k in state if k not in own and not k.endswith(_COUNTER)]
    if not partial:
        _refuse(own, state, shapes, missing, unexpected, file)
    fitting = {k: v for k, v in state.items() if k in own and k not in shapes}
    if not fitting:
        raise ModelError("--checkpoint", f"{file}: not one weight fits the model", "give another --model")
    random = (*missing, *shapes)
    half = sorted({str(v.dtype).removeprefix("torch.") for v in fitting.values()
                   if v.is_floating_point() and v.itemsize < 4})  # fmt: skip
    share = f"{len(random)} of {len(own)} weights are random, not from {file}"
    told = (
        (random, f"WARNING: --partial: {share}: {_some(random)}"),
        (unexpected, f"--partial: {len(unexpected)} weights of {file} have no place: {_some(unexpected)}"),
        (half, f"weights of {file} are {', '.join(half)}; computed with as float32"),
    )
    return Fitted(fitting, tuple(note for names, note in told if names), random)


def _refuse(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], shapes: Sequence[str],
    missing: Sequence[str], unexpected: Sequence[str], file: str,
) -> None:  # fmt: skip
    if shapes:
        # One that another size of the head does not mend, if there is one; the classifier comes last.
        key = next((k for k in shapes if state[k].shape[1:] != own[k].shape[1:]), shapes[-1])
        have, want = tuple(state[key].shape), tuple(own[key].shape)
        fix = f"--num-classes {have[0]}" if have[1:] == want[1:] else "give the model this file belongs to"
        raise ModelError("--checkpoint", f"{file}: {key} is {have}, the model has {want}", fix)
    if missing or unexpected:
        listed = [f"missing {_some(missing)}"] * bool(missing)
        listed += [f"unexpected {_some(unexpected)}"] * bool(unexpected)
        raise ModelError(
            "--checkpoint",
            f"{file}: {len(missing)} weights missing, {len(unexpected)} unexpected ({'; '.join(listed)})",
            "give the --model this file belongs to, or --partial to go on with what fits",
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _prefix(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Find the prefix under which most of the model's names are; empty where they are as they should be."""
    votes: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        votes.update(".".join([*parts[:i], ""]) if i else "" for i in range(len(parts))
                     if ".".join(parts[i:]) in own)  # fmt: skip
    most = max(votes.values(), default=0)
    if most <= votes[""]:
        return ""
    best = sorted((p for p in votes if votes[p] == most), key=lambda p: (not _AVERAGES.search(p), len(p)))
    rivals = [] if _AVERAGES.search(best[0]) else [p for p in best[1:] if _differ(own, state, best[0], p)]
    if rivals and most >= len(_missing(own, {})):
        raise ModelError(
            "--checkpoint", f"it holds the network {1 + len(rivals)} times: {', '.join([best[0], *rivals])}",
            "save the state_dict of the one you use",
        )  # fmt: skip
    return best[0]


def _differ(own: Mapping[str, Tensor], state: Mapping[str, Tensor], one: str, other: str) -> bool:
    """Tell two copies of the network from one that stands there under two names."""
    pairs = [(state[one + k], state[other + k]) for k in own if one + k in state and other + k in state]
    return any(a.shape != b.shape or not torch.equal(a, b) for a, b in pairs)


_Renamed = tuple[str, dict[str, Tensor]]  # what was done, in words, and the tensors


def _old_densenet(module: nn.Module, state: Mapping[str, Tensor]) -> _Renamed | None:
    if not any(_OLD_DENSENET.search(k) for k in state):
        return None
    renamed = {_OLD_DENSENET.sub(r".\1\2.", k): v for k, v in state.items()}
    return "names of torchvision's first DenseNets rewritten", renamed


def _original_authors(module: nn.Module, state: Mapping[str, Tensor]) -> _Renamed | None:
    translate = getattr(sys.modules.get(type(module).__module__), "checkpoint_filter_fn", None)
    if translate is None:
        return None
    try:
        return "names of the original authors rewritten, as timm does", dict(translate(dict(state), module))
    except Exception:  # noqa: BLE001 - not the authors' format: then the names speak for themselves
        return None


def _of_transformers(module: nn.Module, state: Mapping[str, Tensor]) -> _Renamed | None:
    named = hugging_face.own_names(module, state)
    return None if named is None else ("names as transformers maps them", named)


def _wrapped_head(module: nn.Module, state: Mapping[str, Tensor]) -> _Renamed | None:
    """Take `fc.1.weight` as `fc.weight`: a head in a Sequential, behind dropout that is not there at rest."""
    own = module.state_dict()
    missing = {k for k in own if k not in state}
    heads = {k.rpartition(".")[0] for k in missing}
    if len(heads) != 1:
        return None
    head = heads.pop()
    inner = {k.rpartition(".")[0] for k in state if k not in own}
    match = re.fullmatch(re.escape(head) + r"\.\d+", next(iter(inner), "")) if len(inner) == 1 else None
    if match is None:
        return None
    renamed = {k.replace(f"{match[0]}.", f"{head}.") if k not in own else k: v for k, v in state.items()}
    return f"head {match[0]!r} taken as {head!r}", renamed


_REWRITINGS = (_old_densenet, _original_authors, _of_transformers, _wrapped_head)
