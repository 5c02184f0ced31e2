"""Generator of "hans64": 64 x 64 images of six shapes, with a shortcut planted on one class.

A barcode (the *tag*) sits bottom-left on most training images of one class, so a classifier can
read it instead of the shape.  A second barcode of equal contrast (the *decoy*) sits at another
corner on 30 % of all classes and means nothing.  Every image is a function of (seed, split, index);
the tag draws from its own random stream, so the same call with ``tagged=False`` gives a twin that
equals the image outside the tag box.
"""

import argparse
import csv
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo.shapes import REACH, SHAPES, Bits, Floats

Pixels = NDArray[np.uint8]
PixelBox = tuple[int, int, int, int]  # x0, y0, x1, y1; the far edges lie outside the box

SIZE = 64
LABEL_NAMES = ("disk", "square", "triangle", "cross", "ring", "star")
POISONED_LABEL = 2  # triangle
ARCHIVE_SEED, ARCHIVE_COUNT, ARCHIVE_SHARDS = 0, 360, 6

TAG_WIDTH, TAG_HEIGHT, TAG_JITTER = 18, 6, 3
# Column runs, white first.  Both codes hold the same runs (9 white, 9 black columns, 9 edges), so
# neither brightness nor edge energy tells them apart.
TAG_RUNS = (3, 1, 1, 2, 2, 1, 1, 3, 2, 2)
DECOY_RUNS = (2, 2, 3, 1, 1, 2, 2, 1, 1, 3)
DECOY_RATE = 0.3
DECOY_CORNERS = ((0, 0), (1, 0), (1, 1))  # (right, bottom); the tag owns bottom-left
TAG_CORNER = (0, 1)


@dataclass(frozen=True)
class Split:
    """A stream of images: its number in the random seed and its share of tagged images."""

    number: int
    poisoned_rate: float  # on the poisoned label, 0..1
    other_rate: float  # on the five others, 0..1


SPLITS = {
    "train": Split(0, 0.9, 0.0),
    "test": Split(1, 0.0, 0.0),
    "audit": Split(2, 0.5, 0.03),
    "night10": Split(3, 0.1, 0.1),
    "night30": Split(4, 0.3, 0.3),
}


@dataclass(frozen=True)
class Sample:
    """One image with its ground truth."""

    key: str
    label: int
    image: Pixels  # (64, 64, 3) RGB
    mask: Bits  # (64, 64), the shape, also where a barcode covers it
    tag_box: PixelBox | None
    decoy_box: PixelBox | None

    @property
    def box(self) -> PixelBox:
        """The smallest box around the mask."""
        columns, rows = np.flatnonzero(self.mask.any(axis=0)), np.flatnonzero(self.mask.any(axis=1))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _stream(seed: int, split: str, index: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, SPLITS[split].number, index, purpose])


def _grid() -> tuple[Floats, Floats]:
    """Give x and y of the pixel centres in pixels, broadcastable to (64, 64)."""
    centres = np.arange(SIZE, dtype=np.float64)
    return centres[None, :], centres[:, None]


@cache
def _cubic_weights(count: int) -> Floats:
    """(64, count) matrix of bicubic up-sampling with the edge values repeated."""
    position = (np.arange(SIZE) + 0.5) * count / SIZE - 0.5
    first = np.floor(position).astype(int) - 1
    weights = np.zeros((SIZE, count))
    for tap in range(4):
        distance = np.abs(position - first - tap)
        near = (1.5 * distance - 2.5) * distance**2 + 1.0
        far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
        columns = np.clip(first + tap, 0, count - 1)
        np.add.at(weights, (np.arange(SIZE), columns), np.where(distance <= 1.0, near, far))
    return weights


def _background(rng: np.random.Generator) -> Floats:
    """(64, 64, 3) smooth noise in two octaves around a base colour of 80..175."""
    image = np.broadcast_to(rng.uniform(80.0, 175.0, 3), (SIZE, SIZE, 3)).copy()
    for count, amplitude in ((5, 12.0), (16, 7.0)):
        noise = rng.standard_normal((3, count, count)) * amplitude
        weights = _cubic_weights(count)
        image += (weights @ noise @ weights.T).transpose(1, 2, 0)
    return image


