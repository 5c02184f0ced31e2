"""A classifier by name: architecture, weights, preprocessing and class names, checked before anything runs.

    ModelConfig ──sources──> Recipe ──build──> bare module
    checkpoint  ──checkpoints──> tensors ──weights──> fitted tensors ──> LoadedModel

Flows out: `LoadedModel`, on the CPU, in eval mode, frozen, with finite weights, its call giving logits.
Weights come from a file or a local folder; nothing is downloaded unless the user asked for it.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from huggingface_hub import constants
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from camray.config import Config, InputSpec, ModelConfig, PreprocessConfig
from camray.errors import ModelError, printable
from camray.image.decode import decode
from camray.models import (
    adapters,
    checkpoints,
    detectors,
    heads,
    hugging_face,
    open_clip,
    preprocessing,
    segmenters,
    sources,
    weights,
    yolo,
)
from camray.models.folding import Pairs
from camray.models.labels import (
    IMAGENET_CLASSES,
    imagenet_names,
    names_of_folders,
    read_class_names,
    repeated,
)
from camray.models.libraries import offline, timm, torchvision
from camray.models.outputs import Reading, as_logits, probe_images, read_output
from camray.models.sources import Recipe, Source

_LEAST_LABELS = 2000  # numbers of a timm network that are fewer, and not ImageNet's, are an embedding's
_ALIKE = 0.9999  # cosine of two embeddings that are one
REFERENCE_PIXELS = 100_000_000  # at most, of an image that others are compared with


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to explain, with everything that decides its answers."""

    name: str
    build_args: dict[str, Any]  # build(build_args) gives the architecture whose call gives logits
    module: nn.Module
    weights_sha256: str
    input: InputSpec
    class_names: tuple[str, ...]
    num_classes: int
    activation: str = "softmax"  # how logits become scores
    notes: tuple[str, ...] = ()  # what was done to load it, for people
    folded: Pairs = ()  # the batch norms that `module` no longer has
    library: Any = None  # the compiled part in front of the layer: `explain.compiling`


def load_model(
    config: ModelConfig,
    preprocess: PreprocessConfig | None = None,
    folders: Iterable[str] = (),
    bands: tuple[int, ...] = (),
    reference: str | None = None,
) -> LoadedModel:
    """Build the model and load its weights. `folders`: the archive's top folders, which may name classes.

    `bands`: of images that are bands, those to look at. `reference`: an image, or a folder of some, that the
    similarity of embeddings is taken to.

    Raises:
        ModelError: unknown name, no weights, a checkpoint that does not fit, NaN weights, no classifier.
    """
    source = sources.find_source(config)
    config, trained = _as_trained(source, config)
    if config.prompts is not None or config.head is not None or reference is not None:
        source, module, notes, activation = _headed(source, config, preprocess, bands, reference)
    else:
        _refuse_embeddings(source)
        source, module, notes = _weighted(source, config)
        _refuse_tower(source, _is_tower(source, module, config))
        activation = config.activation
    module.eval().requires_grad_(False)
    if detectors.layer_of(module):
        if bands:
            raise ModelError("--bands", "a detector takes pictures", "leave it out")
        return _detector(source, module, notes, config, preprocess or PreprocessConfig())
    _refuse_kind(module)
    _refuse_nonfinite(module)
    if segmenters.is_segmenter(module, source.recipe) or config.task == segmenters.TASK:
        return _segmenter(source, module, notes, config, preprocess, bands)
    spec, told = _input_spec(source, module, config, preprocess, bands)
    _refuse_tower(source, not source.recipe.head and _gives_embedding(module, spec))
    task = config.task if reference is None else "regression"
    reading = read_output(module, spec, activation, config.output, task)
    if reference is not None:
        reading = replace(reading, told=())
    as_logits(module, **reading.to_dict())
    names, named = ((), ()) if reading.activation == "value" else _class_names(
        config, source, reading.classes, folders
    )  # fmt: skip
    one_file = None if source.recipe.head else source.weights
    digest = _file_sha256(one_file) if one_file else state_sha256(module.state_dict())
    return LoadedModel(
        name=config.name if source.recipe.kind == "torchvision" else source.recipe.name,
        build_args=_build_args(source.recipe, reading, config),
        module=module,
        weights_sha256=digest,
        input=spec,
        class_names=names,
        num_classes=reading.classes,
        activation=reading.activation,
        notes=(*notes, *trained, *told, *reading.told, *named),
    )


