"""The bias terms of a whole network, summed while one backward passes them by.

Flows in: a model before its forward. Flows out: forward hooks for it, and per score one map (B, H, W). No
gradient is kept: each is turned into its share of the map when it is ready.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from camray.cam.finish import resize
from camray.cam.split import Split, plain
from camray.errors import ModelError

GUARD = 1e-7  # of min-max, the customary one


class BiasTerms:
    """Sums psi(b_l * dS/df_l) over every bias b_l of a model, whose features are f_l."""

    def __init__(self, model: nn.Module) -> None:
        self._biases = implicit_biases(plain(model))
        if len(self._biases) < 2:  # a ViT has one, its patch embedding: the map would be of that alone
            raise ModelError(
                "method", "fullgrad needs convolutions or batch norms with biases", "use gradcam"
            )
        self._size = (0, 0)
        self._total: Tensor | None = None  # while a score is collected

    @property
    def watch(self) -> Mapping[str, Callable[..., Any]]:
        """Forward hooks by module name."""
        return {name: self._hook(bias) for name, bias in self._biases.items()}

    def collect(self, split: Split, score: Tensor) -> Tensor:
        """Run one backward of a score (B,): psi(x * dS/dx) and all bias terms, (B, H, W)."""
        assert split.images is not None
        self._size = (split.images.shape[2], split.images.shape[3])
        self._total = torch.zeros((), device=score.device)
        try:
            (gradient,) = torch.autograd.grad(score.sum(), split.images, retain_graph=True)
            total = self._total
        finally:
            self._total = None
        return total + spread(gradient.float() * split.images.detach().float(), None, self._size)

    def _hook(self, bias: Tensor) -> Callable[..., Any]:
        def passing(gradient: Tensor) -> None:
            if self._total is not None:
                self._total = self._total + spread(gradient.float(), bias, self._size)

        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            if output.requires_grad:  # on the tensor before an in-place ReLU behind it
                output.register_hook(passing)  # type: ignore[no-untyped-call]

        return hook


def spread(gradient: Tensor, bias: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Psi of one layer: |bias * gradient|, each channel to [0, 1], summed and enlarged to (B, H, W).

    Channels are summed before they are enlarged: enlarging is linear, so the sum is the same.
    """
    terms = gradient.abs().flatten(2)
    weight = 1.0 if bias is None else bias.abs()
    low, high = torch.aminmax(terms, dim=2)  # (B, C)
    scale = weight / (weight * (high - low) + GUARD)
    flat = torch.bmm(scale[:, None], terms).view(len(terms), *gradient.shape[2:])
    return resize(flat - (low * scale).sum(1)[:, None, None], size)


def implicit_biases(model: nn.Module) -> Mapping[str, Tensor]:
    """Biases (C,) by the name of the module that returns the biased features.

    Those of convolutions, and beta - mean * gamma / std of batch norms.
    """
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            scale = module.weight.detach() / torch.sqrt(module.running_var + module.eps)
            # timm's batch norm with activation returns activated features; its `drop` sits in between
            place = f"{name}.drop" if hasattr(module, "drop") else name
            found[place] = (module.bias.detach() - module.running_mean * scale).float()
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            found[name] = module.bias.detach().float()
    return found
