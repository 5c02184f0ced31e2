"""Pictures for people: the heatmap over the model's view, or over the original image in the right place.

Flows in: uint8 RGB images and layer-resolution maps. Flows out: encoded JPEG bytes and safe file names.
"""

from __future__ import annotations

import re
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from camray.records import Geometry

Image = NDArray[np.uint8]
Map = NDArray[np.float32]

ORIGINAL_SIDE = 1024  # an overlay on the original is drawn at most this large
INPUT_SIDE = 224  # an overlay on a smaller input is enlarged by a whole factor to at least this


def overlay_on_input(image: Image, heat: Map, alpha: float) -> Image:
    """Blend a map (h, w) over the model's input (H, W, 3): more heat, more colour, up to `alpha`."""
    factor = -(-INPUT_SIDE // min(image.shape[:2]))  # rounded up; nearest, so that pixels stay pixels
    image = image.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = image.shape[:2]
    return _blend(image, _resized(_unit(heat), width, height), alpha)


def overlay_on_original(image: Image, heat: Map, geometry: Geometry, alpha: float) -> Image:
    """Blend a map over the upright original; what the model never saw is dimmed, not stretched over."""
    scale = min(1.0, ORIGINAL_SIDE / max(geometry.width, geometry.height))
    width, height = max(1, round(geometry.width * scale)), max(1, round(geometry.height * scale))
    if (width, height) != (geometry.width, geometry.height):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
    h, w = heat.shape
    # Pixel centre of the drawn image -> source -> input share -> map cell, as bilinear resizing would.
    to_x = _axis(width, geometry.width, geometry.crop_x0, geometry.crop_x1, w)
    to_y = _axis(height, geometry.height, geometry.crop_y0, geometry.crop_y1, h)
    grid_x, grid_y = np.meshgrid(to_x, to_y)
    unit = cv2.remap(_unit(heat), grid_x, grid_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    seen = np.outer((to_y >= -0.5) & (to_y <= h - 0.5), (to_x >= -0.5) & (to_x <= w - 0.5))  # inside the crop
    drawn = _blend(image, np.where(seen, unit, 0).astype(np.float32), alpha)
    return np.where(seen[..., None], drawn, image // 2 + 48).astype(np.uint8)


def encode_jpeg(image: Image, quality: int) -> bytes:
    """Encode RGB as JPEG, from pixels alone: no metadata of the source survives."""
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError("OpenCV could not encode the overlay")
    return bytes(data)


def overlay_path(explainer: str, shard_id: str, index: int, key: str) -> str:
    """Name an overlay: safe whatever the member is called, unique by shard content and index."""
    slug = re.sub(r"[^a-z0-9]+", "-", key.rpartition("/")[2].lower())[:40].strip("-")
    return f"overlays/{explainer}/{shard_id}/{index:06d}{'-' if slug else ''}{slug}.jpg"


def _axis(pixels: int, length: int, low: float, high: float, cells: int) -> NDArray[np.float32]:
    source = (np.arange(pixels) + 0.5) * length / pixels
    return ((source - low) / (high - low) * cells - 0.5).astype(np.float32)


def _unit(heat: Map) -> Map:
    """Scale the positive part to 0..1; a dead map stays 0."""
    positive = np.maximum(heat, 0, dtype=np.float32)
    top = float(positive.max())
    return (positive / top).astype(np.float32) if top > 0 else positive


def _resized(heat: Map, width: int, height: int) -> Map:
    return cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)


def _blend(image: Image, unit: Map, alpha: float) -> Image:
    """Mix in the colour map with weight alpha * heat, so that cold regions keep the image's own colours."""
    colours = _colour_table()[np.clip(unit * 255, 0, 255).astype(np.uint8)]  # (H, W, 3)
    weight = (alpha * np.sqrt(np.clip(unit, 0, 1)))[..., None]
    return np.round(image * (1 - weight) + colours * weight).astype(np.uint8)


@cache
def _colour_table() -> NDArray[np.float32]:
    """RGB of OpenCV's TURBO colour map: (256, 3)."""
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    return cv2.applyColorMap(ramp, cv2.COLORMAP_TURBO)[:, 0, ::-1].astype(np.float32)
