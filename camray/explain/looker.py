"""Looks again at images that were explained: one forward of the image with something changed on purpose.

Flows in: views and maps of explained images, held in memory. Flows out: by image and intervention the effect
on the answer, and pictures of the pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camray.config import Explainer
from camray.explain.explainer import BatchExplainer
from camray.explain.interventions import Typical, changed
from camray.models.folding import Pairs
from camray.models.outputs import class_scores

HOSTS = 32  # images of which one takes what is carried
REFERENCE = 256  # images that say what is typical of the archive
PICTURE = 128  # pixels of the longer side of a picture, at most
Views = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Effect:
    """What became of an answer. Of `carry` the drop, -1..1, is what the host gained."""

    drop: float
    flip: bool  # another class won; of `carry`: this answer won
    to_class: int


class Looker:
    """Holds a model and the images to look at: views (n, H, W, 3), maps (n, h, w), answers, confidences."""

    def __init__(
        self, explainer: Explainer, state: dict[str, Tensor], folded: Pairs, device: str, batch_size: int,
        threads: int,
    ) -> None:  # fmt: skip
        torch.set_num_threads(threads)
        self._core = BatchExplainer(explainer, state, device, batch_size, folded)
        self.forwards = 0
        self.marked: dict[int, NDArray[np.bool_]] = {}  # where a thing is (H, W), by position

    def take(
        self, views: Views, maps: Sequence[NDArray[Any]], answers: Sequence[int], sure: Sequence[float]
    ) -> None:
        """Take the images; what is typical, and the hosts, are the first of them."""
        self._views, self._maps, self._answers, self._sure = views, maps, answers, sure
        self._typical = Typical.of(self._pixels(range(min(REFERENCE, len(views)))))
        self._hosts = list(range(min(HOSTS, len(views))))
        self._host_scores = self._scores(self._pixels(self._hosts))

    def effects(self, name: str, positions: Sequence[int]) -> list[Effect]:
        """Look at the images at these positions with one intervention."""
        found: list[Effect] = []
        for start in range(0, len(positions), self._core.batch_size):
            batch = positions[start : start + self._core.batch_size]
            hosts = [self._host_of(i) for i in batch]
            scores = self._scores(self._changed(name, batch, hosts))
            for i, host, score in zip(batch, hosts, scores, strict=True):
                answer, won = self._answers[i], int(score.argmax())
                if name.startswith("carry"):
                    gain = float(score[answer] - self._host_scores[host][answer])
                    found.append(Effect(gain, won == answer, won))
                else:
                    found.append(Effect(self._sure[i] - float(score[answer]), won != answer, won))
        return found

    def pair(self, name: str, position: int) -> tuple[bytes, bytes]:
        """Draw an image as it is and as it was changed, as PNG; of `carry` the host after."""
        after = self._changed(name, [position], [self._host_of(position)])
        shown = (after[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        return picture(self._views[position]), picture(shown)

    def _host_of(self, position: int) -> int:
        """Choose an image of another answer, the same one every time."""
        others = [h for h in self._hosts if self._answers[h] != self._answers[position]] or self._hosts
        return others[position % len(others)]

    def _changed(self, name: str, batch: Sequence[int], hosts: Sequence[int]) -> Tensor:
        shown = [self.marked[i] if name == "thing" else self._maps[i] for i in batch]
        maps = torch.from_numpy(np.stack(shown)).to(self._core.device)
        return changed(name, self._pixels(batch), maps.float(), self._typical, self._pixels(hosts))

    def _pixels(self, positions: Sequence[int]) -> Tensor:
        views = torch.from_numpy(self._views[list(positions)]).to(self._core.device)
        return views.permute(0, 3, 1, 2).float() / 255

    def _scores(self, x: Tensor) -> Tensor:
        """Give the class scores (B, classes) of x in 0..1, through 8 bits like any image."""
        self.forwards += len(x)
        views = (x * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        parts = np.array_split(views, -(-len(views) // self._core.batch_size))
        logits = torch.cat([self._core.logits(self._core.model_input(list(part))) for part in parts])
        return class_scores(logits, self._core.explainer.activation).cpu()


def picture(view: Views) -> bytes:
    """Encode a view (H, W, 3) as PNG, at most 128 pixels a side."""
    scale = PICTURE / max(view.shape[:2])
    if scale < 1:
        size = (max(1, round(view.shape[1] * scale)), max(1, round(view.shape[0] * scale)))
        view = np.asarray(cv2.resize(view, size, interpolation=cv2.INTER_AREA), np.uint8)
    return bytes(cv2.imencode(".png", cv2.cvtColor(view, cv2.COLOR_RGB2BGR))[1])
