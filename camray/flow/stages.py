"""The CPU stages of the flow, each a chunk row in and a chunk row out: read, decode, sink.

The actor stands between decode and sink: `flow.actor`, `compare.actor`.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from camray.archive.frames import ALL, FIRST, expanded
from camray.archive.members import read_members
from camray.config import ArchiveConfig, Config, Explainer, InputSpec
from camray.errors import PASSING_ERRORS, ErrorCode, ImageError, ShardError, Stage
from camray.explain import overlays
from camray.flow.guard import Guard
from camray.image.guarded import decoder_of
from camray.image.health import image_health
from camray.ledger.out import mask_beside, overlay_folder
from camray.ledger.plan import ShardTask
from camray.ledger.sink import write_records
from camray.ledger.table import RECORDS, Kind
from camray.records import (
    DECODED,
    EDGES,
    MEMBER,
    Boxes,
    Chunk,
    Data,
    Lost,
    Member,
    Receipt,
    Shard,
    ShardEnd,
    Status,
    as_text,
    failure,
    key_of,
    member_array,
    struct_array,
)
from camray.storage import open_folder

Row = dict[str, Any]

CHUNK_BYTES = 512 * 2**20
"""A chunk ends here, full or not: 256 images of the largest size allowed would be 64 GiB in one process."""
_FURTHER = 2**30  # number of the first chunk that continues another


def read_shard(task: ShardTask, archive: ArchiveConfig, chunk_size: int) -> Iterator[pa.Table]:
    """Read one shard: its chunks in order, then one row that says how it ended. A replay yields the same.

    Chunk n is the members from n * chunk_size on. Where these are too many bytes it ends sooner, and chunks
    with numbers of their own follow: no other chunk is moved, so that those on disk stay what they are. A
    file becomes as many members as `archive.frames` asks for; chunks and their places count members.
    """
    shard, wave, size, further = task.shard, list[Member](), 0, 0
    n_members, n_chunks, number = 0, 0, 0
    started = time.perf_counter()
    error: ShardError | None = None
    notes: Counter[str] = Counter()
    positions = {index: p for p, index in enumerate(shard.selection or ())}

    def wanted(index: int) -> bool:
        position = positions.get(index, -1) if positions else index
        return position // chunk_size not in task.finished

    def needed(index: int) -> bool:  # with all frames, what follows depends on how many each file has
        return archive.frames == ALL or wanted(index)

    members = _frames_of(read_members(shard, archive, needed), archive.frames, archive.max_pixels)
    while True:
        try:
            member = next(members, None)
        except ShardError as stop:
            member, error = None, stop
        more = 0 if member is None else _further_bytes(member, wave)
        is_full = member is None or n_members % chunk_size == 0
        if wave and (is_full or size + more > CHUNK_BYTES):
            yield _chunk_of(task, number, wave, time.perf_counter() - started).to_row(MEMBER)
            wave, size, n_chunks, started = [], 0, n_chunks + 1, time.perf_counter()
            further += not is_full
            number = n_members // chunk_size if is_full else _FURTHER + further - 1
        if member is None:
            break
        wave.append(member)
        size += more
        n_members += 1
        notes.update([member.note] if member.note else ())
    code, message = (str(error.code), error.message) if error else (None, None)
    yield Chunk(shard.id, n_chunks, ShardEnd(n_chunks, n_members, code, message, dict(notes))).to_row(MEMBER)


def _further_bytes(member: Member, before: Sequence[Member]) -> int:
    """Give the bytes that a member adds to a chunk: frames of a file share its content."""
    shared = bool(before) and member.content is before[-1].content
    return len(member.mask or b"") + (0 if shared else len(member.content or b""))


def _frames_of(members: Iterator[Member], frames: str, max_pixels: int) -> Iterator[Member]:
    """Put the frames asked for in the place of files that have several."""
    for member in members:
        if frames == FIRST:
            yield member
            continue
        count = 1
        if member.content is not None:
            with suppress(ImageError):  # decoding it will end the same way, and say why
                count = decoder_of(max_pixels).count_frames(member.content)
        yield from expanded(member, frames, count)


def read_first(shard: Shard, archive: ArchiveConfig, count: int) -> Chunk:
    """Read the first `count` members of a shard, and no further; of one without members its end."""
    first = replace(shard, selection=tuple((shard.selection or range(count))[:count]))
    return Chunk.from_row(next(read_shard(ShardTask(first), archive, count)))


def _chunk_of(task: ShardTask, index: int, members: list[Member], seconds: float) -> Chunk:
    if index in task.finished:
        return Chunk(task.shard.id, index, task.finished[index])
    return Chunk(task.shard.id, index, Data()).worked(Stage.READ, seconds, member_array(members))


_AS_READ = ("index", "member", "label", "label_class", "frame", "content_of", "attributes")
"""Columns that decoding leaves alone."""
_OUTCOME = ("status", "error_code", "error_stage", "error_message")


class Decode:
    """Encoded bytes to the model's input pixels; a bad image becomes a failed item and travels on."""

    def __init__(self, spec: InputSpec, max_pixels: int, keep_content: bool, guard: Guard) -> None:
        self._spec, self._max_pixels = spec, max_pixels
        self._keep_content, self._guard = keep_content, guard

    def __call__(self, row: pa.Table) -> pa.Table:
        """Decode one chunk; rows without images pass."""
        chunk = Chunk.from_row(row)
        work = partial(self.decode, chunk=chunk.images)
        return self._guard.run(Stage.DECODE, chunk, work).to_row(DECODED)

    def decode(self, images: pa.StructArray, chunk: pa.StructArray | None = None) -> pa.StructArray:
        """Turn `MEMBER` items into `DECODED` ones; `chunk` holds the content that frames of a file share."""
        whole = images if chunk is None else chunk
        places = {index: place for place, index in enumerate(whole.field("index").to_pylist())}
        known: dict[Any, Row] = {}
        rows = [self._decode_one(image, whole, places, known) for image in images]
        columns: dict[str, Any] = {f.name: [row.get(f.name) for row in rows] for f in DECODED}
        columns |= {name: images.field(name) for name in _AS_READ}
        columns["content"] = images.field("content") if self._keep_content else None
        return struct_array(columns, DECODED)

    def _decode_one(
        self, image: pa.StructScalar, chunk: pa.StructArray, places: dict[int, int], known: dict[Any, Row]
    ) -> Row:
        """Give the columns that decoding decides; without pixels where the image failed, now or before.

        The same bytes with the same boxes and mask are decoded once: `known` holds what became of them.
        """
        row: Row = {name: image[name].as_py() for name in _OUTCOME}
        if row["status"] != Status.OK:
            return row
        frame, holder = image["frame"].as_py(), image["content_of"].as_py()
        held = image if holder is None else chunk[places[holder]]
        content = memoryview(held["content"].as_buffer())
        row["content_sha256"] = _digest_of(content, frame)
        boxes, mask = _boxes(image), image["mask"].as_py()
        alike = (row["content_sha256"], boxes, mask)
        if alike not in known:
            known[alike] = self._decoded(row, content, boxes, mask, frame)
        return known[alike]

    def _decoded(
        self, row: Row, content: memoryview, boxes: Boxes | None, mask: bytes | None, frame: int | None
    ) -> Row:
        try:
            decoded = decoder_of(self._max_pixels).decode(content, self._spec, boxes, mask, frame)
        except ImageError as error:
            missed = failure(Stage.DECODE, error.code, error.message)
            is_none = error.code == ErrorCode.NO_PIXELS  # no image was lost: as one that its name tells
            return row | missed | ({"status": str(Status.SKIPPED)} if is_none else {})
        row |= asdict(decoded.geometry) | image_health(decoded.pixels)
        if frame is None:
            row["file_bits"] = 8 * len(content) / (row["width"] * row["height"])
        return row | {
            "format": decoded.format,
            "pixel_rule": decoded.pixel_rule,
            "boxes": [dict(zip(EDGES, edges, strict=True)) for edges in decoded.boxes] or None,
            "mask": decoded.mask.data if decoded.mask is not None else None,
            "pixels": decoded.pixels.data,
            "bands": decoded.bands.data if decoded.bands is not None else None,
        }


