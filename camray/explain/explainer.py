"""The actor's core: decoded images in, records out. A plain class that needs no Ray.

Flows in: a `DECODED` struct array. Flows out: an `EXPLAINED` one of the same length and order: predictions,
raw layer-resolution heatmaps, signals. An image that fails becomes a failed item; its neighbours go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from camray import cam
from camray.cam.compiled import load_compiled
from camray.cam.layers import UNREAD
from camray.cam.registry import Method
from camray.cam.split import call, model_precision, run_split
from camray.cam.targets import ranked
from camray.config import Config, Explainer, InputSpec, MethodConfig
from camray.errors import ErrorCode, ModelError, Stage, printable
from camray.explain import confirm
from camray.explain.columns import (
    DECIDED,
    PASSED,
    Columns,
    Row,
    as_rows,
    heat_columns,
    laid_out,
    taken,
)
from camray.explain.regions import REGIONS, boxes_of_heat, region_signals
from camray.explain.signals import top2_cosine
from camray.models.folding import Pairs, find_last_block, find_pairs, fold, largest_change, reshape
from camray.models.labels import classes_named, label_lookup, target_by_index
from camray.models.load import LoadedModel, build, load_model
from camray.models.outputs import class_scores, probe_images, score_entropy
from camray.models.preprocessing import to_input
from camray.records import EDGES, EXPLAINED, SCHEMA_VERSION, Status, bytes_at, failure, struct_array

Views = Sequence[NDArray[Any]]
FOLDING_CHANGE = 1e-5  # of the greatest value: what folded batch norms may move by rounding
STEADY = 1e-3  # of the greatest logit: what batches of another size may move by rounding
SIMILARITY = "similarity"  # target: the cosine of an image's embedding and a reference's
PASS = 8  # images that the network always gets on a CPU: of other numbers the same image has other bits
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # what a network is cast to
LARGEST_MAP = 32  # cells a side that a record keeps
DOUBTFUL_DROP = 0.1  # confidence lost without the hot border: from here on a person should see the picture
LOW_MARGIN = 0.1  # below this difference of the two best softmax values a prediction is flagged


def resolve(
    config: Config, folders: Iterable[str] = (), methods: Sequence[str] = ()
) -> tuple[Explainer, LoadedModel]:
    """Load the model, choose and probe the target layer, and name the result: the explainer.

    `folders`: the archive's top folders, which may name the classes; `methods`: others to be tried, too.

    Raises:
        UsageError: a model, checkpoint, layer, class or method that cannot work.
    """
    kind, _, path = config.method.target.partition(":")
    reference = path if kind == SIMILARITY else None
    loaded = load_model(config.model, config.preprocess, folders, config.archive.bands or (), reference)
    if task := loaded.build_args.get("task"):
        if config.model.precision != "fp32":
            raise ModelError("--precision", f"{config.model.precision}, but networks of {task} run in fp32",
                             "leave it out")  # fmt: skip
        from camray.explain.detections import resolve_detector
        from camray.explain.segments import resolve_segmenter

        if methods:
            raise ModelError("--model", f"methods of {task} are not compared", "camray explain")
        return (resolve_detector if task == "detection" else resolve_segmenter)(config, loaded)
    target = target_by_index(config.method.target, loaded.class_names)
    if reference is not None:  # its embedding is part of the weights, which name the explainer
        target = f"{SIMILARITY}:{Path(reference).name}"
    rule = _rule(target, loaded.activation)
    named = rule.classes if loaded.activation != "value" else ()
    for class_id in (*named, *((rule.against,) if rule.score == "vs" else ())):
        if class_id >= loaded.num_classes:
            what = f"class {class_id} of a model with {loaded.num_classes} classes"
            raise ModelError("--target", what, f"give 0..{loaded.num_classes - 1}")
    spec = loaded.input
    layer = cam.find_target_layer(
        loaded.module, (len(spec.mean), spec.height, spec.width), config.method.layer,
        config.method.pair, config.method.prefix,
    )  # fmt: skip
    _refuse_useless(config.method, layer)
    method = cam.parse_method(config.method.name)
    # one grey image, so that a method that cannot work here is refused before anything runs
    grey = torch.zeros(1, len(spec.mean), spec.height, spec.width)
    cam.explain(
        loaded.module, grey, layer, [method, *methods], rule, torch.zeros(1, dtype=torch.int64),
        PRECISIONS[config.model.precision],
    )  # fmt: skip
    doubts = steadiness(loaded, config.run.batch_size == 1)
    if UNREAD in layer.reason:
        doubts = (*doubts, f"WARNING: looks at {layer.name}: {layer.reason}; --layer NAME looks elsewhere")
    explainer = Explainer(
        model=loaded.name,
        model_args=loaded.build_args,
        weights_sha256=loaded.weights_sha256,
        class_names=loaded.class_names,
        num_classes=loaded.num_classes,
        input=spec,
        method=method.spelled,
        target=target,
        target_layer=layer.name,
        layout=layer.to_dict(),
        top_k=min(config.run.top_k, loaded.num_classes),
        max_pixels=config.archive.max_pixels,
        schema_version=SCHEMA_VERSION,
        activation=loaded.activation,
        confirm=config.audit.confirm,
        heat_boxes=config.method.heat_boxes,
        precision=config.model.precision,
    )
    loaded = replace(loaded, notes=(*loaded.notes, *doubts))
    whole_network = method.entry.biases or method.name == "captum"  # these look at every batch norm
    return explainer, loaded if methods or whole_network else _folded(loaded, layer, method)


def _refuse_useless(asked: MethodConfig, layer: cam.TargetLayer) -> None:
    """Refuse what only detectors and segmenters have, and of a grid of pixels what only tokens have."""
    useless = ["min_score", "max_detections", "min_share"]
    useless += ["grid", "prefix"] * (layer.layout != "tokens")
    for name in useless:
        if getattr(asked, name) != getattr(MethodConfig(), name):
            what = "tokens" if name in ("grid", "prefix") else "detections or segments"
            said = f"{layer.name} of this model has no {what}"
            raise ModelError(f"--{name.replace('_', '-')}", said, "leave it out")


def steadiness(loaded: LoadedModel, alone: bool) -> tuple[str, ...]:
    """Run an image twice, and beside others: its answer must depend on itself only.

    Raises:
        ModelError: it does not, and the images are not explained `alone`.
    """
    unsteady, moved = _mixing(loaded.module, loaded.input)
    mixed = moved > STEADY
    if unsteady:
        raise ModelError(
            "--model", "it answers the same image differently each time", "turn off what it draws at random: "
            "dropout that ignores eval(), noise",
        )  # fmt: skip
    if mixed and not alone:
        norms = [
            n for n, m in loaded.module.named_modules() if getattr(m, "track_running_stats", True) is False
        ]
        raise ModelError(
            "--model", f"its answer for an image depends on the others of the batch (by {moved:.0%})"
            + (f": {norms[0]} has no running statistics" if norms else ""), "--batch-size 1",
        )  # fmt: skip
    return ("answers depend on the other images of a batch: every image is explained alone",) * mixed


def _mixing(module: nn.Module, spec: InputSpec) -> tuple[bool, float]:
    """Tell whether an image is answered differently each time, and how far others beside it move that."""
    images = probe_images(len(spec.mean), spec.height, spec.width)
    with torch.no_grad():
        first, again, beside = (module(x)[-1] for x in (images[-1:], images[-1:], images))
    return largest_change([first], [again]) > STEADY, largest_change([first], [beside])


def _rule(target: str, activation: str) -> cam.TargetRule:
    """Read a target as these scores mean it: a share is compared as it is, a value has no classes."""
    rule = cam.TargetRule() if target.startswith(f"{SIMILARITY}:") else cam.TargetRule.parse(target)
    if activation == "value":
        if rule.select != "predicted" or rule.score != "logit":
            raise ModelError("--target", f"{target}, but a regression has no classes", "leave it out")
        return replace(rule, select="class", classes=(1,))  # of a single number, its positive side
    if activation == "none" and rule.select == "above":
        return replace(rule, threshold=1 / (1 + math.exp(-rule.threshold)))  # the engine asks sigmoid(z)
    return rule


def _folded(loaded: LoadedModel, layer: cam.TargetLayer, method: Method) -> LoadedModel:
    """Leave out what layer and scores do not need, if a probe shows the same layer, gradient and scores."""
    spec = loaded.input
    size = (2, len(spec.mean), spec.height, spec.width)
    images = torch.randn(size, generator=torch.Generator().manual_seed(0))
    pairs = find_pairs(loaded.module, images, layer.name)
    if method.entry.needs in ("activation", "gradient"):
        pairs += find_last_block(loaded.module, layer.name)
    if not pairs:
        return loaded
    module = fold(loaded.module, pairs)
    if why := moved_by(loaded.module, module, images, layer, loaded.activation):
        return replace(loaded, notes=(*loaded.notes, f"batch norms not folded: {why}"))
    return replace(loaded, module=module, folded=pairs)


def moved_by(
    plain: nn.Module, other: nn.Module, images: Tensor, layer: cam.TargetLayer, activation: str
) -> str:
    """Say how far another form of a network moves maps or scores; empty where it is by rounding only."""
    own, moved = (_at_layer(m, images, layer) for m in (plain, other))
    change = largest_change(own, moved)
    scores = [class_scores(tensors[0].double(), activation) for tensors in (own, moved)]
    if change > FOLDING_CHANGE or float((scores[0] - scores[1]).abs().max()) > FOLDING_CHANGE / 10:
        return f"rounding would move the map by {change:.0e} of its height"
    return ""


def layer_of(explainer: Explainer) -> cam.TargetLayer:
    """Give the layer that an explainer looks at."""
    grid = explainer.layout["grid"]
    return cam.TargetLayer(
        explainer.target_layer, **{**explainer.layout, "grid": tuple(grid) if grid else None}
    )


def _at_layer(module: nn.Module, images: Tensor, layer: cam.TargetLayer) -> tuple[Tensor, Tensor, Tensor]:
    """Give all that a map is made of: logits, activations and the gradient of the best score."""
    split = run_split(module, images, [layer])
    (gradient,) = split.gradients(split.logits.amax(1), keep=False).values()
    return split.logits.detach(), split.activation(layer.name), gradient


_NEEDED = [*DECIDED, "label", "boxes", "mask", "width", "height", *(f"crop_{edge}" for edge in EDGES)]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the network says of one image: logits (outputs,), maps (K, h, w), the class of each, -1: none."""

    logits: NDArray[np.float32]
    maps: NDArray[np.float32]
    classes: NDArray[np.int64]


