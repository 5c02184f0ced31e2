"""Own code: a small RetinaNet for squares and discs."""

from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator


class Pyramid(nn.Module):
    """Two levels, of stride 4 and 8: anchors of four cells, as RetinaNet has them."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(self.half(3, 16), self.half(16, 32))
        self.last = self.half(32, 32)

    @staticmethod
    def half(have: int, want: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(have, want, 3, 2, 1), nn.ReLU(), nn.Conv2d(want, want, 3, 1, 1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.body(x)
        return {"0": fine, "1": self.last(fine)}


def shape_detector(num_classes: int = 3) -> RetinaNet:
    """Class 1: bright squares, class 2: dark discs."""
    anchors = AnchorGenerator(((16, 22), (30, 42)), ((1.0,), (1.0,)))
    net = RetinaNet(
        Pyramid(), num_classes, min_size=128, max_size=128, anchor_generator=anchors, image_mean=[0.5] * 3,
        image_std=[0.25] * 3, score_thresh=0.05,
    )  # fmt: skip
    for head in (net.head.classification_head, net.head.regression_head):
        for layer in head.conv.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(
                    layer.weight
                )  # torchvision's start is for large heads: it learns slowly
    return net
