"""The contract: what an archive is made of, what travels between stages, what a record is.

    Shard ──read──> Member ... ──chunk row──> decoded images ──chunk row──> records ──Parquet──> table

A row of the Ray dataset is one CHUNK: a header and a list of images. No engine that re-blocks, batches or
retries rows can therefore split or mix chunks. The list's items follow `MEMBER`, `DECODED` or `EXPLAINED`
below, stage after stage; `RECORD_SCHEMA` is what reaches the table.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

import pyarrow as pa

from camray.errors import ErrorCode, Stage

SCHEMA_VERSION = 1


class Status(StrEnum):
    """What became of a member."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"  # not an image by its name or kind (never opened), or by its DICOM class


# ── what is read ─────────────────────────────────────────────────────────────────────────────────


UNSEEN = "unseen"
"""The version of a file that gave no answer when it was listed: it counts as what is remembered of it."""


@dataclass(frozen=True, slots=True)
class LooseFile:
    """One image file of a folder or list. `path` is relative to the archive, POSIX."""

    path: str  # of a listed file also absolute, or a URI
    size_bytes: int
    version: str  # names all that can change: modification time as the store tells it, sidecars, note
    note: str = ""  # what a list or metadata file says of it: `archive.annotations`
    sidecars: tuple[str, ...] = ()  # the endings of the sidecars beside it, as spelled: ("cls", "TXT")
    archive: str = ""  # which one it is of, where there are several: the identity of its root


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of reading and of commit: a tar, zip or Parquet file, or one group of loose files.

    `uri` is its identity, `version` its content as far as a listing can tell; `selection` holds the
    member indices a `--limit` or `--sample` run asked for (None: every member).
    """

    uri: str
    format: str  # of `archive.readers`, or "files"
    size_bytes: int
    version: str
    files: tuple[LooseFile, ...] = ()
    root: str = ""  # files only: the folder that `files` are relative to, or the list that names them
    selection: tuple[int, ...] | None = None
    place: str = ""  # where it is opened, if elsewhere than `uri` says: the archive was moved
    reread: str = ""  # of `anew`: other content, or another try, that a listing cannot tell

    @property
    def key(self) -> str:
        """16 hex digits naming the shard, whatever its content."""
        return shard_key(self.uri)

    @property
    def content_key(self) -> str:
        """16 hex digits naming this content of the shard: size, version, the selection; more where reread."""
        listed = _digest(f"{self.size_bytes}|{self.version}|{self.selection}", 8)
        return f"{listed}r{self.reread}" if self.reread else listed

    def anew(self, content: str) -> Shard:
        """Give it as other content than a listing takes it for: done again, it replaces what is there."""
        return replace(self, reread=_digest(content, 8))

    @property
    def former_content_key(self) -> str:
        """8 hex digits, without the size: how files of 0.1.0 name this content."""
        return _digest(f"{self.version}|{self.selection}", 4)

    @property
    def id(self) -> str:
        """`<key>-<content_key>`: the first part of the names of its record files."""
        return f"{self.key}-{self.content_key}"


@dataclass(frozen=True, slots=True)
class Boxes:
    """Where the archive says the object is: (x0, y0, x1, y1) of the upright image.

    In its pixels, or as shares of its width and height: a reader does not know the size.
    """

    edges: tuple[tuple[float, float, float, float], ...]
    in_pixels: bool


@dataclass(frozen=True, slots=True)
class Member:
    """One image of a shard as the reader found it, still encoded.

    `index` counts the shard's members from 0 without gaps. `content` is None when the member was
    skipped or failed (`error_code` says why), or when the caller did not want it read.
    """

    index: int
    name: str
    content: bytes | None = None
    label: str | None = None
    label_class: int | None = None
    status: Status = Status.OK
    error_code: ErrorCode | None = None
    error_message: str | None = None
    boxes: Boxes | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)  # what `--group-by` asked for
    mask: bytes | None = None  # an encoded image; what is not 0 is the object
    note: str = ""  # what was guessed or left unused; counted, and told at the end of a run
    frame: int | None = None  # of a file with several: which of them
    file: str | None = None  # what holds the content, relative to the shard's folder, before it is read
    mask_file: str | None = None  # likewise of the mask


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the model's input lies in the upright source image.

    `crop_*` are the edges, in source pixels, of the part that became the input; they may lie outside
    the image where the input was padded. Input pixel (u, v) covers the source around
    ``crop_x0 + (u + 0.5) * (crop_x1 - crop_x0) / input_width`` (and likewise in y).
    """

    width: int
    height: int
    crop_x0: float
    crop_y0: float
    crop_x1: float
    crop_y1: float


