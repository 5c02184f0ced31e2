"""Every setting of a run, in one frozen tree, each declared once; `options` reads it from TOML and options.

The parser, --help, what is refused, and docs/settings.md follow from what is said here. Settings that decide
a *result* are resolved into an `Explainer` once the model is known; its `id` names that result. The others
(actors, batch size, overlays, chunking) may change between runs without recomputing anything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RUNS = "explain audit plan"
JOBS = f"{RUNS} compare"
EVERY = f"{JOBS} layers"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of a setting, or of an option that is none; `options.SETTINGS` has every setting."""

    text: str  # what --help says; the default is added
    option: str = ""  # as in --help: "--overlay-alpha A"; "OUT" is a positional; "": only in a file
    low: float | None = None  # of the value, or of each number of a list
    high: float | None = None  # of a share, where a number is a share or a count
    verbs: str = ""  # the commands that take the option; "": as its section
    common: str = ""  # the commands whose --help shows it; --help-all shows every one
    own: Mapping[str, Any] = field(default_factory=dict)  # command -> its own default
    told: Mapping[str, str] = field(default_factory=dict)  # command -> its own text
    result: bool | None = None  # decides a result: part of the explainer's id; None: as its section
    kind: Any = str  # type of a value that is not None; this and the rest follow from where a setting stands
    default: Any = None
    name: str = ""  # dotted
    group: str = ""  # heading in --help

    @property
    def flag(self) -> str:
        """`--overlay-alpha`; empty for a positional, and where there is no option."""
        return self.option.split()[0] if self.option.startswith("--") else ""

    @property
    def span(self) -> str:
        """Say in what range a value must be; empty where there is none."""
        if self.low is None:
            return ""
        return f"at least {self.low}" if self.high is None else f"between {self.low} and {self.high}"

    def shown(self, verb: str) -> str:
        """Give a command's default as people read it; empty where there is none."""
        value = self.own.get(verb, self.default)
        if value is None or value is False or isinstance(value, tuple | dict):
            return ""
        if isinstance(value, float):
            return f"{value:.0%}" if self.kind == int | float else f"{value:g}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    def help(self, verb: str) -> str:
        """Give what a command's help says: the text, and the default that it has there."""
        defaults = [self.shown(verb)]
        if verb == "plan":
            defaults += [f"{other}: {self.shown(other)}" for other in self.own]
        said = "; ".join(filter(None, defaults))
        return self.told.get(verb, self.text) + (f" ({said})" if said else "")


def setting(default: Any, *said: Any, **more: Any) -> Any:
    """Declare a setting of the tree: its default, then the fields of `Setting`."""
    declared = {"setting": Setting(*said, **more)}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=declared)
    return field(default=default, metadata=declared)


def section(kind: type, group: str, verbs: str, result: bool = False) -> Any:
    """Declare a section: the heading of its options, and what holds where a setting says nothing else."""
    return field(default_factory=kind, metadata={"group": group, "verbs": verbs, "result": result})


