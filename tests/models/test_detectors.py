"""Detections are the library's own, and the map of each is of its own evidence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from camray.config import Config, MethodConfig, ModelConfig
from camray.errors import ModelError
from camray.explain.detections import core_of
from camray.explain.explainer import resolve
from camray.image.fit import fit_image, geometry, plan_fit
from camray.models import detectors, sources
from camray.records import DECODED, struct_array
from tests.models.shape_detector import Pyramid, shape_detector
from tests.models.shapes import scene, trained

COCO = Path(__file__).parents[2].parent / "shared/data/coco/images"
Rows = list[dict[str, Any]]


def explained(made: Config, pictures: list[Image.Image], **more: list[Any]) -> Rows:
    """Explain pictures as the job does, one row a detection; `index` names the picture. `more`: columns."""
    explainer, loaded = resolve(made)
    columns: dict[str, list[Any]] = {"index": [], "pixels": [], "width": [], "height": []}
    columns |= {f"crop_{edge}": [] for edge in ("x0", "y0", "x1", "y1")}
    for i, picture in enumerate(pictures):
        fit = plan_fit(*picture.size, explainer.input)
        where = geometry(*picture.size, fit, explainer.input)
        columns["index"].append(i)
        columns["pixels"].append(np.asarray(fit_image(picture, fit, explainer.input)).tobytes())
        for name in ("width", "height", "crop_x0", "crop_y0", "crop_x1", "crop_y1"):
            columns[name].append(getattr(where, name))
    size = len(pictures)
    items = struct_array(columns | more | {"status": ["ok"] * size, "member": ["a"] * size}, DECODED)
    core = core_of(explainer, loaded.module.state_dict(), "cpu", 4)
    rows: Rows = core(items).to_pylist()
    return rows


def coco(count: int) -> list[Image.Image]:
    if not COCO.is_dir():
        pytest.skip("no shared images here")
    return [Image.open(file).convert("RGB") for file in sorted(COCO.glob("*.jpg"))[:count]]


def check_same(rows: Rows, wanted: list[tuple[Tensor, Tensor, Tensor]], least: float, most: int) -> int:
    """Boxes within half a pixel, scores within 1e-4, classes equal: of each picture the best."""
    seen = 0
    for i, (boxes, scores, classes) in enumerate(wanted):
        order = torch.argsort(scores, descending=True, stable=True)
        order = order[scores[order] >= least][:most]
        own = [row for row in rows if row["index"] == i and row["detection"] is not None]
        assert [row["detection"] for row in own] == list(range(len(order)))
        assert [row["confidence"] for row in own] == pytest.approx(scores[order].tolist(), abs=1e-4)
        left = set(range(len(scores)))
        for row in own:  # among scores that are equal but for rounding, any order will do
            box = torch.tensor([row[f"box_{e}"] for e in ("x0", "y0", "x1", "y1")])
            same = (boxes - box).abs().amax(1) <= 0.5
            same &= (scores - row["confidence"]).abs() <= 1e-4
            same &= classes == row["predicted_class"]
            left.remove(next(k for k in torch.nonzero(same)[:, 0].tolist() if k in left))
            assert row["target_class"] == row["predicted_class"]
        seen += len(order)
    return seen


TORCHVISION = (
    "ssdlite320_mobilenet_v3_large", "fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
)  # fmt: skip


def spread(net: nn.Module) -> nn.Module:
    """Random weights whose scores differ: the heads' own start gives every anchor the same one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.endswith(("cls_logits.weight", "cls_score.weight", "class_labels_classifier.weight")) or (
                "classification_head.module_list" in name and name.endswith(".1.weight")
            ):
                size = (
                    0.05 if "cls_score" in name else 0.15
                )  # softmax over 91 classes: most would stay below 0.05
                weight.copy_(torch.randn(weight.shape, generator=generator) * size)
    return net.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_detections_of_torchvision_are_its_own(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = spread(torchvision.models.get_model(name, weights=None, weights_backbone=None))
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    pictures = coco(3)
    with torch.no_grad():
        images = [torch.from_numpy(np.array(p)).permute(2, 0, 1).float() / 255 for p in pictures]
        found = [net([image])[0] for image in images]
    least = (
        float(torch.cat([f["scores"] for f in found]).quantile(0.9)) - 1e-6
    )  # a score itself would be a matter of rounding
    method = MethodConfig(min_score=least, max_detections=4)
    made = Config(
        model=ModelConfig(name=f"torchvision:{name}", checkpoint=str(tmp_path / "w.safetensors")),
        method=method,
    )
    rows = explained(made, pictures)
    wanted = [(f["boxes"], f["scores"], f["labels"]) for f in found]
    assert check_same(rows, wanted, least, 4) >= 3
    assert all(row["heat_status"] in ("ok", "dead") for row in rows if row["detection"] is not None)


def shape_config(folder: Path, **method: Any) -> Config:
    save_file(trained(), folder / "shapes.safetensors")
    name = f"{Path(__file__).with_name('shape_detector.py')}:shape_detector"
    return Config(
        model=ModelConfig(name=name, checkpoint=str(folder / "shapes.safetensors")),
        method=MethodConfig(**method),
    )


def of_scene(view: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(view)


@pytest.mark.slow
def test_the_heat_of_a_detection_lies_in_its_own_box(tmp_path: Path) -> None:
    """At least 90 % of the detections have half of their heat inside their own box."""
    scenes = [scene(seed) for seed in range(60)]
    rows = explained(shape_config(tmp_path), [of_scene(view) for view, _, _ in scenes])
    found = [row for row in rows if row["detection"] is not None]
    assert len(found) >= 0.8 * sum(len(boxes) for _, boxes, _ in scenes)
    shares = np.array([row["heat_in_box"] or 0.0 for row in found])
    assert (shares >= 0.5).mean() >= 0.9


@pytest.mark.slow
def test_the_map_is_the_gradient_of_its_own_score_times_the_activation(tmp_path: Path) -> None:
    """By hand, through the library's own forward, with duplicates suppressed by the library."""
    view, _, _ = scene(5)
    net = shape_detector()
    net.load_state_dict(trained())
    net.eval().requires_grad_(False)
    image = torch.from_numpy(view).permute(2, 0, 1).float() / 255
    inner = {
        name: level.requires_grad_()
        for name, level in net.backbone(net.transform([image])[0].tensors).items()
    }
    net.backbone.forward = lambda _x: inner
    found = net([image])[0]
    own = detectors.Detector(_fresh())(image, 0.3, 20)
    assert len(own) >= 2
    for k, one in enumerate(own):
        score = found["scores"][k]
        gradients = torch.autograd.grad(
            score / (score * (1 - score)).detach(), [*inner.values()], retain_graph=True
        )
        for level, g, a in zip(one.levels, gradients, inner.values(), strict=True):
            wanted = (g * a)[0].sum(0)
            assert torch.allclose(level, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max() + 1e-12))


def _fresh() -> nn.Module:
    net = shape_detector()
    net.load_state_dict(trained())
    return net.eval().requires_grad_(False)


def small_rcnn() -> nn.Module:
    """A Faster R-CNN of one level, with random weights."""
    torch.manual_seed(1)
    backbone = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1))
    backbone.out_channels = 16
    net = torchvision.models.detection.FasterRCNN(
        backbone, 4, min_size=128, max_size=128, box_score_thresh=0.0,
        rpn_anchor_generator=AnchorGenerator(((24, 40),), ((1.0,),)),
        box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], 5, 2),
    )  # fmt: skip
    nn.init.normal_(net.roi_heads.box_predictor.cls_score.weight, std=0.3)
    net.eval().requires_grad_(False)
    return net


