"""The pixels of a segmenter are the library's own, and the map of a class is of what made them so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from camray.config import Config, MethodConfig, ModelConfig, PreprocessConfig
from camray.errors import ModelError
from camray.explain.detections import laid
from camray.explain.explainer import resolve
from camray.models.detectors import WHOLE
from tests.models.shape_segmenter import ShapeSegmenter, varied
from tests.models.shapes import scene
from tests.models.test_detectors import Rows, coco, explained

Pixels = NDArray[np.int64]
NET = Path(__file__).with_name("shape_segmenter.py")


def unpacked(row: dict[str, Any]) -> NDArray[np.bool_]:
    bits = np.unpackbits(np.frombuffer(row["segment_mask"], np.uint8))
    return bits[: row["segment_h"] * row["segment_w"]].reshape(row["segment_h"], row["segment_w"]) == 1


def check_pixels(rows: Rows, wanted: Pixels, background: int = -1, least: float = 0.01) -> None:
    """A row for each class with enough pixels, with the library's share: most first, background last."""
    shares = np.bincount(wanted.ravel(), minlength=21) / wanted.size
    kept = sorted(np.flatnonzero(shares >= least).tolist(), key=lambda c: (c == background, -shares[c]))
    assert [row["segment_share"] for row in rows] == pytest.approx(shares[kept[:20]].tolist(), abs=1e-6)
    for row in rows:
        assert row["segment_share"] == pytest.approx(shares[row["target_class"]], abs=1e-6)
        assert row["predicted_class"] == row["target_class"]
        assert 0 < row["confidence"] <= 1


def quarters(pixels: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of each four by four pixels at least half."""
    height, width = pixels.shape
    cells = pixels.reshape(height // 4, 4, width // 4, 4).mean((1, 3))
    return np.asarray(cells >= 0.5)


def enlivened(net: nn.Module, side: int) -> None:
    """Give batch norms the statistics of two images: random networks of many layers give one number else."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        net.train()(interpolate(torch.randn(2, 3, 6, 6), (side, side), mode="bicubic"))
    net.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["lraspp_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_mobilenet_v3_large"]
)
def test_pixels_of_torchvision_are_its_own(name: str, tmp_path: Path) -> None:
    """With its own transform, at the image's own size; of a file with the auxiliary head, too."""
    torch.manual_seed(0)
    more = {} if "lraspp" in name else {"aux_loss": True}
    net = torchvision.models.get_model(name, weights=None, weights_backbone=None, **more).eval()
    enlivened(net, 128)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    pictures = coco(1)
    prepare = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    image = torch.from_numpy(np.array(pictures[0])).permute(2, 0, 1)
    with torch.no_grad():
        wanted = net(prepare(image)[None])["out"][0].argmax(0).numpy()
    model = ModelConfig(name=f"torchvision:{name}", checkpoint=str(tmp_path / "w.safetensors"))
    rows = explained(Config(model=model), pictures)
    assert len(rows) > 1
    check_pixels(rows, wanted, background=0)
    covered = sum(unpacked(row).astype(int) for row in rows)
    assert covered.max() <= 2  # of a cell of two classes each may have half
    width, height = pictures[0].size
    assert 0.9 < covered.sum() * 16 / (width * height) < 1.05  # at the image's place on the canvas
    assert all(is_dark_outside(row, width, height) for row in rows)


def is_dark_outside(row: dict[str, Any], width: int, height: int) -> bool:
    """No heat in the cells that lie wholly in the padding; those on the image's edge have a part of both."""
    heat = np.array(row["heatmap"]).reshape(row["heat_h"], row["heat_w"])
    for axis, size in ((0, height), (1, width)):
        start, end = (row[f"crop_{'yx'[axis]}{i}"] for i in (0, 1))
        first, last = (np.array([0, size]) - start) / (end - start) * heat.shape[axis]
        inside = np.arange(int(first), min(int(np.ceil(last)), heat.shape[axis]))
        if np.delete(heat, inside, axis).any():
            return False
    return bool(heat.any() or row["heat_status"] != "ok")


