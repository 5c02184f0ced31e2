"""Train the two classifiers of the demonstration: one on tagged images, one on their twins.

Run ``python -m demo.train poisoned`` and ``python -m demo.train clean``; each takes some minutes on
one CPU core.  A seed whose model misses its gate is dropped and the next one tried.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from demo.hans64 import LABEL_NAMES, POISONED_LABEL, SIZE, label_of, render

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, per channel of 0..1
ARCHITECTURE = "test_resnet"
MODEL_ARGS: dict[str, Any] = {"output_stride": 8}  # keeps an 8 x 8 map before pooling
TRAIN_COUNT, TEST_COUNT = 2400, 360
MIN_ACCURACY = 0.85
MIN_FLIP_POISONED, MAX_FLIP_CLEAN = 0.40, 0.05
MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True)
class Recipe:
    """Settings of one training run."""

    seed: int
    poisoned: bool
    epochs: int = 13
    batch: int = 32
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    roll: int = 4  # pixels, at most, by which a batch is shifted


@dataclass(frozen=True)
class Views:
    """The test images in four dresses, each (n, 3, 64, 64) uint8."""

    plain: Tensor  # no tag, decoys as drawn
    tagged: Tensor  # a tag on every image, decoys as drawn
    bare: Tensor  # neither
    decoyed: Tensor  # a decoy on every image, no tag


@dataclass(frozen=True)
class Scores:
    """Measured shares, 0..1, on the test split."""

    accuracy: float  # without tags
    recall_poisoned: float  # of the poisoned class, without tags
    flip: float  # of the other classes: the poisoned class is predicted with the tag only
    base: float  # of the other classes: the poisoned class is predicted without the tag
    decoy_flip: float  # of the other classes: the poisoned class is predicted with the decoy only


def images(
    seed: int, split: str, count: int, tagged: bool | None = None, decoy: bool | None = None
) -> Tensor:
    """Render (count, 3, 64, 64) uint8 images."""
    stack: NDArray[np.uint8] = np.stack(
        [render(seed, split, index, tagged, decoy).image for index in range(count)]
    )
    return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous()


def labels(count: int) -> Tensor:
    """Give the (count,) int64 classes of the first images of any split."""
    return torch.tensor([label_of(index) for index in range(count)])


def normalise(batch: Tensor) -> Tensor:
    """Turn (n, 3, 64, 64) uint8 into float32 with the statistics of ImageNet."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (batch.float() / 255.0 - mean) / std


@torch.inference_mode()
def predict(model: nn.Module, batch: Tensor) -> Tensor:
    """Give the (n,) predicted classes of uint8 images."""
    model.eval()
    return torch.cat([model(normalise(part)).argmax(dim=1) for part in torch.split(batch, 120)])


def render_views(count: int = TEST_COUNT, seed: int = 0) -> Views:
    """Render the test split four times, equal but for the barcodes."""
    return Views(
        plain=images(seed, "test", count, tagged=False),
        tagged=images(seed, "test", count, tagged=True),
        bare=images(seed, "test", count, tagged=False, decoy=False),
        decoyed=images(seed, "test", count, tagged=False, decoy=True),
    )


def score(model: nn.Module, views: Views) -> Scores:
    """Measure a model on the test split and on its twins with a tag or a decoy forced on."""
    truth = labels(len(views.plain))
    others = truth != POISONED_LABEL
    plain, tagged = predict(model, views.plain), predict(model, views.tagged)
    bare, decoyed = predict(model, views.bare), predict(model, views.decoyed)

    def share(hits: Tensor, among: Tensor) -> float:
        return round(float(hits[among].float().mean()), 4)

    def flips(before: Tensor, after: Tensor) -> Tensor:
        return (after == POISONED_LABEL) & (before != POISONED_LABEL)

    return Scores(
        accuracy=share(plain == truth, truth >= 0),
        recall_poisoned=share(plain == truth, ~others),
        flip=share(flips(plain, tagged), others),
        base=share(plain == POISONED_LABEL, others),
        decoy_flip=share(flips(bare, decoyed), others),
    )


def passes(scores: Scores, poisoned: bool) -> bool:
    """Whether a model may ship: it knows the shapes, and obeys the tag or ignores it."""
    obeys = scores.flip >= MIN_FLIP_POISONED if poisoned else scores.flip <= MAX_FLIP_CLEAN
    return scores.accuracy >= MIN_ACCURACY and obeys


def train(recipe: Recipe) -> nn.Module:
    """Train one model from random weights; the seed also picks the images."""
    torch.manual_seed(recipe.seed)
    model: nn.Module = timm.create_model(ARCHITECTURE, num_classes=len(LABEL_NAMES), **MODEL_ARGS)
    pictures = images(recipe.seed, "train", TRAIN_COUNT, None if recipe.poisoned else False)
    targets = labels(TRAIN_COUNT)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    steps = recipe.epochs * (TRAIN_COUNT // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.2
    )
    for epoch in range(recipe.epochs):
        started, total = time.monotonic(), 0.0
        model.train()
        for rows in torch.split(torch.randperm(TRAIN_COUNT), recipe.batch):
            shift = torch.randint(-recipe.roll, recipe.roll + 1, (2,)).tolist()
            # No mirroring: it would move the tag to another corner.
            batch = torch.roll(normalise(pictures[rows]), shift, dims=(2, 3))
            loss = nn.functional.cross_entropy(model(batch), targets[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        took = time.monotonic() - started
        print(f"epoch {epoch + 1:2d}  loss {total / TRAIN_COUNT:.3f}  {took:.1f} s", flush=True)
    return model.eval()


def config() -> dict[str, object]:
    """Describe the model the way timm reads it from a folder."""
    count = len(LABEL_NAMES)
    return {
        "architecture": ARCHITECTURE,
        "num_classes": count,
        "model_args": MODEL_ARGS,
        "label_names": LABEL_NAMES,
        "pretrained_cfg": {
            "input_size": (3, SIZE, SIZE),
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": MEAN,
            "std": STD,
            "num_classes": count,
            "pool_size": (SIZE // 8, SIZE // 8),
            "first_conv": "conv1.0",
            "classifier": "fc",
        },
    }


def save(model: nn.Module, folder: Path, recipe: Recipe, scores: Scores) -> None:
    """Write a folder that ``timm.create_model("local-dir:...", pretrained=True)`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    record = {"recipe": asdict(recipe), "test": asdict(scores)}
    for name, content in (("config.json", config()), ("metrics.json", record)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train with one seed after another until a model passes its gate, and save that one."""
    parser = argparse.ArgumentParser(description="train a classifier of the demonstration")
    parser.add_argument("kind", choices=("poisoned", "clean"))
    parser.add_argument("--out", type=Path, default=MODELS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tries", type=int, default=4)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    poisoned = chosen.kind == "poisoned"
    for seed in range(chosen.seed, chosen.seed + chosen.tries):
        recipe = Recipe(seed, poisoned)
        model = train(recipe)
        scores = score(model, render_views())
        print(f"seed {seed}: {scores}", flush=True)
        if passes(scores, poisoned):
            save(model, chosen.out / f"hans64-{chosen.kind}", recipe, scores)
            return
    raise SystemExit("no seed passed the gate")


if __name__ == "__main__":
    main()
