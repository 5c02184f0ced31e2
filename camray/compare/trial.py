"""Before anything is paid: does every method work on this model, and what will it cost an image.

Flows in: a config, methods, a few images. Flows out: the explainer that a panel is built on, and prices.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import torch

from camray import cam
from camray.compare.panel import Panel
from camray.compare.scorer import BatchScorer
from camray.config import Config, Explainer
from camray.explain import explainer as explaining
from camray.measure.cost import count_passes, measure_cost
from camray.measure.scores import check_target
from camray.models.load import LoadedModel


def resolve(
    config: Config, methods: Sequence[str], folders: Iterable[str] = ()
) -> tuple[Explainer, LoadedModel]:
    """Load the model, choose the layer, and try every method on a grey image.

    Raises:
        UsageError: a model, layer, target or method that cannot work.
    """
    check_target(config.method.target, methods)
    explainer, model = explaining.resolve(config, folders)
    spec = model.input
    layer = cam.find_target_layer(
        model.module, (len(spec.mean), spec.height, spec.width), explainer.target_layer
    )
    grey = torch.zeros(1, len(spec.mean), spec.height, spec.width)
    labels = torch.zeros(1, dtype=torch.int64)
    cam.explain(model.module, grey, layer, methods, targets=explainer.target, labels=labels)
    return replace(explainer, method="compare"), model


class Trial:
    """A panel on a few images of the archive, on the best device of this machine."""

    def __init__(self, panel: Panel, model: LoadedModel, images: pa.StructArray, device: str) -> None:
        found = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = found if device == "auto" else device
        self._scorer = BatchScorer(panel, model.module.state_dict(), self.device, len(images))
        self._images = images

    def estimate(self) -> dict[str, Any]:
        """Count and time one run: {forwards, backwards, seconds, device} of an image, what is shared once."""
        n, start = len(self._images), time.perf_counter()
        with count_passes(self._scorer.module) as passes:
            self._scorer(self._images)
        if self.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return {
            "forwards": passes.forwards / n, "backwards": passes.backwards / n, "seconds": seconds / n,
            "device": self.device,
        }  # fmt: skip

    def costs(self) -> dict[str, Any]:
        """Measure each method alone: {device, batch, methods: {method: `cost.Cost`}}."""
        explain, x = self._scorer.explainer_of(self._images)
        made = {
            m: asdict(measure_cost(self._scorer.module, x, explain(m))) for m in self._scorer.panel.methods
        }
        return {"device": self.device, "batch": len(x), "methods": made}
