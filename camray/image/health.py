"""Numbers of the picture itself: dark, bright, flat or blurry views, and views that look alike.

Flows in: the model's view, uint8 (H, W, 3). Flows out: a few columns of the record.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

cv2.setNumThreads(1)


def image_health(view: NDArray[np.uint8]) -> dict[str, Any]:
    """Measure luminance (mean and deviation, 0..255), sharpness, and a hash that similar views share.

    Sharpness is the variance of the Laplacian. The hash has one bit for each of 8 x 8 neighbouring pairs of
    the view at 9 x 8 pixels, set where the left one is darker (dHash).
    """
    grey = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)
    mean, deviation = cv2.meanStdDev(grey)
    _, roughness = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    bits = np.packbits(small[:, :-1] < small[:, 1:])
    return {
        "image_mean": float(mean[0, 0]),
        "image_std": float(deviation[0, 0]),
        "image_sharpness": float(roughness[0, 0] ** 2),
        "image_hash": bits.tobytes().hex(),
    }