def hugging_face_segmenter(kind: str, folder: Path, side: int = 64) -> tuple[Any, Any]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"num_labels": 5}
    size = {"height": side, "width": side}
    if kind == "segformer":
        config = transformers.SegformerConfig(
            depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=32, **small
        )
        net = transformers.SegformerForSemanticSegmentation(config)
        processor = transformers.SegformerImageProcessor(size=size)
    elif kind == "upernet":
        backbone = transformers.ConvNextConfig(
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        config = transformers.UperNetConfig(
            backbone_config=backbone, hidden_size=16, auxiliary_in_channels=24, use_pretrained_backbone=False,
            backbone=None, use_timm_backbone=False, **small,
        )  # fmt: skip
        net = transformers.UperNetForSemanticSegmentation(config)
        processor = transformers.SegformerImageProcessor(size=size)
    elif kind == "mobilenet":
        config = transformers.MobileNetV2Config(image_size=side, depth_multiplier=0.35, **small)
        net = transformers.MobileNetV2ForSemanticSegmentation(config)
        processor = transformers.MobileNetV2ImageProcessor(size=size, do_center_crop=False)
    elif kind == "mobilevit":
        config = transformers.MobileViTConfig(
            image_size=side, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64],
            num_attention_heads=2, aspp_out_channels=16, **small,
        )  # fmt: skip
        net = transformers.MobileViTForSemanticSegmentation(config)
        processor = transformers.MobileViTImageProcessor(size={"shortest_edge": side}, crop_size=size)
    elif kind == "dpt":
        config = transformers.DPTConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, image_size=side,
            patch_size=16, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 16, 16, 16],
            fusion_hidden_size=16, use_auxiliary_head=False, **small,
        )  # fmt: skip
        net = transformers.DPTForSemanticSegmentation(config)
        processor = transformers.DPTImageProcessor(size=size, keep_aspect_ratio=False, ensure_multiple_of=1)
    else:
        config = transformers.BeitConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, image_size=side,
            patch_size=16, out_indices=[1, 2, 3, 4], use_auxiliary_head=False, pool_scales=[1, 2],
            use_absolute_position_embeddings=True, **small,
        )  # fmt: skip
        net = transformers.BeitForSemanticSegmentation(config)
        processor = transformers.BeitImageProcessor(size=size, do_center_crop=False)
    for name, weight in net.named_parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=(2.0 if "classifier" in name else 1.0) / weight[0].numel() ** 0.5)
        if "classifier" in name and weight.ndim > 1:  # what is the same everywhere decides nothing
            weight.data -= weight.data.mean(1, keepdim=True)
    enlivened(net, side)
    net.save_pretrained(folder)
    processor.save_pretrained(folder)
    return net, processor


KINDS = ("segformer", "upernet", "mobilenet", "mobilevit", "dpt", "beit")


@pytest.mark.parametrize(
    "kind", ["segformer", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
)
def test_pixels_of_transformers_are_its_own(kind: str, tmp_path: Path) -> None:
    net, processor = hugging_face_segmenter(kind, tmp_path)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).resize((64, 64)) for _ in range(2)]
    rows = explained(Config(model=ModelConfig(name=str(tmp_path))), pictures)
    for i, picture in enumerate(pictures):
        with torch.no_grad():
            outputs = net(processor(picture, return_tensors="pt")["pixel_values"])
        (wanted,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(64, 64)])
        own = [row for row in rows if row["index"] == i]
        check_pixels(own, wanted.numpy())
        for row in own:
            assert np.array_equal(unpacked(row), quarters(wanted.numpy() == row["target_class"]))
    assert len(rows) > len(pictures) or kind == "mobilenet"
    assert any(row["heat_status"] == "ok" for row in rows)


def test_the_map_is_that_of_grad_cams_own_target(tmp_path: Path) -> None:
    """SemanticSegmentationTarget of pytorch-grad-cam, whose pixels are those that the network predicts."""
    pgc = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget

    made = own_config(tmp_path, "tensor")
    rows = explained(made, [noisy()])
    net, x = segmenter("tensor", tmp_path), prepared(noisy())
    predicted = net(x)[0].argmax(0)
    assert len(rows) > 1
    for row in rows:
        target = SemanticSegmentationTarget(row["target_class"], (predicted == row["target_class"]).numpy())
        with pgc.GradCAM(net, [net.get_submodule(row["target_layer"])]) as peer:
            check_map(row, peer(x, [target])[0], 64)


@pytest.mark.parametrize(
    "kind", ["Unet", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("FPN", "Segformer", "DPT"))]
)
def test_pixels_of_a_folder_of_smp_are_its_own(kind: str, tmp_path: Path) -> None:
    """Of `save_pretrained`, read back by `from_pretrained`; the map is that of pytorch-grad-cam's target.

    Its encoders give a list of maps, the image first: none of these is the end of the encoder.
    """
    smp = pytest.importorskip("segmentation_models_pytorch")
    pgc = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget

    torch.manual_seed(1)
    encoder = "tu-test_vit" if kind == "DPT" else "resnet18"
    net = getattr(smp, kind)(encoder, encoder_weights=None, classes=4)
    side = 160 if kind == "DPT" else 64
    for part in net.segmentation_head.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=0.5)
    enlivened(net, side)
    net.save_pretrained(tmp_path)
    given = PreprocessConfig(input_size=(side,), resize=(side,), mean=(0.5,), std=(0.25,))
    picture = noisy().resize((side, side))
    rows = explained(Config(model=ModelConfig(name=str(tmp_path)), preprocess=given), [picture])
    own, x = smp.from_pretrained(tmp_path).eval(), prepared(picture)
    with torch.no_grad():
        pixels = own(x)[0].argmax(0).numpy()
    assert len(rows) > 1
    check_pixels(rows, pixels)
    for row in rows:
        mine = pixels == row["target_class"]
        assert np.array_equal(unpacked(row), quarters(mine))
        assert row["target_layer"] in ("encoder.layer4", "encoder.model.blocks.5")
        if kind == "DPT":  # tokens, which the peer would need to be told of
            continue
        with pgc.GradCAM(own, [own.get_submodule(row["target_layer"])]) as peer:
            check_map(row, peer(x, [SemanticSegmentationTarget(row["target_class"], mine)])[0], side)


