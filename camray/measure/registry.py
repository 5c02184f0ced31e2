"""What a metric is. A formula registers itself: `@metric("name", ...)` stands right above it.

Flows in: facts on a metric, and its formula. Flows out: `REGISTERED`; `catalogue.METRICS` is all of it in
order. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from operator import attrgetter
from typing import Any, Literal, TypeVar

CONTROLS = ("random", "center", "sobel")  # maps that know nothing of the class; in every comparison
Formula = TypeVar("Formula", bound=Callable[..., Any])


class ScoreStatus(StrEnum):
    """Why there is a value, or none."""

    OK = "ok"
    DEAD = "dead"  # the map has no positive value, or the same everywhere
    NONFINITE = "nonfinite"  # the map or the probability is NaN or infinite
    NO_TARGET = "no_target"  # the image has no class to explain
    NO_REGION = "no_region"  # the archive marks nothing on the image, or outside of what the model saw
    UNDEFINED = "undefined"  # the formula has no value here: a division by zero, a constant map


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Facts on a metric; as a decorator it registers the formula below it.

    The formula takes what `reads` names (attributes of `scores.Exam`, dots lead further) and gives one number
    per image and map: (B, M), nan where there is none.
    """

    name: str
    group: Literal["faithfulness", "localisation", "sanity", "shape"]
    doc: str  # what is measured: one sentence, on the page
    weakness: str  # how it misleads: one sentence, on the page
    formula: str  # as the documents show it; p: probability of the class, h: the heat
    reads: tuple[str, ...]
    range: tuple[float, float]
    direction: Literal["high", "low"] | None = None  # which is good; None: neither
    ranks: bool = False  # fit to order methods by
    needs: Literal["", "region", "box", "copies", "noise"] = ""  # without it the metric is left out
    forwards: int | Callable[[Any], int] = 0  # altered images that one map needs, by `scores.Settings`
    compute: Callable[..., Any] = lambda *_: None

    def __call__(self, compute: Formula) -> Formula:
        """Register the formula, unchanged.

        Raises:
            ValueError: the name is taken.
        """
        if self.name in REGISTERED:
            raise ValueError(f"there are two metrics {self.name}")
        REGISTERED[self.name] = replace(self, compute=compute)
        return compute

    @property
    def high_is_good(self) -> bool | None:
        """The direction as a truth value; None where neither is good."""
        return None if self.direction is None else self.direction == "high"

    def of(self, exam: object) -> Any:
        """Compute the metric: (B, M)."""
        return self.compute(*(attrgetter(name)(exam) for name in self.reads))

    def cost(self, settings: object) -> int:
        """Altered images that one map needs, nothing being shared."""
        return self.forwards if isinstance(self.forwards, int) else self.forwards(settings)


def metric(name: str, **facts: Any) -> Metric:
    """Describe a metric for the formula below; see `Metric` for the facts."""
    return Metric(name=name, **facts)


REGISTERED: dict[str, Metric] = {}