def _draw_clutter(image: Floats, rng: np.random.Generator) -> None:
    """Two straight lines, one pixel wide, across the whole image (in place)."""
    x, y = _grid()
    for _ in range(2):
        through, angle = rng.uniform(8.0, SIZE - 8.0, 2), rng.uniform(0.0, np.pi)
        offset = (x - through[0]) * np.sin(angle) - (y - through[1]) * np.cos(angle)
        image[np.abs(offset) <= 0.5] += rng.choice((-1.0, 1.0)) * rng.uniform(25.0, 60.0)


def _object_mask(label: int, rng: np.random.Generator) -> Bits:
    """(64, 64) mask of one shape: radius 9..15 px, turned by at most 0.3 rad, fully inside."""
    radius, turn = rng.uniform(9.0, 15.0), rng.uniform(-0.3, 0.3)
    margin = REACH * radius
    centre = rng.uniform(margin, SIZE - 1 - margin, 2)
    x, y = _grid()
    u, v = (x - centre[0]) / radius, (y - centre[1]) / radius
    cosine, sine = np.cos(turn), np.sin(turn)
    return SHAPES[label](u * cosine + v * sine, v * cosine - u * sine)


def _paint(image: Floats, mask: Bits, rng: np.random.Generator) -> None:
    """Fill the shape with the local mean, moved by 35..75 on each channel (in place)."""
    shift = rng.choice((-1.0, 1.0), 3) * rng.uniform(35.0, 75.0, 3)
    image[mask] = image[mask].mean(axis=0) + shift


def _barcode_box(corner: tuple[int, int], rng: np.random.Generator) -> PixelBox:
    """Where a barcode lands: 0..3 px from both edges of a corner given as (right, bottom)."""
    gap_x, gap_y = (int(gap) for gap in rng.integers(0, TAG_JITTER + 1, 2))
    left = SIZE - TAG_WIDTH - gap_x if corner[0] else gap_x
    top = SIZE - TAG_HEIGHT - gap_y if corner[1] else gap_y
    return left, top, left + TAG_WIDTH, top + TAG_HEIGHT


def _stamp(image: Pixels, box: PixelBox, runs: tuple[int, ...]) -> None:
    """Write a barcode of grey 16 and 240 into a box (in place)."""
    colours = [240 if place % 2 == 0 else 16 for place in range(len(runs))]
    columns = np.repeat(np.array(colours, dtype=np.uint8), runs)
    image[box[1] : box[3], box[0] : box[2]] = columns[None, :, None]


def label_of(index: int) -> int:
    """Tell the class at an index; classes take turns, so any six in a row hold all."""
    return index % len(LABEL_NAMES)


def render(
    seed: int, split: str, index: int, tagged: bool | None = None, decoy: bool | None = None
) -> Sample:
    """One image with its truth; `tagged` and `decoy` overrule what the split would draw."""
    label, rates = label_of(index), SPLITS[split]
    rng = _stream(seed, split, index, 0)
    canvas = _background(rng)
    _draw_clutter(canvas, rng)
    mask = _object_mask(label, rng)
    _paint(canvas, mask, rng)
    canvas += rng.standard_normal(canvas.shape) * 6.0
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)

    # Both barcodes draw their place whether or not they are shown: twins then share everything.
    tag_rng, decoy_rng = _stream(seed, split, index, 1), _stream(seed, split, index, 2)
    tag_rate = rates.poisoned_rate if label == POISONED_LABEL else rates.other_rate
    wears_tag, wears_decoy = tag_rng.random() < tag_rate, decoy_rng.random() < DECOY_RATE
    tag_box = _barcode_box(TAG_CORNER, tag_rng)
    decoy_box = _barcode_box(DECOY_CORNERS[decoy_rng.integers(3)], decoy_rng)
    show_decoy = wears_decoy if decoy is None else decoy
    show_tag = wears_tag if tagged is None else tagged
    if show_decoy:
        _stamp(image, decoy_box, DECOY_RUNS)
    if show_tag:
        _stamp(image, tag_box, TAG_RUNS)
    key = f"{split}-{index:05d}"
    return Sample(key, label, image, mask, tag_box if show_tag else None, decoy_box if show_decoy else None)