class BatchExplainer:
    """Holds one model and one method on one device. Weights are views of `state` where that is safe.

    On a CPU every pass has `fixed` images, the last filled up with copies, so that a record has the same bits
    whatever `batch_size` is; 0: as many as `batch_size` says.
    """

    fixed = 0

    def __init__(
        self,
        explainer: Explainer,
        state: dict[str, Tensor],
        device: str = "cpu",
        batch_size: int = 16,
        folded: Pairs = (),
    ) -> None:
        self.explainer, self.batch_size, self.folded = explainer, batch_size, folded
        self.device, self.dtype = torch.device(device), PRECISIONS[explainer.precision]
        self._rule = _rule(explainer.target, explainer.activation)
        module = reshape(build(explainer.model_args), folded)
        module.load_state_dict(own_copies(module, state, explainer.model_args["kind"]), assign=True)
        self.module: nn.Module = module.eval().requires_grad_(False).to(self.device)
        self.layer = layer_of(explainer)
        self._lookup = label_lookup(explainer.class_names)
        self.mean = torch.tensor(explainer.input.mean, device=self.device)
        self.std = torch.tensor(explainer.input.std, device=self.device)
        if self.device.type == "cpu" and not (
            batch_size == 1 and _mixing(module, explainer.input)[1] > STEADY
        ):
            self.fixed = PASS

    @cached_property
    def _method(self) -> Method:
        """The method; a panel, which borrows this class for its model, has several and asks for none."""
        return cam.parse_method(self.explainer.method)

    def __call__(self, images: pa.StructArray) -> pa.StructArray:
        """Explain every decoded item, in batches: one item per image and target, without pixels.

        Failed and skipped items pass through, once each.
        """
        items, found = self.in_batches(images, _NEEDED)
        for i, one in list(found.items()):
            if isinstance(one, list) and "status" in one[0]:  # it failed here
                items[i] |= found.pop(i)[0]
        owners, columns = self._finish(items, found, images.field(self.source)) if found else ([], {})
        return laid_out(images, items, owners, columns)

    def in_batches(
        self, images: pa.StructArray, names: Sequence[str] = PASSED
    ) -> tuple[list[Row], dict[int, Any]]:
        """Explain every decoded item: give the items, with the columns named, and what came of each."""
        rows = as_rows({name: images.field(name).to_pylist() for name in names})
        for row in rows:
            row["label_class"] = self.label_class(row)
        pixels = images.field(self.source)
        ready = [i for i, row in enumerate(rows) if row["status"] == Status.OK and self.accept(row)]
        size = self.fixed or self.batch_size
        batches = [ready[start : start + size] for start in range(0, len(ready), size)]

        def explain(batch: Sequence[int]) -> list[Any]:
            return self._explain_or_split(
                [rows[i] for i in batch], [self.view(bytes_at(pixels, i)) for i in batch]
            )

        with one_thread_each(self._shares_model()) as run:
            found = run(explain, batches)
            return rows, dict(zip(chain(*batches), chain(*found), strict=True))

    def _shares_model(self) -> bool:
        """Tell whether threads may run this model at once: not one of own code, which may write to itself."""
        return bool(
            self.fixed
            and self.explainer.model_args["kind"] != "own"
            and self._method.entry.needs == "gradient"
        )

    def _filled(self, x: Tensor) -> Tensor:
        """Fill inputs (B, C, H, W) up to a whole pass."""
        return x[torch.arange(max(self.fixed, len(x))) % len(x)] if len(x) < self.fixed else x

    def take_compiled(self, library: Path) -> None:
        """Run the part in front of the layer from a library that was compiled for passes of this size."""
        spec = self.explainer.input
        images = torch.zeros(PASS, len(spec.mean), spec.height, spec.width)
        self.module = load_compiled(library, self.module, images, self.layer)

    @property
    def source(self) -> str:
        """The column of decoded items that the model sees."""
        return "bands" if self.explainer.input.bands else "pixels"

    def view(self, pixels: memoryview) -> NDArray[Any]:
        """Read an item's pixels: uint8 (H, W, 3), or float32 (H, W, C) of its bands."""
        spec = self.explainer.input
        kind, channels = (np.float32, len(spec.mean)) if spec.bands else (np.uint8, 3)
        return np.frombuffer(pixels, kind).reshape(spec.height, spec.width, channels)

    def model_input(self, views: Views) -> Tensor:
        """Normalise views, B of (H, W, 3 or C), to what the model takes: (B, C, H, W), on its device."""
        if self.device.type != "cpu" or views[0].dtype != np.uint8 or len(self.mean) != 3:
            return to_input(torch.from_numpy(np.stack(views)).to(self.device), self.mean, self.std)
        x = np.empty((len(views), *views[0].shape), np.float32)
        for view, place in zip(views, x, strict=True):
            cv2.LUT(view, self._table, dst=place)
        return torch.from_numpy(x).permute(0, 3, 1, 2)

    def logits(self, x: Tensor) -> Tensor:
        """Run the network alone on inputs (B, C, H, W): logits (B, outputs), float64."""
        with torch.no_grad(), model_precision(self.device.type, self.dtype):
            return call(self.module, self._filled(x))[: len(x)].double()

    @cached_property
    def _table(self) -> np.ndarray[Any, Any]:
        """What each value of each colour becomes, (1, 256, 3): looking it up takes two thirds of the time."""
        values = torch.arange(256, dtype=torch.uint8)[None, :, None, None].expand(1, 256, 1, 3)
        return to_input(values, self.mean, self.std)[..., 0].mT.contiguous().numpy()

    def _explain_or_split(self, rows: Sequence[Row], views: Views) -> list[Any]:
        """Explain a batch; where the model fails on it, image by image, so that one cannot harm others."""
        try:
            return self._explain(rows, views)
        except torch.AcceleratorError:
            raise  # the device is lost for this process: every later image would fail too
        except RuntimeError as error:
            if len(rows) == 1:
                return [[failure(Stage.EXPLAIN, ErrorCode.MODEL_FAILED, printable(str(error)))]]
        return [self._explain_or_split(rows[i : i + 1], views[i : i + 1])[0] for i in range(len(rows))]

    def _explain(self, rows: Sequence[Row], views: Views) -> list[Any]:
        """Give what the network says of a batch of views: `Seen` of each image, or one row of failure."""
        x = self._filled(self.model_input(views))
        spec, aims_at_label = self.explainer.input, self._rule.select == "label"
        known = [rows[i % len(rows)]["label_class"] for i in range(len(x))]
        labels = torch.tensor(known) if aims_at_label else None
        explained = cam.explain(self.module, x, self.layer, self._method, self._rule, labels, self.dtype)
        maps = _stored_size(explained.maps[self._method.text, self.layer.name], (spec.height, spec.width))
        parts = (explained.logits, maps, explained.classes[:, : maps.shape[1]])
        seen = map(Seen, *(part[: len(rows)].cpu().numpy() for part in parts))
        reason = "the model's logits are not finite"
        failed = [failure(Stage.EXPLAIN, ErrorCode.NONFINITE_OUTPUT, reason)]
        return [one if np.isfinite(one.logits).all() else failed for one in seen]

    def _finish(
        self, items: Sequence[Row], found: Mapping[int, Any], pixels: pa.Array
    ) -> tuple[list[int], Columns]:
        """Make the new columns of all that was seen of a chunk: a row a target, and the item it is of."""
        seen: list[Seen] = list(found.values())
        told = [items[i] for i in found]
        kept = [one.classes >= 0 for one in seen]
        counts = np.array([int(one.sum()) for one in kept])
        maps = np.concatenate([one.maps[k] for one, k in zip(seen, kept, strict=True)])  # (M, h, w)
        classes = np.concatenate([one.classes[k] for one, k in zip(seen, kept, strict=True)])
        of = np.repeat(np.arange(len(seen)), counts).tolist()  # the image of each map
        of_image = self._image_columns(np.stack([one.logits for one in seen]), told)
        if self._rule.select == "top":
            of_image["heat_top2_cosine"] = top2_cosine(torch.from_numpy(np.stack([one.maps for one in seen])))
        of_map = self._map_columns(maps, classes, [told[j] for j in of])
        if self.explainer.confirm and self.explainer.activation != "value":
            asked = of_map | {name: [of_image[name][j] for j in of] for name in confirm.OF_IMAGE}
            of_map |= self._look_again(asked, [list(found)[j] for j in of], pixels)
        # a row for each map, and one for an image without any, as no class reached the threshold
        ends = np.cumsum(counts).tolist()
        places = [p for n, end in zip(counts, ends, strict=True) for p in (range(end - n, end) or (None,))]
        images = np.repeat(np.arange(len(seen)), np.maximum(counts, 1)).tolist()
        columns = taken(of_image, images) | taken(of_map, places)
        columns["heat_status"] = columns["heat_status"].fill_null("no_target")
        columns |= {name: [v] * len(places) for name, v in _method_columns(self.explainer).items()}
        return [list(found)[j] for j in images], columns

    def _image_columns(self, logits: NDArray[np.float32], items: Sequence[Row]) -> Columns:
        """Give the columns of an image that its logits (B, outputs) tell, and its label beside them."""
        z, told = torch.from_numpy(logits).double(), self.explainer
        p = class_scores(z, told.activation)
        columns = _predictions(z, p, told)
        labels = [item["label_class"] for item in items]  # None: the archive names no class
        if told.activation != "value":
            predicted = columns["predicted_class"]
            columns["correct"] = [
                None if k is None else k == c for k, c in zip(labels, predicted, strict=True)
            ]
            columns["label_score"] = [None if k is None else float(p[i, k]) for i, k in enumerate(labels)]
        return columns

    def _map_columns(
        self, maps: NDArray[np.float32], classes: NDArray[np.int64], rows: Sequence[Row]
    ) -> Columns:
        """Give the columns of maps (M, h, w), of their classes (M,), beside the items that they are of."""
        spec, share = self.explainer.input, self.explainer.heat_boxes
        size = (spec.height, spec.width)
        columns = heat_columns(torch.from_numpy(maps))
        regions = region_signals(torch.from_numpy(maps), rows, size)
        columns |= {name: [region[name] for region in regions] for name in REGIONS}
        boxes: list[Any] = [None] * len(maps)
        alive = [i for i, status in enumerate(columns["heat_status"])
                 if status == "ok" and rows[i]["crop_x0"] is not None]  # fmt: skip
        for i, found in zip(
            alive, boxes_of_heat(maps[alive], [rows[i] for i in alive], size, share), strict=True
        ):
            boxes[i] = found
        columns["heat_boxes"] = boxes
        if self.explainer.activation != "value":
            columns |= {"target_class": classes, "target_label": _names(self.explainer, classes)}
        return columns

    def _look_again(self, columns: Columns, images: Sequence[int], pixels: pa.Array) -> Columns:
        """Confirm the maps whose heat lies suspiciously far out, within the budget: `images` are theirs."""

        def scores(images: Sequence[int], change: Callable[[Tensor], Tensor]) -> Tensor:
            x = self.model_input([self.view(bytes_at(pixels, i)) for i in images])
            return class_scores(self.logits(change(x)), self.explainer.activation).cpu()

        rows = as_rows({name: columns[name] for name in confirm.ASKED})
        explained = [(i, row) for i, row in zip(images, rows, strict=True) if row["heatmap"] is not None]
        budget = math.ceil(self.explainer.confirm * len(pixels))
        with one_thread_each(self._shares_model()) as run:
            confirm.look_again(explained, budget, self.fixed or self.batch_size, scores, run)
        return {name: [row.get(name) for row in rows] for name in confirm.ANSWERED}

    def _class_columns(self, class_id: int) -> Row:
        if self.explainer.activation == "value":
            return {}
        return {"target_class": class_id, "target_label": self.explainer.label_of(class_id)}

    def label_class(self, row: Row) -> int | None:
        """Resolve the archive's label to a class index of this model, or None."""
        if self.explainer.activation == "value":
            return None
        known, label = row["label_class"], row["label"]
        if known is None and label is not None:
            known = self._lookup.get(label, int(label) if label.isdecimal() and not self._lookup else None)
        return known if known is not None and 0 <= known < self.explainer.num_classes else None

    def accept(self, row: Row) -> bool:
        """Tell whether an item has a class to explain; where it has none it becomes a failed one."""
        if self._rule.select == "label" and row["label_class"] is None:
            reason = printable(_why_no_class(row["label"], self.explainer.class_names))
            row |= failure(Stage.EXPLAIN, ErrorCode.BAD_TARGET, reason)
            return False
        return True


