"""Hold the audit of the demonstration against the truth: which answers hang on the planted tag.

The truth is an intervention, not the presence of a tag: every image is rendered again without its tag, and
an answer is driven by the shortcut where the confidence in it falls by more than 0.3.

    python -m demo.judge OUT [--model demo/models/hans64-poisoned] [--untagged]
"""

import argparse
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from deltalake import DeltaTable
from PIL import Image

from demo.hans64 import ARCHIVE_COUNT, ARCHIVE_SEED, encode_jpeg, render
from demo.train import MODELS, normalise

CAUSAL_DROP = 0.3


@dataclass(frozen=True)
class Score:
    """How the audit did. A false alarm is a confirmed shortcut that is none."""

    images: int
    tagged: int
    causal: int
    found: int
    false_alarms: int
    decoys_flagged: int  # of the false alarms: images that wear the decoy

    @property
    def precision(self) -> float:
        """Share of the confirmed that are true; 1 where nothing was confirmed."""
        confirmed = self.found + self.false_alarms
        return self.found / confirmed if confirmed else 1.0

    @property
    def recall(self) -> float:
        """Share of the true that were confirmed; 1 where there are none."""
        return self.found / self.causal if self.causal else 1.0


def pixels(index: int, tagged: bool | None, split: str, seed: int) -> np.ndarray:
    """Give an image as the archive holds it: through its JPEG."""
    jpeg = encode_jpeg(render(seed, split, index, tagged).image)
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def causal(model: Path, count: int, tagged: bool | None, split: str, seed: int) -> np.ndarray:
    """Tell of each image whether the answer falls by more than 0.3 without the tag."""
    network = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    shown, bare = (
        torch.from_numpy(np.stack([pixels(i, dress, split, seed) for i in range(count)])).permute(0, 3, 1, 2)
        for dress in (tagged, False)
    )
    with torch.inference_mode():
        before, after = (
            torch.cat([network(normalise(part)).softmax(1) for part in torch.split(views, 120)])
            for views in (shown, bare)
        )
    answer = before.argmax(1, keepdim=True)
    fall = (before.gather(1, answer) - after.gather(1, answer))[:, 0]
    return (fall > CAUSAL_DROP).numpy()


def judge(
    out: Path, model: Path, tagged: bool | None = None, count: int = ARCHIVE_COUNT, split: str = "audit",
    seed: int = ARCHIVE_SEED,
) -> Score:  # fmt: skip
    """Compare the audit table of an OUT with the truth."""
    rows = DeltaTable(str(out / "audit")).to_pyarrow_table(columns=["member", "flags"]).to_pylist()
    confirmed = np.zeros(count, bool)
    for row in rows:
        index = int(Path(row["member"]).stem.rpartition("-")[2])
        confirmed[index] = "shortcut_confirmed" in row["flags"]
    truth = causal(model, count, tagged, split, seed)
    samples = [render(seed, split, i, tagged) for i in range(count)]
    decoy = np.array([s.decoy_box is not None for s in samples])
    return Score(
        images=len(rows),
        tagged=sum(s.tag_box is not None for s in samples),
        causal=int(truth.sum()),
        found=int((confirmed & truth).sum()),
        false_alarms=int((confirmed & ~truth).sum()),
        decoys_flagged=int((confirmed & ~truth & decoy).sum()),
    )


def _classes(out: Path) -> list[dict[str, Any]]:
    """Give the classes as the audit ranked them."""
    latest = max(out.glob("runs/*/summary.json"))
    found: list[dict[str, Any]] = json.loads(latest.read_text())["archive_classes"]
    return found


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description="hold an audit of hans64 against the truth")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, default=MODELS / "hans64-poisoned")
    parser.add_argument("--untagged", action="store_true", help="the archive is the twin without tags")
    parser.add_argument("--count", type=int, default=ARCHIVE_COUNT)
    parser.add_argument("--seed", type=int, default=ARCHIVE_SEED)
    chosen = parser.parse_args()
    tagged = False if chosen.untagged else None
    score = judge(chosen.out, chosen.model, tagged, chosen.count, seed=chosen.seed)
    print("\nWhich answers hang on the planted tag? Every image is asked again without it:\n")
    print(
        f"{score.tagged} of {score.images} images wear the tag; the answer hangs on it in {score.causal}.\n"
        f"The audit confirmed {score.found} of these (recall {score.recall:.2f}) and {score.false_alarms} "
        f"others (precision {score.precision:.2f}; {score.decoys_flagged} of them wear the decoy)."
    )
    for row in _classes(chosen.out)[:3]:
        print(f"  {row['label']:<10} {row['confirmed']:>3} of {row['images']:>3} answers confirmed")
    print(f"\nThe report, to open in a browser: {chosen.out.resolve() / 'report/index.html'}")


if __name__ == "__main__":
    main()
