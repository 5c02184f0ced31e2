"""A network whose part in front of the target layer is compiled, for batches of one size.

    model, images, layer ──export──> what the tail reads: the layer's output, skip connections past it
                            ├──torch.compile──> in this process
                            └──compile_to──> a shared library, which needs no compiler to be loaded

The tail stays eager, as a gradient has to go through it. `explain` takes a `Compiled` like any network:
batches of another size, other layers and methods that look further run the plain one.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from camray.cam.layout import TargetLayer
from camray.cam.split import as_found, asked_precision, plain
from camray.cam.tail import Tail, make_tail, record, stand_in
from camray.errors import ModelError

Front = Callable[[Tensor], Sequence[Tensor]]
OPTIONS = {"freezing": True, "cpp.threads": 1}
"""Of Inductor: weights are packed once; one thread, so that results do not depend on their number."""

_GIVEN: ContextVar[dict[str, deque[Any]]] = ContextVar("given")


class Compiled(nn.Module):
    """A network and the compiled front of it; called, it is the plain network."""

    def __init__(self, tail: Tail, front: Front, dtype: torch.dtype | None) -> None:
        super().__init__()
        self._orig_mod = tail.model
        self._tail, self._front, self._dtype = tail, front, dtype
        self._spec = pytree.tree_structure(
            _read(tail, *record(tail.model, tail.inputs, tail.layer, tail.needed)[:2])
        )
        self.__dict__["_short"] = self._without_front()  # no part of this module's tree

    def forward(self, images: Tensor) -> Any:
        """Run the plain network."""
        return self._orig_mod(images)

    def compiled_for(self, images: Tensor, layers: Sequence[TargetLayer]) -> nn.Module | None:
        """Give the network that runs these images through the compiled front; None where it cannot."""
        known = self._tail.inputs
        fits = images.shape == known.shape and (images.dtype, images.device) == (known.dtype, known.device)
        asked = asked_precision() == self._dtype and list(layers) == [self._tail.layer]
        short: nn.Module = self.__dict__["_short"]
        return short if fits and asked else None

    def _without_front(self) -> nn.Module:
        """Copy the structure; modules in front of the layer hand out what the compiled front returned."""
        tail = self._tail
        tensors = (*tail.model.parameters(), *tail.model.buffers())
        short = copy.deepcopy(tail.model, {id(t): t for t in tensors})
        modules = dict(short.named_modules())
        for name in (tail.layer.name, *tail.outputs):
            modules[name].forward = _Given(name, modules[name].forward)
            # torch's encoder layers run as one fused call, past their modules, unless one has a hook
            modules[name].register_forward_hook(lambda *_: None)
        whole = short.forward

        def forward(images: Tensor) -> Any:
            token = _GIVEN.set(self._given(images))
            try:
                return whole(images if tail.needs_inputs else stand_in(images, len(images), len(images)))
            finally:
                _GIVEN.reset(token)

        short.forward = forward
        return short

    def _given(self, images: Tensor) -> dict[str, deque[Any]]:
        """Run the compiled front: the outputs by module, in the order of its calls."""
        found = self._front(images.contiguous(memory_format=torch.channels_last))
        result, needed = pytree.tree_unflatten(list(found), self._spec)
        outputs = {**self._tail.outputs, **needed, self._tail.layer.name: [result]}
        return {name: deque(calls) for name, calls in outputs.items()}


class _Given:
    """The forward of a module whose outputs are known; a module shared with the tail goes on to run."""

    def __init__(self, name: str, original: Callable[..., Any]) -> None:
        self._name, self._original = name, original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        calls = _GIVEN.get()[self._name]
        return calls.popleft() if calls else self._original(*args, **kwargs)


class _FrontOf(nn.Module):
    """The front as a module of its own: it gives all tensors that the tail reads, and nothing else."""

    def __init__(self, tail: Tail, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.model = tail.model
        self._tail, self._dtype = tail, dtype

    def forward(self, images: Tensor) -> list[Tensor]:
        """Give the tensors, flat."""
        cast: AbstractContextManager[object] = nullcontext()
        if self._dtype is not None:
            cast = torch.autocast(images.device.type, self._dtype)
        with cast:
            found = record(self.model, images, self._tail.layer, self._tail.needed)[:2]
        return pytree.tree_leaves(_read(self._tail, *found))


def compiled(
    model: nn.Module, images: Tensor, layer: TargetLayer, dtype: torch.dtype | None = None
) -> Compiled:
    """Compile the part of a network in front of `layer`, for batches like `images`, in this process.

    `dtype`: what `explain` is asked to `autocast` to.

    Raises:
        ModelError: the part in front cannot be told apart; an error of the compiler's own.
    """
    tail = _tail(model, images, layer)
    with torch._inductor.config.patch(freezing=True):
        front = torch.compile(_exported(tail, dtype).module())

        def run(images: Tensor) -> list[Tensor]:
            with torch.no_grad():
                found: list[Tensor] = front(images)
                return found

        run(tail.inputs)
    return Compiled(tail, run, dtype)


def compile_to(
    path: Path, model: nn.Module, images: Tensor, layer: TargetLayer, dtype: torch.dtype | None = None
) -> None:
    """Compile the front for the CPU of this machine into a shared library, its weights inside."""
    from torch._inductor.utils import fresh_cache

    tail = _tail(model, images, layer)
    with fresh_cache(), torch.no_grad():
        options = {**OPTIONS, "aot_inductor.output_path": str(path)}
        torch._inductor.aot_compile(_exported(tail, dtype).module(), (tail.inputs,), options=options)


def load_compiled(
    path: Path, model: nn.Module, images: Tensor, layer: TargetLayer, dtype: torch.dtype | None = None
) -> Compiled:
    """Load what `compile_to` wrote from the same model, images like these, and layer."""
    from torch._C import _aoti

    front = _aoti.AOTIModelContainerRunnerCpu(str(path), torch.get_num_threads())
    return Compiled(_tail(model, images, layer), lambda x: front.run([x]), dtype)


def _tail(model: nn.Module, images: Tensor, layer: TargetLayer) -> Tail:
    model = plain(model)
    with as_found(model):
        tail = make_tail(model, images.contiguous(memory_format=torch.channels_last), layer)
    if not tail.outputs:
        raise ModelError(
            "model", f"what runs in front of {layer.name} cannot be told apart", "leave it plain"
        )
    return tail


def _exported(tail: Tail, dtype: torch.dtype | None) -> torch.export.ExportedProgram:
    """Trace the front into a graph of its own; what stands behind the layer falls away."""
    with torch.no_grad(), as_found(tail.model):
        return torch.export.export(_FrontOf(tail, dtype), (tail.inputs,), strict=False)


def _read(tail: Tail, calls: dict[str, list[Any]], result: Any) -> tuple[Any, dict[str, list[Any]]]:
    return result, {name: calls[name] for name in sorted(tail.needed)}
