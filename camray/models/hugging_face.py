"""Folders that `save_pretrained` of transformers wrote: network, weights, processor and text side.

    config.json ──describe──> Description(recipe's name and arguments, class names)      driver
    preprocessor_config.json ──read_processor──> size, crop, mean ... as the processor itself gives them
    weights ──load_weights──> the network, names mapped as transformers maps them
    name, arguments ──build──> the bare network, from plain data alone                   any worker

What a processor does is proved, not read: of the readings that its fields allow, the one is taken that gives
the processor's own pixels on three pictures, and a processor that none explains is refused by name. Code that
lies in a folder is never run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from camray.config import InputSpec
from camray.errors import ModelError, printable
from camray.image.fit import fit_image, plan_fit

CLASSIFIER = "ForImageClassification"
DETECTOR = "ForObjectDetection"
SEGMENTER = "ForSemanticSegmentation"
FLIPPED = "channels_reversed"  # argument of `build`: the network takes blue first


@dataclass(frozen=True, slots=True)
class Contrast:
    """A model of images and texts: its parts by name, and how it was trained to compare them."""

    whole: str
    tower: str
    embedding: Literal["image_embeds", "pooler_output", "output"]  # of the tower's output
    activation: Literal["softmax", "sigmoid"]


_CONTRASTS = {
    contrast.whole: contrast
    for contrast in (
        Contrast("CLIPModel", "CLIPVisionModelWithProjection", "image_embeds", "softmax"),
        Contrast("MetaClip2Model", "MetaClip2VisionModelWithProjection", "image_embeds", "softmax"),
        Contrast("SiglipModel", "SiglipVisionModel", "pooler_output", "sigmoid"),
    )
}


@dataclass(frozen=True, slots=True)
class TextSide:
    """Embeddings of texts (N, D), and the trained numbers: logits are `scale` times a cosine, plus `bias`."""

    embeddings: Tensor
    scale: float
    bias: Tensor | None
    cut: int  # texts that were too long


_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # as Pillow numbers them
_LONGEST_NAMES = 100_000  # classes
_TEXTS_AT_ONCE = 64
_LOCAL = {"local_files_only": True, "trust_remote_code": False}  # False: else it asks on the terminal
_MEAN_CHANGE, _LARGEST_CHANGE = 0.75, 6.0  # of 255: what two resizers may differ by
_NOT_BUILT = ("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path",
              "id2label", "label2id", "num_labels")  # fmt: skip
_KINDS: tuple[tuple[str, str, str], ...] = (  # end of an architecture's name, what it is, the way on
    ("ForUniversalSegmentation", "a segmenter of masks, not of pixels", "give one ForSemanticSegmentation"),
    ("ForInstanceSegmentation", "a segmenter of masks, not of pixels", "give one ForSemanticSegmentation"),
    ("ForImageSegmentation", "a segmenter of masks, not of pixels", "give one ForSemanticSegmentation"),
    ("ForSegmentation", "a segmenter of masks, not of pixels", "give one ForSemanticSegmentation"),
    ("ForDepthEstimation", "a depth estimator: it has no classes", "give an image classifier"),
    ("ForVideoClassification", "a classifier of videos, not of single images", "give an image classifier"),
    ("ForMaskedImageModeling", "a pretraining model: it has no classes", "fine-tune it, or give --head FILE"),
    ("ForPreTraining", "a pretraining model: it has no classes", "fine-tune it, or give --head FILE"),
    ("ForCausalLM", "a language model", "give an image classifier"),
    ("ForConditionalGeneration", "a model that writes text", "give an image classifier"),
    ("ForQuestionAnswering", "a model that needs an image and a text", "give an image classifier"),
    ("ForSequenceClassification", "a classifier of texts", "give an image classifier"),
)


@dataclass(frozen=True, slots=True)
class Description:
    """What config.json says. `args` are the fields of the configuration, in plain data."""

    architecture: str
    args: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    contrast: Contrast | None = None
    gives_classes: bool = True


def is_described(config: Any) -> bool:
    """Tell transformers' config.json from timm's, which names one `architecture`."""
    return isinstance(config, Mapping) and "architectures" in config and "architecture" not in config


def describe(file: Path) -> Description:
    """Read config.json.

    Raises:
        ModelError: no transformers here; no classifier, tower or backbone that transformers itself knows.
    """
    config = json.loads(file.read_text("utf-8"))
    name = str(next(iter(config.get("architectures") or ()), ""))
    for ending, what, fix in _KINDS:
        if name.endswith(ending):
            raise ModelError("--model", printable(f"{file.parent}: {name} is {what}"), fix)
    known = getattr(_transformers(), name, None) if name.isidentifier() else None
    if known is None or config.get("model_type") not in _transformers().CONFIG_MAPPING:
        code = ", ".join(sorted({str(v).partition(".")[0] + ".py" for v in _named_code(config)}))
        said = f"its own code ({code}) is not run" if code else "transformers has no such model"
        raise ModelError(
            "--model", printable(f"{file.parent}: {name or 'no architecture'}: {said}"),
            "read that code, then --model FILE.py:ClassName --checkpoint WEIGHTS if you trust it",
        )  # fmt: skip
    args = {key: value for key, value in config.items() if key not in _NOT_BUILT}
    if CLASSIFIER in name or name.endswith((DETECTOR, SEGMENTER)):
        args["num_classes"] = len(config.get("id2label") or ()) or int(config.get("num_labels") or 2)
        return Description(name, args, _class_names(config))
    if name in _CONTRASTS:
        contrast, tower = _CONTRASTS[name], _tower_args(args)
        return Description(contrast.tower, tower, contrast=contrast, gives_classes=False)
    if not name.endswith("Model"):
        raise ModelError("--model", f"{file.parent}: {name} is no image classifier", "give a classifier")
    return Description(name, args, gives_classes=False)


def _tower_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Give the fields of the part that sees."""
    try:
        vision = _config(args).vision_config.to_dict()
    except Exception as error:  # noqa: BLE001 - transformers raises its own types
        raise ModelError("--model", printable(f"config.json: {error}", 200), "fetch it again") from None
    width = args.get("projection_dim")
    fields = {key: value for key, value in vision.items() if key not in _NOT_BUILT}
    return fields | ({"projection_dim": width} if width else {})


