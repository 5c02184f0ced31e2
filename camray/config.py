"""Every setting of a run, in one frozen tree: TOML -> command line -> validated -> explainer id.

Nothing else reads option text or configuration files. Settings that decide a *result* are resolved into
an `Explainer` once the model is known; its `id` names that result. The others (actors, batch size,
overlays, chunking) may change between runs without recomputing anything.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
import tomllib
from dataclasses import dataclass, field
from typing import Any, Literal

from camray.errors import UsageError, printable

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


@dataclass(frozen=True, slots=True)
class RunConfig:
    """How the work is done; none of it changes a result beyond rounding."""

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
        if not self.confirm:
            del fields["confirm"]  # as before there was a second look: ids of older tables stay
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    def label_of(self, class_id: int) -> str | None:
        """Name a class, or None where the archive and the model name none."""
        return self.class_names[class_id] if 0 <= class_id < len(self.class_names) else None


_LARGEST_TOML = 2**20
_SPOKEN = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}

# ── TOML and overrides ───────────────────────────────────────────────────────────────────────────


def load(path: str | None, overrides: dict[str, Any], defaults: dict[str, Any] | None = None) -> Config:
    """Build the config: defaults (`defaults` are a command's own), the TOML file, `overrides` by dotted name.

    Raises:
        UsageError: an unknown or ill-typed key, an unreadable file, a value out of range.
    """
    config = Config()
    for origin, values in (("default", defaults or {}), ("config", _read_toml(path)), ("option", overrides)):
        for name, value in values.items():
            config = _replaced(config, name, value, origin)
    _check(config)
    return config


def _read_toml(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_TOML + 1)
        if len(content) > _LARGEST_TOML:
            raise UsageError("--config", f"{path}: more than {_LARGEST_TOML:,} bytes", "give a TOML file")
        tree = tomllib.loads(content.decode())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or f"not TOML: {error}"
        raise UsageError("--config", printable(f"{path}: {why}"), "give a TOML file of settings") from None
    except RecursionError:
        raise UsageError("--config", f"{path}: nested too deeply", "give a TOML file of settings") from None
    flat: dict[str, Any] = {}
    sections = {name.partition(".")[0] for name in _leaf_names() if "." in name}
    for key, value in tree.items():
        if isinstance(value, dict) and (value or key in sections):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    return flat


def _replaced(config: Config, name: str, value: Any, origin: str) -> Config:
    section, dot, leaf = name.rpartition(".")
    owner = getattr(config, section, None) if dot else config
    known = _leaf_names()
    if owner is None or name not in known:
        near = difflib.get_close_matches(name, known, 1)
        fix = f"did you mean {near[0]}?" if near else "see `camray explain --help`"
        raise UsageError(f"{origin} {name}", "no such setting", fix)
    value = _failure_budget(value) if name == "run.max_failed" else value
    change: dict[str, Any] = {leaf or name: _coerced(name, value, _annotation(owner, leaf or name))}
    if isinstance(change.get(leaf), dict):  # a table: options add to the file's
        change[leaf] = getattr(owner, leaf) | change[leaf]
    if dot:
        change = {section: dataclasses.replace(owner, **change)}
    return dataclasses.replace(config, **change)


def _leaf_names() -> list[str]:
    names = []
    for f in dataclasses.fields(Config):
        default = getattr(Config(), f.name)
        inner = dataclasses.fields(default) if dataclasses.is_dataclass(default) else ()
        names += [f"{f.name}.{g.name}" for g in inner] or [f.name]
    return names


def _annotation(owner: Any, leaf: str) -> str:
    return next(str(f.type) for f in dataclasses.fields(owner) if f.name == leaf)


def _coerced(name: str, value: Any, annotation: str) -> Any:
    """Check a value against the field's annotation; integers pass as floats, lists as tuples."""
    if value is None and "None" in annotation:
        return None
    if "tuple[int" in annotation or "tuple[float" in annotation:
        return _numbers(name, value, int if "int" in annotation else float)
    if "tuple" in annotation and isinstance(value, list | tuple):
        return tuple(str(v) for v in value)
    choices = re.findall(r"'([^']*)'", annotation) if "Literal" in annotation else []
    if value in choices or (annotation.startswith("dict") and isinstance(value, dict)):
        return value
    if name == "method.target" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    wanted = {"bool": bool, "int | float": (int, float), "int": int, "float": (int, float), "str": str}
    kind = next((k for k in wanted if annotation.startswith(k)), "")
    if kind and isinstance(value, wanted[kind]) and (kind == "bool" or not isinstance(value, bool)):  # type: ignore[arg-type]
        return float(value) if kind == "float" else value
    expected = f"one of {', '.join(choices)}" if choices else _SPOKEN.get(kind, "a list of texts")
    raise UsageError(name, printable(f"{value!r} will not do"), f"give {expected}")


def _failure_budget(value: Any) -> Any:
    """Read how many failures are fine: a whole number counts images, `1%` and `0.01` are shares of them."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        fix = "give a share (1% or 0.01) or a number of images (25)"
        raise UsageError("--max-failed", printable(f"{value!r} will not do"), fix) from None


def _numbers(name: str, value: Any, kind: type) -> tuple[Any, ...]:
    """Read one number or a list of them."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    wanted = int if kind is int else (int, float)
    if not values or any(isinstance(v, bool) or not isinstance(v, wanted) for v in values):
        raise UsageError(name, printable(f"{value!r} will not do"), "give one number or a list of them")
    return tuple(kind(v) for v in values)


def _check(config: Config) -> None:
    """Refuse values out of range, each by name."""
    a, r, o, p = config.archive, config.run, config.overlay, config.preprocess
    for name, value, low, high in (
        *(("--input-size", n, 1, 8192) for n in p.input_size or ()),
        *(("--resize", n, 1, 16384) for n in p.resize or ()),
        ("--crop-pct", p.crop_pct, 0.01, 1),
        *(("--mean", n, -1e6, 1e6) for n in p.mean or ()),
        *(("--std", n, 1e-6, 1e6) for n in p.std or ()),
        ("--limit", a.limit, 1, None),
        ("--sample", a.sample, 1, None),
        ("--actors", r.actors, 1, None),
        ("--max-actors", r.max_actors, r.actors or 1, None),
        ("--batch-size", r.batch_size, 1, 4096),
        ("--chunk-size", r.chunk_size, 1, 65536),
        ("--top-k", r.top_k, 1, 1000),
        ("--num-classes", config.model.num_classes, 1, None),
        ("--overlay-alpha", o.alpha, 0, 1),
        ("--overlay-gamma", o.gamma, 0.01, 10),
        ("overlay.quality", o.quality, 1, 100),
        ("--overlay-sample", o.sample_per_chunk, 0, None),
        ("--max-pixels", a.max_pixels, 1, None),
        ("archive.max_member_bytes", a.max_member_bytes, 1, None),
        ("--max-failed", r.max_failed, 0, None if isinstance(r.max_failed, int) else 1),
        ("--confirm", config.audit.confirm, 0, 1),
        ("audit.drop", config.audit.drop, 0, 1),
        ("audit.lift", config.audit.lift, 0, 10),
        ("audit.margin", config.audit.margin, 0, 1),
    ):
        if value is not None and not low <= value <= (math.inf if high is None else high):  # NaN is outside
            span = f"at least {low}" if high is None else f"between {low} and {high}"
            raise UsageError(name, f"{value} is out of range", f"give a value {span}")
    for name, value in config.compare.budget.items():
        if name != "forwards" or not isinstance(value, int) or value < 1:
            raise UsageError("--budget", printable(f"{name}={value!r} will not do"), "forwards=500000")
    if a.limit is not None and a.sample is not None:
        raise UsageError("--sample", "given together with --limit", "give one of the two")
    if p.resize is not None and p.crop_pct is not None:
        raise UsageError("--crop-pct", "given together with --resize", "give one of the two")
    for name, sizes in (("--input-size", p.input_size), ("--resize", p.resize)):
        if sizes is not None and len(sizes) > 2:
            raise UsageError(name, f"{len(sizes)} numbers", "give one, or HEIGHTxWIDTH")
