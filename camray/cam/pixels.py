"""Methods whose maps are born at the resolution of the image: FullGrad, guided backpropagation, captum's.

Flows in: the scene. Flows out: raw maps (B, K, H, W). They differentiate the whole network once per
target, so they cost about three forwards each instead of one for all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from camray.cam.finish import normalise, resize
from camray.cam.gradients import gradcam
from camray.cam.registry import method
from camray.cam.scene import Scene
from camray.cam.split import call, plain
from camray.errors import ModelError, UsageError


@method(
    "fullgrad", needs="scene", cost="1 + 2 K", biases=True,
    doc="input and bias gradients, at image size", when="fine maps; convolutional networks",
    paper="Srinivas and Fleuret, Full-Gradient Representation for Neural Network Visualization, NeurIPS 2019",
)  # fmt: skip
def fullgrad(scene: Scene) -> Tensor:
    """FullGrad: sum over channels of |x * dS/dx| and of |b_l * dS/df_l| for every bias b_l.

    With the psi in common use: each channel is scaled to [0, 1] on its own.
    """
    assert scene.biases is not None
    maps = [scene.biases.collect(scene.split, score) for score in scene.scores.unbind(1)]
    return torch.stack(maps, 1).detach()  # (B, K, H, W)


class _GuidedReLU(torch.autograd.Function):
    """ReLU whose backward passes only positive gradients of positive inputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clamp(min=0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        passed: Tensor = gradients[0].clamp(min=0) * (y > 0)
        return passed


class _Guided(TorchFunctionMode):
    """Every ReLU in the body is a guided one, module or function, without touching the model."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu_):
            self.count += 1
            return _GuidedReLU.apply(args[0] if args else (kwargs or {})["input"])
        return func(*args, **(kwargs or {}))


def guided_gradients(scene: Scene) -> Tensor:
    """Guided backpropagation: dS/dx with every ReLU passing only positive gradients, (B, K, 3, H, W)."""
    model = plain(scene.model)
    with torch.inference_mode(False), torch.enable_grad():
        images = scene.inputs.clone().requires_grad_()
        with _Guided() as guide:
            scores = scene.aim.scores(call(model, images))
        if not guide.count:
            raise ModelError(
                "method", "guided backpropagation needs ReLUs; this model has none", "use gradcam"
            )
        each = [torch.autograd.grad(s.sum(), images, retain_graph=True)[0] for s in scores.unbind(1)]
    return torch.stack(each, 1).float()


@method(
    "guidedbackprop", needs="scene", cost="2 + 2 K",
    doc="gradients through ReLUs, positive only", when="edges; insensitive to the class",
    paper="Springenberg et al., Striving for Simplicity: The All Convolutional Net, ICLR Workshops 2015",
)  # fmt: skip
def guidedbackprop(scene: Scene) -> Tensor:
    """Guided backpropagation as one map: the largest size over colour channels, (B, K, H, W)."""
    return guided_gradients(scene).abs().amax(2)


@method(
    "guided-gradcam", needs="scene", cost="2 + 2 K", graph=True,
    doc="guided backpropagation, gated by Grad-CAM", when="fine and class-specific",
    paper="Selvaraju et al., as Grad-CAM, section 3.2",
)  # fmt: skip
def guided_gradcam(scene: Scene) -> Tensor:
    """Guided Grad-CAM: guided backpropagation times the enlarged relu of Grad-CAM."""
    size = (scene.inputs.shape[2], scene.inputs.shape[3])
    coarse = [gradcam(scene.A, scene.gradient(s)) for s in scene.scores.unbind(1)]
    return guidedbackprop(scene) * resize(normalise(torch.stack(coarse, 1)), size)


@method(
    "captum", needs="scene", cost="captum's", doc="captum's methods on the input",
    when="comparison; needs the extra `camray[captum]`",
)  # fmt: skip
def captum_attribution(scene: Scene, name: str = "", **options: Any) -> Tensor:
    """One of captum's input-level methods by class name, summed over colour channels, signed."""
    try:
        library = importlib.import_module("captum.attr")
    except ImportError:
        raise UsageError("method", f"captum:{name} needs captum", "pip install camray[captum]") from None
    kind = getattr(library, name, None)
    if not isinstance(kind, type):
        raise UsageError("method", f"captum has no {name!r}", "for example captum:IntegratedGradients")
    model, count, batch = plain(scene.model), scene.scores.shape[1], len(scene.inputs)
    maps: list[Tensor] = []
    for k in range(count):

        def score(images: Tensor, column: int = k) -> Tensor:
            rows = torch.arange(len(images), device=images.device) % batch  # captum stacks whole batches
            return scene.aim.scores(call(model, images), rows)[:, column]

        with torch.inference_mode(False), torch.enable_grad():
            maps.append(kind(score).attribute(scene.inputs.clone(), **options).detach().sum(1).float())
    return torch.stack(maps, 1)
