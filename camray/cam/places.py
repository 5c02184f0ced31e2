"""Whether positions of a layer are places of the image: stripes of one are changed, and what moves shows.

Flows in: a model and its input size. Flows out: for every module how far each position of its output moved,
and for a reading of them as a map how well what moved lies where the image was changed, along both axes.
A sequence of tokens does not say which of its first belong to no patch, nor where its rows end; a matrix
of attention has the shape of a picture. Arithmetic can tell neither; this can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camray.cam.layout import Layout, Size, TargetLayer, is_map_of
from camray.cam.split import first_tensor, hooks

STRIPES = 4  # patterns along each axis: 1, 2, 4 and 8 dark bands, so that 16 columns are told apart
SEEN = 0.1  # correlation along either axis from which on positions are places; else measured: -.2 to .05
FOUND = 0.5  # what a reading found among many must reach; those that are right: .51 to .99
STILL = 1e-3  # of the mean way: tokens that move less stand still
SAME = 0.02  # readings whose correlations differ by less fit alike
NEAR = 0.05  # of these, the one behind all other tokens
SPARE = 128  # tokens at most that belong to no patch


@dataclass(frozen=True)
class Moves:
    """How far the positions of one module's output moved, by the way they would be read."""

    moved: Mapping[Layout, Tensor]  # (K, rows, columns), or (K, tokens)
    masks: Tensor  # what was changed, (K, H, W)
    sequence_first: bool = False

    def agreement(self, layer: TargetLayer) -> float:
        """Correlate what moved, read as this layer, with what was changed: of both axes the worse."""
        found = self.moved.get(layer.layout)
        if found is None:
            return 0.0
        size = layer.grid if layer.layout == "tokens" else (found.shape[1], found.shape[2])
        assert size is not None
        tokens = found.flatten(1)[:, layer.prefix : layer.prefix + size[0] * size[1]]
        return _worse_axis(_logarithm(tokens), self._wanted(size), size)

    def best(self, name: str, size: Size) -> list[TargetLayer]:
        """Give the readings of a sequence that the moves bear out: one, none, or those that fit alike.

        A part of the rows fits, too, and so may a row too many: the reading counts that explains most of how
        all tokens moved; before it one outside of which nothing moves, and inside of which everything. Where
        the neighbourhood of a patch moves with it, a shift by one is hardly seen: then what stands outside
        the grid stands in front of it.
        """
        tokens = self.moved["tokens"].shape[1]
        found = sorted(
            (f for f in self._fits(tokens, size) if f.agreement >= FOUND),
            key=lambda f: (-f.holds_what_moves, -f.explained),
        )
        found = [f for f in found if f.cells == found[0].cells]
        in_front = [f for f in found if f.start + f.cells == tokens]
        if in_front and in_front[0].agreement > found[0].agreement - NEAR:
            found = [in_front[0], *found]
        alike = [
            f for f in found[1:]
            if f.agreement > found[0].agreement - SAME and abs(f.start - found[0].start) >= f.grid[1]
        ]  # fmt: skip
        return [
            TargetLayer(name, "tokens", f.start, f.grid, "", tokens - f.start - f.cells, self.sequence_first)
            for f in (*found[:1], *alike)
        ]

    def _fits(self, tokens: int, size: Size) -> Iterator[_Fit]:
        logarithm = _logarithm(self.moved["tokens"])
        ways = self.moved["tokens"].amax(0)
        still = ways < STILL * ways.mean()  # (tokens,)
        for grid in _grids(tokens, size):
            wanted, cells = self._wanted(grid), grid[0] * grid[1]
            for start in range(tokens - cells + 1):
                outside = int(still[:start].sum() + still[start + cells :].sum())
                whole = 0 < outside == int(still.sum()) == tokens - cells
                if cells >= tokens / 2 or outside == tokens - cells:  # else a few of many fit by chance
                    there = logarithm[:, start : start + cells]
                    yield _Fit(
                        _worse_axis(there, wanted, grid), _explained(there, wanted), cells, start, grid, whole
                    )

    def _wanted(self, size: Size) -> Tensor:
        return F.adaptive_avg_pool2d(self.masks[:, None], size).flatten(1)  # (K, cells)


@dataclass(frozen=True)
class _Fit:
    agreement: float
    explained: float  # how much of the moves of all tokens: those outside should move alike, whatever changes
    cells: int
    start: int
    grid: Size
    holds_what_moves: bool  # other tokens stand still, and none of these does


