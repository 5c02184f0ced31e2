"""Which classes to explain and which score of them to differentiate, for a whole batch at once.

Flows in: logits (B, classes), perhaps labels (B,). Flows out: class ids (B, K) and scores (B, K).
Written form: `[-]SELECT[@SCORE]`, for example `predicted`, `top:5`, `class:281`, `label@margin`,
`class:3@vs:7`, `above:0.5`, `-predicted` (counterfactual: evidence against).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from camray.errors import UsageError

SCORES = ("logit", "softmax", "margin", "rest", "vs")
_WRITTEN = re.compile(r"(-?)(predicted|top|label|class|above)(?::([\d.,]+))?(?:@([a-z]+)(?::(\d+))?)?")


@dataclass(frozen=True)
class TargetRule:
    """One rule. `classes` for class, `count` for top, `threshold` for above, `against` for vs."""

    select: str = "predicted"
    score: str = "logit"
    classes: tuple[int, ...] = ()
    count: int = 1
    threshold: float = 0.5
    against: int = -1
    negative: bool = False
    tensor: Tensor | None = field(default=None, compare=False, repr=False)  # given ids or embedding

    @classmethod
    def parse(cls, text: str) -> TargetRule:
        """Read the written form; a bare number is a class id."""
        text = f"class:{text}" if text.isdigit() else text
        match = _WRITTEN.fullmatch(text)
        if match is None or (match[4] or "logit") not in SCORES:
            raise UsageError(
                "target",
                f"{text!r} is not a target",
                "predicted, label, a class id, top:5 or above:0.5, with @softmax, @margin, @rest, @vs:ID",
            )
        minus, select, value, score, against = match.groups()
        if (value is None) != (select in ("predicted", "label")) or (score == "vs") != bool(against):
            raise UsageError("target", f"{text!r} is incomplete", "for example top:5 or class:3@vs:7")
        try:
            rule = cls(
                select=select,
                score=score or "logit",
                classes=tuple(int(v) for v in value.split(",")) if select == "class" else (),
                count=int(value) if select == "top" else 1,
                threshold=float(value) if select == "above" else 0.5,
                against=int(against) if against else -1,
                negative=bool(minus),
            )
        except ValueError:
            raise UsageError("target", f"{value!r} is no number for {select}", "see --help") from None
        _refuse_senseless(rule, text)
        return rule

    @classmethod
    def given(cls, classes: Tensor) -> TargetRule:
        """Class ids chosen by the caller, (B,) or (B, K)."""
        return cls(select="given", tensor=classes if classes.ndim == 2 else classes[:, None])

    @classmethod
    def similarity(cls, embedding: Tensor) -> TargetRule:
        """Cosine similarity of the model's output to each row of `embedding`, (D,) or (K, D)."""
        return cls(select="embedding", tensor=embedding if embedding.ndim == 2 else embedding[None])

    @property
    def is_class(self) -> bool:
        """Whether the ids this rule yields are classes (an embedding's row numbers are not)."""
        return self.select != "embedding"


def _refuse_senseless(rule: TargetRule, text: str) -> None:
    """Refuse what would explain nothing, or one class twice."""
    if rule.count < 1:
        raise UsageError("target", f"{text!r} asks for no class", "top:1 or more")
    if not 0 <= rule.threshold <= 1:
        raise UsageError("target", f"{text!r}: scores are between 0 and 1", "for example above:0.5")
    if len(set(rule.classes)) < len(rule.classes):
        raise UsageError("target", f"{text!r} names a class twice", "name each once")
    if rule.score == "vs" and rule.against in rule.classes:
        raise UsageError("target", f"{text!r} compares a class with itself", "name another class")


def as_rules(
    targets: str | TargetRule | Tensor | Sequence[str | TargetRule],
) -> tuple[TargetRule, ...]:
    """One rule or several, written or built, or a tensor of class ids."""
    if isinstance(targets, Tensor):
        return (TargetRule.given(targets),)
    if isinstance(targets, (str, TargetRule)):
        targets = [targets]
    return tuple(TargetRule.parse(t) if isinstance(t, str) else t for t in targets)