def key_of(name: str) -> str:
    """Give the WebDataset key of a member: its path up to the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    stem = base[1:].partition(".")[0] if base.startswith(".") else base.partition(".")[0]
    return folder + slash + (("." + stem) if base.startswith(".") else stem)


def as_text(name: str) -> str:
    r"""Make a file name fit for a text column: bytes that are no UTF-8 become `\udcNN`."""
    return name.encode("utf-8", "backslashreplace").decode()


def shard_key(uri: str) -> str:
    """Give the 16 hex digits that name a shard."""
    return _digest(uri, 8)


def _digest(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=size).hexdigest()


# ── columns of a record ──────────────────────────────────────────────────────────────────────────

_TEXT, _INT, _FLOAT, _BOOL, _BYTES = pa.string(), pa.int32(), pa.float32(), pa.bool_(), pa.large_binary()
_TOPK = pa.list_(pa.struct([("class_id", _INT), ("label", _TEXT), ("score", _FLOAT)]))

EDGES = ("x0", "y0", "x1", "y1")
_BOX = pa.list_(pa.struct([(edge, _FLOAT) for edge in EDGES]))


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a record, declared once: schemas, docs/format.md and the report follow from it.

    A signal is computed by the function of its name in the module `signal` of `camray.explain`.
    """

    name: str
    type: pa.DataType
    doc: str
    unit: str = ""  # unit or range
    signal: str = ""
    shown: int | None = None  # in the report beside an image, with so many decimals
    is_later: bool = False  # added since 0.1.0: null in what was written before, and a table gains it


