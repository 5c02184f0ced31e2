"""The CPU stages of the flow, each a chunk row in and a chunk row out: read, decode, sink.

`explain` stands between decode and sink, in explain/actor.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from camray.archive.members import read_members
from camray.config import ArchiveConfig, InputSpec, OverlayConfig
from camray.errors import PASSING_ERRORS, ImageError, ShardError, Stage
from camray.explain import overlays
from camray.flow.guard import Guard
from camray.image.guarded import decoder_of
from camray.image.health import image_health
from camray.ledger.plan import ShardTask
from camray.ledger.sink import write_records
from camray.ledger.table import RECORDS, Kind
from camray.records import (
    DECODED,
    MEMBER,
    Chunk,
    ChunkKind,
    Geometry,
    Member,
    ShardEnd,
    Status,
    add_seconds,
    as_text,
    key_of,
    member_array,
    seconds_in,
    struct_array,
)
from camray.storage import open_folder

Row = dict[str, Any]


def read_shard(task: ShardTask, archive: ArchiveConfig, chunk_size: int) -> Iterator[pa.Table]:
    """Read one shard: its chunks in order, then one row that says how it ended. A replay yields the same."""
    shard, wave, n_members, n_chunks = task.shard, [], 0, 0
    started = time.perf_counter()
    error: ShardError | None = None
    positions = {index: p for p, index in enumerate(shard.selection or ())}

    def wanted(index: int) -> bool:
        position = positions.get(index, -1) if positions else index
        return position // chunk_size not in task.finished

    members = read_members(shard, archive, wanted)
    while True:
        try:
            member = next(members, None)
        except ShardError as stop:
            member, error = None, stop
        if member is not None:
            wave.append(member)
            n_members += 1
        if len(wave) == chunk_size or (member is None and wave):
            note = add_seconds("", Stage.READ, time.perf_counter() - started)
            yield _chunk_of(task, n_chunks, wave, note).to_row(MEMBER)
            wave, n_chunks, started = [], n_chunks + 1, time.perf_counter()
        if member is None:
            break
    problem = (str(error.code), error.message) if error else (None, None)
    end = ShardEnd(n_chunks, n_members, *problem)
    yield Chunk(shard.id, n_chunks, ChunkKind.END, end.to_json()).to_row(MEMBER)


def _chunk_of(task: ShardTask, index: int, members: list[Member], note: str) -> Chunk:
    if index in task.finished:
        return Chunk(task.shard.id, index, ChunkKind.DONE, task.finished[index].to_json())
    return Chunk(task.shard.id, index, ChunkKind.DATA, note, member_array(members))


_FAR: Row = {"boxes": None, "mask": None}  # of no use without the size of the image


class Decode:
    """Encoded bytes to the model's input pixels; a bad image becomes a failed item and travels on."""

    def __init__(self, spec: InputSpec, max_pixels: int, keep_content: bool, guard: Guard) -> None:
        self._spec, self._max_pixels = spec, max_pixels
        self._keep_content, self._guard = keep_content, guard

    def __call__(self, row: pa.Table) -> pa.Table:
        """Decode one chunk; rows without images pass."""
        chunk = Chunk.from_row(row)
        if chunk.kind != ChunkKind.DATA:
            return dataclasses.replace(chunk, images=None).to_row(DECODED)
        started = time.perf_counter()
        images = self._guard.run(Stage.DECODE, chunk, self.decode)
        note = add_seconds(chunk.note, Stage.DECODE, time.perf_counter() - started)
        return dataclasses.replace(chunk, images=images, note=note).to_row(DECODED)

    def decode(self, images: pa.StructArray) -> pa.StructArray:
        """Turn `MEMBER` items into `DECODED` ones."""
        columns = {f.name: images.field(f.name).to_pylist() for f in MEMBER if f.name != "content"}
        contents = images.field("content")
        rows: list[Row] = []
        for values, content in zip(zip(*columns.values(), strict=True), contents, strict=True):
            row: Row = dict(zip(columns, values, strict=True))
            if row["status"] == Status.OK:
                row |= self._decode_one(content.as_buffer(), row)
            row |= _FAR if row["status"] != Status.OK else {}
            rows.append(row)
        out: dict[str, Any] = {f.name: [row.get(f.name) for row in rows] for f in DECODED}
        out["content"] = contents if self._keep_content else None
        return struct_array(out, DECODED)

    def _decode_one(self, content: pa.Buffer, item: Row) -> Row:
        data = memoryview(content)
        row: Row = {"content_sha256": hashlib.sha256(data).hexdigest()}
        try:
            row |= decoder_of(self._max_pixels).to_input(data.tobytes(), item, self._spec)
            pixels = np.frombuffer(row["pixels"], np.uint8).reshape(self._spec.height, self._spec.width, 3)
            return row | image_health(pixels)
        except ImageError as error:
            return row | {
                "status": str(Status.FAILED),
                "error_code": str(error.code),
                "error_stage": str(Stage.DECODE),
                "error_message": error.message,
            }


