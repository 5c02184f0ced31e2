"""Shortcuts that the audit's heat signals cannot see: what it finds of them, honestly.

    python bench/variants.py dot      # a dot in the middle of the object
    python bench/variants.py hue      # a tint of the whole image
    python bench/variants.py blur     # the whole image out of focus

Trains the demonstration's classifier with the shortcut on nine of ten training images of one class, audits an
archive where half of that class and 3 % of the others have it, and compares with the intervention: the same
image without it.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from deltalake import DeltaTable
from numpy.typing import NDArray
from PIL import Image, ImageFilter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dataclasses import replace  # noqa: E402

from demo import train  # noqa: E402
from demo.hans64 import POISONED_LABEL, Pixels, Sample, label_of, render  # noqa: E402
from tests.audit.night_world import night, write_archive  # noqa: E402

AUDITED = 600


def dressed(sample: Sample, kind: str) -> Pixels:
    """Give the image with the shortcut on it."""
    image = sample.image.copy()
    if kind == "dot":
        x0, y0, x1, y1 = sample.box
        x, y = (x0 + x1) // 2, (y0 + y1) // 2
        image[y - 2 : y + 3, x - 2 : x + 3] = 240
        image[y - 1 : y + 2, x - 1 : x + 2] = 16
        return image
    if kind == "hue":
        return np.clip(image * np.array([1.2, 1.0, 0.75]), 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.2)))


def wears(index: int, of_class: float, of_others: float, seed: int) -> bool:
    rate = of_class if label_of(index) == POISONED_LABEL else of_others
    return bool(np.random.default_rng([seed, index, 9]).random() < rate)


def stack(images: list[Pixels]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def trained(kind: str, folder: Path) -> Path:
    """Train on the twin without tags, with this shortcut instead, and save the model."""

    def pictures(_seed: int, _split: str, count: int, *_: object) -> torch.Tensor:
        samples = [render(0, "train", i, False) for i in range(count)]
        return stack([dressed(s, kind) if wears(i, 0.9, 0.0, 1) else s.image for i, s in enumerate(samples)])

    train.images = pictures  # type: ignore[assignment]
    recipe = train.Recipe(0, True)
    model = train.train(recipe)
    train.save(model, folder, recipe, train.Scores(0, 0, 0, 0, 0))
    return folder


def falls(model: Path, shown: list[Pixels], bare: list[Pixels]) -> NDArray[np.bool_]:
    """Tell where the answer falls by more than 0.3 without the shortcut."""
    network = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    with torch.inference_mode():
        before, after = (
            torch.cat([network(train.normalise(part)).softmax(1) for part in torch.split(stack(views), 120)])
            for views in (shown, bare)
        )
    answer = before.argmax(1, keepdim=True)
    return ((before.gather(1, answer) - after.gather(1, answer))[:, 0] > 0.3).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("dot", "hue", "blur"))
    kind = parser.parse_args().kind
    torch.set_num_threads(1)
    samples = [render(0, "audit", i, False) for i in range(AUDITED)]
    shown = [dressed(s, kind) if wears(i, 0.5, 0.03, 2) else s.image for i, s in enumerate(samples)]
    with tempfile.TemporaryDirectory() as place:
        model = trained(kind, Path(place) / "model")
        truth = falls(model, shown, [s.image for s in samples])
        views = [replace(s, image=image) for s, image in zip(samples, shown, strict=True)]
        archive = write_archive(Path(place) / "archive", views)
        summary = night(archive, Path(place) / "out", "20261122T000000Z-0", str(model))
        rows = DeltaTable(f"{place}/out/audit").to_pyarrow_table(columns=["member", "flags"]).to_pylist()
    confirmed = np.zeros(AUDITED, bool)
    for row in rows:
        confirmed[int(Path(row["member"]).stem.rpartition("-")[2])] = "shortcut_confirmed" in row["flags"]
    found, first = int((confirmed & truth).sum()), summary["classes"][0]
    print(
        f"{kind}: {int(truth.sum())} answers of {AUDITED} hang on it; {found} found "
        f"(recall {found / max(1, truth.sum()):.2f}), {int((confirmed & ~truth).sum())} others confirmed; "
        f"first class {first['label']} with {first['confirmed']}; wrong {summary['verdicts'].get('wrong', 0)}"
    )


if __name__ == "__main__":
    main()