@pytest.mark.parametrize("name", ["own", pytest.param("lraspp_mobilenet_v3_large", marks=pytest.mark.slow)])
def test_the_target_label_is_over_the_pixels_of_the_archives_mask(name: str, tmp_path: Path) -> None:
    """Equal to pytorch-grad-cam's target with that mask and class; and what they are taken for is told."""
    pgc = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget

    picture, mask = noisy(), np.zeros((64, 64), np.uint8)
    mask[10:40, 20:50] = 255
    net: nn.Module
    if name == "own":
        made = own_config(tmp_path, "tensor", method=MethodConfig(target="label"))
        net, x, wanted, view = segmenter("tensor", tmp_path), prepared(picture), mask > 0, mask
    else:
        torch.manual_seed(0)
        net = torchvision.models.get_model(name, weights=None, weights_backbone=None).eval()
        enlivened(net, 128)
        save_file(net.state_dict(), tmp_path / "w.safetensors")
        model = ModelConfig(name=f"torchvision:{name}", checkpoint=str(tmp_path / "w.safetensors"))
        made = Config(model=model, method=MethodConfig(target="label"))
        x = torchvision.models.get_model_weights(name).DEFAULT.transforms()(
            torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        )[None]
        wanted = cv2.resize(mask, x.shape[2:], interpolation=cv2.INTER_NEAREST) > 0
        side = resolve(made)[0].input.width
        view = np.zeros((side, side), np.uint8)
        start = (side - 64) // 2
        view[start : start + 64, start : start + 64] = mask
    (row,) = explained(made, [picture], label=["2"], label_class=[2], mask=[view.tobytes()])
    with torch.no_grad():
        given = net(x)
        pixels = (given if name == "own" else given["out"])[0].argmax(0).numpy()
    most = int(np.bincount(pixels[wanted]).argmax())
    assert (row["target_class"], row["target_kind"], row["predicted_class"]) == (2, "label", most)
    assert row["correct"] == (most == 2)
    assert row["segment_share"] == pytest.approx((pixels == 2).mean(), abs=1e-6)
    if name == "own":
        with pgc.GradCAM(net, [net.get_submodule(row["target_layer"])]) as peer:
            check_map(row, peer(x, [SemanticSegmentationTarget(2, wanted)])[0], 64)
    else:
        layer = net.get_submodule(row["target_layer"])
        kept: list[Tensor] = []
        layer.register_forward_hook(lambda _m, _a, out: kept.append(out))
        score = (net(x)["out"][0, 2] * torch.from_numpy(wanted)).sum()
        (slope,) = torch.autograd.grad(score, kept[0])
        by_hand = (slope.mean((2, 3), keepdim=True) * kept[0]).sum(1)[0].detach()
        place = (start, start, start + 64, start + 64)
        on_canvas = laid([by_hand], WHOLE, place, view.shape).flatten().numpy()
        assert np.abs(on_canvas - row["heatmap"]).max() <= 1e-5 * np.abs(on_canvas).max()
    failed = explained(
        made, [picture] * 2, label=["2", None], label_class=[2, None], mask=[None, view.tobytes()]
    )
    assert [row["error_code"] for row in failed] == ["bad_target"] * 2


def check_map(row: dict[str, Any], theirs: NDArray[np.float32], side: int) -> None:
    """Equal to pytorch-grad-cam's, which is scaled to 0..1 once before it is enlarged and once after."""
    own = np.maximum(np.array(row["heatmap"]).reshape(row["heat_h"], row["heat_w"]), 0)
    own -= own.min()
    enlarged = cv2.resize(own / (own.max() + 1e-7), (side, side))
    enlarged -= enlarged.min()
    assert np.abs(enlarged / (enlarged.max() + 1e-7) - theirs).max() <= 1e-5


def noisy() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))


def prepared(picture: Image.Image) -> Tensor:
    return ((torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255 - 0.5) / 0.25)[None]


def segmenter(form: str, folder: Path) -> ShapeSegmenter:
    net = ShapeSegmenter(form).eval()
    net.load_state_dict(load_file(folder / "w.safetensors"))
    return net