_RUN = (
    Column("run_id", _TEXT, "the run that computed the row; `OUT/runs/<run_id>/run.json`"),
    Column("shard", _TEXT, "path or URI; `<folder>#<group>` or `<list>#<group>` for loose files"),
)
_MEMBER = Column(
    "member", _TEXT,
    "name in shard, folder or list, `name#frame` with `--frames`; **null: the row is of the whole shard**",
)  # fmt: skip
_INDEX = Column(
    "index",
    _INT,
    "position among the shard's members, without gaps; with `--frames all` 4096 x that + frame",
    "from 0",
)
_KEY = Column("key", _TEXT, "WebDataset key: `member` up to the first dot of its base name")
_STATUS = (
    Column(
        "status",
        _TEXT,
        "`ok`, `failed`, `skipped` (no image by its name, or by its DICOM class)",
    ),
    Column("error_code", _TEXT, "why it failed or was skipped, from the list below"),
    Column("error_stage", _TEXT, "where: `read`, `decode`, `explain`, `sink`"),
    Column("error_message", _TEXT, "why, in words"),
)
_LABEL = Column("label", _TEXT, "what the archive says: list, sidecar, column, class folder")
_LABEL_CLASS = Column("label_class", _INT, "the class that the label names")
_ATTRIBUTES = Column(
    "attributes",
    pa.map_(_TEXT, _TEXT),
    "what list, metadata or sidecar says in the columns of `--group-by`",
    is_later=True,
)
_BOXES = Column("boxes", _BOX, "where the archive says the object is", "shares of the upright image's sides")
_IMAGE = (
    Column("content_sha256", _TEXT, "of the encoded bytes; of a member `name#frame`, of these and `#frame`"),
    Column("width", _INT, "of the upright image (EXIF orientation applied)", "pixels"),
    Column("height", _INT, "of the upright image", "pixels"),
    Column("format", _TEXT, "by content: JPEG, PNG, DICOM, …"),
    Column(
        "file_bits", _FLOAT,
        "size of the file by pixels of the image: how much it was compressed; null of one frame of several",
        "bits a pixel", is_later=True,
    ),
    Column(
        "pixel_rule", _TEXT,
        "how deep or medical values became 8 bits: `0..4095`, `0..1`, `0..255`, `min-max -5..3071`, "
        "`window 40/400`, `voi lut`, each with `, inverted` where 0 is white; then what else was decided: "
        "`nodata 0.250` (share), `bands 1-3 of 4`, `page 2 of 3`, `missing_end`; null for plain 8-bit images",
    ),
    Column("crop_x0", _FLOAT, "left edge of the part of the upright image that became the input", "pixels"),
    Column("crop_y0", _FLOAT, "its upper edge", "pixels"),
    Column("crop_x1", _FLOAT, "its right edge", "pixels"),
    Column("crop_y1", _FLOAT, "its lower edge", "pixels"),
    Column("image_mean", _FLOAT, "luminance of the model's view: mean", "0..255"),
    Column("image_std", _FLOAT, "luminance of the model's view: deviation", "0..255"),
    Column("image_sharpness", _FLOAT, "variance of the view's Laplacian; low where it is blurry", "from 0"),
    Column("image_red", _FLOAT, "red less luminance, of the view: mean", "-255..255", is_later=True),
    Column("image_red_std", _FLOAT, "its deviation", "0..255", is_later=True),
    Column("image_blue", _FLOAT, "blue less luminance: mean", "-255..255", is_later=True),
    Column("image_blue_std", _FLOAT, "its deviation", "0..255", is_later=True),
    Column("image_saturation", _FLOAT, "highest less lowest channel: mean", "0..255", is_later=True),
    Column("image_saturation_std", _FLOAT, "its deviation", "0..255", is_later=True),
    Column("image_dark", _FLOAT, "luminance that 2 % of the view do not exceed", "0..255", is_later=True),
    Column("image_light", _FLOAT, "luminance that 98 % do not exceed", "0..255", is_later=True),
    Column("image_noise", _FLOAT, "median size of the view's Laplacian", "0..255", is_later=True),
    Column(
        "image_blockiness", _FLOAT,
        "steps across the lines of an 8-pixel grid as a multiple of those elsewhere: the blocks of JPEG, "
        "where the view has the size of the file", "from 0, 1: none", is_later=True,
    ),
    Column(
        "image_hash", _TEXT,
        "one bit for each of 8 x 8 neighbouring pairs of the view at 9 x 8 pixels; "
        "equal for views that look alike", "16 hex digits",
    ),
)  # fmt: skip
_PREDICTION = (
    Column("predicted_class", _INT, "the highest logit"),
    Column("predicted_label", _TEXT, "its name"),
    Column("confidence", _FLOAT, "its softmax", "0..1"),
    Column("margin", _FLOAT, "difference of the two highest softmax values", "0..1", shown=3),
    Column("entropy", _FLOAT, "of the softmax, divided by ln(classes)", "0..1"),
    Column("topk", _TOPK, "the k highest softmax values, descending", "0..1"),
    Column(
        "predicted_value",
        _FLOAT,
        "`--task regression`: the one number; `--target similarity:IMAGE`: the cosine. All about classes is "
        "null",
        is_later=True,
    ),
)
_CORRECT = (
    Column("correct", _BOOL, "`predicted_class = label_class`; null where no class is known"),
    Column(
        "label_score",
        _FLOAT,
        "the softmax of `label_class`; null where no class is known",
        "0..1",
        is_later=True,
    ),
)
_MODEL = (
    Column("model", _TEXT, "the model"),
    Column("weights_sha256", _TEXT, "of its weights file (of the tensors, for weights from the hub)"),
)
_DETECTION = (
    Column("detection", _INT, "of a detector: number of the detection, best score first; of a segmenter: of "
           "the class, most pixels first, background last; null: none, or neither", "from 0", is_later=True),
    Column("box_x0", _FLOAT, "its box in the upright image: left edge", "pixels", is_later=True),
    Column("box_y0", _FLOAT, "upper edge", "pixels", is_later=True),
    Column("box_x1", _FLOAT, "right edge", "pixels", is_later=True),
    Column("box_y1", _FLOAT, "lower edge", "pixels", is_later=True),
    Column("segment_share", _FLOAT, "of a segmenter: share of the image's pixels that it takes for the class",
           "0..1", is_later=True),
    Column("segment_mask", pa.binary(), "these pixels in the input at a quarter of its size, set where at "
           "least half are; a bit each, row-major, the highest bit first", is_later=True),
    Column("segment_h", _INT, "its rows", "cells", is_later=True),
    Column("segment_w", _INT, "its columns", "cells", is_later=True),
    Column("heat_in_segment", _FLOAT, "share of the heat on these pixels", "0..1", is_later=True),
)  # fmt: skip
_EXPLANATION = (
    Column("method", _TEXT, "the class activation map"),
    Column("precision", _TEXT, "`bf16` or `fp16`, in which the network computed; null: fp32", is_later=True),
    Column("target_layer", _TEXT, "where it was taken"),
    Column("target_kind", _TEXT, "the rule: `predicted`, `label`, `class`, `top`, `above`, …"),
    Column("target_class", _INT, "the class explained"),
    Column("target_label", _TEXT, "its name"),
    Column("heatmap", pa.list_(_FLOAT), "raw and signed, row-major, `heat_h` x `heat_w`"),
    Column("heat_h", _INT, "layer resolution", "cells"),
    Column("heat_w", _INT, "layer resolution", "cells"),
    Column("heat_max", _FLOAT, "largest raw value"),
    Column(
        "heat_status", _TEXT,
        "`ok`; `dead`: nothing positive, signals are null; `nonfinite`: NaN or infinity, heatmap is null; "
        "`no_target`: no class reached the threshold; null: a detector found nothing",
    ),
)  # fmt: skip
_SIGNALS = (
    Column("heat_ring_mass", _FLOAT, "share of the heat on the outer eighth of the sides", "0..1", "signals"),
    Column("heat_corner_mass", _FLOAT, "share in the hottest corner, 3/8 of the sides", "0..1", "signals"),
    Column("heat_corner", _TEXT, "which corner: `top_left`, `bottom_right`, …", signal="signals"),
    Column("heat_entropy", _FLOAT, "0 one cell .. 1 evenly spread", "0..1", "signals"),
    Column("heat_gini", _FLOAT, "0 evenly spread .. 1 one cell", "0..1", "signals"),
    Column("heat_center_x", _FLOAT, "centre of mass, x right", "0..1 of the input", "signals"),
    Column("heat_center_y", _FLOAT, "centre of mass, y down", "0..1 of the input", "signals"),
    Column("heat_peak_x", _FLOAT, "hottest cell, x right", "0..1 of the input", "signals"),
    Column("heat_peak_y", _FLOAT, "hottest cell, y down", "0..1 of the input", "signals"),
    Column("heat_spread", _FLOAT, "rms distance from the centre of mass", "sides of the input", "signals"),
    Column(
        "heat_in_box", _FLOAT,
        "share of the heat inside the boxes (what several cover counts once), of a detection inside its own; "
        "null without boxes. What the crop leaves out is outside, padding too", "0..1",
    ),
    Column("heat_in_mask", _FLOAT, "share of the heat inside the mask; null without one", "0..1"),
    Column("heat_in_padding", _FLOAT, "share of the heat on padding, no part of the image; else 0", "0..1"),
    Column(
        "heat_boxes", _BOX,
        "around each connected part where the map, enlarged to the input as overlays show it, reaches "
        "`--heat-boxes` of its peak, largest first; cut at the image's edges; null where the map is not `ok`",
        "pixels of the upright image", is_later=True,
    ),
    Column("heat_peaks", _INT, "cells hotter than neighbours and than half of the hottest", signal="signals"),
    Column(
        "heat_top2_cosine", _FLOAT,
        "cosine of the positive heat of the two best classes, 0 disjoint .. 1 the same; null unless "
        "`--target top:2` or more explains both", "0..1",
    ),
)  # fmt: skip
_CONFIRMATION = (
    Column(
        "confirm_region", _TEXT,
        "`border` where the heat lies so far out that a second look was due; else null. "
        "Only in records of `camray audit`",
    ),
    Column(
        "confirm_drop", _FLOAT,
        "confidence lost with the hot part of the border blurred; null where no look was due, "
        "or it was over the budget", "-1..1",
    ),
    Column("confirm_flip", _BOOL, "another class was predicted then"),
)  # fmt: skip
_OVERLAY = (
    Column("overlay_path", _TEXT, "relative to OUT; null where none was drawn"),
    Column("overlay_offset", pa.int64(), "always null; reserved"),
    Column("overlay_size", pa.int64(), "of the picture; null where none was drawn", "bytes"),
)
_IDENTITY = (_INDEX, _MEMBER, _LABEL, _LABEL_CLASS, *_STATUS, _BOXES, _ATTRIBUTES)

