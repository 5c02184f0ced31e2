"""Pictures from records alone: the stored heatmap over the archive's image, as the run itself would draw it.

Flows in: records. Flows out: a picture of each, or why there is none: the image is gone, or another one now.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from camray.archive.frames import file_index
from camray.archive.readers import packed_format
from camray.config import ArchiveConfig, Config, Explainer, OverlayConfig
from camray.errors import CamrayError, ErrorCode, ShardError, printable, said_by
from camray.explain import overlays
from camray.flow.guard import Guard
from camray.flow.stages import Decode, read_shard
from camray.image.guarded import decoder_of
from camray.ledger.intake import recall
from camray.ledger.out import read_explainer, run_file
from camray.ledger.plan import ShardTask
from camray.ledger.side import DamagedError, read_side
from camray.records import Chunk, Data, Shard, ShardEnd, Status
from camray.storage import Folder

Row = Mapping[str, Any]

COLUMNS = (
    "explainer", "run_id", "shard", "content_sha256", *dict.fromkeys((*overlays.DRAWN, *overlays.NAMED)),
)  # fmt: skip
"""Columns of a record that drawing it anew asks for."""
_CHUNK = 64  # images decoded before they are drawn: memory is bounded


@dataclass(frozen=True, slots=True)
class Drawn:
    """A record's picture, uint8 (H, W, 3); or None and why."""

    row: Row
    picture: overlays.Image | None
    why: str = ""


class Redraw:
    """Draws records of one OUT in the style of their run, but for what is said otherwise."""

    def __init__(self, out: Folder) -> None:
        self._out = out
        self.explainer = lru_cache(64)(lambda explainer: read_explainer(out, explainer))
        self.config = lru_cache(64)(self._config_of)
        self._groups = lru_cache(4)(lambda root: {group.number: group for group in recall(out, root)})

    def __call__(self, rows: Sequence[Row], style: Mapping[str, Any]) -> Iterator[Drawn]:
        """Draw records that have a map, shard by shard, on every core; `style` goes before their run's."""
        parts: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
        for row in rows:
            parts[row["shard"], row["run_id"], row["explainer"]].append(row)
        starts = ((part, start) for part in parts.values() for start in range(0, len(part), _CHUNK))
        pieces = [part[start : start + _CHUNK] for part, start in starts]
        workers = min(len(pieces), len(os.sched_getaffinity(0))) or 1
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(pieces), 2 * workers):
                for done in pool.map(partial(self._draw, style), pieces[start : start + 2 * workers]):
                    yield from done

    def _draw(self, style: Mapping[str, Any], rows: Sequence[Row]) -> list[Drawn]:
        """Draw records of one shard, run and explainer."""
        first, wanted = rows[0], defaultdict(list)
        for row in rows:
            wanted[row["index"], row["content_sha256"]].append(row)
        done, why = list[Drawn](), "the archive no longer holds this image there"
        try:
            config, explainer = self.config(first["run_id"]), self.explainer(first["explainer"])
            config = replace(config, overlay=replace(config.overlay, **style))
            for key, image in self._images(rows, config, explainer):
                done += [Drawn(r, overlays.draw(r, image, config.overlay)) for r in wanted.pop(key, ())]
        except (CamrayError, OSError, LookupError, ValueError) as error:
            why = printable(said_by(error), 160)
        return done + [Drawn(row, None, why) for left in wanted.values() for row in left]

    def _images(
        self, rows: Sequence[Row], config: Config, explainer: Explainer
    ) -> Iterator[tuple[tuple[int, str], overlays.Image]]:
        """Read and decode what the pictures are drawn on, by index and checksum."""
        whole = config.overlay.on == "original"
        frames = config.archive.frames
        places = tuple(sorted({file_index(row["index"], frames) for row in rows}))
        shard = replace(self._shard(rows[0]["shard"], config.archive), selection=places)
        decode = Decode(explainer.input, explainer.max_pixels, whole, Guard())
        shape = (explainer.input.height, explainer.input.width, 3)
        for part in read_shard(ShardTask(shard), config.archive, _CHUNK):
            read = Chunk.from_row(part)
            if isinstance(read.note, ShardEnd) and read.note.error_code:
                raise ShardError(ErrorCode(read.note.error_code), read.note.error_message or "")
            if not isinstance(read.note, Data):
                continue
            for member, image in zip(read.images, decode.decode(read.images, read.images), strict=True):
                if image["status"].as_py() != Status.OK:
                    continue
                pixels = np.frombuffer(image["pixels"].as_buffer(), np.uint8).reshape(shape)
                if whole:
                    content, frame = _content(member, read), member["frame"].as_py()
                    pixels = decoder_of(explainer.max_pixels).upright(content, frame)
                yield (image["index"].as_py(), image["content_sha256"].as_py()), pixels

    def _shard(self, uri: str, archive: ArchiveConfig) -> Shard:
        """Find where the shard of a record is opened, without a listing of the archive."""
        root, hash_sign, number = uri.rpartition("#")
        moved = archive.path if archive.name and not archive.also else ""
        if hash_sign and number.isdecimal():
            return self._groups(root)[int(number)].shard(root, _moved(root, archive.name, moved))
        return Shard(uri, packed_format(uri) or "", 0, "", place=_moved(uri, archive.name, moved))

    def _config_of(self, run_id: str) -> Config:
        """Read how a run read its archive and drew; the defaults where its run.json is gone."""
        from pydantic import TypeAdapter

        def parts(tree: Any) -> Config:
            said = tree["config"]
            archive = TypeAdapter(ArchiveConfig).validate_python(said["archive"])
            overlay = TypeAdapter(OverlayConfig).validate_python({"contour": 0} | said["overlay"])
            return replace(Config(), archive=archive, overlay=overlay)

        try:
            return read_side(self._out, run_file(run_id, "run.json"), parts)
        except (DamagedError, FileNotFoundError):
            return Config()


def _moved(uri: str, name: str | None, path: str) -> str:
    return path + uri.removeprefix(name or "") if path else ""


def _content(member: Any, read: Chunk) -> bytes:
    """Give the encoded bytes of a member; frames of a file share them."""
    holder = member["content_of"].as_py()
    held = member if holder is None else next(m for m in read.images if m["index"].as_py() == holder)
    return bytes(held["content"].as_buffer())
