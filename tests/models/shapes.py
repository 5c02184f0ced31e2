"""Generated scenes of bright squares and dark discs, and a small detector trained on them: a minute."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.models.shape_detector import shape_detector

SIDE = 128


def scene(seed: int, shapes: int | None = None) -> tuple[NDArray[np.uint8], Tensor, Tensor]:
    """Draw shapes that do not touch: the picture (128, 128, 3), boxes (N, 4), classes (N,)."""
    rng = np.random.default_rng(seed)
    picture = rng.normal(110, 12, (SIDE, SIDE, 3))
    boxes: list[tuple[int, int, int, int]] = []
    kinds = []
    for _ in range(50):
        if len(boxes) == (shapes or 1 + seed % 3):
            break
        size = int(rng.integers(16, 42))
        x, y = rng.integers(1, SIDE - size - 1, 2).tolist()
        if any(x < b[2] + 6 and b[0] < x + size + 6 and y < b[3] + 6 and b[1] < y + size + 6 for b in boxes):
            continue
        boxes.append((x, y, x + size, y + size))
        kinds.append(int(rng.integers(1, 3)))
        draw(picture, boxes[-1], kinds[-1], rng.uniform(*((170, 250), (0, 50))[kinds[-1] - 1], 3))
    view = picture.clip(0, 255).astype(np.uint8)
    return view, torch.tensor(boxes, dtype=torch.float32), torch.tensor(kinds)


def draw(
    picture: NDArray[np.float64], box: tuple[int, int, int, int], kind: int, colour: NDArray[np.float64]
) -> None:
    """Paint a square (1) or a disc (2)."""
    x0, y0, x1, y1 = box
    ys, xs = np.mgrid[y0:y1, x0:x1] + 0.5
    inside = np.hypot(xs - (x0 + x1) / 2, ys - (y0 + y1) / 2) <= (x1 - x0) / 2
    part = picture[y0:y1, x0:x1]
    part[inside if kind == 2 else np.ones_like(inside)] = colour


@cache
def trained(steps: int = 300) -> dict[str, Tensor]:
    """Give the weights after a short training."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = shape_detector().train()
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps)
    for step in range(steps):
        scenes = [scene(1000 + step * 8 + i) for i in range(8)]
        images = [torch.from_numpy(view).permute(2, 0, 1).float() / 255 for view, _, _ in scenes]
        losses = net(images, [{"boxes": boxes, "labels": kinds} for _, boxes, kinds in scenes])
        loss = sum(losses.values())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    torch.set_num_threads(threads)
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}
