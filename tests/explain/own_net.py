"""A small classifier of one's own, whose last lines a test writes; explained as the job does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camray.config import Config, MethodConfig, ModelConfig, PreprocessConfig, RunConfig
from camray.explain.explainer import BatchExplainer, resolve
from camray.models.load import LoadedModel
from camray.records import DECODED, EXPLAINED, struct_array

SIDE = 32
BODY = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, num_classes=4, gain=1.0):
        super().__init__()
        self.gain = gain
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(12, num_classes)
        self.more()

    def more(self):
        pass

    def logits(self, x):
        return self.gain * self.fc(self.body(x).mean((2, 3)))

"""
Rows = list[dict[str, Any]]


def built(folder: Path, classes: int = 4) -> Any:
    """The network as its author would build it, with the weights that were written."""
    own: dict[str, Any] = {}
    exec(compile((folder / "net.py").read_text(), "net", "exec"), own)
    torch.manual_seed(3)
    net = own["Net"](classes).eval()
    if (folder / "net.pth").is_file():
        net.load_state_dict(torch.load(folder / "net.pth"))
    return net


def write(folder: Path, ending: str, classes: int = 4, **args: Any) -> ModelConfig:
    """Write model and weights: `ending` is what follows `def forward(self, x):` and may use `self.logits`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"        {line}\n" for line in ending.strip().splitlines())
    (folder / "net.py").write_text(f"{BODY}    def forward(self, x):\n{lines}")
    torch.save(built(folder, classes).state_dict(), folder / "net.pth")
    return ModelConfig(
        name=f"{folder}/net.py:Net", checkpoint=str(folder / "net.pth"), args={**args}, num_classes=classes
    )


def config(model: ModelConfig, target: str = "predicted", **run: Any) -> Config:
    given = PreprocessConfig(input_size=(SIDE,), mean=(0.5,), std=(0.25,))
    return Config(model=model, preprocess=given, method=MethodConfig(target=target), run=RunConfig(**run))


def pixels(count: int = 6) -> np.ndarray[Any, Any]:
    """Uint8 (N, 32, 32, 3)."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    fine = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear")
    return (fine * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def as_input(views: np.ndarray[Any, Any]) -> Tensor:
    return (torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25


def explained(made: Config, views: np.ndarray[Any, Any] | None = None) -> tuple[Rows, LoadedModel]:
    """Resolve, build as a worker does, explain: the rows, and the model with its notes."""
    views = pixels() if views is None else views
    explainer, loaded = resolve(made)
    batch = BatchExplainer(explainer, loaded.module.state_dict(), batch_size=4, folded=loaded.folded)
    size = len(views)
    items = struct_array(
        {
            "index": list(range(size)),
            "member": [f"{i}.png" for i in range(size)],
            "status": ["ok"] * size,
            "label": ["1"] * size,
            "pixels": [v.tobytes() for v in views],
        },
        DECODED,
    )
    found = batch(items)
    assert found.type == EXPLAINED
    rows: Rows = found.to_pylist()
    return rows, loaded


def heat(rows: Rows) -> Tensor:
    return torch.tensor([row["heatmap"] for row in rows])
