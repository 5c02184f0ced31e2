"""What one explanation costs: passes counted, arithmetic in units of a forward, time and memory measured.

Flows in: a model, a batch and something that explains it. Flows out: `Cost` per image. Passes and
arithmetic repeat exactly; seconds and memory belong to the machine, and to the size of the batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from camray.cam.split import call, plain, read_logits


@dataclass
class Passes:
    """Images that went through a model, forwards and backwards."""

    forwards: int = 0
    backwards: int = 0


@dataclass(frozen=True)
class Cost:
    """Per image. A replay of the tail counts as a forward; `work` tells how much of one it is."""

    forwards: float
    backwards: float
    work: float  # arithmetic of all passes, one forward of the model being 1
    seconds: float
    peak_bytes: int | None  # of the whole batch, beyond what was held before; None on a CPU


@contextmanager
def count_passes(model: nn.Module) -> Iterator[Passes]:
    """Count the images that pass through the model in the body, in either direction."""
    passes = Passes()

    def count(_module: nn.Module, _args: object, output: object) -> None:
        logits = read_logits(output)
        passes.forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(back)  # type: ignore[no-untyped-call]

    def back(gradient: Tensor) -> None:
        passes.backwards += len(gradient)

    handle = plain(model).register_forward_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


def measure_cost(model: nn.Module, images: Tensor, explain: Callable[[], object]) -> Cost:
    """Run `explain` twice on images (B, C, H, W) of one device: to count, which warms up, and to measure."""
    n, cuda = len(images), images.is_cuda
    with torch.no_grad(), FlopCounterMode(display=False) as one:
        call(model, images)
    with count_passes(model) as passes, FlopCounterMode(display=False) as whole:
        explain()
    held = 0
    if cuda:
        torch.cuda.synchronize(images.device)
        torch.cuda.reset_peak_memory_stats(images.device)
        held = torch.cuda.memory_allocated(images.device)
    start = time.perf_counter()
    explain()
    if cuda:
        torch.cuda.synchronize(images.device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(images.device) - held if cuda else None
    work = whole.get_total_flops() / max(1, one.get_total_flops())
    return Cost(passes.forwards / n, passes.backwards / n, work, seconds / n, peak)