def test_the_gradient_through_regions_is_that_through_the_whole_network() -> None:
    """Only the regions that were found are scored again: the library's own graph gives the same maps."""
    net = small_rcnn()
    image = torch.from_numpy(scene(5)[0]).permute(2, 0, 1).float() / 255
    own = detectors.Detector(net)(image, 0.0, 4)
    inner = net.backbone(net.transform([image])[0].tensors).requires_grad_()
    net.backbone.forward = lambda _x: inner
    found = net([image])[0]
    assert [one.score for one in own] == pytest.approx(found["scores"][:4].tolist(), abs=1e-6)
    for k, one in enumerate(own):
        (gradient,) = torch.autograd.grad(found["scores"][k].double().logit(), inner, retain_graph=True)
        wanted = (gradient * inner)[0].sum(0)
        assert torch.allclose(one.levels[0], wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.slow
def test_the_map_is_that_of_grad_cams_target_of_boxes() -> None:
    """FasterRCNNBoxScoreTarget of pytorch-grad-cam, whose overlap with its own box has no gradient.

    Its map of one box, by gradient times activation, scaled as it scales: <= 1e-5.
    """
    pgc = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import FasterRCNNBoxScoreTarget

    net = small_rcnn()
    image = torch.from_numpy(scene(5)[0]).permute(2, 0, 1).float() / 255
    found, own = net([image])[0], detectors.Detector(net)(image, 0.0, 4)
    net.requires_grad_()  # the peer needs a graph
    for k, one in enumerate(own):
        target = FasterRCNNBoxScoreTarget(found["labels"][k : k + 1], found["boxes"][k : k + 1].numpy())
        with pgc.HiResCAM(net, [net.backbone]) as peer:
            theirs = peer(image[None], [target])[0]
        heat = one.levels[0].clamp(min=0).numpy()
        heat = cv2.resize((heat - heat.min()) / (heat.max() - heat.min()), (128, 128))
        heat = (heat - heat.min()) / (heat.max() - heat.min())
        assert theirs.max() > 0.99
        assert np.abs(heat - theirs).max() <= 1e-5


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "ssd"])
def test_the_gradient_around_a_cell_is_that_through_the_whole_network(kind: str) -> None:
    """Only the cells that reach a score are asked again: the library's own graph gives the same maps."""
    torch.manual_seed(2)
    pyramid, detection = Pyramid(), torchvision.models.detection
    if kind == "ssd":
        pyramid.out_channels = [32, 32]
        boxes = detection.anchor_utils.DefaultBoxGenerator([[2], [2, 3]])
        net: nn.Module = detection.ssd.SSD(pyramid, boxes, (128, 128), 4, score_thresh=0.0)
    elif kind == "fcos":
        boxes = AnchorGenerator(((8,), (16,)), ((1.0,), (1.0,)))
        net = detection.FCOS(pyramid, 4, 128, 128, anchor_generator=boxes, score_thresh=0.0)
    else:
        boxes = AnchorGenerator(((16, 22), (30, 42)), ((1.0,), (1.0,)))
        net = detection.RetinaNet(pyramid, 4, 128, 128, anchor_generator=boxes, score_thresh=0.0)
    for name, weight in net.named_parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=(2 / weight[0].numel()) ** 0.5 / (4 if "logits" in name else 1))
    net.eval().requires_grad_(False)
    image = torch.from_numpy(scene(5)[0]).permute(2, 0, 1).float() / 255
    own = detectors.Detector(net)(image, 0.0, 6)
    inner = {
        name: level.requires_grad_()
        for name, level in net.backbone(net.transform([image])[0].tensors).items()
    }
    net.backbone.forward = lambda _x: inner
    found = net([image])[0]
    order = torch.argsort(found["scores"].detach(), descending=True, stable=True)[:6].tolist()
    assert len(own) == 6
    assert 0 < own[0].score < 0.9999
    for one, k in zip(own, order, strict=True):
        assert one.score == pytest.approx(float(found["scores"][k].detach()), abs=1e-6)
        gradients = torch.autograd.grad(
            found["scores"][k].double().logit(), [*inner.values()], retain_graph=True
        )
        for level, g, a in zip(one.levels, gradients, inner.values(), strict=True):
            wanted = (g * a)[0].sum(0)
            assert torch.allclose(level, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.slow
def test_the_map_moves_when_the_object_is_moved(tmp_path: Path) -> None:
    made = shape_config(tmp_path)
    ground = np.full((128, 128, 3), 110, np.uint8)
    pictures = []
    for x, y in ((16, 16), (80, 72)):
        moved = ground.copy()
        moved[y : y + 32, x : x + 32] = (240, 200, 180)
        pictures.append(of_scene(moved))
    one, other = (next(r for r in explained(made, [p]) if r["detection"] == 0) for p in pictures)
    across, down = (
        (other[f"heat_center_{axis}"] - one[f"heat_center_{axis}"])
        * (one[f"crop_{axis}1"] - one[f"crop_{axis}0"])
        for axis in "xy"
    )
    assert (across, down) == pytest.approx((64, 56), abs=6)


@pytest.mark.slow
def test_an_image_larger_than_the_canvas_has_its_boxes_in_its_own_pixels(tmp_path: Path) -> None:
    view, boxes, _ = scene(4)
    made = shape_config(tmp_path)
    made = replace(made, preprocess=replace(made.preprocess, input_size=(256,)))
    large = of_scene(view).resize((512, 512), Image.Resampling.BILINEAR)
    found = [row for row in explained(made, [large]) if row["detection"] is not None]
    own = torch.tensor([[row[f"box_{e}"] for e in ("x0", "y0", "x1", "y1")] for row in found])
    assert float(torchvision.ops.box_iou(own, boxes * 4).amax(1).min()) > 0.6


def test_an_image_without_a_detection_is_one_row(tmp_path: Path) -> None:
    save_file(shape_detector().state_dict(), tmp_path / "w.safetensors")
    name = f"{Path(__file__).with_name('shape_detector.py')}:shape_detector"
    made = Config(model=ModelConfig(name=name, checkpoint=str(tmp_path / "w.safetensors")))
    (row,) = explained(made, [Image.new("RGB", (90, 60))])
    assert (row["status"], row["detection"], row["heatmap"], row["predicted_class"]) == (
        "ok",
        None,
        None,
        None,
    )


@pytest.mark.parametrize(("name", "epsilon"), [("retinanet_resnet50_fpn", 0.0), ("fcos_resnet50_fpn", 1e-5)])
def test_norms_of_pretrained_detectors_are_those_that_torchvision_builds(name: str, epsilon: float) -> None:
    """Torchvision sets eps to 0 for its first weights (`overwrite_eps`): else every score is a little off."""
    recipe = sources.Recipe("torchvision", name, {"weights_backbone": None}, task="detection")
    net = sources.build(detectors.with_trained_norms(recipe))
    assert {part.eps for part in net.modules() if isinstance(part, nn.BatchNorm2d)} == {epsilon}


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"method": MethodConfig(name="scorecam")}, "this is a detector"),
     ({"method": MethodConfig(target="3")}, "each detection is explained"),
     ({"method": MethodConfig(layer="backbone.body")}, "what its boxes are read from")],
)  # fmt: skip
def test_what_a_detector_does_not_have_is_refused(tmp_path: Path, changed: Any, said: str) -> None:
    save_file(shape_detector().state_dict(), tmp_path / "w.safetensors")
    name = f"{Path(__file__).with_name('shape_detector.py')}:shape_detector"
    made = Config(model=ModelConfig(name=name, checkpoint=str(tmp_path / "w.safetensors")), **changed)
    with pytest.raises(ModelError, match=said):
        resolve(made)


