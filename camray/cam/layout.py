"""How the output of a layer becomes spatial maps: (B, C, h, w) in, the layer's own layout out.

Flows in: the raw output of one module. Flows out: the same numbers as `(B, C, h, w)`, and back.
Three layouts cover every classifier met so far: NCHW, NHWC, and token sequences with prefix tokens
(class, distillation, registers) in front of a row-major grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from camray.errors import ModelError

Layout = Literal["nchw", "nhwc", "tokens"]
Size = tuple[int, int]  # rows, columns


@dataclass(frozen=True)
class TargetLayer:
    """A layer to look at, and how to read its output as maps.

    `reason` says why it was chosen. `grid`, and how many tokens stand before and behind it, are used by token
    layouts only.
    """

    name: str
    layout: Layout = "nchw"
    prefix: int = 0
    grid: Size | None = None
    reason: str = "named by the user"
    suffix: int = 0
    sequence_first: bool = False  # the module itself gives (tokens, B, C); here it is always (B, tokens, C)

    def turned(self, output: Tensor) -> Tensor:
        """Turn what the module gives to batch first, or back."""
        return output.transpose(0, 1) if self.sequence_first else output

    def to_maps(self, output: Tensor) -> Tensor:
        """Read the layer's output as maps, without a copy where strides allow: -> (B, C, h, w)."""
        if self.layout == "nchw":
            return output  # (B, C, h, w)
        if self.layout == "nhwc":
            return output.permute(0, 3, 1, 2)  # (B, C, h, w)
        rows, columns = self.grid_of(output.shape[1])
        patches = output[:, self.prefix : self.prefix + rows * columns]  # (B, h*w, C)
        return patches.transpose(1, 2).reshape(len(patches), -1, rows, columns)  # (B, C, h, w)

    def grid_of(self, tokens: int) -> Size:
        """Rows and columns of a sequence of `tokens`; refuses a length the grid cannot explain."""
        cells = tokens - self.prefix - self.suffix
        if self.grid is not None and self.grid[0] * self.grid[1] == cells:
            return self.grid
        side = round(max(0, cells) ** 0.5)
        if side * side == cells > 0:
            return side, side
        raise ModelError(
            "layer",
            f"{self.name} gave {tokens} tokens, expected {self.prefix} + {self.grid}",
            "find the layer again with the input size of these images",
        )

    def to_dict(self) -> dict[str, Any]:
        """Give how the output is read, as JSON knows it."""
        seldom = {"suffix": self.suffix, "sequence_first": self.sequence_first}
        told = {"layout": self.layout, "prefix": self.prefix, "grid": self.grid}
        return told | {name: value for name, value in seldom.items() if value}

    @property
    def channel_dim(self) -> int:
        """The dimension of the raw output that counts channels."""
        return 1 if self.layout == "nchw" else -1


def read_layout(
    name: str, shape: tuple[int, ...], input_size: Size, prefix: int = 0, prefer: Layout = "nchw"
) -> TargetLayer | None:
    """Guess how an output of this shape holds maps of an image of `input_size`; None if it does not.

    A 4-D output is NCHW when its last two sizes shrink the image by one common stride, NHWC when the
    middle two do (a Swin output of (B, 7, 7, 768) has no common stride as NCHW: 224/7 but 224/768).
    `prefer` decides the one shape that is both, a cube. A 3-D output is tokens when its length, after
    `prefix` tokens or none, is a grid of the image's aspect.
    """
    if len(shape) == 4:
        nchw = is_map_of(shape[2:], input_size)
        nhwc = is_map_of(shape[1:3], input_size)
        if nchw and nhwc:
            return TargetLayer(name, prefer)
        return TargetLayer(name, "nchw" if nchw else "nhwc") if nchw or nhwc else None
    if len(shape) == 3:
        for skipped in dict.fromkeys((prefix, 0, 1, 2, 4, 5)):
            grid = grid_for(shape[1] - skipped, input_size)
            if grid is not None:
                return replace(TargetLayer(name, "tokens"), prefix=skipped, grid=grid)
    return None


def is_map_of(size: tuple[int, ...], input_size: Size) -> bool:
    """Whether (h, w) is the input shrunk by one stride: same aspect within a cell, more than a point."""
    h, w = size
    rows, columns = input_size
    if h * w <= 1 or h > rows or w > columns:
        return False
    stride = max(rows / h, columns / w)
    return abs(rows - h * stride) <= stride and abs(columns - w * stride) <= stride


def grid_for(cells: int, input_size: Size) -> Size | None:
    """Rows and columns of `cells` patches laid over an image; None when no grid has its aspect."""
    rows, columns = input_size
    if cells <= 1:
        return None
    for h in range(max(1, round((cells * rows / columns) ** 0.5) - 1), cells + 1):
        if h * h * columns > 4 * cells * rows:
            return None
        if cells % h == 0 and is_map_of((h, cells // h), input_size):
            return h, cells // h
    return None
