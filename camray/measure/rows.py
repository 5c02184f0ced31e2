"""The rows of a comparison, in long format: a new metric or method is more rows, never another schema.

Flows in: values (B, M) by metric, nan where a formula has no value. Flows out: rows; a value that does
not exist is None, with the reason beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camray.measure.agreement import pair_agreement
from camray.measure.catalogue import METRICS, ScoreStatus
from camray.measure.maps import Key, MapSet


@dataclass(frozen=True)
class Row:
    """One number. `value` is None unless `status` is ok; `forwards` is what it costs without sharing."""

    image: str
    method: str
    layer: str
    target_class: int
    metric: str
    value: float | None
    status: ScoreStatus
    forwards: int


@dataclass(frozen=True)
class PairRow:
    """How much two methods agree on one image; None where either map is of no use."""

    image: str
    method: str
    layer: str
    other: str
    other_layer: str
    metric: str
    value: float | None


def map_status(maps: MapSet, classes: Tensor, original: Tensor) -> list[list[ScoreStatus]]:
    """Say of each map (B, M) whether its values count."""
    found = torch.zeros_like(maps.dead, dtype=torch.int64)
    found[maps.dead] = 1
    found[maps.nonfinite | ~original.isfinite()[:, None]] = 2
    found[classes < 0] = 3
    names = (ScoreStatus.OK, ScoreStatus.DEAD, ScoreStatus.NONFINITE, ScoreStatus.NO_TARGET)
    return [[names[code] for code in row] for row in found.tolist()]


def map_of(maps: MapSet, image: int, method: int) -> ScoreStatus:
    """Say of one map whether it is of use, whatever its class."""
    if bool(maps.nonfinite[image, method]):
        return ScoreStatus.NONFINITE
    return ScoreStatus.DEAD if bool(maps.dead[image, method]) else ScoreStatus.OK


def score_rows(
    ids: Sequence[str],
    keys: Sequence[Key],
    classes: Tensor,
    values: Mapping[str, Tensor],
    status: Sequence[Sequence[ScoreStatus]],
    cost: Mapping[str, int],
) -> Iterator[Row]:
    """Give one row per image, map and metric; `values` and `status` are (B, M), `cost` forwards by metric."""
    chosen = classes.tolist()
    columns = {name: values[name].tolist() for name in METRICS if name in values}
    for i, image in enumerate(ids):
        for j, (method, layer) in enumerate(keys):
            for name, column in columns.items():
                value, said = column[i][j], status[i][j]
                if said is ScoreStatus.OK and not math.isfinite(value):
                    said = (
                        ScoreStatus.NO_REGION
                        if METRICS[name].needs in ("region", "box")
                        else ScoreStatus.UNDEFINED
                    )
                kept = value if said is ScoreStatus.OK else None
                yield Row(image, method, layer, chosen[i], name, kept, said, cost.get(name, 0))


def pair_rows(ids: Sequence[str], maps: MapSet, status: Sequence[Sequence[ScoreStatus]]) -> Iterator[PairRow]:
    """Give one row per image, pair of maps and way of comparing them."""
    columns = {name: v.tolist() for name, v in pair_agreement(maps.shown).items()}
    for i, image in enumerate(ids):
        for j, (method, layer) in enumerate(maps.keys):
            for k in range(j + 1, len(maps.keys)):
                good = status[i][j] is ScoreStatus.OK and status[i][k] is ScoreStatus.OK
                for name, column in columns.items():
                    value = column[i][j][k]
                    kept = value if good and math.isfinite(value) else None
                    yield PairRow(image, method, layer, *maps.keys[k], name, kept)
