"""PxAP: the area under precision and recall of pixels, from counts that add up over an archive.

Flows in: maps in [0, 1] and masks. Flows out: histograms, one number at the end. Choe et al.,
"Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

INTERVAL = 0.001  # of the thresholds, from 0 to 1


@dataclass(frozen=True)
class PixelCounts:
    """How many pixels have each level of heat, inside and outside; add the parts of an archive together."""

    inside: Tensor  # (..., levels) int64
    outside: Tensor  # (..., levels) int64

    @classmethod
    def of(cls, heat: Tensor, regions: Tensor) -> PixelCounts:
        """Count maps (B, M, H, W) in [0, 1] against regions (B, H, W) bool: histograms (B, M, levels)."""
        count = round(1 / INTERVAL) + 1  # the last level holds heat 1 alone
        level = (heat.double() / INTERVAL + 1e-9).floor().clamp(0, count - 1).long().flatten(2)
        mark = regions[:, None].to(heat.device).flatten(2).expand_as(level)
        empty = level.new_zeros(*level.shape[:2], count)
        inside = empty.scatter_add(2, level, mark.long())
        return cls(inside.cpu(), empty.scatter_add(2, level, (~mark).long()).cpu())

    def __add__(self, other: PixelCounts) -> PixelCounts:
        return PixelCounts(self.inside + other.inside, self.outside + other.outside)

    def __getitem__(self, index: object) -> PixelCounts:
        """Pick images or methods."""
        return PixelCounts(self.inside[index], self.outside[index])  # type: ignore[index]

    def average_precision(self) -> Tensor:
        """PxAP: sum of precision(t) (recall(t) - recall(t + 1)) over falling thresholds t: (...), float64.

        nan where no pixel is inside. An even map reaches the share of the pixels that are inside.
        """
        true = self.inside.flip(-1).cumsum(-1).double()
        all_ = true + self.outside.flip(-1).cumsum(-1)
        precision = true / all_.clamp(min=1)
        gained = self.inside.flip(-1).double()
        return (precision * gained).sum(-1) / true[..., -1]
