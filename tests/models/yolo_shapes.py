"""A YOLO of ultralytics trained on generated shapes, as small as its yaml allows: about two minutes."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.models.shapes import SIDE, scene


def batch_of(seeds: range) -> dict[str, Tensor]:
    """Give what ultralytics' loss takes: images, and boxes as shares of the image."""
    scenes = [scene(seed) for seed in seeds]
    boxes = torch.cat([boxes for _, boxes, _ in scenes])
    return {
        "img": torch.stack([torch.from_numpy(view) for view, _, _ in scenes]).permute(0, 3, 1, 2).float()
        / 255,
        "cls": torch.cat([kinds for _, _, kinds in scenes])[:, None].float() - 1,
        "bboxes": torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1) / SIDE,
        "batch_idx": torch.cat([torch.full((len(own),), float(i)) for i, (_, own, _) in enumerate(scenes)]),
    }


@cache
def trained(tasks: Any, steps: int = 250) -> Any:
    """Give the network after a short training; `tasks`: `ultralytics.nn.tasks`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = tasks.DetectionModel("yolov8n.yaml", nc=2, verbose=False).train()
    net.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, overlap_mask=True)
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps)
    for step in range(steps):
        losses, _ = net.loss(batch_of(range(1000 + step * 8, 1008 + step * 8)))
        optimiser.zero_grad()
        losses.sum().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimiser.step()
        schedule.step()
    torch.set_num_threads(threads)
    net.names = {0: "square", 1: "disc"}
    net.criterion = None
    return net.eval().requires_grad_(False)