def _digest_of(content: memoryview, frame: int | None) -> str:
    """Give the SHA-256 of an image's bytes; of a frame, of these and its number."""
    digest = hashlib.sha256(content)
    digest.update(b"" if frame is None else f"#{frame}".encode())
    return digest.hexdigest()


def _boxes(image: pa.StructScalar) -> Boxes | None:
    """Give what the archive says of the object in a `MEMBER` item."""
    if not image["boxes"].is_valid:
        return None
    edges = tuple((b["x0"], b["y0"], b["x1"], b["y1"]) for b in image["boxes"].as_py())
    return Boxes(edges, image["boxes_in_pixels"].as_py())


class ChunkSink:
    """Rows of a chunk to one file, as they are: scores. A small receipt goes on to the driver."""

    def __init__(self, config: Config, owner: str, constants: Row, uris: dict[str, str], kind: Kind) -> None:
        """Write below `config.out`; `constants` are repeated in every row, `uris` name the shards by id."""
        self._out, self._owner, self._constants = open_folder(config.out, "OUT"), owner, constants
        self._chunk_size, self._uris, self._kind = config.run.chunk_size, uris, kind

    def __call__(self, row: pa.Table) -> pa.Table:
        """Write one chunk and give its receipt; an end row of a broken shard writes the shard's own row.

        A full disk or an absent store is a row as well: as an exception it would reach the driver as text.
        """
        chunk = Chunk.from_row(row)
        try:
            return pa.concat_tables([done.to_row(_NOTHING) for done in self._take(chunk)])
        except OSError as error:
            return replace(chunk, note=Lost(error.errno or 0, str(error))).to_row(_NOTHING)

    def _take(self, chunk: Chunk) -> list[Chunk]:
        started, note = time.perf_counter(), chunk.note
        if isinstance(note, Data):
            images = chunk.images
            receipt = self._save(chunk, self._columns(chunk), len(images))
            seconds = note.seconds | {str(Stage.SINK): round(time.perf_counter() - started, 4)}
            return [replace(chunk, note=replace(receipt, seconds=seconds))]
        if isinstance(note, ShardEnd) and note.error_code and note.error_code not in PASSING_ERRORS:
            failed = failure(Stage.READ, note.error_code, note.error_message)
            columns = {name: [value] for name, value in failed.items()}
            return [replace(chunk, note=self._save(chunk, columns, 1)), chunk]
        return [chunk]

    def _columns(self, chunk: Chunk) -> Row:
        return {f.name: chunk.images.field(f.name) for f in chunk.images.type}

    def _save(self, chunk: Chunk, columns: Row, size: int) -> Receipt:
        records = self._records(chunk.shard_id, columns, size)
        return write_records(
            self._out, self._owner, chunk.shard_id, chunk.index, records,
            chunk_size=self._chunk_size, kind=self._kind,
        )  # fmt: skip

    def _records(self, shard_id: str, columns: Row, size: int) -> pa.Table:
        whole = {**columns, "shard": [as_text(self._uris[shard_id])] * size}
        whole |= {name: [value] * size for name, value in self._constants.items()}
        array = struct_array(whole, pa.struct(list(self._kind.schema)))
        return pa.Table.from_struct_array(array)