def _as_trained(source: Source, config: ModelConfig) -> tuple[ModelConfig, tuple[str, ...]]:
    """Take from transformers' configuration what its outputs were trained as, where nobody said it."""
    if source.recipe.kind == "ultralytics" and config.output is None and not source.recipe.task:
        return replace(config, output="1"), ()  # it gives the softmax, and the logits before it
    problem = source.recipe.args.get("problem_type") if source.recipe.kind == "transformers" else None
    if problem == "multi_label_classification" and config.activation == "auto":
        return replace(config, activation="sigmoid"), ("several labels an image, as its configuration says",)
    if problem == "regression" and config.task == "classification":
        return replace(config, task="regression"), ("a measured value, as its configuration says",)
    return config, ()


def load_classifier(config: Config) -> LoadedModel:
    """Load a model whose layers may be chosen.

    Raises:
        ModelError: as `load_model`; a detector or segmenter.
    """
    loaded = load_model(config.model, config.preprocess, (), config.archive.bands or ())
    if task := loaded.build_args.get("task"):
        raise ModelError(
            "--model", f"{loaded.name} is a network of {task}, not a classifier", "camray explain"
        )
    return loaded


def _detector(
    source: Source, module: nn.Module, notes: tuple[str, ...], config: ModelConfig, given: PreprocessConfig
) -> LoadedModel:
    """Describe a detector: the canvas that images are laid on, its classes, its processor if it has one."""
    spec = _canvas(given, detectors.canvas_side(module))
    _refuse_nonfinite(module)
    recipe = replace(source.recipe, task=detectors.TASK)
    made = _build_args(recipe, None, config)
    if recipe.kind == "transformers" and source.folder is not None:
        made["processor"] = hugging_face.processor_fields(source.folder)
    count = detectors.count_classes(module)
    return _of_task(source, module, notes, config, made, spec, count)


def _segmenter(
    source: Source, module: nn.Module, notes: tuple[str, ...], config: ModelConfig,
    given: PreprocessConfig | None, bands: tuple[int, ...],
) -> LoadedModel:  # fmt: skip
    """Describe a segmenter: of torchvision on a canvas, else with an input as a classifier has it."""
    told: tuple[str, ...] = ()
    if source.recipe.kind == "torchvision":
        side = segmenters.preset(source.recipe.name).resize_size[0]
        spec, seen = _canvas(given or PreprocessConfig(), segmenters.LONGEST * side), (3, side, side)
    else:
        spec, told = _input_spec(source, module, config, given, bands)
        seen = (len(spec.mean), spec.height, spec.width)
    output, count, read = segmenters.read_pixels(module, seen, config.output)
    recipe = replace(source.recipe, task=segmenters.TASK)
    made = _build_args(recipe, None, config) | {"output": output}
    segmenters.as_sums(module, **output)
    return _of_task(source, module, (*notes, *told, *read), config, made, spec, count)


def _canvas(given: PreprocessConfig, side: int) -> InputSpec:
    """Lay images at their own size on a canvas, where the network prepares them itself."""
    if replace(given, input_size=None) != PreprocessConfig():
        fix = "leave out what says how images are prepared; --input-size is that of the canvas"
        raise ModelError("--model", "it prepares its images itself", fix)
    height, width = (given.input_size[0], given.input_size[-1]) if given.input_size else (side, side)
    return InputSpec(height, width, (height, width), "shrink", "bilinear", (0.0,) * 3, (1.0,) * 3)


def _of_task(
    source: Source, module: nn.Module, notes: tuple[str, ...], config: ModelConfig, made: dict[str, Any],
    spec: InputSpec, count: int,
) -> LoadedModel:  # fmt: skip
    """Name the classes of a detector or segmenter."""
    recipe = source.recipe
    if recipe.kind == "torchvision" and "num_classes" not in recipe.args:
        known = torchvision.models.get_model_weights(recipe.name).DEFAULT.meta["categories"]
        source = replace(source, class_names=tuple(known) if len(known) == count else ())
    names, named = _class_names(config, source, count, ())
    digest = _file_sha256(source.weights) if source.weights else state_sha256(module.state_dict())
    name = config.name if recipe.kind == "torchvision" else recipe.name
    return LoadedModel(name, made, module, digest, spec, names, count, notes=(*notes, *named))


