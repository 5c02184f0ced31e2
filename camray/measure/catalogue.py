"""Every metric by name: which direction is good, and what it needs.

Flows in: nothing. Flows out: `METRICS`. Needs no torch: readers of a table use it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

CONTROLS = ("random", "center", "sobel")  # maps that know nothing of the class; in every comparison


class ScoreStatus(StrEnum):
    """Why a row has a value, or none."""

    OK = "ok"
    DEAD = "dead"  # the map has no positive value, or the same everywhere
    NONFINITE = "nonfinite"  # the map or the probability is NaN or infinite
    NO_TARGET = "no_target"  # the image has no class to explain
    NO_REGION = "no_region"  # the archive marks nothing on the image, or outside of what the model saw
    UNDEFINED = "undefined"  # the formula has no value here: a division by zero, a constant map


@dataclass(frozen=True)
class Metric:
    """`high_is_good` is None where neither direction is; `ranks`: fit to order methods by."""

    high_is_good: bool | None
    ranks: bool
    needs: str = ""  # "region", "box" or "copies" (randomised copies of the model)


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "insertion": Metric(True, True),
        "deletion": Metric(False, True),
        "road": Metric(True, True),
        "road_morf": Metric(False, False),
        "road_lerf": Metric(True, False),
        "average_drop": Metric(False, False),
        "increase": Metric(True, False),
        "average_gain": Metric(True, False),
        "energy_pointing": Metric(True, True, "region"),
        "enrichment": Metric(True, False, "region"),
        "pointing": Metric(True, False, "region"),
        "rank_accuracy": Metric(True, False, "region"),
        "pxap": Metric(True, False, "region"),
        "box_iou": Metric(True, False, "box"),
        "class_sensitivity": Metric(False, True),
        "max_sensitivity": Metric(False, False),
        "mprt_head": Metric(False, False, "copies"),
        "mprt_all": Metric(False, False, "copies"),
        "complexity_rise": Metric(True, False, "copies"),
        "gini": Metric(None, False),
        "entropy": Metric(None, False),
    }
)
