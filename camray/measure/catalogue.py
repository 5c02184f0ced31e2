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
    """`high_is_good` is None where neither direction is; `ranks`: fit to order methods by.

    `says` is one sentence on what is measured, `weakness` one on how it misleads.
    """

    high_is_good: bool | None
    ranks: bool
    group: str  # faithfulness, localisation, sanity or shape
    says: str
    weakness: str
    needs: str = ""  # "region", "box" or "copies" (randomised copies of the model)


_F, _L, _S, _P = "faithfulness", "localisation", "sanity", "shape"
_INSIDE = "About what a person marked: a model that answers by a shortcut should fail here"

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "insertion": Metric(
            True, True, _F, "Area under the probability while the hottest pixels appear on a blurred image.",
            "The blur leaves colours and large shapes, so it does not start at nothing.",
        ),
        "deletion": Metric(
            False, True, _F, "Area under the probability while the hottest pixels give way to the blur.",
            "Half-blurred images are unlike anything the model has seen.",
        ),
        "road": Metric(
            True, True, _F, "Probability with the coldest pixels imputed minus with the hottest; halved.",
            "Blurred maps gain: read entropy beside it.",
        ),
        "road_morf": Metric(
            False, False, _F, "Mean probability with the hottest 20 to 80 % imputed.",
            "Says little on small hot spots, which imputation repairs.",
        ),
        "road_lerf": Metric(
            True, False, _F, "Mean probability with the coldest 20 to 80 % imputed.", "Wide maps gain.",
        ),
        "average_drop": Metric(
            False, False, _F, "Share of the probability lost when the image is multiplied by the map.",
            "A map of ones is perfect, and a spot in the middle does well.",
        ),
        "increase": Metric(
            True, False, _F, "Share of images whose probability rises when multiplied by the map.",
            "Few images decide it; it hardly orders methods.",
        ),
        "average_gain": Metric(
            True, False, _F, "Share of the missing probability gained when multiplied by the map.",
            "As increase: few images decide it.",
        ),
        "energy_pointing": Metric(
            True, True, _L, "Share of the heat inside the marked region.",
            f"{_INSIDE}; large regions make it easy.", "region",
        ),
        "enrichment": Metric(
            True, False, _L, "That share over the region's share of the image: 1 is even heat.",
            f"{_INSIDE}; peaky maps gain.", "region",
        ),
        "pointing": Metric(
            True, False, _L, "Share of images whose hottest pixel is within one cell of the region.",
            f"{_INSIDE}; one pixel decides.", "region",
        ),
        "rank_accuracy": Metric(
            True, False, _L, "Of the n hottest pixels, n the region's size, the share inside.",
            f"{_INSIDE}; boxes hold much background.", "region",
        ),
        "pxap": Metric(
            True, False, _L, "Area under precision and recall of pixels, mean over images.",
            f"{_INSIDE}; large objects make it easy.", "region",
        ),
        "box_iou": Metric(
            True, False, _L, "Overlap of the true box with the box cut at a fifth of the map's height.",
            f"{_INSIDE}; the threshold is arbitrary.", "box",
        ),
        "class_sensitivity": Metric(
            False, True, _S, "Rank correlation of the maps of the class and of the least likely class.",
            "1: the method does not see the class. Low values say that it differs, not that it is right.",
        ),
        "max_sensitivity": Metric(
            False, False, _S, "How far the map moves under small noise, over its size.",
            "A map that ignores the image is perfect.",
        ),
        "mprt_head": Metric(
            False, False, _S, "Rank correlation with the map after the last layer's weights are shuffled.",
            "Noisy; shows who ignores the model, not who is right.", "copies",
        ),
        "mprt_all": Metric(
            False, False, _S, "Rank correlation with the map after all weights are shuffled.",
            "Noisy; shows who ignores the model, not who is right.", "copies",
        ),
        "complexity_rise": Metric(
            True, False, _S, "How much more complex the map becomes when all weights are shuffled.",
            "A map that goes dead falls to -1.", "copies",
        ),
        "gini": Metric(None, False, _P, "0: even; towards 1: all in one cell.", "Neither end is better."),
        "entropy": Metric(None, False, _P, "0: all in one cell; 1: even heat.", "Neither end is better."),
    }
)  # fmt: skip