def build(build_args: Mapping[str, Any]) -> nn.Module:
    """Make the bare architecture, without weights, its call giving logits (of a segmenter sums of them)."""
    read = segmenters.as_sums if build_args.get("task") == segmenters.TASK else as_logits
    return read(sources.build(Recipe.from_dict(build_args)), **build_args["output"])


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash tensors by name, type, shape and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().contiguous().cpu()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _build_args(recipe: Recipe, reading: Reading | None, config: ModelConfig) -> dict[str, Any]:
    made = recipe.to_dict() | ({"output": reading.to_dict()} if reading else {})
    for choice in ("partial", "trust_pickle"):
        if getattr(config, choice):
            made[choice] = True
    return made


def _weighted(source: Source, config: ModelConfig) -> tuple[Source, nn.Module, tuple[str, ...]]:
    """Build the model with its weights; the head takes the size it has in the file."""
    if source.weights is None and source.recipe.kind == "timm":
        return source, _pretrained(source, config.download), ()
    if source.folder is not None and config.checkpoint is None:
        library = open_clip if source.recipe.kind == open_clip.KIND else hugging_face
        module, notes = library.load_weights(source.folder, source.recipe.name, source.recipe.args)
        return source, module, () if source.contrast else notes  # the text side has no place in a tower
    if source.recipe.kind == "ultralytics":
        if config.checkpoint is not None or config.num_classes is not None:
            option = "--checkpoint" if config.checkpoint is not None else "--num-classes"
            raise ModelError(option, "a file of ultralytics has its weights and its classes", "leave it out")
        return source, yolo.load(yolo.read(Path(config.name).expanduser()), source.recipe.args), ()
    if source.weights is None and source.recipe.kind == "torchvision":
        source = replace(source, weights=_torchvision_weights(source.recipe, config.download))
        source = replace(source, recipe=detectors.with_trained_norms(source.recipe))
    path = source.weights
    if path is None:
        raise ModelError("--checkpoint", "is missing: own code has no weights", "--checkpoint FILE")
    if config.num_classes is not None and not sources.takes_num_classes(source.recipe):
        raise ModelError(
            "--num-classes", f"{source.recipe.name} takes no num_classes", "--model-arg NAME=VALUE"
        )
    found = checkpoints.read_checkpoint(path, config.trust_pickle, source.code)
    if adapters.is_adapted(found.state):
        merged, told = adapters.merge(found.state, path, lambda: _base_weights(source))
        found = checkpoints.Checkpoint(merged, (*found.notes, told))
    source = replace(source, recipe=segmenters.as_trained(source.recipe, found.state))
    module = sources.build(source.recipe)
    state, renamed = weights.rename(module, found.state)
    _materialise(module, state)
    if source.recipe.kind == "timm" and source.recipe.args.get("num_classes") == 0:
        state, left = weights.without_head(module, state)
        renamed = [*renamed, *left]
    notes = (*found.notes, *renamed)
    resized, sized = _as_in_file(source.recipe, module, state, config)
    if sized:
        candidate = sources.build(resized)
        if not weights.misfits(candidate, state):  # else it is more than head and channels that differs
            source, module = replace(source, recipe=resized), candidate
            notes += tuple(f"{what}, as in {path.name}" for what in sized)
    fitted = weights.fit(module, state, path.name, config.partial)
    module.load_state_dict(fitted.state, strict=False)
    return source, module, (*notes, *fitted.notes)


def _base_weights(source: Source) -> Mapping[str, Tensor]:
    """Read the weights of the folder that the model is of, by the names they have there."""
    file = None if source.folder is None else hugging_face.weights_file(source.folder)
    return {} if file is None else checkpoints.read_checkpoint(file).state


def _as_in_file(
    recipe: Recipe, module: nn.Module, state: Mapping[str, Tensor], config: ModelConfig
) -> tuple[Recipe, list[str]]:
    """Give head and input channels the sizes they have in the file, where the user gave none."""
    told = []
    size = weights.head_size(module, state) if config.num_classes is None else None
    if size is not None and sources.takes_num_classes(recipe):
        recipe = recipe.with_classes(size)
        told.append(f"head of {size} outputs")
    channels, argument = weights.stem_channels(module, state), sources.channels_argument(recipe)
    if channels is not None and argument is not None and argument not in config.args:
        recipe = replace(recipe, args={**recipe.args, argument: channels})
        told.append(f"{channels} input channel{'s' * (channels > 1)}")
    return recipe, told


