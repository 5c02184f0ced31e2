"""`--precision`: what the network computes in bf16 or fp16, beside plain torch; fp32 is untouched by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from deltalake import DeltaTable
from torch import nn

from camray.cli.main import main
from camray.config import Config, ModelConfig
from camray.errors import UsageError
from camray.explain.explainer import BatchExplainer, resolve
from tests.explain.test_explain_explainer import decoded

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def by_hand(model: Path, pixels: np.ndarray, dtype: torch.dtype, layer: str) -> tuple[int, np.ndarray]:
    """Grad-CAM of the winner by autograd alone, under torch's own autocast, finished in float64."""
    network: nn.Module = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    seen: list[torch.Tensor] = []
    network.get_submodule(layer).register_forward_hook(lambda _m, _a, out: seen.append(out))
    cfg = network.pretrained_cfg
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.autocast("cpu", dtype):
        logits = network((x - mean) / std)
    (gradient,) = torch.autograd.grad(logits.max(), seen[0])
    weights = gradient.double().mean((2, 3), keepdim=True)
    return int(logits.argmax()), (weights * seen[0].double()).sum(1)[0].detach().numpy()


@pytest.mark.parametrize("precision", DTYPES)
def test_records_are_those_of_plain_torch_under_autocast(demo: Path, precision: str) -> None:
    model = demo / "models" / "hans64-clean"
    explainer, loaded = resolve(Config(model=ModelConfig(name=str(model), precision=precision)))  # type: ignore[arg-type]
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    core = BatchExplainer(explainer, loaded.module.state_dict(), folded=loaded.folded)
    (row,) = core(decoded(pixels[None])).to_pylist()
    winner, truth = by_hand(model, pixels, DTYPES[precision], explainer.target_layer)
    assert row["predicted_class"] == winner
    assert row["precision"] == precision
    found = np.asarray(row["heatmap"]).reshape(truth.shape)
    rounding = {"bf16": 2.0**-8, "fp16": 2.0**-11}[precision]  # relative, of each of some twenty layers
    assert np.abs(found - truth).max() <= 20 * rounding * np.abs(truth).max()


def test_fp32_has_the_id_it_had_and_says_nothing(demo: Path) -> None:
    model = str(demo / "models" / "hans64-clean")
    plain, fast = (resolve(Config(model=ModelConfig(name=model, precision=p)))[0] for p in ("fp32", "bf16"))
    assert plain.id != fast.id
    assert "precision" not in json.loads(plain.to_json())
    assert replace(fast, precision="fp32").id == plain.id


def test_a_network_that_is_no_classifier_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from camray.explain import explainer as module

    class Loaded:
        build_args = {"task": "detection"}  # noqa: RUF012

    monkeypatch.setattr(module, "load_model", lambda *_: Loaded())
    with pytest.raises(UsageError, match=r"^--precision: bf16, but networks of detection run in fp32"):
        resolve(Config(model=ModelConfig(name="x", precision="bf16")))


def test_the_pilot_counts_what_differs_from_fp32(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, model = str(demo / "archive"), str(demo / "models" / "hans64-clean")
    common = [archive, str(tmp_path / "out"), "--model", model]
    assert main(["plan", *common, "--pilot", "6", "--precision", "bf16", "--json"]) == 0
    moved = json.loads(capsys.readouterr().out)["pilot"]["moved"]
    assert moved["precision"] == "bf16"
    assert moved["images"] == 6
    assert 0 <= moved["classes"] + moved["maps"] <= 6


@pytest.mark.slow
def test_rows_that_differ_are_named_by_one_query_and_counted_by_the_pilot(
    demo: Path, explain: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import duckdb

    archive, model, out = demo / "archive", demo / "models" / "hans64-clean", tmp_path / "out"
    by_precision: dict[str, dict[str, dict[str, Any]]] = {}
    for precision in ("fp32", "bf16"):
        explain(archive, out, model, model__precision=precision)
    for row in DeltaTable(str(out / "records")).to_pyarrow_table().to_pylist():
        key = row["shard"] + row["member"]
        by_precision.setdefault(row["precision"] or "fp32", {})[key] = row
    full, low = by_precision["fp32"], by_precision["bf16"]
    assert len(full) == len(low) == 360
    differ = {k for k in full if full[k]["predicted_class"] != low[k]["predicted_class"]}
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    query = page.partition("<!-- differ -->\n```sql\n")[2].partition("```")[0]
    records = DeltaTable(str(out / "records")).to_pyarrow_table()
    named = duckdb.from_arrow(records).query("records", query).fetchall()
    assert {shard + member for shard, member, *_ in named} == differ

    moved = 0
    for key in full.keys() - differ:
        a, b = (np.asarray(rows[key]["heatmap"]) for rows in (low, full))
        moved += bool(np.abs(a - b).max() > 0.05 * np.abs(b).max())
    common = [str(archive), str(tmp_path / "new"), "--model", str(model), "--precision", "bf16"]
    capsys.readouterr()
    assert main(["plan", *common, "--pilot", "360", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["pilot"]["moved"]
    assert said == {"precision": "bf16", "images": 360, "classes": len(differ), "maps": moved}