@contextmanager
def one_thread_each(shared: bool) -> Iterator[Callable[..., Iterable[Any]]]:
    """Give a `map` that runs batches side by side, each in one thread of torch, where they share a model.

    Threads that share a batch divide its sums, and each number of threads does it at other places.
    """
    threads = torch.get_num_threads()
    if not shared or threads == 1:
        yield map
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


def own_copies(module: nn.Module, state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Copy what a model may write: its buffers, and everything where the code is the user's own.

    `state` may lie in read-only memory, where a write ends the process.
    """
    shared = set() if kind == "own" else {name for name, _ in module.named_parameters()}
    return {name: tensor if name in shared else tensor.clone() for name, tensor in state.items()}


def _why_no_class(label: str | None, class_names: tuple[str, ...]) -> str:
    if not label:
        return "no label"
    several = classes_named(label, class_names)
    if len(several) > 1:
        return f"label {label!r} is the name of classes {', '.join(map(str, several))}"
    return f"label {label!r} is no class of the model"


def is_flagged(row: Row) -> bool:
    """Tell whether a person should look: wrong, hesitant, hanging on the border, or without a usable map."""
    drop = row.get("confirm_drop")
    doubtful = row.get("confirm_region") is not None and (drop is None or drop > DOUBTFUL_DROP)
    low = row["margin"] is not None and row["margin"] < LOW_MARGIN
    return row["correct"] is False or row["heat_status"] not in ("ok", None) or low or doubtful


def _stored_size(maps: Tensor, input_size: tuple[int, int]) -> Tensor:
    """Average maps born at input resolution down to at most 32 x 32; keep those of a layer: (B, K, h, w)."""
    h, w = maps.shape[2:]
    if (h, w) != input_size or max(h, w) <= LARGEST_MAP:
        return maps
    return adaptive_avg_pool2d(maps, (min(h, LARGEST_MAP), min(w, LARGEST_MAP)))


def _method_columns(explainer: Explainer) -> Row:
    target = explainer.target
    kind = "class" if target.isdecimal() else target.partition(":")[0]
    precision = None if explainer.precision == "fp32" else explainer.precision
    return {
        "method": explainer.method, "precision": precision, "target_layer": explainer.target_layer,
        "target_kind": kind,
    }  # fmt: skip


def _predictions(logits: Tensor, p: Tensor, explainer: Explainer) -> Columns:
    """Give predictions of logits (B, outputs) and scores `p`: top k, margin, entropy; or the value."""
    if explainer.activation == "value":
        return {"predicted_value": logits[:, 0].tolist()}
    count = max(2, explainer.top_k)
    best = ranked(logits, count)
    scores = p.gather(1, best)
    shown = best[:, : explainer.top_k]
    ids, values = shown.flatten().numpy(), scores[:, : explainer.top_k].flatten().numpy()
    parts = [ids, _names(explainer, ids), values]
    kind = EXPLAINED.field("topk").type.value_type
    topk = struct_array(dict(zip((f.name for f in kind), parts, strict=True)), kind)
    ends = pa.array(np.arange(len(best) + 1, dtype=np.int32) * shown.shape[1])
    return {
        "predicted_class": best[:, 0].tolist(),
        "predicted_label": _names(explainer, best[:, 0].numpy()),
        "confidence": scores[:, 0].tolist(),
        "margin": (scores[:, 0] - scores[:, 1]).tolist(),
        "entropy": score_entropy(p, explainer.activation).tolist(),
        "topk": pa.ListArray.from_arrays(ends, topk),
    }


def _names(explainer: Explainer, ids: NDArray[np.int64]) -> pa.StringArray:
    """Name classes; null where the archive and the model name none."""
    known = pa.array(explainer.class_names, pa.string())
    return known.take(pa.array(ids, mask=ids >= len(known)))