# fmt: off
@dataclass(frozen=True, slots=True)
class ArchiveConfig:
    """Which images."""

    path: str = setting("", "folder, tar, zip, Parquet, list of paths, or pattern; path or URI", "ARCHIVE")
    also: tuple[str, ...] = setting((), "further archives: those between ARCHIVE and OUT", "")
    name: str | None = setting(
        None, "what OUT calls ARCHIVE: the path where it lay before", "--archive-name NAME")
    include: tuple[str, ...] = setting((), "only these paths (repeatable)", "--include GLOB")
    exclude: tuple[str, ...] = setting((), "not these paths (repeatable)", "--exclude GLOB")
    limit: int | None = setting(
        None, "only the first N images", "--limit N", 1, verbs=RUNS, common="explain plan")
    sample: int | None = setting(
        None, "only N images, drawn with --seed", "--sample N", 1, common="explain plan compare",
        told={"compare": "images, drawn once and kept (2000)"})
    seed: int = setting(0, "seed of the sample", "--seed S")
    rehash: bool = setting(
        False, "read what is committed too, and do again what a listing cannot see has changed", "--rehash",
        verbs=RUNS)
    image_column: str | None = setting(
        None, "Parquet: column of images; a list: of paths; default: by name and type", "--image-column NAME")
    label_column: str | None = setting(
        None, "Parquet and lists: column of labels; '': none; default: by name", "--label-column NAME")
    encoding: str = setting("utf-8", "of lists and metadata without a byte order mark", "--encoding NAME")
    group_by: tuple[str, ...] = setting(
        (), "columns kept as attributes of a record; an audit looks at each of their values",
        "--group-by A,B,...", verbs=RUNS)
    bbox: Literal["xywh", "xyxy"] = setting(
        "xywh", "what four numbers called bbox are: corner and size, or edges", "--bbox")
    captions: bool = setting(False, ".txt files are captions, never labels", "--captions", verbs=RUNS)
    zip_encoding: str | None = setting(
        None, "zip: encoding of names that are not UTF-8 (cp437)", "--zip-encoding NAME")
    frames: str = setting(
        "first", "of files with several frames or pages: first, middle, all, or N from 0", "--frames WHICH",
        verbs=RUNS)
    allow_http: bool = setting(
        False, "read images that a list names by https:// or http://, from public addresses", "--allow-http")
    bands: tuple[int, ...] | None = setting(
        None, "images are bands (TIFF, .npy, arrays in Parquet); these, from 1, are the picture",
        "--bands R,G,B", 1, 4096, verbs=EVERY, result=True)
    max_member_bytes: int = setting(256 * 2**20, "refuse larger files", "", 1)
    max_pixels: int = setting(
        100_000_000, "refuse larger images", "--max-pixels N", 1, verbs=RUNS, result=True)

    @property
    def reads_arrays(self) -> bool:
        """Whether files and columns of arrays are images."""
        return bool(self.bands)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which classifier. Without `checkpoint`, pretrained weights from the local cache."""

    name: str = setting(
        "", "timm name, saved folder, torchvision:NAME, "
        "path/to/file.py:Class, package.module:factory, hf-hub:OWNER/NAME", "--model NAME", verbs=JOBS,
        common=JOBS)
    args: dict[str, Any] = setting(
        {}, "argument of the model, or of your own class (repeatable)", "--model-arg NAME=VALUE",
        common="layers")
    checkpoint: str | None = setting(
        None, ".safetensors, or .pth with a state_dict", "--checkpoint FILE", common=EVERY)
    trust_pickle: bool = setting(False, "run a pickled checkpoint as a program", "--trust-pickle")
    partial: bool = setting(False, "go on with the weights that fit", "--partial")
    num_classes: int | None = setting(
        None, "size of the head; default: as weights", "--num-classes N", 1, common="layers")
    prompts: str | None = setting(
        None, "a CLIP or SigLIP folder's classes: one prompt a line, or name: prompt", "--prompts FILE")
    head: str | None = setting(
        None, "a linear head for embeddings: safetensors with weight (classes x width), maybe bias; or a "
        "folder of labelled images: their centroids",
        "--head FILE")
    class_names: str | None = setting(
        None, "class names: txt, csv, json, or imagenet", "--class-names FILE", common=EVERY)
    activation: Literal["auto", "softmax", "sigmoid", "none"] = setting(
        "auto", "how outputs become scores; none: they are scores", "--activation")
    output: str | None = setting(
        None, "which of several outputs: its key, or its index", "--output NAME")
    task: Literal["classification", "regression", "segmentation"] = setting(
        "classification", "regression: one number is a value; segmentation: each pixel has a class", "--task")
    precision: Literal["fp32", "bf16", "fp16"] = setting(
        "fp32", "of what the network computes; maps are finished in fp32", "--precision", verbs=RUNS)
    download: bool = setting(
        False, "fetch pretrained weights from the hub", "--download", common=EVERY, result=False)


@dataclass(frozen=True, slots=True)
class PreprocessConfig:
    """How images become the model's input; None: as the model says. A size: one, or height and width."""

    input_size: tuple[int, ...] | None = setting(None, "side of the input, or HxW", "--input-size N", 1, 8192)
    resize: tuple[int, ...] | None = setting(
        None, "shorter side before the crop, or HxW", "--resize N", 1, 16384)
    crop_pct: float | None = setting(
        None, "instead: input as a share of the resize", "--crop-pct F", 0.01, 1)
    crop_mode: Literal["center", "squash", "border"] | None = setting(
        None, "how the aspect is handled", "--crop-mode")
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] | None = setting(
        None, "how pixels are resized", "--interpolation")
    mean: tuple[float, ...] | None = setting(
        None, "of channels in 0..1: one number, or R,G,B", "--mean M", -1e6, 1e6)
    std: tuple[float, ...] | None = setting(
        None, "of channels in 0..1: one number, or R,G,B", "--std S", 1e-6, 1e6)
    channels: int | None = setting(
        None, "of the model's input; default: what receives the image says", "--channels N", 1, 4096)
    fast_decode: bool = setting(False, "large JPEGs at 1/2, 1/4 or 1/8 of their size", "--fast-decode")


