"""A few images of what is planned, explained on this machine: what the rest would take, and why that is so.

Prepared ──pilot──> Pilot      Read, decoded, explained and written (to a temporary folder) as one chunk, by
                               the flow of the job, in this process. Nothing is written to OUT.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from camray.archive.members import read_members
from camray.errors import EmptyArchiveError, ShardError, Stage, UsageError
from camray.flow.actor import device_here, network_of
from camray.flow.flow import Pool, explain_flow
from camray.flow.guard import Guard
from camray.flow.here import stages_here
from camray.flow.progress import spoken_duration
from camray.flow.stages import read_first
from camray.job.prepare import Prepared, known_members
from camray.ledger.plan import ShardTask
from camray.records import MEMBER, Chunk, Data, Receipt, Shard, Status, with_own_content

MOVED = 0.05  # of a map's height: what the eye would not miss in a picture of it
SHARDS = 8  # the images come from so many shards at most, spread evenly over those to do


@dataclass(frozen=True, slots=True)
class Moved:
    """How many of the pilot's images come out otherwise than in fp32."""

    precision: str
    images: int  # explained in both
    classes: int  # of them: another class won
    maps: int  # of the others: the map moved by more than 5 % of its height


@dataclass(frozen=True, slots=True)
class Pilot:
    """What a few images took. Seconds are of one thread, or of one GPU for `explain`."""

    images: int
    shards: int  # that they come from
    seconds: dict[str, float]  # of an image, by stage
    device: str
    actors: int
    cores: int  # of this machine
    record_bytes: float  # written, of an image
    overlay_bytes: float
    archive_images: int
    counted: str  # where that number comes from
    moved: Moved | None = None  # of a network that computes in less than fp32

    @property
    def images_per_s(self) -> float:
        """Images a second of the whole pool, when nothing ever waits."""
        s = self.seconds
        if self.device == "cuda":
            beside = s["read"] + s["decode"] + s["sink"]
            return min(self.actors / s["explain"], self.cores / beside)
        return min(self.actors / (s["decode"] + s["explain"]), self.cores / sum(s.values()))

    @property
    def hours(self) -> float:
        """For the archive, start-up not counted."""
        return self.archive_images / self.images_per_s / 3600

    def facts(self) -> dict[str, Any]:
        """Give the numbers, for --json."""
        return asdict(self) | {"images_per_s": round(self.images_per_s, 3), "hours": round(self.hours, 5)}

    def lines(self) -> dict[str, str]:
        """Say each figure with what it rests on."""
        ms = ", ".join(f"{stage} {1000 * s:.1f}" for stage, s in self.seconds.items())
        of_what = "a GPU and a core" if self.device == "cuda" else "one core"
        spent = spoken_duration(self.hours * 3600)
        busy = f"{self.actors * self.hours:,.2f} GPU hours"
        busy = busy if self.device == "cuda" else f"{self.cores * self.hours:,.2f} core hours"
        m = self.moved
        differs = {} if m is None else {
            m.precision: f"{m.classes} of {m.images} images have another class than in fp32; of the others "
            f"{m.maps} have a map that differs by more than {MOVED:.0%} of its height"
        }  # fmt: skip
        records, overlays = (self.archive_images * b / 1e6 for b in (self.record_bytes, self.overlay_bytes))
        return {
            "pilot": f"{self.images} images from {self.shards} shards, in this process",
            "an image": f"{ms} ms ({of_what} of this machine)",
            "speed": f"{self.images_per_s:,.1f} images/s: {self.actors} actors, {self.cores} cores, no waits",
            "time": f"{spent}, {busy}, for {self.archive_images:,} images; start-up not counted",
            "images": self.counted,
            "output": f"{records:,.1f} MB of records, {overlays:,.1f} MB of overlays, at the pilot's size",
        } | differs


def pilot(ready: Prepared, count: int) -> Pilot:
    """Take about `count` images of the shards to do through every stage.

    Raises:
        UsageError: less than one image is asked for.
        EmptyArchiveError: none of them could be read.
    """
    if count < 1:
        raise UsageError("--pilot", f"{count} is out of range", "give a number of images, 32 for example")
    members, read_s, shards = _members(ready, count)
    device, n = device_here(ready.config.run.device), len(members)
    receipt, pictures = _work(ready, members, device)
    archive_images, counted = _count(ready)
    cores = len(os.sched_getaffinity(0))
    return Pilot(
        images=n, shards=shards, device=device, cores=cores,
        seconds={stage: s / n for stage, s in ({str(Stage.READ): read_s} | receipt.seconds).items()},
        actors=ready.config.run.actors or (1 if device == "cuda" else cores),
        record_bytes=receipt.size_bytes / n, overlay_bytes=pictures / n,
        archive_images=archive_images, counted=counted, moved=_moved(ready, members, device),
    )  # fmt: skip


