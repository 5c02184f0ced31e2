"""Pictures: normalising, resizing, colouring and blending against OpenCV and the peer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from camray.cam import blend, colour, explain, find_target_layer, finish, fuse, normalise, resize
from camray.errors import UsageError
from tests.cam.cam_zoo import build, images, relative
from tests.cam.tolerance import SAME, U32, near


def places(cells: int) -> float:
    """What OpenCV's resize may differ by on maps in [0, 1]: in either direction its float32 place is off by
    2 u times the number of cells, and a map rises by 1 a cell at most.
    """
    return 2 * 2 * cells * U32


@pytest.mark.usefixtures("double")
def test_normalise_by_hand() -> None:
    maps = torch.tensor([[[-1.0, 1.0], [3.0, 5.0]], [[-1.0, -2.0], [-3.0, -4.0]]])
    assert near(normalise(maps)[0], torch.tensor([[0.0, 0.2], [0.6, 1.0]]) * (5 / (5 + 1e-7)))
    assert float(normalise(maps)[1].abs().max()) == 0  # nothing speaks for the class: blank, not stretched
    assert near(normalise(maps, signed=True)[0, 0], torch.tensor([-1.0, 1.0]) / (5 + 1e-7))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("small", "large"), [((7, 7), (224, 224)), ((14, 10), (100, 64)), ((56, 56), (20, 31))]
)
def test_resize_is_opencv_linear(small: tuple[int, int], large: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    maps = torch.rand(2, 3, *small)
    found = resize(maps, large)
    for i in range(2):
        truth = cv2.resize(maps[i, 1].numpy(), large[::-1])
        assert float((found[i, 1] - torch.from_numpy(truth)).abs().max()) <= places(max(small))


def test_jet_is_opencv_jet_within_two_levels() -> None:
    cv2 = pytest.importorskip("cv2")
    ramp = torch.linspace(0, 1, 256)[None]
    truth = cv2.applyColorMap((ramp.numpy() * 255).round().astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    assert int((colour(ramp).int() - torch.from_numpy(truth.copy()).int()).abs().max()) <= 2


def test_blend_by_hand() -> None:
    image = torch.full((1, 1, 2, 3), 100, dtype=torch.uint8)
    maps = torch.tensor([[[0.0, 1.0]]])
    assert torch.equal(blend(image, maps, 0.0), image)
    mixed = blend(image, maps, 0.25, "grey")
    assert mixed[0, 0, 0].tolist() == [75, 75, 75]
    assert mixed[0, 0, 1].tolist() == [139, 139, 139]  # 75 + 255 / 4
    with pytest.raises(UsageError):
        blend(image.float(), maps)


def test_finished_and_fused_maps_equal_the_peer() -> None:
    """Maps of 4 x 4 and 2 x 2, scaled to [0, 1] before and after they are enlarged."""
    pgc = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is a development extra")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from tests.cam.peers import doubled

    with doubled():
        model, x = build("regnet", torch.float64).requires_grad_(True), images(64, 2)
        found = explain(model, x, ["s3", "s4"], "layercam", "class:3")
        for names in (["s4"], ["s3", "s4"]):
            cam = pgc.LayerCAM(model, [model.get_submodule(n) for n in names])
            truth = torch.from_numpy(cam(x, [ClassifierOutputTarget(3)] * 2))
            cam.activations_and_grads.release()
            maps = [found.maps["layercam", n][:, 0] for n in names]
            mine = finish(maps[0], (64, 64)) if len(maps) == 1 else fuse(maps, (64, 64))
            assert relative(mine, truth) <= 2 * places(4)


def test_augmentation_smoothing_equals_the_peer() -> None:
    pgc = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is a development extra")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from tests.cam.peers import doubled

    with doubled():
        model, x = build("regnet", torch.float64).requires_grad_(True), images(64, 2)
        cam = pgc.GradCAM(model, [model.s3])
        truth = torch.from_numpy(cam(x, [ClassifierOutputTarget(3)] * 2, aug_smooth=True))
        cam.activations_and_grads.release()
        layer = find_target_layer(model, (3, 64, 64), "s3")
        method = "gradcam(aug_smooth=True)"
        found = explain(model, x, layer, [method, "gradcam"], ["class:3", "top:2"])
        assert relative(found.maps[method, layer.name][:, 0], truth) <= 2 * places(4)
        # with "predicted" every view explains the class of the unaltered image
        top = explain(model, x, layer, method).maps[method, layer.name]
        assert relative(found.maps[method, layer.name][:, 1], top[:, 0]) < SAME
