# file: camray/cam/normgrad.py
"""NormGrad: positions by how long their activations and gradients are.

Flows in: A and G (B, C, h, w). Flows out: a raw map (B, h, w).
"""

from __future__ import annotations

from torch import Tensor

from camray.cam.registry import method


@method(
    "normgrad",
    needs="gradient",
    cost="1",
    doc="length of the activations times length of the gradients",
    when="layers with values of both signs; never negative",
    paper="Rebuffi et al., There and Back Again: Revisiting Backpropagation Saliency Methods, CVPR 2020",
)
def normgrad(A: Tensor, G: Tensor, power: float = 1.0) -> Tensor:
    """NormGrad: c = |A| |G|^power, the Euclidean norms over channels at each position; 1 is the paper's."""
    length: Tensor = A.norm(dim=1) * G.norm(dim=1).pow(power)
    return length