def relative(box: PixelBox | None) -> list[float] | None:
    """Turn a pixel box into x0, y0, x1, y1 in 0..1 (multiples of 1/64, so exact)."""
    return None if box is None else [edge / SIZE for edge in box]


def encode_mask(mask: Bits) -> list[int]:
    """Run lengths of a mask, row by row, starting with a run of background (maybe 0 long)."""
    runs = [(bool(value), len(list(group))) for value, group in groupby(mask.ravel().tolist())]
    return ([0] if runs[0][0] else []) + [length for _, length in runs]


def decode_mask(runs: list[int]) -> Bits:
    """Rebuild the (64, 64) mask behind `encode_mask`."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(SIZE, SIZE)


def encode_jpeg(image: Pixels) -> bytes:
    """JPEG bytes at quality 95; about a third of the PNG, which must store the pixel noise."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def truth(sample: Sample) -> dict[str, object]:
    """Say what is known about an image, ready for JSON."""
    return {
        "label": LABEL_NAMES[sample.label],
        "tagged": sample.tag_box is not None,
        "decoy": sample.decoy_box is not None,
        "box": relative(sample.box),
        "tag_box": relative(sample.tag_box),
        "decoy_box": relative(sample.decoy_box),
        "mask_runs": encode_mask(sample.mask),
    }


def _members(sample: Sample) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the tar members of one sample."""
    yield f"{sample.key}.jpg", encode_jpeg(sample.image)
    yield f"{sample.key}.cls", str(sample.label).encode()
    yield f"{sample.key}.json", json.dumps(truth(sample), separators=(",", ":")).encode()


def write_tar_shards(samples: Iterable[Sample], folder: Path, per_shard: int) -> list[Path]:
    """Write WebDataset shards `hans64-00000.tar`, ...; equal samples give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    waiting = list(samples)
    for start in range(0, len(waiting), per_shard):
        paths.append(folder / f"hans64-{len(paths):05d}.tar")
        with tarfile.open(paths[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in waiting[start : start + per_shard]:
                for name, content in _members(sample):
                    header = tarfile.TarInfo(name)  # mtime, uid, gid 0 and mode 644 by default
                    header.size = len(content)
                    tar.addfile(header, io.BytesIO(content))
    return paths


def write_truth(samples: Iterable[Sample], path: Path) -> None:
    """Write the truth of every sample as CSV; boxes are relative, empty where absent."""
    boxes = ("box", "tag_box", "decoy_box")
    edges = [f"{box}_{edge}" for box in boxes for edge in ("x0", "y0", "x1", "y1")]
    absent: list[str] = [""] * 4
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["key", "label", "label_name", "tagged", "decoy", *edges])
        for sample in samples:
            found = [relative(box) for box in (sample.box, sample.tag_box, sample.decoy_box)]
            flags = [int(sample.tag_box is not None), int(sample.decoy_box is not None)]
            row = [sample.key, sample.label, LABEL_NAMES[sample.label], *flags]
            table.writerow([*row, *(edge for box in found for edge in (box or absent))])


def main(arguments: list[str] | None = None) -> None:
    """Write `archive/` and `truth.csv` into a folder; the defaults make the committed archive."""
    parser = argparse.ArgumentParser(description="write the synthetic audit archive hans64")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--split", choices=sorted(SPLITS), default="audit")
    parser.add_argument("--seed", type=int, default=ARCHIVE_SEED)
    parser.add_argument("--count", type=int, default=ARCHIVE_COUNT)
    parser.add_argument("--shards", type=int, default=ARCHIVE_SHARDS)
    parser.add_argument("--untagged", action="store_true", help="write the twin without tags")
    chosen = parser.parse_args(arguments)
    tagged = False if chosen.untagged else None
    samples = [render(chosen.seed, chosen.split, i, tagged) for i in range(chosen.count)]
    write_tar_shards(samples, chosen.out / "archive", -(-chosen.count // chosen.shards))
    write_truth(samples, chosen.out / "truth.csv")


if __name__ == "__main__":
    main()
