"""What a method may look at when A and G are not enough.

Flows in: one batch after its forward. Flows out: nothing of its own; methods read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from camray.cam.biases import BiasTerms
from camray.cam.layout import TargetLayer
from camray.cam.split import Split, call
from camray.cam.tail import Tail, make_tail
from camray.cam.targets import Aim


@dataclass(frozen=True)
class Scene:
    """One layer of one batch. `chunk` bounds how many images a perturbation runs at once."""

    model: nn.Module
    inputs: Tensor  # (B, 3, H, W)
    layer: TargetLayer
    split: Split
    aim: Aim
    chunk: int = 64
    biases: BiasTerms | None = None  # where a method sums over the whole network

    @cached_property
    def A(self) -> Tensor:  # noqa: N802 - the name of the papers
        """Activations, (B, C, h, w) float32."""
        return self.split.activation(self.layer.name)

    @cached_property
    def scores(self) -> Tensor:
        """Scores of the unaltered images, (B, K), with a graph where the split has one."""
        return self.aim.scores(self.split.logits)

    @cached_property
    def tail(self) -> Tail:
        """The network behind the layer."""
        return make_tail(self.model, self.inputs, self.layer)

    def gradient(self, scores: Tensor) -> Tensor:
        """G of this layer for one column of scores (B,)."""
        return self.split.gradients(scores)[self.layer.name]

    def forward(self, images: Tensor, rows: Tensor) -> Tensor:
        """Scores (n, K) of altered images; row i was image rows[i]."""
        with torch.inference_mode(False), torch.no_grad():
            return self.aim.scores(call(self.model, images), rows)