class Sink(ChunkSink):
    """Explained images to overlays and one record file."""

    def __init__(self, config: Config, explainer: Explainer, run_id: str, uris: dict[str, str]) -> None:
        constants = {"run_id": run_id, "model": explainer.model, "weights_sha256": explainer.weights_sha256}
        super().__init__(config, explainer.id, constants, uris, RECORDS)
        self._max_pixels, self._spec, self._overlay = explainer.max_pixels, explainer.input, config.overlay
        self._share = explainer.heat_boxes

    def _columns(self, chunk: Chunk) -> Row:
        images = chunk.images
        due = ((i, self._draw(image)) for i, image in enumerate(images) if image["overlay"].as_py())
        drawn = {i: picture for i, picture in due if picture is not None}
        paths = {i: self._overlay_path(chunk, images[i]) for i in drawn}
        masks = (
            {mask_beside(paths[i]): self._mask(images[i]) for i in drawn} if self._overlay.heat_mask else {}
        )
        self._out.write_all({paths[i]: jpeg for i, jpeg in drawn.items()} | masks)
        columns = super()._columns(chunk)
        columns["key"] = [key_of(name) for name in columns["member"].to_pylist()]
        sizes = [len(drawn[i]) if i in drawn else None for i in range(len(images))]
        return columns | {"overlay_path": [paths.get(i) for i in range(len(images))], "overlay_size": sizes}

    def _draw(self, image: pa.StructScalar) -> bytes | None:
        """Draw and encode one overlay; None where the original cannot be decoded a second time."""
        if self._overlay.on == "original":
            try:
                source = decoder_of(self._max_pixels).upright(
                    image["content"].as_py(), image["frame"].as_py(), self._spec
                )
            except ImageError:  # its decoder was killed, as the machine's memory was short: the record counts
                return None
        else:
            source = np.frombuffer(image["pixels"].as_buffer(), np.uint8)
            source = source.reshape(self._spec.height, self._spec.width, 3)
        picture = overlays.draw(_told(image, overlays.DRAWN), source, self._overlay)
        return overlays.encode_jpeg(picture, self._overlay.quality)

    def _mask(self, image: pa.StructScalar) -> bytes:
        size, row = (self._spec.height, self._spec.width), _told(image, overlays.DRAWN)
        return overlays.heat_mask(overlays.heat_of(row), overlays.where_of(row), size, self._share)

    def _overlay_path(self, chunk: Chunk, image: pa.StructScalar) -> str:
        name = overlays.name_of(chunk.shard_id, _told(image, overlays.NAMED))
        return f"{overlay_folder(self._owner)}/{name}"


def _told(image: pa.StructScalar, names: Sequence[str]) -> Row:
    return {name: image[name].as_py() for name in names}


_NOTHING = pa.struct([("index", pa.int32())])
