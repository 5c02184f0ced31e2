"""A record has the same bits whatever else is explained: on a CPU, in float32, with one network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch

from camray.config import AuditConfig, Config, MethodConfig, ModelConfig, PreprocessConfig, RunConfig
from camray.explain import confirm
from camray.explain.explainer import BatchExplainer, resolve
from camray.models.preprocessing import to_input
from camray.records import DECODED, struct_array

SIDE, COUNT = 64, 33
MODELS: dict[str, dict[str, Any]] = {
    "mobilenetv2_050": {},
    "vit_tiny_patch16_224": {"depth": 2, "img_size": SIDE},
}


def decoded() -> pa.StructArray:
    """Images of noise on gradients, as decoding gives them."""
    draw = np.random.default_rng(0)
    slope = np.linspace(0, 128, SIDE)[:, None, None]
    views = [(slope + draw.integers(0, 127, (SIDE, SIDE, 3))).astype(np.uint8) for _ in range(COUNT)]
    columns: dict[str, Any] = {"index": range(COUNT), "member": [f"{i}.png" for i in range(COUNT)]}
    columns |= {"status": ["ok"] * COUNT, "width": [SIDE] * COUNT, "height": [SIDE] * COUNT}
    columns |= {name: [0.0] * COUNT for name in ("crop_x0", "crop_y0")}
    columns |= {name: [float(SIDE)] * COUNT for name in ("crop_x1", "crop_y1")}
    return struct_array(columns | {"pixels": [view.tobytes() for view in views]}, DECODED)


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", MODELS)
def test_batches_threads_and_neighbours_change_no_bit(
    tmp_path: Path, name: str, threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        confirm, "suspicion", lambda row: 2.0 + (row["target_class"] != row["predicted_class"])
    )
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **MODELS[name])
    torch.save(model.state_dict(), tmp_path / "w.pt")
    config = Config(
        model=ModelConfig(name, checkpoint=str(tmp_path / "w.pt"), args=MODELS[name], num_classes=7),
        preprocess=PreprocessConfig(input_size=(SIDE,)),
        method=MethodConfig(target="top:2"),
        audit=AuditConfig(confirm=1.0),
    )
    explainer, loaded = resolve(config)
    images, found = decoded(), {}
    for batch_size, count in ((1, 1), (2, 1), (7, 2), (32, 2)):
        threads(count)
        state = loaded.module.state_dict()
        explain = BatchExplainer(explainer, state, "cpu", batch_size, loaded.folded)
        found[batch_size] = explain(images)
        assert torch.get_num_threads() == count
    assert found[1].field("status").to_pylist() == ["ok"] * (2 * COUNT)
    assert any(drop is not None for drop in found[1].field("confirm_drop").to_pylist())
    assert [size for size, rows in found.items() if not rows.equals(found[1])] == []
    views = [explain.view(pixels.as_buffer()) for pixels in images.field("pixels")]
    plain = to_input(torch.from_numpy(np.stack(views)), explain.mean, explain.std)
    assert torch.equal(explain.model_input(views), plain)  # by its table
    alone = pa.concat_arrays([explain(images[i : i + 1]) for i in (0, 20, COUNT - 1)])
    assert alone.equals(found[1].take(pa.array([0, 1, 40, 41, 64, 65])))


def test_a_network_that_mixes_its_batch_is_still_run_image_by_image(tmp_path: Path) -> None:
    code = "import torch\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n"
    code += "        super().__init__()\n        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)\n"
    code += "    def forward(self, x):\n        x = self.conv(x)\n"
    code += "        return self.head((x - x.mean(0) * (len(x) > 1)).mean((2, 3)))\n"
    (tmp_path / "net.py").write_text(code)
    space: dict[str, Any] = {}
    exec(code, space)
    torch.save(space["Net"]().state_dict(), tmp_path / "w.pt")
    model = ModelConfig(f"{tmp_path}/net.py:Net", checkpoint=str(tmp_path / "w.pt"))
    config = Config(model=model, preprocess=PreprocessConfig(input_size=(SIDE,)), run=RunConfig(batch_size=1))
    explainer, loaded = resolve(config)
    assert BatchExplainer(explainer, loaded.module.state_dict(), batch_size=1).fixed == 0
    assert BatchExplainer(explainer, loaded.module.state_dict(), batch_size=2).fixed > 0
