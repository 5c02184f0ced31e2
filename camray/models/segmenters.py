"""Networks that give each pixel a class: read so that the engine of classifiers explains them.

    module ──as_sums──> for each class, the sum of its logits over the pixels that the network takes for it

That sum is the target of Seg-Grad-CAM (Vinogradova et al., AAAI 2020); its gradient at the end of the encoder
says what made the network see the class there. Logits smaller than the input are enlarged to it first, as the
libraries do, so that the pixels are theirs. An image is enlarged alone: 150 classes of 512 x 512 are 157 MB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from camray.cam.split import pick_output
from camray.errors import ModelError, printable
from camray.models.libraries import torchvision
from camray.models.outputs import EPSILON, last_operation, probe_images
from camray.models.sources import Recipe

TASK = "segmentation"
LONGEST = 2  # of an image of torchvision's: its longer side by the shorter one, up to which nothing is lost
BACKGROUNDS = ("background", "__background__")
_PARTS = ("backbone", "encoder")
Labelled = tuple[int, Tensor]
"""A class, and the pixels (H, W) that the archive says are of it: its logits are summed over these."""


class Pixels:
    """A forward hook that turns pixels into sums (B, classes), and keeps the pixels of the last forward."""

    def __init__(self, form: str, output: str | None) -> None:
        self._form, self._output = form, output
        self.labelled: list[Labelled] = []  # of each image of the next forward; none: as predicted
        self.classes = torch.empty(0)  # (B, H, W): of each pixel of the input
        self.shares = torch.empty(0)  # (B, H, W): its softmax

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], given: Any) -> Tensor:
        """Sum the logits of each class over the pixels where it is the highest."""
        size, pixels = args[0].shape[2:], pick_pixels(given, self._output)
        labelled: Sequence[Labelled | None] = self.labelled or [None] * len(pixels)
        found = [_of_one(one, self._form, size, own)
                 for one, own in zip(pixels.split(1), labelled, strict=True)]  # fmt: skip
        self.classes, self.shares = (torch.cat([each[i] for each in found]) for i in (1, 2))
        return torch.cat([each[0] for each in found])


def _of_one(
    pixels: Tensor, form: str, size: torch.Size, labelled: Labelled | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Give sums (1, C), class and softmax of each pixel (1, H, W) of one image's output (1, C, h, w)."""
    if pixels.shape[2:] != size:
        pixels = interpolate(pixels, size, mode="bilinear", align_corners=False)
    logits = as_logits(pixels, form)
    best = (pixels if pixels.shape[1] > 1 else logits).detach().argmax(1, keepdim=True)
    top = logits.gather(1, best)
    with torch.no_grad():
        shares = (top - logits.logsumexp(1, keepdim=True)).exp()
    sums = logits.new_zeros(1, logits.shape[1]).scatter_add(1, best.flatten(1), top.flatten(1))
    absent = torch.ones_like(sums, dtype=torch.bool).index_fill(1, best.unique(), value=False)
    sums = sums.masked_fill(absent, float(sums.detach().amin()) - 1)  # below every class that has pixels
    if labelled is not None:
        own = (logits[:, labelled[0]] * labelled[1].to(logits)).sum((1, 2))
        sums = sums.detach().index_put((torch.tensor([0]), torch.tensor([labelled[0]])), own)
    return sums, best[:, 0], shares[:, 0]


def as_sums(module: nn.Module, form: str, output: str | None = None) -> nn.Module:
    """Let every call of the module give sums (B, classes); `pixels_of` has the pixels."""
    module.register_forward_hook(Pixels(form, output))
    return module


def pixels_of(module: nn.Module) -> Pixels:
    """Find what keeps the pixels of the last forward."""
    return next(hook for hook in module._forward_hooks.values() if isinstance(hook, Pixels))


def as_logits(pixels: Tensor, form: str) -> Tensor:
    """Undo the end of the network; one number a pixel tells two classes apart: (B, C, h, w)."""
    if form == "sigmoid":
        pixels = pixels.logit(eps=EPSILON)
    elif form == "softmax":
        pixels = pixels.clamp(min=EPSILON**2).log()
    return torch.cat([-pixels, pixels], 1) if pixels.shape[1] == 1 else pixels


def preset(name: str) -> Any:
    """Give what torchvision does to an image, uint8 (3, H, W), before this network."""
    return torchvision.models.get_model_weights(name).DEFAULT.transforms()


def is_segmenter(module: nn.Module, recipe: Recipe) -> bool:
    """Tell whether it is one by its kind: torchvision's and transformers'; own code is told by --task."""
    kinds = (
        torchvision.models.segmentation.FCN,
        torchvision.models.segmentation.DeepLabV3,
        torchvision.models.segmentation.LRASPP,
    )
    return recipe.task == TASK or isinstance(module, kinds)


def as_trained(recipe: Recipe, state: Mapping[str, Tensor]) -> Recipe:
    """Ask for the auxiliary head that torchvision trains beside the network, where the file has one."""
    has_one = any(name.startswith("aux_classifier.") for name in state)
    if recipe.kind != "torchvision" or recipe.task != TASK or not has_one:
        return recipe
    return replace(recipe, args={"aux_loss": True, **recipe.args})


def pick_pixels(given: Any, name: str | None) -> Tensor:
    """Find the logits (B, C, h, w) in what a segmenter returns: by name, else `logits`, else `out`."""
    if name is None and isinstance(given, Mapping):
        name = next((key for key in ("logits", "out") if key in given), None)
    found = pick_output(given, name)
    if not isinstance(found, Tensor) or found.ndim != 4 or min(found.shape[2:]) < 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        said = f"segmentation, but the output is {shape}, not (images, classes, height, width)"
        raise ModelError("--task", said, "--output NAME or INDEX, or leave --task out")
    return found


def read_pixels(
    module: nn.Module, size: tuple[int, int, int], output: str | None
) -> tuple[dict[str, Any], int, tuple[str, ...]]:
    """Run the network on an image of `size` (C, H, W): arguments of `as_sums`, number of classes, notes.

    Raises:
        ModelError: it fails, or its pixels have no class.
    """
    images = probe_images(*size)[-1:].requires_grad_()
    try:
        with torch.enable_grad():
            pixels = pick_pixels(module(images), output)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - the user's own code may raise anything
        said = f"it fails on an image of {' x '.join(map(str, size))}: {type(error).__name__}: {error}"
        raise ModelError("--model", printable(said), "--input-size as the model was trained") from None
    form, count = last_operation(pixels), pixels.shape[1]
    if form == "sigmoid" and count > 1:
        said = f"its {count} masks have scores of their own (sigmoid): a pixel may have several classes"
        raise ModelError("--task", said, "a network that gives each pixel one class")
    made = {"form": form} | ({"output": output} if output is not None else {})
    fading = ("the network ends in a softmax: its logarithm is explained, which fades where it is sure",)
    alone = ("one number a pixel: class 1 where it is high, class 0 where it is low",)
    return made, max(2, count), fading * (form == "softmax") + alone * (count == 1)


def encoder_of(module: nn.Module) -> str | None:
    """Name the part whose end is explained, with a dot behind it; None where nothing tells."""
    names = dict(module.named_children())
    of_transformers = str(getattr(module, "base_model_prefix", ""))
    return next((f"{name}." for name in (*_PARTS, of_transformers) if name in names), None)