@dataclass(frozen=True, slots=True)
class MethodConfig:
    """Which explanation."""

    name: str = setting("gradcam", "class activation map method", "--method NAME", verbs=RUNS, common=RUNS)
    target: str = setting(
        "predicted", "predicted, label, class, top:5, similarity:IMAGE ...", "--target T",
        common=JOBS,
        told={"compare": "predicted, label, or a class index"})
    layer: str | None = setting(
        None, "target layer; default: chosen for the model", "--layer NAME", verbs=EVERY,
        common="explain plan compare layers", told={"layers": "check this layer"})
    grid: tuple[int, ...] | None = setting(
        None, "tokens: rows and columns of patches, HxW; default: proved", "--grid HxW", 1, 8192, verbs=EVERY)
    prefix: int | None = setting(
        None, "tokens in front of the patches; default: proved", "--prefix N", 0, 8192, verbs=EVERY)
    heat_boxes: float = setting(
        0.5, "boxes around the heat: where it reaches this share of its peak", "--heat-boxes SHARE", 0.01, 1,
        verbs=RUNS)

    min_score: float = setting(
        0.5, "a detector's: leave out what scores lower", "--min-score F", 0, 1, verbs=RUNS)
    max_detections: int = setting(
        20, "of each image: so many records, the best scores", "--max-detections N", 1, 1000, verbs=RUNS)
    min_share: float = setting(
        0.01, "a segmenter's: leave out classes with fewer of the pixels", "--min-share SHARE", 0, 1,
        verbs=RUNS)

    @property
    def pair(self) -> tuple[int, int] | None:
        """Rows and columns of the grid, where they are given."""
        return (self.grid[0], self.grid[-1]) if self.grid else None