COLUMNS = (
    *_RUN, _MEMBER, _INDEX, _KEY, *_STATUS, *_IMAGE, *_PREDICTION, _LABEL_CLASS, _LABEL, *_CORRECT, _BOXES,
    _ATTRIBUTES, *_MODEL, *_EXPLANATION, *_SIGNALS, *_CONFIRMATION, *_OVERLAY, *_DETECTION,
)  # fmt: skip
"""Every column of a record file, in its order."""

LATER = frozenset(column.name for column in COLUMNS if column.is_later)
"""Columns that a table of 0.1.0 gains with the next run; its older files stay without them."""


def _struct(*parts: Column | tuple[str, pa.DataType]) -> pa.StructType:
    return pa.struct([(part.name, part.type) if isinstance(part, Column) else part for part in parts])


_FRAME = (("frame", _INT), ("content_of", _INT))
MEMBER = _struct(*_IDENTITY, *_FRAME, ("boxes_in_pixels", _BOOL), ("mask", _BYTES), ("content", _BYTES))
"""One image between read and decode. Frames of one file in a chunk share its content: that of the member with
the index `content_of`."""

DECODED = _struct(
    *_IDENTITY, *_FRAME, *_IMAGE, ("mask", _BYTES), ("pixels", _BYTES), ("bands", _BYTES), ("content", _BYTES)
)
"""One image between decode and explain: pixels are uint8 (H, W, 3) of the model's input, mask uint8 (H, W),
255 on the object, bands float32 (H, W, C) where the model takes those; content is kept only where
overlays are drawn on the original."""