def choose(rule: TargetRule, logits: Tensor, labels: Tensor | None) -> Tensor:
    """Class ids of one rule, (B, K); -1 where an image has no such class."""
    z = logits.detach().float()  # (B, classes)
    batch, classes = z.shape
    binary = classes == 1
    known = 2 if binary else classes
    if rule.select in ("predicted", "top"):
        return ranked(z, rule.count)
    if rule.select == "above":
        return _above(z, rule.threshold)
    if rule.select == "label" and labels is None:
        raise UsageError("target", "label needs labels", "pass labels, or use predicted")
    if rule.select == "embedding":
        assert rule.tensor is not None
        return torch.arange(len(rule.tensor), device=z.device).expand(batch, -1)
    ids = {"label": labels, "given": rule.tensor}.get(rule.select)
    if ids is None:
        ids = torch.tensor(rule.classes).expand(batch, -1)
    ids = ids.to(z.device, torch.int64)
    ids = ids[:, None] if ids.ndim == 1 else ids
    if len(ids) != batch:
        raise UsageError("target", f"{len(ids)} targets for {batch} images", "give one per image")
    if int(ids.max()) >= known:
        raise UsageError("target", f"class {int(ids.max())} of a model with {known}", "see the classes")
    return ids.clamp(min=-1)  # (B, K)


def ranked(logits: Tensor, count: int | None = None) -> Tensor:
    """Class ids by falling logit, of equal ones the lowest id first: the rule for every tie.

    Of logits (B, classes) the first `count`, or all. A single logit speaks of two classes; class 1 is its
    positive side.
    """
    z = logits.float()
    both = torch.cat([-z, z], 1) if z.shape[1] == 1 else z
    if count is not None and count < both.shape[1] and not both.is_cuda:  # a fifth of the time of a sort
        best = both.topk(count + 1, dim=1)
        if bool((best.values[:, :-1] > best.values[:, 1:]).all()):  # nothing equal, no NaN
            return best.indices[:, :count]
    return both.sort(dim=1, descending=True, stable=True).indices[:, :count]


@dataclass(frozen=True)
class Aim:
    """Rules settled on one batch: which classes, and how to score any logits of its images."""

    rules: tuple[TargetRule, ...]
    chosen: tuple[Tensor, ...]  # class ids of each rule, (B, k)

    @classmethod
    def settle(cls, rules: Sequence[TargetRule], logits: Tensor, labels: Tensor | None) -> Aim:
        """Choose the classes once, from the unaltered images."""
        return cls(tuple(rules), tuple(choose(rule, logits, labels) for rule in rules))

    @property
    def classes(self) -> Tensor:
        """Class ids, (B, K); -1 where an image has no such class."""
        return torch.cat(self.chosen, 1)

    @property
    def linear(self) -> bool:
        """Whether every score is a linear function of the logits."""
        return all(r.score in ("logit", "vs") and r.is_class for r in self.rules)

    def scores(self, logits: Tensor, rows: Tensor | None = None) -> Tensor:
        """Scores (n, K) of logits (n, classes); row i belongs to image rows[i], or to image i."""
        pick = [c if rows is None else c[rows] for c in self.chosen]
        return torch.cat([score(r, logits, c) for r, c in zip(self.rules, pick, strict=True)], 1)


def _above(z: Tensor, threshold: float) -> Tensor:
    """Classes whose sigmoid reaches the threshold, highest first; as many columns as the widest row."""
    order = z.sort(dim=1, descending=True, stable=True)
    passed = torch.sigmoid(order.values) >= threshold  # (B, classes)
    width = max(1, int(passed.sum(1).max()))
    return torch.where(passed, order.indices, -1)[:, :width]


def score(rule: TargetRule, logits: Tensor, classes: Tensor) -> Tensor:
    """Compute the differentiable score S of each chosen class, (B, K); zero where there is no class."""
    z = logits.float()  # (B, classes)
    absent = classes < 0
    if rule.select == "embedding":
        assert rule.tensor is not None
        rows = rule.tensor.to(z)
        s = F.normalize(z, dim=1) @ F.normalize(rows, dim=1).T  # (B, K)
    else:
        z = torch.cat([-z, z], 1) if z.shape[1] == 1 else z
        s = _class_score(rule, z, classes.clamp(min=0))
    s = -s if rule.negative else s
    return s.masked_fill(absent, 0.0)


def _class_score(rule: TargetRule, z: Tensor, ids: Tensor) -> Tensor:
    if rule.score == "softmax":
        return z.softmax(1).gather(1, ids)
    own = z.gather(1, ids)  # (B, K)
    if rule.score == "margin":  # z_c - max over the other classes
        others = z[:, None, :].expand(-1, ids.shape[1], -1).scatter(2, ids[:, :, None], -torch.inf)
        return own - others.amax(2)
    if rule.score == "rest":  # z_c + log p_c, which keeps a gradient when p_c saturates
        return own + z.log_softmax(1).gather(1, ids)
    if rule.score == "vs":
        if rule.against >= z.shape[1]:
            raise UsageError("target", f"vs class {rule.against} of {z.shape[1]}", "see the classes")
        return own - z[:, rule.against, None]
    return own