class ChunkSink:
    """Rows of a chunk to one file, as they are: scores. A small receipt goes on to the driver."""

    def __init__(
        self, out: str, owner: str, constants: Row, chunk_size: int, uris: dict[str, str], kind: Kind
    ) -> None:
        self.kind = kind
        self._out, self._owner, self._constants = open_folder(out, "OUT"), owner, constants
        self._chunk_size, self._uris = chunk_size, uris

    def __call__(self, row: pa.Table) -> pa.Table:
        """Write one chunk and give its receipt; an end row of a broken shard writes the shard's own row.

        A full disk or an absent store is a row as well: as an exception it would reach the driver as text.
        """
        chunk = Chunk.from_row(row)
        try:
            return self._take(chunk)
        except OSError as error:
            return chunk.lost(error.errno or 0, str(error)).to_row(_NOTHING)

    def _take(self, chunk: Chunk) -> pa.Table:
        if chunk.kind == ChunkKind.DATA:
            return _note_row(chunk, ChunkKind.DATA, self._write(chunk))
        end = ShardEnd.from_json(chunk.note) if chunk.kind == ChunkKind.END else None
        if end is not None and end.error_code and end.error_code not in PASSING_ERRORS:
            receipt = self._write_shard_error(chunk, end)
            rows = [_note_row(chunk, ChunkKind.DATA, receipt), _note_row(chunk, chunk.kind, chunk.note)]
            return pa.concat_tables(rows)
        return _note_row(chunk, chunk.kind, chunk.note)

    def _write(self, chunk: Chunk) -> str:
        assert chunk.images is not None
        columns = {f.name: chunk.images.field(f.name) for f in chunk.images.type}
        return self._save(chunk, self._records(chunk.shard_id, columns, len(chunk.images)), chunk.note)

    def _write_shard_error(self, chunk: Chunk, end: ShardEnd) -> str:
        columns: Row = {
            "status": [str(Status.FAILED)],
            "error_code": [end.error_code],
            "error_stage": [str(Stage.READ)],
            "error_message": [end.error_message],
        }
        return self._save(chunk, self._records(chunk.shard_id, columns, 1), "")

    def _records(self, shard_id: str, columns: Row, size: int) -> pa.Table:
        whole = {**columns, "shard": [as_text(self._uris[shard_id])] * size}
        whole |= {name: [value] * size for name, value in self._constants.items()}
        array = struct_array(whole, pa.struct(list(self.kind.schema)))
        return pa.Table.from_struct_array(array)

    def _save(self, chunk: Chunk, records: pa.Table, note: str) -> str:
        receipt = write_records(
            self._out, self._owner, chunk.shard_id, chunk.index, records,
            chunk_size=self._chunk_size, seconds=seconds_in(note), kind=self.kind,
        )  # fmt: skip
        return receipt.to_json()


class Sink(ChunkSink):
    """Explained images to overlays and one record file."""

    def __init__(
        self, out: str, explainer: str, constants: Row, chunk_size: int, max_pixels: int,
        uris: dict[str, str], spec: InputSpec, overlay: OverlayConfig,
    ) -> None:  # fmt: skip
        super().__init__(out, explainer, constants, chunk_size, uris, RECORDS)
        self._max_pixels, self._spec, self._overlay = max_pixels, spec, overlay

    def _write(self, chunk: Chunk) -> str:
        assert chunk.images is not None
        started = time.perf_counter()
        images = chunk.images
        columns: dict[str, Any] = {f.name: images.field(f.name) for f in images.type}
        columns["key"] = [key_of(name) for name in columns["member"].to_pylist()]
        due = ((i, self._draw(image)) for i, image in enumerate(images) if image["overlay"].as_py())
        drawn = {i: picture for i, picture in due if picture is not None}
        paths = {i: self._overlay_path(chunk, images[i]) for i in drawn}
        self._out.write_all({paths[i]: jpeg for i, jpeg in drawn.items()})
        columns["overlay_path"] = [paths.get(i) for i in range(len(images))]
        note = add_seconds(chunk.note, Stage.SINK, time.perf_counter() - started)
        return self._save(chunk, self._records(chunk.shard_id, columns, len(images)), note)

    def _draw(self, image: pa.StructScalar) -> bytes | None:
        """Draw and encode one overlay; None where the original cannot be decoded a second time."""
        shape = (image["heat_h"].as_py(), image["heat_w"].as_py())
        heat = np.array(image["heatmap"].as_py(), np.float32).reshape(shape)
        if self._overlay.on == "original":
            names = ("width", "height", "crop_x0", "crop_y0", "crop_x1", "crop_y1")
            where = Geometry(*(image[name].as_py() for name in names))
            try:
                source = decoder_of(self._max_pixels).upright(image["content"].as_py())
            except ImageError:  # its decoder was killed, as the machine's memory was short: the record counts
                return None
            picture = overlays.overlay_on_original(source, heat, where, self._overlay)
        else:
            view = np.frombuffer(image["pixels"].as_buffer(), np.uint8)
            view = view.reshape(self._spec.height, self._spec.width, 3)
            picture = overlays.overlay_on_input(view, heat, self._overlay)
        if self._overlay.caption:
            picture = overlays.with_caption(picture, _caption(image))
        return overlays.encode_jpeg(picture, self._overlay.quality)

    def _overlay_path(self, chunk: Chunk, image: pa.StructScalar) -> str:
        key = key_of(image["member"].as_py())
        class_id, label = image["target_class"].as_py(), image["target_label"].as_py()
        target = f"{class_id} {label}" if label else f"class {class_id}"
        return overlays.overlay_path(self._owner, chunk.shard_id, image["index"].as_py(), key, target)


def _caption(image: pa.StructScalar) -> str:
    """Say what the model said, and which class the map explains where that is another one."""
    predicted, target = image["predicted_class"].as_py(), image["target_class"].as_py()
    said = image["predicted_label"].as_py() or f"class {predicted}"
    text = f"{said} {image['confidence'].as_py():.1%}"
    if target != predicted:
        text += f" · map of {image['target_label'].as_py() or f'class {target}'}"
    return text


def _note_row(chunk: Chunk, kind: ChunkKind, note: str) -> pa.Table:
    return Chunk(chunk.shard_id, chunk.index, kind, note).to_row(_NOTHING)


_NOTHING = pa.struct([("index", pa.int32())])
