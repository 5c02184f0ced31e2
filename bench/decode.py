"""Decoding: seconds and differences of `--fast-decode` against the default, on photographs of several sizes.

    python bench/decode.py IMAGES                 JPEGs, also enlarged to 12 and 48 million pixels

The default decodes every pixel and resizes as timm's evaluation transform does. `--fast-decode` lets libjpeg
leave out what the resize would average away (1/2, 1/4 or 1/8 of the size, at least twice the input's).
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from camray.config import InputSpec
from camray.image.decode import Decoded, decode

SPEC = InputSpec(
    height=224, width=224, resize=(256, 256), crop_mode="center", interpolation="bicubic",
    mean=(0.0,) * 3, std=(1.0,) * 3,
)  # fmt: skip


def enlarged(content: bytes, pixels: float) -> bytes:
    """The same photograph at another number of pixels, as a JPEG of quality 90."""
    with Image.open(io.BytesIO(content)) as image:
        factor = (pixels / (image.width * image.height)) ** 0.5
        size = (round(image.width * factor), round(image.height * factor))
        buffer = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def timed(work: Callable[[], Decoded]) -> tuple[float, Decoded]:
    """Milliseconds, and what came out."""
    began = time.perf_counter()
    found = work()
    return (time.perf_counter() - began) * 1000, found


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=40)
    args = parser.parse_args()
    files = sorted(p for p in args.images.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))[: args.count]
    fast = replace(SPEC, fast_decode=True)
    for name, pixels, count in (("as they are", None, len(files)), ("12 MP", 12e6, 10), ("48 MP", 48e6, 4)):
        whole, reduced, ratios, means, worst = [], [], [], [], []
        for file in files[:count]:
            content = file.read_bytes() if pixels is None else enlarged(file.read_bytes(), pixels)
            slow_ms, reference = timed(lambda c=content: decode(c, SPEC, 10**8))  # type: ignore[misc]
            fast_ms, found = timed(lambda c=content: decode(c, fast, 10**8))  # type: ignore[misc]
            difference = np.abs(reference.pixels.astype(int) - found.pixels)
            assert reference.geometry == found.geometry
            whole.append(slow_ms)
            reduced.append(fast_ms)
            ratios.append(slow_ms / fast_ms)
            means.append(difference.mean())
            worst.append(difference.max())
        print(
            f"    {name:<12} {statistics.median(whole):7.1f} -> {statistics.median(reduced):6.1f} ms, "
            f"{statistics.median(ratios):5.2f} x ({min(ratios):.2f} .. {max(ratios):.2f}); "
            f"levels of 255: mean {statistics.mean(means):.2f}, largest {max(worst)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