def watch_moves(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, Moves]:
    """Run two images, then the first with stripes of the second in it, and see what moves in every module."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(2, *input_size, generator=draw).to(like.device, like.dtype)
    masks = _stripes(input_size[1:]).to(images)
    changed = torch.where(masks[:, None] > 0, images[1:], images[:1])  # (K, C, H, W)
    before: dict[str, tuple[Tensor, bool]] = {}
    after: dict[str, dict[Layout, list[Tensor]]] = {}

    def first(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is None or tensor.ndim not in (3, 4) or name in before:
                return
            if tensor.shape[0] == 2:
                before[name] = tensor[:1].clone(), False
            elif tensor.ndim == 3 and tensor.shape[1] == 2:
                before[name] = tensor[:, :1].clone().transpose(0, 1), True

        return hook

    def again(name: str, seen: set[str]) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            own, sequence_first = before[name]
            tensor = first_tensor(output)
            if tensor is None or name in seen:
                return
            seen.add(name)
            tensor = tensor.transpose(0, 1) if sequence_first else tensor
            axes: dict[Layout, int] = {"nchw": 1, "nhwc": 3} if own.ndim == 4 else {"tokens": 2}
            if tensor.shape == own.shape:
                for layout, channels in axes.items():
                    moved = (tensor - own).float().norm(dim=channels)
                    after.setdefault(name, {}).setdefault(layout, []).append(moved)

        return hook

    with torch.inference_mode(False), torch.no_grad():
        with hooks(model, {n: first(n) for n, _ in model.named_modules() if n}):
            model(images)
        for image in changed:
            seen: set[str] = set()
            with hooks(model, {n: again(n, seen) for n in before}):
                model(image[None])
    return {
        name: Moves({layout: torch.cat(each) for layout, each in own.items()}, masks.float(), before[name][1])
        for name, own in after.items()
        if all(len(each) == len(masks) for each in own.values())
    }


def _stripes(size: Size) -> Tensor:
    """Mark where an image is changed: (K, H, W), first bands side by side, then bands above each other."""
    height, width = size
    bands = [2**i for i in range(STRIPES)]
    x, y = (torch.arange(n) / n for n in (width, height))
    columns = torch.stack([(x * b * 2).floor() % 2 for b in bands])  # (STRIPES, W)
    rows = torch.stack([(y * b * 2).floor() % 2 for b in bands])
    return torch.cat([columns[:, None].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)])


def _grids(tokens: int, size: Size) -> Iterator[Size]:
    """Every grid of the image's aspect that a sequence may hold: rows x columns."""
    rows, columns = size
    fewest = max(4, tokens - SPARE)
    for h in range(1, tokens + 1):
        near = h * columns // rows
        for w in range(max(1, near - 1), near + 3):
            if fewest <= h * w <= tokens and is_map_of((h, w), size):
                yield h, w


def _logarithm(moved: Tensor) -> Tensor:
    return (moved.flatten(1) / moved.mean().clamp_min(torch.finfo(moved.dtype).tiny) + 1e-4).log()


def _worse_axis(found: Tensor, wanted: Tensor, size: Size) -> float:
    """Correlate (K, cells) of bands along x, and of bands along y, each where there is more than one cell."""
    axes = ((slice(0, STRIPES), size[1]), (slice(STRIPES, None), size[0]))
    return min((_correlation(found[k], wanted[k]) for k, length in axes if length > 1), default=0.0)


def _explained(found: Tensor, wanted: Tensor) -> float:
    """Project the moves (K, cells) on those wanted: the length of what these explain."""
    parts = [(found[k] * _centred(wanted[k])).sum() / _centred(wanted[k]).norm().clamp_min(1e-12)
             for k in (slice(0, STRIPES), slice(STRIPES, None))]  # fmt: skip
    return float(torch.stack(parts).norm())


def _centred(table: Tensor) -> Tensor:
    return table - table.mean(0, keepdim=True) - table.mean(1, keepdim=True) + table.mean()


def _correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's, of two tables (K, cells) whose rows and columns are centred."""
    one, other = _centred(one), _centred(other)
    scale = float(one.norm() * other.norm())
    return float((one * other).sum()) / scale if scale > 0 else 0.0