EXPLAINED = _struct(
    *_IDENTITY, *_IMAGE, *_PREDICTION, *_CORRECT, *_EXPLANATION, *_SIGNALS, *_CONFIRMATION, *_DETECTION,
    ("frame", _INT), ("overlay", _BOOL), ("pixels", _BYTES), ("content", _BYTES),
)  # fmt: skip
"""One image between explain and sink; pixels or content only where an overlay is due."""

RECORD_SCHEMA = pa.schema(list(_struct(*COLUMNS)))  # a list: from a struct Arrow would reserve 1 GiB
"""The columns of a record file. The table adds `explainer`, the partition, which is in the path.
A failed or skipped member has null scores. A row with a null `member` speaks of the whole shard."""

_CHUNK_HEADER = [
    ("shard_id", pa.string()),
    ("chunk", pa.int32()),
    ("note", pa.string()),  # JSON: the note's class, its fields
]


# ── receipts: all that returns to the driver ─────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Data:
    """Images are under way."""

    seconds: dict[str, float] = field(default_factory=dict)  # of work on them, by stage


@dataclass(frozen=True, slots=True)
class Receipt:
    """One written record file: what the commit needs, small enough to send to the driver."""

    shard_id: str
    chunk: int
    path: str  # relative to the table
    size_bytes: int
    rows: int
    ok: int
    skipped: int
    failed: dict[str, int]  # by error code
    overlays: int = 0
    changed_answers: int = 0  # confirm_flip: another class without the hot border
    reused: bool = False  # an interrupted run wrote it
    seconds: dict[str, float] = field(default_factory=dict)  # by stage


