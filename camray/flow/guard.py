"""A chunk that keeps killing its worker is taken image by image, and the culprit becomes a failed record.

Ray retries the work of a dead worker for ever: one image that crashes a decoder, or is too fat for memory,
would loop. `Attempts` (with Ray an actor of the run) remembers where each attempt at a chunk was made; from
the third on the images are announced one by one, so that the one under way when the worker died is known.
An image of which two workers died so is the culprit. An attempt on a machine that was lost counts for
nothing: whatever was under way there is innocent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from camray.errors import CamrayError, ErrorCode, IncompleteError, Stage, no_model
from camray.records import Chunk, Data, Lost, failure, struct_array

WHOLE_CHUNK_TRIES = 2
ALONE_TRIES = 2  # deaths of a worker, at one image, that make this image the culprit
_HEAVY = ("pixels", "bands", "content")  # columns that a failed image does not need
STARTS = 3  # of one worker; Ray would start it again for ever

_T = TypeVar("_T")
Work = Callable[[pa.StructArray], pa.StructArray]


@dataclass(slots=True)
class _Attempt:
    """One attempt at a chunk: on which machine, and at which image it was last; None: at all of them."""

    machine: str
    position: int | None = None


class Attempts:
    """Remembers attempts and names culprits; holds only chunks under way."""

    def __init__(self, is_lost: Callable[[str], bool] = lambda _: False) -> None:
        """`is_lost` tells of a machine whether it died; asked late, as that takes its time to be known."""
        self._is_lost = is_lost
        self._begun: dict[str, list[_Attempt]] = {}

    def begin(self, chunk: str, machine: str = "") -> int:
        """Note one more attempt; give how many there were, without those on machines that were lost."""
        tries = self._begun.setdefault(chunk, [])
        tries.append(_Attempt(machine))
        return 1 + len(self._deaths(chunk))

    def may_try(self, chunk: str, position: int) -> bool:
        """Announce one image; False where it killed two workers before."""
        if sum(death.position == position for death in self._deaths(chunk)) >= ALONE_TRIES:
            return False
        if chunk in self._begun:  # it may have lost its memory
            self._begun[chunk][-1].position = position
        return True

    def _deaths(self, chunk: str) -> list[_Attempt]:
        """Give the attempts that ended with their worker alone."""
        return [one for one in self._begun.get(chunk, [])[:-1] if not self._is_lost(one.machine)]

    def finish(self, chunk: str) -> None:
        """Forget a chunk that is done."""
        self._begun.pop(chunk, None)

    def worker(self) -> str:
        """Name the worker that asks; the name stays when it is started anew."""
        return "this process"


class Guard:
    """Runs a stage's work on a chunk under the watch of `attempts`.

    Those of one process see every chunk once: what ends the process ends the run.
    """

    def __init__(self, attempts: Attempts | None = None) -> None:
        self._attempts = attempts or Attempts()

    def run(self, stage: Stage, chunk: Chunk, work: Work | IncompleteError) -> Chunk:
        """Do the work at once, or image by image from the third attempt on; chunks without images pass.

        `work` that could not be loaded makes the chunk a lost one.
        """
        if not isinstance(chunk.note, Data):
            return chunk
        if isinstance(work, IncompleteError):
            return Chunk(chunk.shard_id, chunk.index, Lost(None, str(work)))
        started = time.perf_counter()
        name = f"{stage}/{chunk.shard_id}/{chunk.index}"
        if self._attempts.begin(name) <= WHOLE_CHUNK_TRIES:
            done = work(chunk.images)
        else:
            results = []
            for i in range(len(chunk.images)):
                one = chunk.images[i : i + 1]
                results.append(work(one if self._attempts.may_try(name, i) else _crashed(one, stage)))
            done = pa.concat_arrays(results)
        self._attempts.finish(name)
        return chunk.worked(stage, time.perf_counter() - started, done)

    def start(self, load: Callable[[], _T]) -> _T | IncompleteError:
        """Let a worker load its model.

        What went wrong is given and not raised: Ray would print its traceback, and start the worker again.
        Given is also that the process of this worker has ended at it three times.
        """
        name = f"start/{self._attempts.worker()}"
        if self._attempts.begin(name) > STARTS:
            return no_model(f"its process ended {STARTS} times at it (a crash, or out of memory)")
        try:
            loaded = load()
        except Exception as error:  # noqa: BLE001 - the user's own code may raise anything
            return no_model(f"{'' if isinstance(error, CamrayError) else type(error).__name__ + ': '}{error}")
        self._attempts.finish(name)
        return loaded


def _crashed(image: pa.StructArray, stage: Stage) -> pa.StructArray:
    """Give the same item, failed: every stage lets it pass untouched."""
    reason = "its worker process ended twice at this image alone (crash or out of memory)"
    columns: dict[str, Any] = {f.name: image.field(f.name) for f in image.type}
    columns |= {name: [value] for name, value in failure(stage, ErrorCode.WORKER_CRASHED, reason).items()}
    return struct_array(columns | {f.name: None for f in image.type if f.name in _HEAVY}, image.type)
