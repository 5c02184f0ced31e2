"""What the models are made of comes without torch's compiler, and works as it does with it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from camray.models.libraries import timm, torchvision
import torch
from torchvision.models.feature_extraction import get_graph_node_names
assert "torch._dynamo" not in sys.modules
boxes = torch.tensor([[0.0, 0, 0, 4, 4]])
x = torch.arange(64.0).reshape(1, 1, 8, 8)
print(float(torchvision.ops.roi_align(x, boxes, 1, aligned=True)[0, 0, 0, 0]))
import torch._dynamo.utils
print(torch._dynamo.utils.is_compile_supported("cpu"))
print(torch.compile(lambda y: y + 1, backend="eager")(boxes).sum().item())
import timm.layers._fx
print(timm.layers._fx.has_fx_feature_extraction)
"""


@pytest.mark.slow
def test_the_compiler_is_imported_by_whoever_asks_for_it_alone() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # the mean of x over the pixels 0..4 of both axes, between pixel centres: 1.5 * 8 + 1.5
    assert done.stdout.split() == ["13.5", "True", "13.0", "True"]