@dataclass(frozen=True, slots=True)
class OverlayConfig:
    """Which pictures to draw: none, a sample of each chunk, the flagged ones, or all."""

    policy: Literal["none", "sample", "flagged", "all"] = setting(
        "sample", "none, sample, flagged, all", "--overlays WHICH", common="explain audit",
        own={"audit": "flagged"})
    sample_per_chunk: int = setting(
        16, "of each 256 images: N of a sample, or beside the flagged ones", "--overlay-sample N", 0,
        own={"audit": 48})  # a page of the queue
    on: Literal["input", "original"] = setting(
        "input", "draw on what the model saw, or on the whole image", "--overlay-on")
    picture: Literal["blend", "triple"] = setting(
        "blend", "triple: image, map, blend", "--overlay-picture", own={"audit": "triple"})
    colormap: Literal["inferno", "turbo", "jet", "viridis", "magma", "hot", "bone"] = setting(
        "inferno", "inferno, turbo, viridis, jet, ...", "--colormap NAME")
    alpha: float = setting(0.5, "strength of the colours, 0..1", "--overlay-alpha A", 0, 1)
    gamma: float = setting(0.5, "colours grow as heat ** G", "--overlay-gamma G", 0.01, 10)
    contour: float = setting(
        0.5, "line around what reaches C of the peak, seen when small or grey; 0: none",
        "--overlay-contour C", 0, 1)
    legend: bool = setting(False, "under the picture its scale, from 0 to the peak", "--overlay-legend")
    heat_mask: bool = setting(
        False, "beside each picture a PNG of the image's size, white where the heat reaches --heat-boxes",
        "--heat-mask")
    caption: bool = setting(False, "write label and score under the picture", "--caption")
    quality: int = setting(90, "quality of the JPEG", "", 1, 100)


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """What `camray compare` measures; its sample is `archive.sample`, drawn with `archive.seed`."""

    methods: tuple[str, ...] = setting(
        ("gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "gradcam-elementwise", "eigencam",
         "eigengradcam"), "methods; the controls come along", "--methods A,B,...", common="compare")
    stratify: tuple[str, ...] | None = setting(
        None, "predicted_class,confidence where OUT has records", "--stratify A,B")
    baseline: Literal["blur", "zero"] = setting("blur", "what takes the place of pixels", "--baseline")
    budget: dict[str, Any] = setting(
        {}, "refuse to spend more than that", "--budget forwards=N", common="compare")


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """What makes an answer suspicious. `confirm` is part of a result; the rest only judges records."""

    confirm: float = setting(
        0.0, "share that may get a second look", "--confirm F", 0, 1, verbs=RUNS, own={"audit": 0.15},
        result=True)
    looks: float = setting(
        0.0, "forwards of second looks, as a share of the new images", "--looks F", 0,
        100, own={"audit": 0.25})
    drop: float = setting(0.3, "confidence lost in a second look that confirms a shortcut", "", 0, 1)
    lift: float = setting(0.1, "nats: how much more the class looks there than the others do", "", 0, 10)
    margin: float = setting(0.1, "below this the two best classes are too close", "", 0, 1)
    dark: float = setting(25.0, "mean luminance, 0..255, below which an image is dark")
    bright: float = setting(235.0, "mean luminance, 0..255, above which an image is bright")
    flat: float = setting(5.0, "standard deviation of the luminance, below which an image is flat")
    blurry: float = setting(20.0, "variance of the Laplacian, below which an image is blurry")
    fail_on: str = setting(
        "", "exit 5: confirmed_rate>0.5%,drift=major ...", "--fail-on WHAT", common="audit")
    baseline: str | None = setting(None, "compare with this run too, beside last night", "--against RUN")
    full: bool = setting(False, "judge every image anew, not only what changed", "--full", common="audit")
    canary: int = setting(0, "images explained anew every night", "", 0, 10_000, own={"audit": 16})