@dataclass(frozen=True, slots=True)
class ShardEnd:
    """What the reader says when it leaves a shard: how many chunks, and whether the end was seen."""

    chunks: int
    members: int
    error_code: str | None = None
    error_message: str | None = None
    notes: dict[str, int] = field(default_factory=dict)  # of how many members the reader made each note


@dataclass(frozen=True, slots=True)
class Lost:
    """A chunk that cannot be done, and why: an exception would reach the driver as text."""

    errno: int | None  # of writing to OUT; None: its worker has no model
    message: str


Note = Data | Receipt | ShardEnd | Lost
_NOTES: dict[str, type[Note]] = {kind.__name__: kind for kind in (Data, Receipt, ShardEnd, Lost)}


# ── chunks: what travels between the stages, each a row of the Ray dataset ───────────────────────


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of consecutive members of one shard: the unit of work and of retry."""

    shard_id: str
    index: int
    note: Note
    images: pa.StructArray = None  # there with a note of `Data` only

    def worked(self, stage: str, seconds: float, images: pa.StructArray) -> Chunk:
        """Give the chunk as a stage leaves it."""
        assert isinstance(self.note, Data)
        note = Data(self.note.seconds | {str(stage): round(seconds, 4)})
        return Chunk(self.shard_id, self.index, note, images)

    def to_row(self, item_type: pa.StructType) -> pa.Table:
        """Make the one-row table that travels; `item_type` is the stage's item struct."""
        images = self.images if isinstance(self.note, Data) else None
        images = pa.array([], item_type) if images is None else images
        return pa.table(
            {
                "shard_id": pa.array([self.shard_id]),
                "chunk": pa.array([self.index], pa.int32()),
                "note": pa.array([json.dumps([type(self.note).__name__, asdict(self.note)])]),
                "images": pa.LargeListArray.from_arrays(pa.array([0, len(images)]), images),
            },
            schema=pa.schema([*_CHUNK_HEADER, ("images", pa.large_list(item_type))]),
        )

    @staticmethod
    def from_row(row: pa.Table) -> Chunk:
        """Read a one-row table back, without copying the images."""
        shard_id, index, note = (row.column(name)[0].as_py() for name, _ in _CHUNK_HEADER)
        kind, fields = json.loads(note)
        images = row.column("images").chunk(0)  # a row is never split; put together it would be copied
        return Chunk(shard_id, index, _NOTES[kind](**fields), images.flatten())


def member_array(members: Sequence[Member]) -> pa.StructArray:
    """Pack members for the journey: one `MEMBER` item each."""
    columns: dict[str, list[Any]] = {
        "index": [m.index for m in members],
        "member": [as_text(m.name) for m in members],
        "label": [m.label and as_text(m.label) for m in members],
        "label_class": [m.label_class for m in members],
        "status": [str(m.status) for m in members],
        "error_code": [m.error_code and str(m.error_code) for m in members],
        "error_stage": [m.error_code and "read" for m in members],
        "error_message": [m.error_message for m in members],
        "boxes": [m.boxes and [dict(zip(EDGES, e, strict=True)) for e in m.boxes.edges] for m in members],
        "attributes": [list(m.attributes.items()) or None for m in members],
        "boxes_in_pixels": [m.boxes and m.boxes.in_pixels for m in members],
        "mask": [m.mask for m in members],
        "frame": [m.frame for m in members],
        "content_of": _first_frames(members),
    }
    columns["content"] = [
        m.content if other is None else None for m, other in zip(members, columns["content_of"], strict=True)
    ]
    return struct_array(columns, MEMBER)