def _work(ready: Prepared, members: pa.StructArray, device: str) -> tuple[Receipt, int]:
    """Decode, explain and write; give the receipt and the bytes of the overlays."""
    config = ready.config
    share = min(1.0, len(members) / config.run.chunk_size)  # as many pictures an image as in a whole chunk
    overlay = replace(config.overlay, sample_per_chunk=math.ceil(config.overlay.sample_per_chunk * share))
    batch_size = config.run.batch_size or (32 if device == "cuda" else 8)
    pool, network = Pool(1, 1, device, 1, 0, 1, batch_size), network_of(ready.model)
    shard = Shard("pilot", "files", 0, "")
    with tempfile.TemporaryDirectory(prefix="camray-pilot-") as place:
        config = replace(config, out=place, overlay=overlay)
        flow = explain_flow(config, ready.explainer, lambda: network, "pilot")
        work = stages_here(flow, pool, [ShardTask(shard)])
        # The decoder's start and the model's first pass are no image's: the first batch goes twice.
        for images in (members[:batch_size], members):
            for picture in Path(place).rglob("*.jpg"):
                picture.unlink()
            receipt = Chunk.from_row(work(Chunk(shard.id, 0, Data(), images).to_row(MEMBER))).note
        assert isinstance(receipt, Receipt)
        return receipt, sum(path.stat().st_size for path in Path(place).rglob("*.jpg"))


def _moved(ready: Prepared, members: pa.StructArray, device: str) -> Moved | None:
    """Explain the images as asked and in fp32; count the differences."""
    if ready.explainer.precision == "fp32":
        return None
    from camray.explain.detections import core_of

    config, network = ready.config, network_of(ready.model)
    flow = explain_flow(config, ready.explainer, lambda: network, "pilot")
    decoded = Chunk.from_row(flow.decode(Guard())(Chunk("pilot", 0, Data(), members).to_row(MEMBER))).images
    images, classes, maps = 0, 0, 0
    rows = [
        core_of(e, network.state(), device, config.run.batch_size or 8, network.folded)(decoded).to_pylist()
        for e in (ready.explainer, replace(ready.explainer, precision="fp32"))
    ]
    for low, full in zip(*map(_firsts, rows), strict=True):
        if low is None or full is None:
            continue
        images += 1
        if low["predicted_class"] != full["predicted_class"]:
            classes += 1
        elif low["target_class"] == full["target_class"]:
            a, b = (np.asarray(row["heatmap"], np.float64) for row in (low, full))
            maps += bool(np.abs(a - b).max() > MOVED * np.abs(b).max())
    return Moved(ready.explainer.precision, images, classes, maps)


def _firsts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """Give each image's row of its first target, in order; None where it has no map."""
    first: dict[int, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(row["index"], row)
    return [row if row["heatmap"] is not None else None for row in first.values()]


def _count(ready: Prepared) -> tuple[int, str]:
    """Count the images to do, or those of the middle shard, and take the others to be as dense."""
    tasks, archive = ready.plan.tasks, ready.config.archive
    if (known := known_members(tasks)) is not None:
        return known, "as listed"
    packed = [task.shard for task in tasks if task.shard.format != "files"]
    shard, members = packed[len(packed) // 2], 0
    with suppress(ShardError):  # one that is cut short counts as far as it goes
        for _ in read_members(shard, archive, lambda _index: False):
            members += 1
    estimate = round(members * ready.plan.size_bytes / max(1, shard.size_bytes))
    total, mb = ready.plan.size_bytes / 1e6, shard.size_bytes / 1e6
    return estimate, f"estimated: {members:,} in one shard of {mb:,.1f} MB, {total:,.1f} MB to read"


def _members(ready: Prepared, count: int) -> tuple[pa.StructArray, float, int]:
    """Read the first members of shards spread over those to do; give them as one chunk, seconds, shards."""
    tasks = ready.plan.tasks
    shards = min(SHARDS, len(tasks), count)
    chosen = [tasks[i * len(tasks) // shards] for i in range(shards)]
    each = math.ceil(count / max(1, shards))
    firsts = [read_first(task.shard, ready.config.archive, each) for task in chosen]
    read = [chunk for chunk in firsts if isinstance(chunk.note, Data)]
    images = pa.concat_arrays([pa.array([], MEMBER), *(with_own_content(chunk.images) for chunk in read)])
    members = images.filter(pc.equal(images.field("status"), str(Status.OK)))[:count]
    if not len(members):
        raise EmptyArchiveError("--pilot: no image could be read. Fix: see `camray explain`")
    columns = [members.field(f.name) for f in MEMBER]
    columns[MEMBER.get_field_index("index")] = pa.array(range(len(members)), pa.int32())
    seconds = sum(chunk.note.seconds[Stage.READ] for chunk in read if isinstance(chunk.note, Data))
    return pa.StructArray.from_arrays(columns, fields=list(MEMBER)), seconds, len(read)
