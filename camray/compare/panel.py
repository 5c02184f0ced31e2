"""The contract of a comparison: which methods are measured together, and what a row of scores is.

A PANEL is a set of methods measured on one sample with one model, layer, target and choice of settings: what
one pass over the images gives. A method added later is a panel of its own, beside the first, on the same
sample. `SCORED` travels from the actor to the sink, `SCORE_SCHEMA` reaches the table.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from camray.config import Explainer
from camray.ledger.out import SCORES as SCORE_TABLE
from camray.ledger.table import Kind

_IDENTITY = [
    ("index", pa.int32()),
    ("member", pa.string()),
    ("status", pa.string()),
    ("error_code", pa.string()),
    ("error_stage", pa.string()),
    ("error_message", pa.string()),
    ("content_sha256", pa.string()),
]
_SCORE = [
    ("label", pa.string()),
    ("label_class", pa.int32()),
    ("predicted_class", pa.int32()),
    ("predicted_label", pa.string()),
    ("confidence", pa.float32()),  # of the predicted class, 0..1
    ("target_class", pa.int32()),
    ("target_label", pa.string()),
    ("method", pa.string()),
    ("metric", pa.string()),  # a name of measure.catalogue, or "map"
    ("value", pa.float64()),  # null unless score_status is ok
    ("score_status", pa.string()),
    ("forwards", pa.int32()),  # altered images this value needs, without sharing
    ("curve", pa.list_(pa.float32())),  # insertion, deletion: the class's probability, step by step
    ("hits", pa.binary()),  # box_iou: bits (overlaps x cuts) of the boxes of any part
    ("heatmap", pa.list_(pa.float32())),  # "map": layer resolution, row-major, raw and signed
    ("heat_h", pa.int32()),
    ("heat_w", pa.int32()),
    ("picture", pa.binary()),  # "map", of the few images that a page shows: JPEG of the model's view
]

SCORED = pa.struct([*_IDENTITY, *_SCORE])
"""One value of one image and method, between the actor and the sink."""

SCORE_SCHEMA = pa.schema([("run_id", pa.string()), ("shard", pa.string()), *_IDENTITY, *_SCORE])
"""The columns of a score file. The table adds `panel`, the partition. A failed image has one row, without
method. The row of metric "map" holds the heatmap itself."""

SCORES = Kind(SCORE_TABLE, "panel", SCORE_SCHEMA)


@dataclass(frozen=True, slots=True)
class Panel:
    """Everything that decides a set of scores; `id` is a hash of exactly this."""

    explainer: Explainer  # all but the method: that field says "compare"
    methods: tuple[str, ...]
    settings: dict[str, Any]  # of the metrics, see measure.scores.Settings
    sample: str  # id of the frozen sample
    pictured: dict[str, list[int]]  # shard key -> indices of the images that a page shows

    @property
    def id(self) -> str:
        """16 hex digits of the SHA-256 of the canonical JSON of every field."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Give the canonical JSON: sorted keys, no spaces."""
        fields = asdict(self)
        for name in ("crop_floor", "bands"):
            if not fields["explainer"]["input"][name]:
                del fields["explainer"]["input"][name]  # ids of older panels stay
        for name in ("heat_boxes", "precision"):
            del fields["explainer"][name]  # no part in scores; methods are compared in fp32
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Panel:
        """Read what `to_json` wrote."""
        return panel_of(json.loads(text))

    def without_methods(self) -> str:
        """Give what two panels share whose methods may be set side by side as if measured together."""
        return replace(self, methods=()).to_json()


def panel_of(tree: Any) -> Panel:
    """Read a panel from its JSON.

    Raises:
        ValueError: it is none.
    """
    from pydantic import TypeAdapter  # late: --help needs none of it

    found: Panel = TypeAdapter(Panel).validate_python(tree)
    return found