@dataclass(frozen=True, slots=True)
class RunConfig:
    """How the work is done; none of it but `top_k` changes a result beyond rounding."""

    engine: Literal["auto", "here", "ray"] = setting(
        "auto", "here: in this process, for small work; ray: a pool of actors", "--engine")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where the model runs", "--device", common=JOBS)
    actors: int | None = setting(
        None, "model copies; default: one a GPU, or by CPUs", "--actors N", 1, common=JOBS)
    max_actors: int | None = setting(
        None, "grow up to N copies while more nodes join", "--max-actors N", 1, verbs=RUNS)
    batch_size: int | None = setting(
        None, "images per forward (32 GPU); a CPU has 8", "--batch-size N", 1, 4096,
        told={"compare": "images measured at once (4)"})
    chunk_size: int = setting(256, "images per unit of work", "--chunk-size N", 1, 65536, verbs=RUNS)
    compile: bool = setting(
        False, "compile the network in front of its layer (CPU, gcc): faster, equal but for rounding",
        "--compile", verbs=RUNS)
    top_k: int = setting(5, "predictions kept per image", "--top-k K", 1, 1000, verbs=RUNS, result=True)
    max_failed: int | float = setting(
        0.01, "failures allowed: images, or a share", "--max-failed N", 0, 1, common="explain audit")
    retry: tuple[str, ...] = setting(
        (), "do images again that failed with these error codes; or: failed", "--retry CODE,...", verbs=RUNS)
    allow_empty: bool = setting(False, "accept an archive without images", "--allow-empty", verbs=RUNS)
    force: bool = setting(False, "run although another run seems to hold OUT", "--force")
    metrics_file: str | None = setting(
        None, "how the run ended, for Prometheus' textfile collector", "--metrics-file FILE.prom",
        verbs="explain audit")
    on_end: str | None = setting(
        None, "shell command at the end; reads how it ended as JSON", "--on-end COMMAND",
        verbs="explain audit")
    notify: str | None = setting(
        None, "post how it ended as JSON (Slack's form); $NAME is of the environment", "--notify URL",
        verbs="explain audit")


@dataclass(frozen=True, slots=True)
class Config:
    """A whole run."""

    out: str = setting("", "folder for records, overlays and runs", "OUT", verbs=JOBS)
    archive: ArchiveConfig = section(ArchiveConfig, "which images", JOBS)
    model: ModelConfig = section(ModelConfig, "model", EVERY, result=True)
    preprocess: PreprocessConfig = section(
        PreprocessConfig, "preprocessing (default: as the model says)", EVERY, result=True)
    method: MethodConfig = section(MethodConfig, "method", JOBS, result=True)
    overlay: OverlayConfig = section(OverlayConfig, "overlays", RUNS)
    compare: CompareConfig = section(CompareConfig, "what is compared", "compare")
    audit: AuditConfig = section(AuditConfig, "audit", "audit plan")
    run: RunConfig = section(RunConfig, "how", JOBS)
# fmt: on


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How an upright image becomes the model's input, as timm's evaluation transform does it.

    The image is resized so that its shorter side is `resize` (crop_mode center), to exactly
    `resize` x `resize` (squash), or so that its longer side fits (border; shrink: where it is larger),
    then the middle `height` x `width` is cut out, padded with `fill` where the image is smaller.
    """

    height: int
    width: int
    resize: tuple[int, int]  # (height, width), = floor(input / crop_pct)
    crop_mode: Literal["center", "squash", "border", "shrink"]
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"]
    mean: tuple[float, ...]  # of channels scaled to 0..1
    std: tuple[float, ...]
    fill: tuple[int, int, int] = (0, 0, 0)
    fast_decode: bool = False  # JPEGs at a reduced scale
    crop_floor: bool = False  # an odd margin's last pixel lies right and below; else half-to-even, as timm
    bands: tuple[int, ...] = ()  # images are read as bands, of which these, from 1, are the picture


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
    heat_boxes: float = 0.5  # share of a map's peak from which on its boxes are drawn
    precision: str = "fp32"  # of what the network computes

    @property
    def id(self) -> str:
        """16 hex digits of the SHA-256 of the canonical JSON of every field."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Give the canonical JSON: sorted keys, no spaces."""
        fields = dataclasses.asdict(self)
        for owner, name in ((fields, "confirm"), (fields["input"], "fast_decode"),
                            (fields["input"], "crop_floor"), (fields["input"], "bands")):  # fmt: skip
            if not owner[name]:
                del owner[name]  # as before there was such a setting: ids of older tables stay
        for name in ("heat_boxes", "precision"):
            if fields[name] == Explainer.__dataclass_fields__[name].default:
                del fields[name]
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    def label_of(self, class_id: int) -> str | None:
        """Name a class, or None where the archive and the model name none."""
        return self.class_names[class_id] if 0 <= class_id < len(self.class_names) else None
