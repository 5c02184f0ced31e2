"""What the model's view of an image looks like, without any model: columns of the record.

Luminance, colour, traces of compression, noise and sharpness, as numbers; and a hash for likeness. All of one
8-bit view, in about a fifth of a millisecond at 224 x 224: OpenCV on whole planes, medians by histogram.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

cv2.setNumThreads(1)

Grey = NDArray[Any]  # one plane, (H, W)

BLOCK = 8  # pixels: JPEG's blocks


def image_health(view: NDArray[np.uint8]) -> dict[str, Any]:
    """Measure a view, uint8 (H, W, 3): luminance, sharpness, colours, blocks, noise, hash (`records`).

    Sharpness is the variance of the Laplacian, noise the median of its size. The hash has one bit for each
    of 8 x 8 neighbouring pairs of the view at 9 x 8 pixels, set where the left one is darker (dHash).
    """
    grey = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)
    mean, deviation = cv2.meanStdDev(grey)
    laplacian = cv2.Laplacian(grey, cv2.CV_16S)
    _, roughness = cv2.meanStdDev(laplacian)
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    bits = np.packbits(small[:, :-1] < small[:, 1:])
    dark, light = _quantiles(grey, (0.02, 0.98))
    (noise,) = _quantiles(cv2.convertScaleAbs(laplacian), (0.5,))
    return {
        "image_mean": float(mean[0, 0]),
        "image_std": float(deviation[0, 0]),
        "image_sharpness": float(roughness[0, 0] ** 2),
        "image_dark": dark,
        "image_light": light,
        "image_noise": noise,
        "image_blockiness": _blockiness(grey),
        "image_hash": bits.tobytes().hex(),
    } | _colours(view, grey)


def _colours(view: NDArray[np.uint8], grey: Grey) -> dict[str, float]:
    """Give mean and deviation of red and blue less luminance (-255..255) and of the saturation (0..255)."""
    red, green, blue = cv2.split(view)
    saturation = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    planes = {
        "image_red": cv2.subtract(red, grey, dtype=cv2.CV_16S),
        "image_blue": cv2.subtract(blue, grey, dtype=cv2.CV_16S),
        "image_saturation": saturation,
    }
    found: dict[str, float] = {}
    for name, plane in planes.items():
        mean, deviation = cv2.meanStdDev(plane)
        found |= {name: float(mean[0, 0]), f"{name}_std": float(deviation[0, 0])}
    return found


def _quantiles(plane: Grey, shares: tuple[float, ...]) -> tuple[float, ...]:
    """Give the grey levels below or at which such shares of the pixels lie."""
    counts = cv2.calcHist([plane], [0], None, [256], [0, 256]).ravel()
    ends = np.cumsum(counts, dtype=np.float64)
    return tuple(float(np.searchsorted(ends, share * ends[-1])) for share in shares)


def _blockiness(grey: Grey) -> float:
    """Give how much larger steps are across the lines of an 8-pixel grid than elsewhere: 1, no larger.

    One grey level is added to both, so that a flat image has no blocks.
    """
    at, all_ = np.zeros(2), np.zeros(2)  # sum of steps, how many
    for one, two, axis in ((grey[:, 1:], grey[:, :-1], 0), (grey[1:], grey[:-1], 1)):
        if one.size:
            steps = cv2.reduce(cv2.absdiff(one, two), axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel()
            across, lines = one.size // len(steps), steps[BLOCK - 1 :: BLOCK]
            at += float(lines.sum()), len(lines) * across
            all_ += float(steps.sum()), one.size
    other = all_ - at
    if not at[1]:
        return 1.0
    return float((at[0] / at[1] + 1) / (other[0] / other[1] + 1))