def hugging_face_detector(kind: str, folder: Path) -> Any:
    """Write a small detector with random weights and its real processor; give both."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    stages = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}
    if kind == "detr":
        backbone = transformers.ResNetConfig(**stages, layer_type="basic", out_features=["stage4"])
        config = transformers.DetrConfig(
            use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone,
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
            encoder_attention_heads=4, decoder_attention_heads=4, num_queries=15, num_labels=7,
        )  # fmt: skip
        net, processor = (
            transformers.DetrForObjectDetection(config),
            transformers.DetrImageProcessor(size={"shortest_edge": 200, "longest_edge": 333}),
        )
    elif kind == "rt-detr":
        backbone = transformers.RTDetrResNetConfig(
            **stages, layer_type="basic", out_features=["stage2", "stage3", "stage4"]
        )
        config = transformers.RTDetrConfig(
            backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[32, 48, 64], d_model=32,
            encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_attention_heads=4, decoder_attention_heads=4,
            decoder_in_channels=[32, 32, 32], num_queries=20, decoder_layers=2, num_labels=7,
        )  # fmt: skip
        net, processor = (
            transformers.RTDetrForObjectDetection(config),
            transformers.RTDetrImageProcessor(size={"height": 160, "width": 160}),
        )
    else:
        config = transformers.YolosConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
            image_size=[128, 192], patch_size=16, num_detection_tokens=10, num_labels=7,
            use_mid_position_embeddings=True,
        )  # fmt: skip
        net, processor = (
            transformers.YolosForObjectDetection(config),
            transformers.YolosImageProcessor(size={"shortest_edge": 128, "longest_edge": 192}),
        )
    for name, weight in net.named_parameters():
        if weight.ndim > 1 and ("class" in name or name.endswith("detection_tokens")):
            nn.init.normal_(weight, std=0.5)
    net.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return net, processor


@pytest.mark.parametrize("kind", ["detr", "rt-detr", "yolos"])
def test_detections_of_transformers_are_its_own(kind: str, tmp_path: Path) -> None:
    net, processor = hugging_face_detector(kind, tmp_path)
    pictures = coco(3)
    wanted = []
    with torch.no_grad():
        for picture in pictures:
            outputs = net(**{k: v for k, v in processor(images=picture, return_tensors="pt").items()
                             if k == "pixel_values" or kind == "detr"})  # fmt: skip
            (found,) = processor.post_process_object_detection(
                outputs, threshold=0.0, target_sizes=[picture.size[::-1]]
            )
            wanted.append((found["boxes"], found["scores"], found["labels"]))
    least = float(torch.cat([scores for _, scores, _ in wanted]).quantile(0.5)) - 1e-6
    made = Config(
        model=ModelConfig(name=str(tmp_path)), method=MethodConfig(min_score=least, max_detections=4)
    )
    rows = explained(made, pictures)
    assert check_same(rows, wanted, least, 4) >= 6
    alive = [row for row in rows if row["heat_status"] == "ok"]
    assert len(alive) >= len(rows) / 2
    assert len({json.dumps(row["heatmap"]) for row in alive}) == len(alive)  # each detection has its own