def _materialise(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the parameters of lazy modules the shapes that the weights have."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(tensor, UninitializedBuffer | UninitializedParameter) and name in state:
            tensor.materialize(state[name].shape)


def _input_spec(
    source: Source,
    module: nn.Module,
    config: ModelConfig,
    given: PreprocessConfig | None,
    bands: tuple[int, ...],
) -> tuple[InputSpec, tuple[str, ...]]:
    recipe, preprocess = source.recipe, given or PreprocessConfig()
    notes: tuple[str, ...] = ()
    if recipe.kind == "timm":
        defaults = preprocessing.timm_defaults(module, source.pretrained_cfg)
    elif source.pretrained_cfg:
        defaults = dict(source.pretrained_cfg)
    elif recipe.kind == "torchvision":
        defaults = preprocessing.torchvision_defaults(recipe.name, config.checkpoint)
        if getattr(module, "transform_input", False) and "transform_input" not in config.args:
            told = "transform_input=True, as torchvision sets it with weights; for a network trained without"
            notes = (f"{told}: --model-arg transform_input=False",)
    else:
        defaults = dict(preprocessing.USUAL)
        if recipe.kind == "transformers":
            defaults |= hugging_face.input_size(recipe.args)
        notes = preprocessing.guessed(preprocess, is_sized=recipe.kind == "transformers")
    any_number = replace(preprocess, mean=(0.5,), std=(0.5,))
    sized = preprocessing.input_spec(defaults, 3, any_number)
    channels = preprocess.channels or preprocessing.input_channels(module, sized.height, sized.width)
    if bands:
        notes += preprocessing.read_as_bands(channels, bands)
    if recipe.kind == "transformers" and channels not in (1, 3):
        notes += ("size, mean and std are taken at their word: a processor reads pictures alone",)
    return preprocessing.input_spec(defaults, channels, preprocess, bands), notes


def _headed(
    source: Source,
    config: ModelConfig,
    preprocess: PreprocessConfig | None,
    bands: tuple[int, ...],
    reference: str | None,
) -> tuple[Source, nn.Module, tuple[str, ...], str]:
    """Put a head of prompts, of a file or of reference images on a network that gives embeddings."""
    asked = {"--prompts": config.prompts, "--head": config.head, "--target": reference}
    options = [name for name, value in asked.items() if value is not None]
    if len(options) > 1:
        raise ModelError(options[0], f"given together with {options[1]}", "give one of the two")
    (option,) = options
    if not asked[option]:
        raise ModelError(option, "names nothing", "similarity:IMAGE" if reference == "" else f"{option} FILE")
    if source.gives_classes and source.recipe.kind in ("transformers", "torchvision"):
        raise ModelError(option, f"{source.recipe.name} has a head of its own", "give a model of embeddings")
    if config.num_classes is not None:
        raise ModelError("--num-classes", f"given together with {option}, which tells it", "leave it out")
    if source.recipe.kind == "timm":
        source = replace(source, recipe=source.recipe.with_classes(0))
    head = None
    if config.prompts is not None:
        head = heads.from_prompts(config.prompts, source.folder, source.contrast)
    elif config.head is not None and not Path(config.head).expanduser().is_dir():
        head = heads.from_file(config.head, source.contrast, source.folder)
    source, tower, notes = _weighted(source, config)
    tower.eval()  # before it runs: batch norms would take what they see into their statistics
    spec, _ = _input_spec(source, tower, config, preprocess, bands)
    with torch.no_grad():
        output = tower(torch.zeros(1, len(spec.mean), spec.height, spec.width))
    facts = {**source.recipe.args, "has_class_token": hugging_face.has_class_token(tower)}
    if head is None:
        name = heads.embeddings_of(output, source.contrast, facts)[0]
        path = Path(config.head or reference or "").expanduser()
        embed = partial(_embedding, tower, spec, name)
        head = heads.from_images(path, option, embed, classes=reference is None)
    placed = heads.place(head, output, source.contrast, facts)
    recipe = replace(source.recipe, head=placed)
    module = heads.Headed(tower, **placed)
    own = {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
    module.head.load_state_dict(own)
    activation = head.activation if config.activation == "auto" else config.activation
    source = replace(source, recipe=recipe, class_names=head.names)
    return source, module, (*notes, *head.notes), activation


@torch.no_grad()
def _embedding(tower: nn.Module, spec: InputSpec, name: heads.Embedding, content: bytes) -> Tensor:
    """Embed one encoded image: (D,)."""
    decoded = decode(content, spec, REFERENCE_PIXELS)
    seen = decoded.pixels if decoded.bands is None else decoded.bands
    x = preprocessing.to_input(torch.from_numpy(seen)[None], torch.tensor(spec.mean), torch.tensor(spec.std))
    return heads.read_embedding(tower(x), name)[0]


def _refuse_embeddings(source: Source) -> None:
    """Refuse a network that gives embeddings, which are no classes."""
    if source.gives_classes:
        return
    name = source.contrast.whole if source.contrast else source.recipe.name
    fix = "--prompts classes.txt, --head FILE" if source.contrast else "--head FILE"
    raise ModelError(
        "--model", f"{name} gives embeddings, not classes", f"{fix}, or --target similarity:IMAGE"
    )


def _refuse_kind(module: nn.Module) -> None:
    """Refuse what takes something else than one picture."""
    if isinstance(module, torch.jit.ScriptModule):
        fix = "give the Python model it was made from"
        raise ModelError("--model", "it is TorchScript, whose inner layers cannot be reached", fix)
    kinds = {type(m) for m in module.modules()}
    if nn.Conv3d in kinds and nn.Conv2d not in kinds:
        fix = "a network of single slices or frames"
        raise ModelError("--model", "it takes volumes or clips (3-D convolutions), not pictures", fix)
    given = inspect.signature(module.forward).parameters.values()
    needed = [
        p.name for p in given if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if len(needed) > 1:
        said = f"its forward takes {len(needed)} inputs ({', '.join(needed)}), and there is one image"
        raise ModelError(
            "--model", printable(said), "a class whose forward takes the image and fixes the others"
        )


def _refuse_tower(source: Source, is_tower: bool) -> None:
    """Refuse a network of images and texts, which has learnt to compare embeddings."""
    if not is_tower:
        return
    said = f"{source.recipe.name} is a tower of images and texts: it gives embeddings, not classes"
    fix = "a folder of open_clip with --prompts classes.txt, --head FILE, or --target similarity:IMAGE"
    fix += "; --num-classes N where they are classes" if source.recipe.kind == "timm" else ""
    raise ModelError("--model", said, fix)


def _is_tower(source: Source, module: nn.Module, config: ModelConfig) -> bool:
    """Tell a tower by the temperature beside it, or, of timm, by a width that its labels do not have."""
    is_named = bool(source.class_names or config.class_names or config.num_classes)
    if source.recipe.kind != "timm" or is_named:
        return hasattr(module, "logit_scale") and hasattr(module, "visual")
    given: int = getattr(module, "num_classes", 0)
    tags = timm.list_pretrained(f"{source.recipe.name.partition('.')[0]}.*")
    return 0 < given < _LEAST_LABELS and given != IMAGENET_CLASSES and any(
        cfg is not None and cfg.num_classes == given for cfg in map(timm.get_pretrained_cfg, tags)
    )  # fmt: skip


def _gives_embedding(module: nn.Module, spec: InputSpec) -> bool:
    """Tell whether the output is what a part beside a temperature gives, but for its length."""
    parts: list[Any] = []
    pairs = [m for m in module.modules() if hasattr(m, "logit_scale") and m is not module]
    handles = [
        part.register_forward_hook(lambda _module, _args, given: parts.append(given))
        for pair in pairs for part in pair.children()
    ]  # fmt: skip
    image = probe_images(len(spec.mean), spec.height, spec.width)[1:2]
    with torch.no_grad():
        output = module(image) if handles else None
    for handle in handles:
        handle.remove()
    if not isinstance(output, Tensor):
        return False
    alike = [p for p in parts if isinstance(p, Tensor) and p.shape == output.shape]
    return any(float(F.cosine_similarity(p, output).min()) > _ALIKE for p in alike)


def _pretrained(source: Source, download: bool) -> nn.Module:
    """Load timm's pretrained weights from the local cache, or from the hub when asked to."""
    name, args = source.recipe.name, source.recipe.args
    _refuse_unknown_tag(name)
    try:
        _refuse_other_head(name, args)
        if not download:
            _refuse_uncached(name)
        with sources.online_if_answered() if download else offline():
            module: nn.Module = timm.create_model(name, pretrained=True, **args)
    except (RuntimeError, OSError, ValueError) as error:
        raise _no_weights(name, error, download) from None
    return module


def _no_weights(name: str, error: Exception, download: bool) -> ModelError:
    fix = "--checkpoint FILE, or --download to fetch them" if not download else "--checkpoint FILE"
    reason = printable(str(error), 120) if download else "are not on this machine"
    return ModelError("--model", f"pretrained weights of {name} {reason}", fix)


def _torchvision_weights(recipe: Recipe, download: bool) -> Path:
    """Find torchvision's own weights in torch's cache, or fetch them when asked to."""
    if "num_classes" in recipe.args:
        raise ModelError("--num-classes", "pretrained weights have 1000 classes", "--checkpoint FILE")
    url = torchvision.models.get_model_weights(recipe.name).DEFAULT.url
    cached = _in_torch_cache(url)
    try:
        if not cached.is_file():
            if not download:
                raise FileNotFoundError(cached)
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(cached), progress=False)
    except OSError as error:
        raise _no_weights(f"torchvision:{recipe.name}", error, download) from None
    return cached


def _refuse_unknown_tag(name: str) -> None:
    architecture, dot, tag = name.partition(".")
    known = [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")] if dot else []
    if dot and tag not in known:
        fix = f"one of {', '.join(known[:5])}" if known else f"{architecture} --checkpoint FILE"
        raise ModelError("--model", printable(f"{architecture} has no pretrained weights {tag!r}"), fix)


def _refuse_other_head(name: str, args: Mapping[str, Any]) -> None:
    """Refuse a head of another size than the pretrained one: timm would fill it with random numbers."""
    asked = args.get("num_classes")
    cfg = timm.get_pretrained_cfg(name)
    if asked and cfg is not None and asked != cfg.num_classes:
        raise ModelError(
            "--num-classes",
            f"{asked}, but the pretrained {name} has {cfg.num_classes} classes",
            "--checkpoint FILE with weights for such a head, or leave it out",
        )


def _refuse_uncached(name: str) -> None:
    """Look for weights that lie outside the hub in torch's cache, which has no switch."""
    cfg = timm.get_pretrained_cfg(name)
    url = None if cfg is None or cfg.hf_hub_id else cfg.url
    if isinstance(url, str) and not _in_torch_cache(url).is_file():
        raise FileNotFoundError(url)


def _in_torch_cache(url: str) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)


def cached_weights(config: ModelConfig) -> list[Path]:
    """Tell where pretrained weights lie that come by the model's name, there or not; none of other models."""
    name = config.name.removeprefix("torchvision:")
    if config.checkpoint or not (timm.is_model(name.partition(".")[0]) or name != config.name):
        return []
    if name != config.name:
        known = name in torchvision.models.list_models(module=torchvision.models)
        return [_in_torch_cache(torchvision.models.get_model_weights(name).DEFAULT.url)] if known else []
    if "." in name and name not in timm.list_models(pretrained=True):
        return []  # loading it says so
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and cfg.hf_hub_id:
        return [Path(constants.HF_HUB_CACHE, f"models--{cfg.hf_hub_id.replace('/', '--')}")]
    return [_in_torch_cache(cfg.url)] if cfg is not None and isinstance(cfg.url, str) else []


def _refuse_nonfinite(module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ModelError("--checkpoint", f"{name} holds NaN or infinity", "give an undamaged file")


def _class_names(
    config: ModelConfig, source: Source, num_classes: int, folders: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find the names of the classes, and say where they were found if nobody gave them."""
    if config.class_names is not None:
        names = read_class_names(config.class_names, num_classes)
        shared = sorted(repeated(names))
        listed = ", ".join(shared[:5]) + (" ..." if len(shared) > 5 else "")
        return names, (printable(f"names of several classes, which as labels mean none: {listed}"),) * bool(
            shared
        )
    if source.class_names:
        if len(source.class_names) != num_classes:
            said = f"{len(source.class_names)} names for {num_classes} classes"
            raise ModelError("--class-names", said, "give a file with one name for each class")
        return source.class_names, ()
    if num_classes == IMAGENET_CLASSES and config.num_classes is None:
        return imagenet_names(), ()
    names = names_of_folders(folders, num_classes)
    said = f"class names from the {num_classes} top folders, sorted: {', '.join(names[:5])}"
    more = " ..." if len(names) > 5 else ""
    return names, (printable(said + more),) * bool(names)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