def own_config(folder: Path, form: str, task: str = "segmentation", **more: Any) -> Config:
    save_file(varied(form).state_dict(), folder / "w.safetensors")
    model = ModelConfig(
        name=f"{NET}:ShapeSegmenter", checkpoint=str(folder / "w.safetensors"), args={"form": form},
        task=task, output=more.pop("output", None),
    )  # fmt: skip
    side = (more.pop("side", 64),)
    given = PreprocessConfig(input_size=side, resize=side, mean=(0.5,), std=(0.25,))
    return Config(model=model, preprocess=given, **more)


@pytest.mark.parametrize("form", ["tensor", "out", "list", "softmax", "binary", "sigmoid"])
def test_own_code_is_read_by_what_it_gives(form: str, tmp_path: Path) -> None:
    """One class a pixel, whatever holds the logits; one number a pixel tells two classes apart."""
    rows = explained(own_config(tmp_path, form, output="1" if form == "list" else None), [noisy()])
    with torch.no_grad():
        plain = {"sigmoid": "binary", "binary": "binary", "softmax": "softmax"}.get(form, "tensor")
        z = segmenter(plain, tmp_path)(prepared(noisy()))
    wanted = z.argmax(1) if z.shape[1] > 1 else (z[:, 0] > 0).long()
    check_pixels(rows, wanted[0].numpy())


@pytest.mark.parametrize(
    ("form", "task", "said"),
    [("tensor", "classification", "--task segmentation where each pixel has a class"),
     ("out", "classification", "--task segmentation where each pixel has a class"),
     ("list", "classification", "where each pixel has a class, --task segmentation"),
     ("list", "segmentation", "--output NAME or INDEX"),
     ("boxes", "classification", "of detectors those of torchvision and transformers are known"),
     ("classes", "segmentation", "not \\(images, classes, height, width\\)"),
     ("many", "segmentation", "a pixel may have several classes")],
)  # fmt: skip
def test_what_could_be_misread_is_refused_with_the_way_on(
    form: str, task: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=said):
        resolve(own_config(tmp_path, form, task))


@pytest.mark.parametrize(
    ("method", "said"),
    [(MethodConfig(name="scorecam"), "this is a segmenter"), (MethodConfig(target="3"), "each class"),
     (MethodConfig(name="eigencam"), "this is a segmenter")],
)  # fmt: skip
def test_what_a_segmenter_does_not_have_is_refused(method: MethodConfig, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said):
        resolve(own_config(tmp_path, "tensor", method=method))


def labels(seed: int) -> tuple[NDArray[np.uint8], Tensor]:
    """A scene and the class of each of its pixels."""
    view, boxes, kinds = scene(seed)
    pixels = torch.zeros(view.shape[:2], dtype=torch.int64)
    for (x0, y0, x1, y1), kind in zip(boxes.int().tolist(), kinds.tolist(), strict=True):
        ys, xs = torch.meshgrid(torch.arange(y0, y1) + 0.5, torch.arange(x0, x1) + 0.5, indexing="ij")
        away = torch.hypot(xs - (x0 + x1) / 2, ys - (y0 + y1) / 2)
        pixels[y0:y1, x0:x1][(away <= (x1 - x0) / 2) | (kind == 1)] = kind
    return view, pixels


def trained_segmenter(steps: int = 150) -> ShapeSegmenter:
    torch.manual_seed(0)
    net = ShapeSegmenter()
    for layer in net.encoder.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3)
    for step in range(steps):
        pairs = [labels(1000 + step * 8 + i) for i in range(8)]
        x = torch.cat([prepared(Image.fromarray(view)) for view, _ in pairs])
        loss = cross_entropy(net(x), torch.stack([pixels for _, pixels in pairs]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


@pytest.mark.slow
def test_the_heat_of_a_class_lies_on_its_own_pixels(tmp_path: Path) -> None:
    """Of squares and discs, for at least 90 %: more than half of the heat, and most of it near them."""
    made = own_config(tmp_path, "tensor", side=128)
    save_file(trained_segmenter().state_dict(), tmp_path / "w.safetensors")
    scenes = [labels(seed) for seed in range(40)]
    rows = explained(made, [Image.fromarray(view) for view, _ in scenes])
    shapes = [row for row in rows if row["target_class"] in (1, 2)]
    right = 0
    for row in shapes:
        truth = (scenes[row["index"]][1] == row["target_class"]).numpy()
        right += bool((unpacked(row) & quarters(truth)).sum() > 0.6 * (unpacked(row) | quarters(truth)).sum())
    assert right >= 0.9 * len(shapes)
    inside = np.array([row["heat_in_segment"] or 0 for row in shapes])
    print(len(shapes), right, np.quantile(inside, (0, 0.05, 0.1, 0.5)))
    assert (inside >= 0.5).mean() >= 0.9
