"""The actor of explaining: it holds one model; a chunk row in, a chunk row out."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from camray.config import Explainer, OverlayConfig
from camray.errors import Stage
from camray.flow.guard import Guard
from camray.machine import keep_freed_memory
from camray.records import EXPLAINED, Chunk, Data, Status, struct_array

if TYPE_CHECKING:
    from camray.explain.compiling import Library
    from camray.explain.explainer import BatchExplainer
    from camray.models.folding import Pairs
    from camray.models.load import LoadedModel

_DRAWABLE = ("ok", "dead")  # heat statuses of maps that are there


@dataclass(frozen=True, slots=True)
class Network:
    """A model's weights as they travel: numpy arrays by the names of its state dict."""

    arrays: dict[str, Any]
    folded: Pairs = ()  # the batch norms that its convolutions carry
    library: Library | None = None  # the compiled part in front of its layer

    def state(self) -> dict[str, Any]:
        """Give the tensors, without copying them: they may lie in memory that is not to be written."""
        import torch

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return {name: torch.from_numpy(array) for name, array in self.arrays.items()}


Weights = Callable[[], Network]
"""Gives a model's network as it lies in memory that this machine's workers share."""


def network_of(model: LoadedModel) -> Network:
    """Give the weights of a model on a CPU, without copying them."""
    arrays = {name: tensor.numpy() for name, tensor in model.module.state_dict().items()}
    return Network(arrays, model.folded, model.library)


def device_here(device: str) -> str:
    """Resolve `auto` for this machine."""
    import torch

    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


class ExplainActor:
    """Loads the model once, then explains chunk after chunk."""

    def __init__(
        self,
        explainer: Explainer,
        weights: Weights,
        device: str,
        batch_size: int,
        threads: int,
        overlay: OverlayConfig,
        guard: Guard,
    ) -> None:
        def load() -> BatchExplainer:
            import torch

            from camray.explain.detections import core_of

            torch.set_num_threads(threads)  # of this whole process
            keep_freed_memory()
            network = weights()
            core = core_of(explainer, network.state(), device, batch_size, network.folded)
            if network.library is not None:
                from camray.explain.compiling import installed

                if path := installed(network.library):
                    core.take_compiled(path)
            return core

        self._explain = guard.start(load)
        self._overlay, self._guard = overlay, guard

    def __call__(self, row: pa.Table) -> pa.Table:
        """Explain one chunk; rows without images pass."""
        chunk = Chunk.from_row(row)
        done = self._guard.run(Stage.EXPLAIN, chunk, self._explain)
        if isinstance(done.note, Data):
            images = choose_overlays(done.images, chunk.images, chunk.shard_id, self._overlay)
            done = dataclasses.replace(done, images=images)
        return done.to_row(EXPLAINED)


def choose_overlays(
    images: pa.StructArray, decoded: pa.StructArray, shard_id: str, overlay: OverlayConfig
) -> pa.StructArray:
    """Mark the images that get a picture, and let the pixels (or bytes) of these alone travel on.

    A sample is the `sample_per_chunk` images of the chunk whose hashed index is lowest: the same images on
    every run, whatever the order of work.
    """
    chosen = _chosen(images, shard_id, overlay)
    indices = images.field("index").to_pylist()
    drawable = [status in _DRAWABLE for status in images.field("heat_status").to_pylist()]
    due = [index in chosen and can for index, can in zip(indices, drawable, strict=True)]
    source_column = "content" if overlay.on == "original" else "pixels"
    position: dict[int, int | None] = {index: i for i, index in enumerate(decoded.field("index").to_pylist())}
    values = decoded.field(source_column)
    columns: dict[str, Any] = {f.name: images.field(f.name) for f in EXPLAINED}
    shared = decoded.field("content_of").to_pylist()  # by another frame of the same file
    if source_column == "content":
        position = {i: position.get(i if of is None else of) for i, of in zip(position, shared, strict=True)}
    due = [d and position[i] is not None for i, d in zip(indices, due, strict=True)]
    places = [position[i] if d else None for i, d in zip(indices, due, strict=True)]
    columns |= {"overlay": due, "pixels": None, "content": None}
    columns[source_column] = values.take(pa.array(places, pa.int64()))
    return struct_array(columns, EXPLAINED)


def _chosen(images: pa.StructArray, shard_id: str, overlay: OverlayConfig) -> set[int]:
    """Give the indices of the images that the policy asks a picture of."""
    from camray.explain.explainer import is_flagged

    if overlay.policy == "none":
        return set()
    names = ("index", "status", "correct", "heat_status", "margin", "confirm_region", "confirm_drop")
    columns = [images.field(name).to_pylist() for name in names]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    ok = [r for r in rows if r["status"] == Status.OK and r["heat_status"] in _DRAWABLE]
    indices = {r["index"] for r in ok}
    if overlay.policy == "flagged":  # and those that come next in the queue: the least sure ones
        flagged = {r["index"] for r in ok if is_flagged(r)}
        margins = {r["index"]: r["margin"] or 0.0 for r in ok if r["index"] not in flagged}
        return flagged | set(sorted(margins, key=lambda i: (margins[i], i))[: overlay.sample_per_chunk])
    if overlay.policy == "sample":
        indices = set(sorted(indices, key=lambda i: _rank(shard_id, i))[: overlay.sample_per_chunk])
    return indices


def _rank(shard_id: str, index: int) -> bytes:
    return hashlib.blake2b(f"{shard_id}/{index}".encode(), digest_size=8).digest()
