"""What a person sees while a run works: a bar on a terminal, a line every 30 s elsewhere, JSON on request.

Human text goes to stderr, JSON lines to stdout. Everything is told from receipts.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from camray.errors import printable, redacted
from camray.records import Accounting, Chunk, Receipt, ShardEnd

LINE_EVERY_S = 30.0
BUSY = 0.8  # share of its time that the model works where it is the limit
_STAGES = ("read", "decode", "sink")  # that it may wait for
_ADVICE = {
    "read": ("reading", "more CPUs, or data closer to the cluster"),
    "decode": ("decoding", "add CPUs"),
    "sink": ("writing", "fewer overlays, or a faster store"),
    "chunks": ("the number of chunks", "a smaller --chunk-size, so that every actor gets some"),
    "handover": ("handing on chunks", "a larger --chunk-size, or fewer other programs on the machine"),
}


class Reporter:
    """Prints messages for people or JSON lines for machines."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str, **data: Any) -> None:
        """Print one message; with --json, one object with `message` and the given data."""
        if self.as_json:
            print(redacted(json.dumps({"message": text, **data})), flush=True)
        else:
            self.console.print(printable(text, 2000), markup=False)


class RunProgress:
    """Follows one run: ``with RunProgress(...) as progress: progress.take(chunks, commits)``."""

    def __init__(self, reporter: Reporter, shards: int, members: int | None) -> None:
        self._reporter, self._shards, self._members = reporter, shards, members
        self._committed, self.images = 0, Accounting()
        self.changed_answers = 0  # by a second look with the hot border blurred
        self.stage_seconds: Counter[str] = Counter()
        self.reused = 0
        self._notes: dict[str, dict[str, int]] = {}  # of the readers, by shard
        self.actors = 1  # 0: one process does everything in turn, and nothing waits
        self._chunks = self._explained = 0  # chunks, and their images, that this run explained
        self._working_since: float | None = None  # when the model got its first chunk
        self._started = self._last = self._committed_at = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if reporter.console.is_terminal and not reporter.as_json:
            columns = (BarColumn(20), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bar = Progress(*columns, console=reporter.console, transient=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("starting", total=self._members or self._shards)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def take(self, chunks: Iterable[Chunk], committed: int) -> None:
        """Count what arrived and tell it when it is time."""
        ends = ((chunk.shard_id, chunk.note) for chunk in chunks if isinstance(chunk.note, ShardEnd))
        self._notes |= {shard: end.notes for shard, end in ends if end.notes}
        for receipt in (chunk.note for chunk in chunks if isinstance(chunk.note, Receipt)):
            own = Accounting(receipt.ok, receipt.skipped, receipt.failed)
            self.images += own
            self.stage_seconds.update(receipt.seconds)
            if "explain" in receipt.seconds:
                self._chunks += 1
                self._explained += own.members
                self._working_since = self._working_since or time.monotonic() - receipt.seconds["explain"]
            self.reused += receipt.reused
            self.changed_answers += receipt.changed_answers
        self._committed += committed
        self._committed_at = time.monotonic() if committed else self._committed_at
        if self._bar is not None and self._task is not None:
            images = self.images.members if self._members else self._committed
            self._bar.update(self._task, completed=images, description=self._sentence())
        elif time.monotonic() - self._last >= LINE_EVERY_S:
            self._last = time.monotonic()
            limit = f"; {self.bottleneck()}" if self.bottleneck() else ""
            self._reporter.say(self._sentence() + limit, **self._data())

    def notes(self) -> list[str]:
        """Say what the readers guessed or left unused, and of how many members."""
        counts: Counter[str] = Counter()
        for notes in self._notes.values():
            counts.update(notes)
        return [f"{note} ({count:,})" for note, count in sorted(counts.items())]

    @property
    def images_per_s(self) -> float:
        """Images finished per second since the start."""
        return self.images.members / max(1e-9, time.monotonic() - self._started)

    @property
    def shards_left(self) -> int:
        """Shards not committed yet."""
        return self._shards - self._committed

    def limit(self) -> tuple[str, float]:
        """Name what limits the run, with the share of the model's time that says so, 0..1.

        ``model``: the share it is at work. Else the share it waits, for ``read``, ``decode`` or ``sink``, or
        for ``handover`` where no stage was at work meanwhile, for ``chunks`` where there were fewer than
        actors. ("", 0) before the first chunk, and without actors.
        """
        if self._working_since is None or not self.actors:
            return "", 0.0
        elapsed = max(1e-9, time.monotonic() - self._working_since) * self.actors
        busy = min(1.0, self.stage_seconds["explain"] / elapsed)
        if busy >= BUSY:
            return "model", busy
        if self._chunks < self.actors:
            return "chunks", 1 - busy
        stage = max(_STAGES, key=lambda s: self.stage_seconds[s])
        idle = self.stage_seconds[stage] < elapsed * (1 - busy) / 2
        return "handover" if idle else stage, 1 - busy

    def bottleneck(self) -> str:
        """Say what limits the run and what helps: the model where it never rests, else what it waits for."""
        name, share = self.limit()
        if not name:
            return ""
        if name == "model":
            return f"the model is the limit, at work {share:.0%} of the time: more actors or GPUs"
        what, helps = _ADVICE[name]
        return f"{what} is the limit, the model waits {share:.0%} of the time: {helps}"

    def _left_s(self) -> float:
        """Estimate the seconds left from what the model did, by shards where nobody counted images.

        0 where it cannot be told yet. What an earlier run had finished says nothing of the speed.
        """
        if self._working_since is None:
            return 0.0
        spent_s = time.monotonic() - self._working_since
        if self._members:
            return (self._members - self.images.members) * spent_s / max(1, self._explained)
        whole_s = (self._committed_at - self._working_since) * self._shards / max(1, self._committed)
        return max(0.0, whole_s - spent_s) if self._committed else 0.0

    def _sentence(self) -> str:
        total = f"/{self._members:,}" if self._members else ""
        left_s = self._left_s()
        eta = f", {'' if total else 'about '}{spoken_duration(left_s)} left" if left_s else ""
        return (
            f"{self.images.members:,}{total} images, {self.images.n_failed:,} failed{eta}, "
            f"{self.images_per_s:.1f} images/s, {self._committed:,}/{self._shards:,} shards"  # cut off first
        )

    def _data(self) -> dict[str, Any]:
        return {
            "images": self.images.members,
            "failed": self.images.n_failed,
            "shards_committed": self._committed,
            "shards": self._shards,
            "images_per_s": round(self.images_per_s, 2),
            "stage_seconds": {k: round(v, 2) for k, v in self.stage_seconds.items()},
            "bottleneck": self.bottleneck(),
        }


def spoken_duration(seconds: float) -> str:
    """Say a duration in its two largest units."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    )
