"""Test-time augmentation of any method: flips and brightness, averaged.

Flows in: what `explain` takes, for one target rule. Flows out: finished maps (B, K, H, W), a mean of six.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from camray.cam.engine import explain
from camray.cam.finish import finish
from camray.cam.layout import TargetLayer
from camray.cam.targets import TargetRule

FACTORS = (0.9, 1.0, 1.1)  # of the normalised image, as is customary


def aug_smooth(
    model: nn.Module,
    inputs: Tensor,
    layer: TargetLayer,
    method: str = "gradcam",
    target: str | TargetRule = "predicted",
    labels: Tensor | None = None,
) -> Tensor:
    """Average the maps in [0, 1] of six views: plain and mirrored, each times 0.9, 1 and 1.1.

    The classes are those of the unaltered image in every view. The mean is not stretched to 1 again.
    """
    rule = TargetRule.parse(target) if isinstance(target, str) else target
    size = (inputs.shape[2], inputs.shape[3])
    first = explain(model, inputs, layer, method, rule, labels)
    if rule.is_class:
        rule = replace(rule, select="given", tensor=first.classes)
    total = finish(first.maps[method, layer.name], size)
    for mirrored in (False, True):
        for factor in FACTORS:
            if factor == 1.0 and not mirrored:
                continue  # the unaltered view, already counted
            view = inputs * factor
            view = view.flip(3) if mirrored else view
            found = finish(explain(model, view, layer, method, rule).maps[method, layer.name], size)
            total = total + (found.flip(3) if mirrored else found)
    return total / (2 * len(FACTORS))
