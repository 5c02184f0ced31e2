"""Real photographs and a real ImageNet model: predictions and heatmaps against outside references."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import camray

LAYER = "bn2"


@pytest.fixture(scope="module")
def records(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    out = tmp_path_factory.mktemp("imagenet") / "out"
    weights = shared / "weights" / "mobilenetv2_100_imagenet" / "model.safetensors"
    for archive in ("imagenet_val", "imagenet_train1k"):
        outcome = camray.explain_archive(
            str(shared / archive), str(out), "mobilenetv2_100",
            **{"model.checkpoint": str(weights), "overlay.policy": "none", "run.engine": "here"},
        )  # fmt: skip
        assert outcome.code == camray.ExitCode.DONE
    rows = camray.open_records(str(out)).to_table().to_pylist()
    assert len(rows) == 200
    return {f"{Path(r['shard'].partition('#')[0]).name}/{r['member']}": r for r in rows}


def test_top5_equals_the_reference(records: dict[str, dict[str, object]], shared: Path) -> None:
    with (shared / "reference_predictions_mobilenetv2_100.csv").open() as file:
        reference = {row["file"]: row for row in csv.DictReader(file)}
    assert reference.keys() == records.keys()
    worst = 0.0
    for name, row in reference.items():
        expected = [row[f"top{k}"].split(":") for k in range(1, 6)]
        found = records[name]["topk"]
        assert [int(c) for c, _ in expected] == [t["class_id"] for t in found], name
        worst = max(worst, *(abs(float(p) - t["score"]) for (_, p), t in zip(expected, found, strict=True)))
    assert worst < 1e-3
    print(f"top-5 of {len(reference)} images equal, probabilities within {worst:.1e}")


def test_heatmap_equals_pytorch_grad_cam(records: dict[str, dict[str, object]], shared: Path) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="the peer is in the dev extra")
    import timm
    import torch
    from PIL import Image
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from timm.data import create_transform, resolve_data_config

    from camray import cam

    weights = shared / "weights" / "mobilenetv2_100_imagenet" / "model.safetensors"
    model = timm.create_model("mobilenetv2_100", checkpoint_path=str(weights)).eval()
    transform = create_transform(**resolve_data_config(model=model))
    raw_error = finished_error = 0.0
    with GradCAM(model, [model.get_submodule(LAYER)]) as peer:
        for name in sorted(records)[::8]:
            row = records[name]
            x = transform(Image.open(shared / name).convert("RGB"))[None]
            target = [ClassifierOutputTarget(row["target_class"])]
            finished = peer(x, targets=target)[0]
            # The peer's own activations and gradients give its map before it is normalised and resized.
            A = peer.activations_and_grads.activations[0].numpy()
            weight = peer.get_cam_weights(x, None, target, A, peer.activations_and_grads.gradients[0].numpy())
            raw = (weight[:, :, None, None] * A).sum(1)[0]
            ours = np.array(row["heatmap"], np.float32).reshape(row["heat_h"], row["heat_w"])
            assert row["target_layer"] == LAYER
            raw_error = max(raw_error, float(np.abs(ours - raw).max() / np.abs(raw).max()))
            ours_finished = cam.finish(torch.from_numpy(ours)[None], (224, 224))[0].numpy()
            finished_error = max(finished_error, float(np.abs(ours_finished - finished).max()))
    assert raw_error <= 1e-5
    assert finished_error <= 1e-3
    print(f"25 maps: raw within {raw_error:.1e} relative, resized within {finished_error:.1e}")