def with_own_content(images: pa.StructArray) -> pa.StructArray:
    """Give `MEMBER` items of a whole chunk with what they share repeated: each then stands for itself."""
    places = {index: place for place, index in enumerate(images.field("index").to_pylist())}
    holders = enumerate(images.field("content_of").to_pylist())
    taken = [place if of is None else places[of] for place, of in holders]
    columns: dict[str, Any] = {f.name: images.field(f.name) for f in MEMBER}
    columns |= {"content": columns["content"].take(pa.array(taken, pa.int64())), "content_of": None}
    return struct_array(columns, MEMBER)


def _first_frames(members: Sequence[Member]) -> list[int | None]:
    """Give for each member the index of an earlier one that has the same content; None where none has."""
    found: list[int | None] = []
    holder: Member | None = None
    for member in members:
        shares = holder is not None and member.frame is not None and member.content is holder.content
        found.append(holder.index if holder is not None and shares else None)
        holder = holder if shares else member
    return found


def bytes_at(values: pa.LargeBinaryArray, i: int) -> memoryview:
    """Give one value of a column as it lies in memory: Arrow's scalars are copies."""
    _, ends, data = values.buffers()
    start, end = memoryview(ends).cast("q")[values.offset + i : values.offset + i + 2]
    return memoryview(data)[start:end]


def failure(stage: Stage, error_code: str | None, message: str | None) -> dict[str, str | None]:
    """Give the columns of an item, or of a shard, that failed at a stage."""
    return {
        "status": str(Status.FAILED),
        "error_code": error_code and str(error_code),
        "error_stage": str(stage),
        "error_message": message,
    }


def struct_array(columns: dict[str, Any], item_type: pa.StructType) -> pa.StructArray:
    """Build a struct array from columns (lists or Arrow arrays); missing columns become null."""
    size = len(next(iter(columns.values())))
    children = []
    for field_ in item_type:
        values = columns.get(field_.name)
        if values is None:
            children.append(pa.nulls(size, field_.type))
        elif isinstance(values, pa.Array):
            children.append(values)
        else:
            children.append(pa.array(values, field_.type))
    return pa.StructArray.from_arrays(children, fields=list(item_type))


# ── what became of the members ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Accounting:
    """members = ok + failed + skipped, by construction; `shard_errors` are counted beside it."""

    ok: int = 0
    skipped: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    shard_errors: dict[str, int] = field(default_factory=dict)

    @property
    def members(self) -> int:
        """Every member that has a row."""
        return self.ok + self.skipped + self.n_failed

    @property
    def n_failed(self) -> int:
        """Failed members, whatever the code."""
        return sum(self.failed.values())

    def __add__(self, other: Accounting) -> Accounting:
        return Accounting(
            self.ok + other.ok,
            self.skipped + other.skipped,
            dict(Counter(self.failed) + Counter(other.failed)),
            dict(Counter(self.shard_errors) + Counter(other.shard_errors)),
        )

    def sentence(self) -> str:
        """State the identity in one line: `12 members = 10 ok + 1 failed (…) + 1 skipped`."""
        codes = ", ".join(f"{code} {n:,}" for code, n in sorted(self.failed.items()))
        failed = f"{self.n_failed:,} failed" + (f" ({codes})" if codes else "")
        return f"{self.members:,} members = {self.ok:,} ok + {failed} + {self.skipped:,} skipped"


def account(receipts: Iterable[Receipt]) -> Accounting:
    """Add up receipts."""
    total = Accounting()
    for r in receipts:
        total += Accounting(r.ok, r.skipped, r.failed)
    return total
