"""Boxes and mask of an image, once its size is known: boxes in shares of its sides, the mask on the input.

Both are taken to be of the upright image, as a browser or an annotation tool shows it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from camray.archive.boxes import shares
from camray.config import InputSpec
from camray.errors import ErrorCode, ImageError
from camray.image.decode import open_mask
from camray.image.fit import fit_image, plan_fit
from camray.records import Geometry

_ASPECT_SLACK = 0.02


def regions_of(row: dict[str, Any], geometry: Geometry, spec: InputSpec, max_pixels: int) -> dict[str, Any]:
    """Give the `boxes` and the `mask` of a decoded item, null where it has none.

    Raises:
        ImageError: the mask cannot be decoded, or is of another shape than the image.
    """
    boxes = shares(row["boxes"] or [], bool(row["boxes_in_pixels"]), geometry.width, geometry.height)
    mask = None if row["mask"] is None else _mask_on_input(row["mask"], geometry, spec, max_pixels)
    return {"boxes": boxes or None, "mask": mask}


def _mask_on_input(content: bytes, geometry: Geometry, spec: InputSpec, max_pixels: int) -> bytes:
    try:
        mask = open_mask(content, max_pixels)
    except ImageError as error:
        raise ImageError(error.code, f"mask: {error.message}") from None
    stretch = (mask.width * geometry.height) / (mask.height * geometry.width)
    if abs(stretch - 1) > _ASPECT_SLACK:
        raise ImageError(
            ErrorCode.CORRUPT_IMAGE,
            f"mask: {mask.width} x {mask.height} pixels, of another shape than the image's "
            f"{geometry.width} x {geometry.height}",
        )
    fit = plan_fit(geometry.width, geometry.height, spec)
    fitted = fit_image(mask.convert("RGB"), fit, replace(spec, interpolation="bilinear", fill=(0, 0, 0)))
    return np.ascontiguousarray(np.asarray(fitted)[..., 0]).tobytes()
