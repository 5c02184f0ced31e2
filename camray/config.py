"""Every setting of a run, in one frozen tree; `settings` reads it from TOML and options.

Settings that decide a *result* are resolved into an `Explainer` once the model is known; its `id` names that
result. The others (actors, batch size, overlays, chunking) may change between runs without recomputing
anything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

OVERLAY_POLICIES = ("none", "sample", "flagged", "all")


@dataclass(frozen=True, slots=True)
class ArchiveConfig:
    """Which images."""

    path: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    image_column: str | None = None  # Parquet: the images; a list: the paths. None: found by name and type
    label_column: str | None = None  # Parquet and lists; None: found by name
    bbox: Literal["xywh", "xyxy"] = "xywh"  # what four numbers called bbox are: corner and size, or edges
    captions: bool = False  # .txt files beside the images are captions, never labels
    max_member_bytes: int = 256 * 2**20
    max_pixels: int = 100_000_000


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which classifier. Without `checkpoint`, pretrained weights from the local cache."""

    name: str = ""  # see explain.sources
    args: dict[str, Any] = field(default_factory=dict)  # of the architecture, or of the user's own class
    checkpoint: str | None = None
    trust_pickle: bool = False  # open a checkpoint that runs code
    partial: bool = False  # go on with the weights that fit
    num_classes: int | None = None  # None: as in the checkpoint
    class_names: str | None = None  # a file (txt, csv, json), or "imagenet"
    activation: Literal["auto", "softmax", "sigmoid"] = "auto"  # how logits become scores
    download: bool = False


@dataclass(frozen=True, slots=True)
class PreprocessConfig:
    """How images become the model's input; None: as the model says. A size: one, or height and width."""

    input_size: tuple[int, ...] | None = None
    resize: tuple[int, ...] | None = None
    crop_pct: float | None = None  # instead of resize: resize = floor(input_size / crop_pct)
    crop_mode: Literal["center", "squash", "border"] | None = None
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] | None = None
    mean: tuple[float, ...] | None = None  # of channels scaled to 0..1
    std: tuple[float, ...] | None = None
    fast_decode: bool = False  # large JPEGs at 1/2, 1/4 or 1/8 of their size; changes pixels a little


@dataclass(frozen=True, slots=True)
class MethodConfig:
    """Which explanation."""

    name: str = "gradcam"
    target: str = "predicted"  # predicted | label | a class index | top:5 | above:0.5 | ..., see cam.targets
    layer: str | None = None  # None: chosen for the model


@dataclass(frozen=True, slots=True)
class OverlayConfig:
    """Which pictures to draw: none, a sample of each chunk, the flagged ones, or all."""

    policy: Literal["none", "sample", "flagged", "all"] = "sample"
    sample_per_chunk: int = 16
    on: Literal["input", "original"] = "input"
    picture: Literal["blend", "triple"] = "blend"  # triple: image, map and blend side by side
    colormap: Literal["turbo", "jet", "viridis", "inferno", "magma", "hot", "bone"] = "turbo"
    alpha: float = 0.5
    gamma: float = 0.5  # weight of the colours = alpha * heat ** gamma
    caption: bool = False  # write label and score under the picture
    quality: int = 90


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """What `camray compare` measures; its sample is `archive.sample`, drawn with `archive.seed`."""

    methods: tuple[str, ...] = (
        "gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "gradcam-elementwise", "eigencam",
        "eigengradcam",
    )  # fmt: skip
    stratify: tuple[str, ...] | None = None  # None: predicted_class, confidence where OUT has records
    baseline: Literal["blur", "zero"] = "blur"  # what insertion and deletion put in place of pixels
    budget: dict[str, Any] = field(default_factory=dict)  # forwards: at most so many, or nothing is run


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """What makes an answer suspicious. `confirm` is part of a result; the rest only judges records."""

    confirm: float = 0.0  # share of a chunk's images that may get a second look; `camray audit`: 0.15
    drop: float = 0.3  # confidence lost with the hot border blurred, from which a shortcut is confirmed
    lift: float = 0.1  # nats: how much more the class looks there than the others do
    margin: float = 0.1  # below this the two best classes are too close
    dark: float = 25.0  # mean luminance, 0..255
    bright: float = 235.0
    flat: float = 5.0  # standard deviation of the luminance
    blurry: float = 20.0  # variance of the Laplacian
    fail_on: str = ""  # "confirmed_rate>0.5%,drift=major": exit 5
    baseline: str | None = None  # a run id to compare with, beside last night
    canary: int = 0  # images explained anew every night; `camray audit`: 16


@dataclass(frozen=True, slots=True)
class RunConfig:
    """How the work is done; none of it changes a result beyond rounding."""

    engine: Literal["auto", "here", "ray"] = "auto"  # here: in this process
    device: Literal["auto", "cpu", "cuda"] = "auto"
    actors: int | None = None
    max_actors: int | None = None  # the pool grows up to this while more work waits than it can take
    batch_size: int | None = None  # None: 32 on a GPU, 8 on a CPU
    chunk_size: int = 256
    top_k: int = 5
    max_failed: int | float = 0.01  # a number of images (25), or a share (0.01, "1%")
    allow_empty: bool = False
    force: bool = False  # run although another run seems to hold OUT


@dataclass(frozen=True, slots=True)
class Config:
    """A whole run."""

    out: str = ""
    archive: ArchiveConfig = field(default_factory=ArchiveConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    overlay: OverlayConfig = field(default_factory=OverlayConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How an upright image becomes the model's input, as timm's evaluation transform does it.

    The image is resized so that its shorter side is `resize` (crop_mode center), to exactly
    `resize` x `resize` (squash), or so that its longer side fits (border), then the middle
    `height` x `width` is cut out, padded with `fill` where the image is smaller.
    """

    height: int
    width: int
    resize: tuple[int, int]  # (height, width), = floor(input / crop_pct)
    crop_mode: Literal["center", "squash", "border"]
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"]
    mean: tuple[float, ...]  # of channels scaled to 0..1
    std: tuple[float, ...]
    fill: tuple[int, int, int] = (0, 0, 0)
    fast_decode: bool = False  # JPEGs at a reduced scale


@dataclass(frozen=True, slots=True)
class Explainer:
    """Everything that decides a result; `id` is a hash of exactly this."""

    model: str
    model_args: dict[str, Any]
    weights_sha256: str
    class_names: tuple[str, ...]
    num_classes: int
    input: InputSpec
    method: str
    target: str
    target_layer: str
    layout: dict[str, Any]  # how the layer's output is read as maps
    top_k: int
    max_pixels: int
    schema_version: int
    activation: str = "softmax"  # how logits become scores
    confirm: float = 0.0  # share of a chunk's images that may get a second look

    @property
    def id(self) -> str:
        """16 hex digits of the SHA-256 of the canonical JSON of every field."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Give the canonical JSON: sorted keys, no spaces."""
        fields = dataclasses.asdict(self)
        for owner, name in ((fields, "confirm"), (fields["input"], "fast_decode")):
            if not owner[name]:
                del owner[name]  # as before there was such a setting: ids of older tables stay
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    def label_of(self, class_id: int) -> str | None:
        """Name a class, or None where the archive and the model name none."""
        return self.class_names[class_id] if 0 <= class_id < len(self.class_names) else None