def build(architecture: str, args: Mapping[str, Any]) -> nn.Module:
    """Make the bare network from the fields of its configuration."""
    module: nn.Module = getattr(_transformers(), architecture)(_config(args))
    if args.get(FLIPPED):
        module.register_forward_pre_hook(lambda _module, given: (given[0].flip(1), *given[1:]))
    return module


def load_weights(
    folder: Path, architecture: str, args: Mapping[str, Any]
) -> tuple[nn.Module, tuple[str, ...]]:
    """Load the folder's weights by transformers' own rules of names, as float32.

    Raises:
        ModelError: weights that are missing, damaged or of other shapes.
    """
    try:
        with _quiet():
            made = build(architecture, args)  # with its hooks
            module, info = getattr(_transformers(), architecture).from_pretrained(
                folder,
                config=_config(args),
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # noqa: BLE001 - transformers raises its own types, and those of safetensors
        reason = printable(str(error).strip().partition("\n")[0], 200)
        raise ModelError(
            "--model", f"{folder}: its weights cannot be loaded ({reason})", "fetch it again"
        ) from None
    missing = sorted(str(key) for key in info["missing_keys"])
    if missing:
        listed = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise ModelError(
            "--model", printable(f"{folder}: {len(missing)} weights missing ({listed})"),
            "give a folder that holds a trained model, or --checkpoint FILE",
        )  # fmt: skip
    made.load_state_dict(module.state_dict(), assign=True)
    left = sorted(str(key) for key in info["unexpected_keys"])
    notes = (printable(f"{len(left)} weights of {folder.name} have no place: {', '.join(left[:3])}"),)
    return made, notes * bool(left)


def own_names(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Give tensors the names that this network has now, as transformers maps those of files."""
    if not type(module).__module__.startswith("transformers."):
        return None
    network: Any = module
    try:
        with _quiet():
            loaded, info = network.__class__.from_pretrained(
                None,
                config=network.config,
                state_dict=dict(state),
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception:  # noqa: BLE001 - only a try: else the names speak for themselves
        return None
    other = {str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]}
    lost = {*map(str, info["missing_keys"]), *other}
    named = {key: tensor for key, tensor in loaded.state_dict().items() if key not in lost}
    kept = {*other, *map(str, info["unexpected_keys"])}
    return named | {key: tensor for key, tensor in state.items() if key in kept}


def embed_texts(folder: Path, contrast: Contrast, texts: Sequence[str]) -> TextSide:
    """Embed texts as the whole model does, with its own tokenizer.

    Raises:
        ModelError: no tokenizer, or weights that cannot be loaded.
    """
    try:
        with _quiet(), torch.no_grad():
            whole = getattr(_transformers(), contrast.whole).from_pretrained(
                folder, dtype=torch.float32, local_files_only=True
            )
            whole.eval()
            found, cut = _embedded(whole, folder, texts) if texts else (torch.empty(0, 0), 0)
            bias = getattr(whole, "logit_bias", None)
            own = None if bias is None else bias.detach().reshape(1).clone()
            return TextSide(found, float(whole.logit_scale.exp()), own, cut)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - transformers raises its own types, and those of tokenizers
        reason = printable(str(error).strip().partition("\n")[0], 200)
        raise ModelError(
            "--prompts", f"{folder}: its text side cannot be used ({reason})", "fetch it whole"
        ) from None


def _embedded(whole: Any, folder: Path, texts: Sequence[str]) -> tuple[Tensor, int]:
    """Embed in batches, padded as the model was trained: (N, D), and how many texts were too long."""
    tokenizer = _transformers().AutoTokenizer.from_pretrained(folder, **_LOCAL)
    longest = int(whole.config.text_config.max_position_embeddings)
    cut = sum(len(ids) > longest for ids in tokenizer(list(texts))["input_ids"])
    padding = "max_length" if hasattr(whole, "logit_bias") else True  # SigLIP read nothing else in training
    parts = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        tokens = tokenizer(
            list(texts[start : start + _TEXTS_AT_ONCE]), padding=padding, max_length=longest, truncation=True,
            return_tensors="pt",
        )  # fmt: skip
        given = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
        found = whole.get_text_features(**given)
        parts.append(found if isinstance(found, Tensor) else found.pooler_output)
    return torch.cat(parts), cut


def has_class_token(module: nn.Module) -> bool:
    """Tell whether a token of its own stands in front of the patches."""
    return any(name.endswith(("cls_token", "class_embedding")) for name, _ in module.named_parameters())


def is_detector(module: nn.Module) -> bool:
    """Tell whether a network is one of transformers' detectors."""
    kind = type(module)
    return kind.__module__.startswith("transformers.") and kind.__name__.endswith(DETECTOR)


def processor_fields(folder: Path) -> dict[str, Any]:
    """Read the processor of a detector, in plain data.

    Raises:
        ModelError: there is none, or it cannot turn outputs into boxes.
    """
    try:
        with _quiet():
            processor = _transformers().AutoImageProcessor.from_pretrained(folder, **_LOCAL)
            fields: dict[str, Any] = json.loads(processor.to_json_string())
    except Exception as error:  # noqa: BLE001 - processors raise anything
        said = printable(f"{folder}: its processor fails: {type(error).__name__}: {error}", 200)
        raise ModelError("--model", said, "add its preprocessor_config.json") from None
    if not hasattr(processor, "post_process_object_detection"):
        raise ModelError("--model", f"{type(processor).__name__} gives no boxes", "add its own processor")
    return fields | {"class": type(processor).__name__}


def processor_of(fields: Mapping[str, Any]) -> Any:
    """Make the processor again from `processor_fields`."""
    given = dict(fields)
    with _quiet():
        return getattr(_transformers(), given.pop("class")).from_dict(given)


def weights_file(folder: Path) -> Path | None:
    """Find the one file of weights; None where they are in several."""
    single = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    found = next((file for file in single if file.is_file()), None)
    if found is None and not [*folder.glob("*.index.json")]:
        raise ModelError("--model", f"{folder} holds no model.safetensors", "add it, or --checkpoint FILE")
    return found


def read_processor(folder: Path, channels: int = 3) -> dict[str, Any]:
    """Give what the folder's processor does to an image, as `InputSpec` says it; empty where it has none.

    It can only be tried on pictures: for a network of other `channels` its fields are taken at their word.

    Raises:
        ModelError: a processor whose pixels no size, crop and interpolation explain.
    """
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        return {}
    try:
        with _quiet():
            processor = _transformers().AutoImageProcessor.from_pretrained(folder, **_LOCAL)
            return proved(processor) if channels in (1, 3) else _at_its_word(processor)
    except ModelError as error:
        raise ModelError(error.field, f"{folder}: {error.problem}", error.fix) from None
    except Exception as error:  # noqa: BLE001 - processors raise anything
        said = printable(f"{folder}: its processor fails: {type(error).__name__}: {error}")
        raise ModelError("--model", said, "mend preprocessor_config.json, or remove it") from None


def input_size(args: Mapping[str, Any]) -> dict[str, Any]:
    """Give the input size that a configuration names, squashed to, for a folder without a processor."""
    side = args.get("image_size") or (args.get("vision_config") or {}).get("image_size") or 224
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return {
        "input_size": (3, height, width),
        "resize": (height, width),
        "crop_mode": "squash",
        "crop_pct": 1.0,
    }


def _at_its_word(processor: Any) -> dict[str, Any]:
    size = processor.size or {}
    edge = getattr(size, "shortest_edge", None)
    side = [edge or getattr(size, name, None) or 224 for name in ("height", "width")]
    interpolation = _INTERPOLATIONS.get(int(getattr(processor, "resample", 2) or 0), "bilinear")
    said = {"mean": processor.image_mean, "std": processor.image_std, "interpolation": interpolation}
    return input_size({"image_size": side}) | {name: value for name, value in said.items() if value}


def proved(processor: Any, crop_floor: bool = True) -> dict[str, Any]:
    """Find the reading of a processor that gives its own pixels, as `InputSpec` says it.

    `crop_floor`: an odd margin is cut down, as transformers does; torchvision rounds it to even.

    Raises:
        ModelError: none does.
    """
    channels = 1 if len(np.atleast_1d(processor.image_mean or [0] * 3)) == 1 else 3
    found = _colours(processor, channels)
    probes = [_probe(*size) for size in ((500, 375), (301, 446), (97, 150))]
    wanted = [_pixels(processor, p if channels == 3 else p.convert("L")) for p in probes]
    if len({values.shape for values in wanted}) > 1:
        raise _unlike(processor, "gives every image a size of its own")
    if found.pop(FLIPPED, False):
        wanted, found[FLIPPED] = [values[::-1] for values in wanted], True
    height, width = wanted[0].shape[1:]
    found |= {"input_size": (channels, height, width), "crop_floor": crop_floor}
    for reading in _readings(processor, height, width):
        spec = InputSpec(
            height, width, mean=found["mean"], std=found["std"], crop_floor=crop_floor, **reading
        )
        if all(_is_equal(spec, probe, values) for probe, values in zip(probes, wanted, strict=True)):
            return found | reading | {"crop_pct": height / reading["resize"][0]}
    raise _unlike(processor, "does something else than resize and crop")


def _unlike(processor: Any, what: str) -> ModelError:
    fix = "give the network as own code: --model FILE.py:ClassName with --input-size, --mean, --std"
    return ModelError("--model", f"{type(processor).__name__} {what}", fix)


def _colours(processor: Any, channels: int) -> dict[str, Any]:
    """Measure mean and std of each channel in 0..1, and the order of the channels, on plain pictures."""
    mode, colours = ("RGB", ((0, 0, 0), (255, 255, 255), (255, 0, 0))) if channels == 3 else ("L", (0, 255))
    plain = [_pixels(processor, Image.new(mode, (64, 64), colour)) for colour in colours]
    middles = [values[:, values.shape[1] // 2, values.shape[2] // 2].astype(np.float64) for values in plain]
    std = 1 / (middles[1] - middles[0])
    mean = 0.0 - middles[0] * std
    reversed_ = channels == 3 and bool(abs(middles[2] - middles[0])[2] > 0)
    if reversed_:
        mean, std = mean[::-1], std[::-1]
    given = [np.broadcast_to(np.asarray(v if v is not None else 0.0, np.float64), channels)
             for v in (processor.image_mean, processor.image_std)]  # fmt: skip
    exact = all(
        np.allclose(own, measured, rtol=0, atol=1e-6)
        for own, measured in zip(given, (mean, std), strict=True)
    )
    pair = given if exact else [np.round(mean, 6), np.round(std, 6)]  # float32 knows no more
    found: dict[str, Any] = {"mean": tuple(pair[0].tolist()), "std": tuple(pair[1].tolist())}
    return found | ({FLIPPED: True} if reversed_ else {})


def _readings(processor: Any, height: int, width: int) -> Iterator[dict[str, Any]]:
    """Every resize that the fields may mean: `size` as it is, and enlarged by `crop_pct`."""
    size, share = processor.size or {}, getattr(processor, "crop_pct", None) or 224 / 256
    shortest = getattr(size, "shortest_edge", None)
    rows, columns = (
        getattr(size, name, None) or side for name, side in (("height", height), ("width", width))
    )
    interpolation = _INTERPOLATIONS.get(int(getattr(processor, "resample", 2) or 0), "bilinear")
    edges = [shortest, shortest and int(shortest / share), shortest and int(256 / 224 * shortest), rows,
             int(rows / share), height]  # fmt: skip
    for edge in dict.fromkeys(filter(None, edges)):
        yield {"resize": (edge, edge), "crop_mode": "center", "interpolation": interpolation}
    for pair in dict.fromkeys([(rows, columns), (int(rows / share), int(columns / share)), (height, width)]):
        yield {"resize": pair, "crop_mode": "squash", "interpolation": interpolation}


def _is_equal(spec: InputSpec, probe: Image.Image, wanted: NDArray[np.float32]) -> bool:
    """Tell whether camray's pixels are the processor's, but for the rounding of another resizer."""
    seen = np.asarray(fit_image(probe, plan_fit(*probe.size, spec), spec), np.float32)
    if len(spec.mean) == 1:
        seen = np.asarray(Image.fromarray(seen.astype(np.uint8)).convert("L"), np.float32)[..., None]
    back = np.moveaxis(wanted, 0, 2) * np.asarray(spec.std) + np.asarray(spec.mean)
    change = np.abs(back * 255 - seen)
    return bool(change.mean() <= _MEAN_CHANGE and change.max() <= _LARGEST_CHANGE)


def _pixels(processor: Any, image: Image.Image) -> NDArray[np.float32]:
    """Run the processor on one picture: (channels, height, width)."""
    values = np.asarray(processor(image, return_tensors="np")["pixel_values"], np.float32)
    if values.ndim != 4 or len(values) != 1:
        raise _unlike(processor, "gives no single picture for an image")
    pixels: NDArray[np.float32] = values[0]
    return pixels


def _probe(width: int, height: int) -> Image.Image:
    """Draw a picture in which a shift by one pixel of the input is seen everywhere."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _config(args: Mapping[str, Any]) -> Any:
    """Make transformers' configuration of plain fields."""
    fields = {key: value for key, value in args.items() if key not in (FLIPPED, "num_classes")}
    if "num_classes" in args:
        fields["num_labels"] = args["num_classes"]
    return _transformers().CONFIG_MAPPING[fields.pop("model_type")].from_dict(fields)


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Read id2label; names that transformers made up (LABEL_0) are none."""
    table = config.get("id2label") or {}
    if len(table) > _LONGEST_NAMES or {str(i) for i in range(len(table))} != {str(key) for key in table}:
        raise ModelError("--model", "id2label does not number its names 0, 1, 2 ...", "mend config.json")
    names = tuple(str(table.get(str(i), table.get(i))) for i in range(len(table)))
    return () if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names


def _named_code(config: Mapping[str, Any]) -> list[Any]:
    named = config.get("auto_map")
    return list(named.values()) if isinstance(named, Mapping) else []


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' warnings and bars off the terminal: what matters of them is told in one line."""
    logging = _transformers().utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _transformers() -> Any:
    """Import transformers, which is an extra."""
    try:
        import transformers
    except ImportError:
        raise ModelError(
            "--model",
            "the folder is of transformers, which is not installed",
            "pip install 'camray[transformers]'",
        ) from None
    return transformers
